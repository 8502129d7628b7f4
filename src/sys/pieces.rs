//! Copies of many bytes, in pieces.
//!
//! The C library copies some thousand bytes and more by one instruction (`rep movsb`) where the
//! processor says that it is good at it. AMD's since Zen 3 say so, and are 20 times slower with it
//! when source and destination lie within 64 bytes of each other in their pages, as a mapping's first
//! byte and a fresh allocation's do: 2.6 instead of 40 GB/s were measured (Zen 5, glibc 2.36). Pieces
//! of 2 KiB are copied by vector instructions, and no slower than the best elsewhere.

/// Bytes of a piece.
pub(crate) const LEN: usize = 2048;

/// Appends `more` to `bytes`.
#[inline]
pub(crate) fn append(bytes: &mut Vec<u8>, more: &[u8]) {
    bytes.reserve(more.len());
    for piece in more.chunks(LEN) {
        bytes.extend_from_slice(piece);
    }
}
