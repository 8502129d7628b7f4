//! Frames: how a stream of bytes and descriptors is cut into messages. No I/O.
//!
//! A frame is a header of 16 bytes and a body. Descriptors that belong to it are attached to its
//! first byte, so the kernel hands them out no later than the header; a frame that claims more
//! than have come by then is malformed. The body's length is checked against the channel's limit
//! before anything is reserved for it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 16;

/// The first bytes of a frame, little-endian: length, kind, descriptors, two zeros, `aux`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the body.
    pub(crate) len: u32,
    /// What the body is; each channel has its own kinds.
    pub(crate) kind: u8,
    /// Descriptors that came with the frame.
    pub(crate) n_fds: u8,
    /// A number whose meaning depends on the kind.
    pub(crate) aux: u64,
}

impl Header {
    /// The header of a body of `len` bytes, which the caller has checked against its limit.
    pub(crate) fn new(kind: u8, aux: u64, len: usize) -> Self {
        let len = u32::try_from(len).expect("a limit of at most 4 GiB was checked before");
        Self {
            len,
            kind,
            n_fds: 0,
            aux,
        }
    }

    /// For the wire.
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = self.kind;
        bytes[5] = self.n_fds;
        bytes[8..].copy_from_slice(&self.aux.to_le_bytes());
        bytes
    }

    /// From the wire.
    pub(crate) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, kind, n_fds, 0, 0, aux @ ..] = *bytes else {
            return Err(FrameError::BadHeader);
        };
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        Ok(Self {
            len,
            kind,
            n_fds,
            aux: u64::from_le_bytes(aux),
        })
    }
}

/// One whole message.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Bytes,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why a stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// Bytes that are no header.
    #[error("malformed frame header")]
    BadHeader,
    /// A body that is longer than the channel allows.
    #[error("frame of {len} bytes exceeds the limit of {limit}")]
    TooLong { len: u32, limit: u32 },
    /// The frame claims descriptors that did not come with it.
    #[error("frame claims {claimed} descriptors and brought {came}")]
    MissingFds { claimed: u8, came: usize },
    /// Descriptors came that no frame claims.
    #[error("{0} descriptors came that no frame claims")]
    SurplusFds(usize),
}

/// Cuts a stream into frames.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// Bytes that are not a whole frame yet.
    buffer: BytesMut,
    /// Descriptors of frames that are not whole yet.
    fds: VecDeque<OwnedFd>,
    limit: u32,
}

/// How many bytes are asked for when nothing is known of what comes.
const CHUNK: usize = 64 << 10;

impl Splitter {
    /// Bodies may have up to `limit` bytes.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            buffer: BytesMut::new(),
            fds: VecDeque::new(),
            limit,
        }
    }

    /// Where to append what is read, and how much to read at most.
    pub(crate) fn room(&mut self) -> (&mut BytesMut, usize) {
        // A frame whose length is known is read without growing the buffer again and again.
        let rest = match self.header() {
            Ok(Some(header)) if header.len <= self.limit => {
                (HEADER_LEN + header.len as usize).saturating_sub(self.buffer.len())
            }
            _ => 0,
        };
        (&mut self.buffer, rest.max(CHUNK))
    }

    /// Takes descriptors that came with the bytes just read.
    pub(crate) fn add_fds(&mut self, fds: impl IntoIterator<Item = OwnedFd>) {
        self.fds.extend(fds);
    }

    /// The next whole frame, or nothing until more is read.
    ///
    /// # Errors
    ///
    /// The stream is malformed and cannot be read any further.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        if header.len > self.limit {
            return Err(FrameError::TooLong {
                len: header.len,
                limit: self.limit,
            });
        }
        let n_fds = usize::from(header.n_fds);
        if n_fds > self.fds.len() {
            return Err(FrameError::MissingFds {
                claimed: header.n_fds,
                came: self.fds.len(),
            });
        }
        if self.buffer.len() < HEADER_LEN + header.len as usize {
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        let body = self.buffer.split_to(header.len as usize).freeze();
        let fds = self.fds.drain(..n_fds).collect();
        if self.buffer.is_empty() && !self.fds.is_empty() {
            return Err(FrameError::SurplusFds(self.fds.len()));
        }
        Ok(Some(Frame { header, body, fds }))
    }

    /// Whether the stream ends between two frames, if it ends here.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.buffer.is_empty() && self.fds.is_empty()
    }

    /// What was read beyond the last frame, for whoever reads the stream from here on.
    pub(crate) fn into_rest(self) -> (BytesMut, VecDeque<OwnedFd>) {
        (self.buffer, self.fds)
    }

    fn header(&self) -> Result<Option<Header>, FrameError> {
        self.buffer
            .first_chunk()
            .map(Header::from_bytes)
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 1000;

    fn stream(bodies: &[&[u8]]) -> Vec<u8> {
        let frame = |body: &&[u8]| [&Header::new(7, 9, body.len()).to_bytes(), *body].concat();
        bodies.iter().flat_map(frame).collect()
    }

    fn feed(splitter: &mut Splitter, bytes: &[u8]) -> Vec<Bytes> {
        splitter.room().0.extend_from_slice(bytes);
        std::iter::from_fn(|| splitter.next_frame().unwrap())
            .map(|frame| frame.body)
            .collect()
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_frames() {
        let bodies: [&[u8]; 4] = [b"one", b"", b"three", &[3; 900]];
        let bytes = stream(&bodies);
        for cut in 0..=bytes.len() {
            let mut splitter = Splitter::new(LIMIT);
            let mut seen = feed(&mut splitter, &bytes[..cut]);
            seen.extend(feed(&mut splitter, &bytes[cut..]));
            assert_eq!(seen, bodies, "cut at {cut}");
            assert!(splitter.is_at_boundary());
        }
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
        let mut splitter = Splitter::new(LIMIT);
        splitter
            .room()
            .0
            .extend_from_slice(&Header::new(0, 0, 1001).to_bytes());

        let refused = splitter.next_frame().unwrap_err();

        assert_eq!(
            refused,
            FrameError::TooLong {
                len: 1001,
                limit: LIMIT
            }
        );
        assert_eq!(splitter.room().1, CHUNK);
    }

    #[test]
    fn a_frame_that_claims_descriptors_it_has_not_is_refused() {
        let mut splitter = Splitter::new(LIMIT);
        let header = Header {
            n_fds: 2,
            ..Header::new(0, 0, 50)
        };
        splitter.room().0.extend_from_slice(&header.to_bytes());

        assert_eq!(
            splitter.next_frame().unwrap_err(),
            FrameError::MissingFds {
                claimed: 2,
                came: 0
            }
        );
    }

    #[test]
    fn descriptors_that_no_frame_claims_are_refused() {
        let mut splitter = Splitter::new(LIMIT);
        splitter.add_fds([std::io::pipe().unwrap().0.into()]);
        splitter.room().0.extend_from_slice(&stream(&[b"x"]));

        assert_eq!(
            splitter.next_frame().unwrap_err(),
            FrameError::SurplusFds(1)
        );
    }

    #[test]
    fn bytes_that_are_no_header_are_refused() {
        let mut splitter = Splitter::new(LIMIT);
        splitter.room().0.extend_from_slice(&[0xff; HEADER_LEN]);

        assert_eq!(splitter.next_frame().unwrap_err(), FrameError::BadHeader);
    }
}
