//! Frames: how a stream of bytes and descriptors is cut into messages. No I/O.
//!
//! A frame is a header of 16 bytes and a body. Descriptors that belong to it are attached to its
//! first byte, so the kernel hands them out no later than the header; a frame that claims more
//! than have come by then is malformed. The body's length is checked against the channel's limit
//! before anything is reserved for it.
//!
//! The kernel takes [`FDS_PER_FRAME_MAX`] descriptors at once. A value with more of them sends the
//! rest ahead, in frames of the kind [`MORE_FDS`] without a body, on every channel.
//!
//! The kernel ends a read behind the bytes whose descriptors it hands out. So those of one read
//! belong to one frame, the only one that begins in that read and has any, and they are kept
//! together until its header, of which more may be still to come, claims them all. A process that
//! runs out of descriptors is told so: the first of a frame's are handed out and the others dropped.
//! That frame is read to its end and refused, its descriptors are closed, and the stream goes on.

use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::{Buf, Bytes, BytesMut};

use crate::sys::socket::FDS_PER_MESSAGE;

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 16;

/// The most descriptors of one frame.
pub(crate) const FDS_PER_FRAME_MAX: usize = FDS_PER_MESSAGE;

/// The most descriptors of one value: more than a process may have open by default.
pub(crate) const FDS_PER_VALUE_MAX: usize = 16 * FDS_PER_FRAME_MAX;

/// The kind of a frame without a body whose descriptors belong to the next frame.
pub(crate) const MORE_FDS: u8 = u8::MAX;

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
    #[inline]
    pub(crate) fn new(kind: u8, aux: u64, len: usize) -> Self {
        let len = u32::try_from(len).expect("a limit of at most 4 GiB was checked before");
        Self {
            len,
            kind,
            n_fds: 0,
            aux,
        }
    }

    /// The header of a frame that carries `n_fds` descriptors for the frame behind it.
    pub(crate) fn more_fds(n_fds: usize) -> Self {
        Self::new(MORE_FDS, 0, 0).with_fds(n_fds)
    }

    /// The same with `n_fds` descriptors attached, at most [`FDS_PER_FRAME_MAX`].
    #[inline]
    pub(crate) fn with_fds(self, n_fds: usize) -> Self {
        assert!(
            n_fds <= FDS_PER_FRAME_MAX,
            "{n_fds} descriptors in one frame"
        );
        let n_fds = n_fds as u8;
        Self { n_fds, ..self }
    }

    /// For the wire.
    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = self.kind;
        bytes[5] = self.n_fds;
        bytes[8..].copy_from_slice(&self.aux.to_le_bytes());
        bytes
    }

    /// From the wire.
    #[inline]
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
    /// The frame claims more or fewer descriptors than came with it.
    #[error("frame claims {claimed} descriptors and brought {came}")]
    OtherFds { claimed: u8, came: usize },
    /// Descriptors came that no frame claims.
    #[error("{0} descriptors came that no frame claims")]
    SurplusFds(usize),
    /// More descriptors for one value than any value has.
    #[error("more than {FDS_PER_VALUE_MAX} descriptors came for one frame")]
    TooManyFds,
    /// The kernel dropped descriptors of this frame. The frame has been read, and the stream can
    /// be read on.
    #[error("this process is out of file descriptors")]
    FdsLost,
}

/// Cuts a stream into frames.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// Bytes that are not a whole frame yet; the current frame's header has been taken out.
    buffer: BytesMut,
    /// Descriptors that no header has claimed yet, those of each frame together.
    brought: VecDeque<Brought>,
    /// The frame that is being read.
    current: Option<Header>,
    /// Descriptors of the frame that is being read, and those that were sent ahead.
    claimed: Vec<OwnedFd>,
    /// The frame that is being read has lost descriptors.
    crippled: bool,
    limit: u32,
    /// About how long the longest of the last frames was.
    recent_len: usize,
    /// What the buffer was made for.
    buffer_len_max: usize,
}

/// Descriptors that came with one read.
#[derive(Debug)]
struct Brought {
    fds: Vec<OwnedFd>,
    /// The kernel has dropped others.
    incomplete: bool,
}

/// How many may wait for their headers: those of all frames of one value, and of the one behind it.
const BROUGHT_MAX: usize = FDS_PER_VALUE_MAX / FDS_PER_FRAME_MAX + 2;

/// How many bytes are asked for when nothing is known of what comes: at least and at most.
const CHUNK: usize = 64 << 10;
const CHUNK_MAX: usize = 4 << 20;

/// Up to this length two frames are read at once.
const PAIRED_MAX: usize = 2 * CHUNK;

/// A buffer that was made for less than this is not given up.
const KEPT: usize = 4 * CHUNK;

/// One that was made for more is, when nothing is in it, whatever comes: an idle stream is not to hold
/// hundreds of megabytes. To have the kernel clear as many pages again takes no longer than to fill
/// them.
const KEPT_MAX: usize = 16 << 20;

/// So many bytes are copied faster than their buffer is shared.
const COPIED_MAX: usize = 1 << 10;

impl Splitter {
    /// Bodies may have up to `limit` bytes.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            buffer: BytesMut::new(),
            brought: VecDeque::new(),
            current: None,
            claimed: Vec::new(),
            crippled: false,
            limit,
            recent_len: 0,
            buffer_len_max: 0,
        }
    }

    /// Bodies may have up to `limit` bytes from the next frame on.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Where to append what is read, and how much to read at most.
    pub(crate) fn room(&mut self) -> (&mut BytesMut, usize) {
        let room = match self.current {
            // Read to its end and not beyond, lest the beginning of the next one be moved.
            Some(header) if header.len as usize >= CHUNK / 4 => {
                header.len as usize - self.buffer.len()
            }
            // Frames tend to be as long as those before. Long ones are best read one by one; of
            // others there is room for one more, as a read that is not filled need not be repeated
            // to learn that there is nothing left.
            _ => match self.recent_len + HEADER_LEN {
                len @ ..=PAIRED_MAX => (2 * len).max(CHUNK),
                len => len.min(CHUNK_MAX),
            },
        };
        self.buffer_len_max = self.buffer_len_max.max(self.buffer.len() + room);
        (&mut self.buffer, room)
    }

    /// Takes the descriptors that came with the bytes just read, of which the kernel may have
    /// dropped some.
    pub(crate) fn add_fds(&mut self, fds: Vec<OwnedFd>, incomplete: bool) {
        if incomplete || !fds.is_empty() {
            self.brought.push_back(Brought { fds, incomplete });
        }
    }

    /// The next whole frame, or nothing until more is read.
    ///
    /// # Errors
    ///
    /// The stream is malformed and cannot be read any further; but after
    /// [`FrameError::FdsLost`] it can.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.whole_frame()? else {
            return Ok(None);
        };
        self.current = None;
        let len = header.len as usize;
        let body = self.buffer.split_to(len).freeze();
        let fds = mem::take(&mut self.claimed);
        self.forget_large_buffer(len);
        if mem::take(&mut self.crippled) {
            return Err(FrameError::FdsLost);
        }
        if self.buffer.is_empty() && !self.brought.is_empty() {
            return Err(self.surplus());
        }
        Ok(Some(Frame { header, body, fds }))
    }

    /// The next frame's kind, its body being appended to `into`, if it is what most are: short, whole,
    /// and without descriptors near it. What is wrong with a frame is told by
    /// [`next_frame`](Self::next_frame).
    #[inline]
    pub(crate) fn copy_frame(&mut self, into: &mut Vec<u8>) -> Option<u8> {
        if self.current.is_some() || !self.brought.is_empty() || !self.claimed.is_empty() {
            return None;
        }
        let header = Header::from_bytes(self.buffer.first_chunk()?).ok()?;
        let len = header.len as usize;
        let is_plain = header.n_fds == 0
            && header.kind != MORE_FDS
            && header.len <= self.limit
            && len <= COPIED_MAX;
        if !is_plain {
            return None;
        }
        into.extend_from_slice(self.buffer.get(HEADER_LEN..HEADER_LEN + len)?);
        self.buffer.advance(HEADER_LEN + len);
        self.forget_large_buffer(len);
        Some(header.kind)
    }

    /// Whether [`next_frame`](Self::next_frame) has a frame to give.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn is_frame_ready(&mut self) -> Result<bool, FrameError> {
        Ok(self.whole_frame()?.is_some())
    }

    /// The header of the first frame, if all of it has come.
    #[inline]
    fn whole_frame(&mut self) -> Result<Option<Header>, FrameError> {
        loop {
            let Some(header) = self.current_header()? else {
                return Ok(None);
            };
            if self.buffer.len() < header.len as usize {
                return Ok(None);
            }
            if header.kind != MORE_FDS {
                return Ok(Some(header));
            }
            self.current = None;
        }
    }

    /// The header of the frame that is being read. It is checked once, and its descriptors are
    /// claimed.
    #[inline]
    fn current_header(&mut self) -> Result<Option<Header>, FrameError> {
        // While a frame is read, nobody but the one behind it can have begun.
        let brought_max = if self.current.is_some() {
            1
        } else {
            BROUGHT_MAX
        };
        if self.brought.len() > brought_max {
            return Err(self.surplus());
        }
        if self.current.is_some() {
            return Ok(self.current);
        }
        let Some(bytes) = self.buffer.first_chunk() else {
            return Ok(None);
        };
        let header = Header::from_bytes(bytes)?;
        if header.len > self.limit {
            return Err(FrameError::TooLong {
                len: header.len,
                limit: self.limit,
            });
        }
        if header.kind == MORE_FDS && (header.len > 0 || header.n_fds == 0) {
            return Err(FrameError::BadHeader);
        }
        let n_fds = usize::from(header.n_fds);
        if self.claimed.len() + n_fds > FDS_PER_VALUE_MAX {
            return Err(FrameError::TooManyFds);
        }
        if n_fds > 0 {
            match self.brought.pop_front() {
                Some(brought) if brought.incomplete => self.crippled = true,
                Some(brought) if brought.fds.len() == n_fds => self.claimed.extend(brought.fds),
                brought => {
                    return Err(FrameError::OtherFds {
                        claimed: header.n_fds,
                        came: brought.map_or(0, |brought| brought.fds.len()),
                    });
                }
            }
        }
        self.buffer.advance(HEADER_LEN);
        self.current = Some(header);
        Ok(self.current)
    }

    /// Lets go of a buffer that was made for frames much longer than those that come now.
    #[inline]
    fn forget_large_buffer(&mut self, len: usize) {
        self.recent_len = len.max(self.recent_len - self.recent_len / 16);
        let kept = (4 * self.recent_len).clamp(KEPT, KEPT_MAX);
        if self.buffer.is_empty() && self.buffer_len_max > kept {
            self.buffer = BytesMut::new();
            self.buffer_len_max = 0;
        }
    }

    /// Whether the stream ends between two frames, if it ends here.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.buffer.is_empty()
            && self.brought.is_empty()
            && self.current.is_none()
            && self.claimed.is_empty()
    }

    /// What was read beyond the last frame, for whoever reads the stream from here on.
    pub(crate) fn into_rest(self) -> (BytesMut, VecDeque<OwnedFd>) {
        let bytes = self
            .rest()
            .map_or_else(BytesMut::new, |(bytes, _)| bytes[..].into());
        let brought = self.brought.into_iter().flat_map(|brought| brought.fds);
        (bytes, self.claimed.into_iter().chain(brought).collect())
    }

    /// The same for a reader that may have to go on here; the descriptors as they came together.
    ///
    /// Nothing, if descriptors were lost on the way.
    pub(crate) fn rest(&self) -> Option<(Vec<u8>, Vec<Vec<BorrowedFd<'_>>>)> {
        if self.crippled || self.brought.iter().any(|brought| brought.incomplete) {
            return None;
        }
        // The headers that were taken out of the buffer are written again.
        let own = self.current.map_or(0, |header| usize::from(header.n_fds));
        let (ahead, own) = self.claimed.split_at(self.claimed.len() - own);
        let mut bytes = Vec::new();
        for group in ahead.chunks(FDS_PER_FRAME_MAX) {
            bytes.extend(Header::more_fds(group.len()).to_bytes());
        }
        bytes.extend(self.current.iter().flat_map(|header| header.to_bytes()));
        bytes.extend(&self.buffer);
        let groups = ahead.chunks(FDS_PER_FRAME_MAX).chain([own]);
        let groups = groups.chain(self.brought.iter().map(|brought| &*brought.fds));
        let groups = groups.filter(|fds| !fds.is_empty());
        let groups = groups.map(|fds| fds.iter().map(AsFd::as_fd).collect());
        Some((bytes, groups.collect()))
    }

    fn surplus(&self) -> FrameError {
        let numbers = self.brought.iter().map(|brought| brought.fds.len());
        FrameError::SurplusFds(numbers.sum())
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
            FrameError::OtherFds {
                claimed: 2,
                came: 0
            }
        );
    }

    #[test]
    fn descriptors_that_no_frame_claims_are_refused() {
        let mut splitter = Splitter::new(LIMIT);
        splitter.add_fds(some_fds(1), false);
        splitter.room().0.extend_from_slice(&stream(&[b"x"]));

        assert_eq!(
            splitter.next_frame().unwrap_err(),
            FrameError::SurplusFds(1)
        );
    }

    fn some_fds(n: usize) -> Vec<OwnedFd> {
        let one = OwnedFd::from(std::io::pipe().unwrap().0);
        (0..n).map(|_| one.try_clone().unwrap()).collect()
    }

    fn header_of(bytes: &mut BytesMut, header: Header) {
        bytes.extend_from_slice(&header.to_bytes());
    }

    #[test]
    fn descriptors_sent_ahead_belong_to_the_next_frame() {
        let mut splitter = Splitter::new(LIMIT);
        for n_fds in [FDS_PER_FRAME_MAX, FDS_PER_FRAME_MAX] {
            splitter.add_fds(some_fds(n_fds), false);
            header_of(splitter.room().0, Header::more_fds(n_fds));
            assert!(splitter.next_frame().unwrap().is_none());
            assert!(!splitter.is_at_boundary());
        }
        splitter.add_fds(some_fds(3), false);
        header_of(splitter.room().0, Header::new(7, 0, 0).with_fds(3));

        let frame = splitter.next_frame().unwrap().unwrap();

        assert_eq!(frame.fds.len(), 2 * FDS_PER_FRAME_MAX + 3);
        assert!(splitter.is_at_boundary());
    }

    #[test]
    fn descriptors_sent_ahead_without_end_are_refused() {
        let mut splitter = Splitter::new(LIMIT);
        let refused = loop {
            splitter.add_fds(some_fds(FDS_PER_FRAME_MAX), false);
            header_of(splitter.room().0, Header::more_fds(FDS_PER_FRAME_MAX));
            if let Err(refused) = splitter.next_frame() {
                break refused;
            }
        };

        assert_eq!(refused, FrameError::TooManyFds);
    }

    #[test]
    fn descriptors_inside_of_a_body_are_refused_before_they_are_many() {
        let mut splitter = Splitter::new(LIMIT);
        header_of(splitter.room().0, Header::new(7, 0, LIMIT as usize));
        let mut n_fds = 0;
        let refused = loop {
            splitter.add_fds(some_fds(FDS_PER_FRAME_MAX), false);
            n_fds += FDS_PER_FRAME_MAX;
            splitter.room().0.extend_from_slice(&[0]);
            if let Err(refused) = splitter.next_frame() {
                break refused;
            }
        };

        assert_eq!(refused, FrameError::SurplusFds(n_fds));
        assert_eq!(n_fds, 2 * FDS_PER_FRAME_MAX);
    }

    #[test]
    fn a_frame_that_lost_descriptors_is_refused_alone() {
        for came in 0..3 {
            let mut splitter = Splitter::new(LIMIT);
            splitter.add_fds(some_fds(came), true);
            let (buffer, _) = splitter.room();
            buffer.extend_from_slice(&stream(&[b"before"]));
            header_of(buffer, Header::new(7, 0, 4).with_fds(3));
            buffer.extend_from_slice(b"ha");
            assert_eq!(splitter.next_frame().unwrap().unwrap().body, "before");
            assert!(splitter.next_frame().unwrap().is_none());

            // The rest of the body comes together with the next frame and its descriptor.
            splitter.add_fds(some_fds(1), false);
            let (buffer, _) = splitter.room();
            buffer.extend_from_slice(b"lf");
            header_of(buffer, Header::new(7, 0, 5).with_fds(1));
            buffer.extend_from_slice(b"after");

            assert_eq!(splitter.next_frame().unwrap_err(), FrameError::FdsLost);
            let after = splitter.next_frame().unwrap().unwrap();
            assert_eq!((&after.body[..], after.fds.len()), (&b"after"[..], 1));
            assert!(splitter.is_at_boundary());
        }
    }

    #[test]
    fn the_rest_of_a_stream_can_be_read_by_another() {
        let mut splitter = Splitter::new(LIMIT);
        for n_fds in [FDS_PER_FRAME_MAX, FDS_PER_FRAME_MAX] {
            splitter.add_fds(some_fds(n_fds), false);
            header_of(splitter.room().0, Header::more_fds(n_fds));
            assert!(splitter.next_frame().unwrap().is_none());
        }
        splitter.add_fds(some_fds(2), false);
        let (buffer, _) = splitter.room();
        header_of(buffer, Header::new(7, 9, 4).with_fds(2));
        buffer.extend_from_slice(b"ha");
        assert!(splitter.next_frame().unwrap().is_none());

        let (bytes, fds) = splitter.rest().unwrap();
        let mut other = Splitter::new(LIMIT);
        for fds in fds {
            let copies = fds.iter().map(|fd| fd.try_clone_to_owned().unwrap());
            other.add_fds(copies.collect(), false);
        }
        other.room().0.extend_from_slice(&bytes);
        other.room().0.extend_from_slice(b"lf");

        let frame = other.next_frame().unwrap().unwrap();
        assert_eq!((frame.header.kind, frame.header.aux), (7, 9));
        assert_eq!(frame.body, "half");
        assert_eq!(frame.fds.len(), 2 * FDS_PER_FRAME_MAX + 2);
    }

    /// A read that ends inside of a header brings the descriptors of its frame, or not all of them.
    #[test]
    fn descriptors_are_claimed_by_the_frame_that_they_came_with() {
        for (came, incomplete) in [(1, false), (1, true), (0, true)] {
            let mut splitter = Splitter::new(LIMIT);
            let first = Header::new(7, 0, 0).with_fds(1).to_bytes();
            splitter.add_fds(some_fds(came), incomplete);
            splitter.room().0.extend_from_slice(&first[..9]);
            assert!(splitter.next_frame().unwrap().is_none());

            splitter.add_fds(some_fds(2), false);
            let (buffer, _) = splitter.room();
            buffer.extend_from_slice(&first[9..]);
            header_of(buffer, Header::new(8, 0, 0).with_fds(2));

            match splitter.next_frame() {
                Ok(frame) => assert_eq!((frame.unwrap().fds.len(), incomplete), (1, false)),
                Err(error) => assert_eq!((error, incomplete), (FrameError::FdsLost, true)),
            }
            let second = splitter.next_frame().unwrap().unwrap();
            assert_eq!((second.header.kind, second.fds.len()), (8, 2));
        }
    }

    #[test]
    fn a_buffer_made_for_one_long_frame_is_given_up() {
        let mut splitter = Splitter::new(u32::MAX);
        let long = vec![0; 10 << 20];
        assert_eq!(feed(&mut splitter, &stream(&[&long])).len(), 1);

        for _ in 0..200 {
            assert_eq!(feed(&mut splitter, &stream(&[b"short"])).len(), 1);
        }

        assert!(
            splitter.buffer_len_max <= KEPT,
            "{}",
            splitter.buffer_len_max
        );
    }

    #[test]
    fn bytes_that_are_no_header_are_refused() {
        let mut splitter = Splitter::new(LIMIT);
        splitter.room().0.extend_from_slice(&[0xff; HEADER_LEN]);

        assert_eq!(splitter.next_frame().unwrap_err(), FrameError::BadHeader);
    }
}
