//! What parent and child say to each other on the control socket before the child's own business
//! begins, and the result of a child that is one function call.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::process::function::Place;
use crate::sys::image::ImageId;
use crate::sys::socket::{self, Wait};
use crate::wire::frame::{FDS_PER_FRAME_MAX, HEADER_LEN, Header};

/// Parent to child: who to be and what to run.
pub(crate) const START: u8 = 1;
/// Child to parent: it is the right program and about to run the main function.
pub(crate) const STARTED: u8 = 2;
/// Child to parent: it is not; the body says why.
pub(crate) const REFUSED: u8 = 3;
/// Worker to parent: it takes tasks from now on.
pub(crate) const READY: u8 = 4;
/// Worker to parent: its initializer panicked; the body is the encoded panic.
pub(crate) const NOT_READY: u8 = 5;
/// Child to parent: the encoded result.
pub(crate) const RESULT: u8 = 6;
/// Child to parent: there is no result; `aux` and the body say why.
pub(crate) const FAILED: u8 = 7;

/// Changes with everything that parent and child must agree on.
const PROTOCOL: &str = concat!(env!("CARGO_PKG_VERSION"), "/1");
const PROTOCOL_LEN: usize = 16;
const IMAGE_LEN: usize = 24;

/// The first message.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) main: Place,
    /// An encoded [`Inheritance`](crate::process::inherit::Inheritance).
    pub(crate) inheritance: Bytes,
    /// For the main function.
    pub(crate) payload: Bytes,
}

impl Start {
    /// The whole body; `image` is that of the parent.
    pub(crate) fn to_body(&self, image: ImageId) -> BytesMut {
        let inheritance_len = u32::try_from(self.inheritance.len()).unwrap_or(u32::MAX);
        let capacity = 128 + self.inheritance.len() + self.payload.len();
        let mut body = BytesMut::with_capacity(capacity);
        body.extend_from_slice(&protocol());
        body.extend_from_slice(&image.to_bytes());
        body.extend_from_slice(&self.main.to_bytes());
        body.extend_from_slice(&inheritance_len.to_le_bytes());
        body.extend_from_slice(&self.inheritance);
        body.extend_from_slice(&self.payload);
        body
    }

    /// Reads a body in the child, which refuses what another program or version has sent.
    pub(crate) fn from_body(mut body: Bytes) -> Result<Self, String> {
        let fixed = PROTOCOL_LEN + IMAGE_LEN + 8 + 4;
        if body.len() < fixed || body[..PROTOCOL_LEN] != protocol() {
            return Err("it runs another version of tokio-multiprocess".to_owned());
        }
        body.advance(PROTOCOL_LEN);
        let image =
            ImageId::current().map_err(|error| format!("it cannot see its file: {error}"))?;
        if body[..IMAGE_LEN] != image.to_bytes() {
            return Err("it runs another executable".to_owned());
        }
        body.advance(IMAGE_LEN);
        let main = Place::from_bytes(body.get_u64_le().to_le_bytes());
        let inheritance_len = body.get_u32_le() as usize;
        if inheritance_len > body.len() {
            return Err("its first message is too short".to_owned());
        }
        let inheritance = body.split_to(inheritance_len);
        Ok(Self {
            main,
            inheritance,
            payload: body,
        })
    }
}

fn protocol() -> [u8; PROTOCOL_LEN] {
    let mut bytes = [0; PROTOCOL_LEN];
    let len = PROTOCOL.len().min(PROTOCOL_LEN);
    bytes[..len].copy_from_slice(&PROTOCOL.as_bytes()[..len]);
    bytes
}

/// Sends one frame, waiting while the socket is full.
pub(crate) fn send(
    socket: impl AsFd,
    kind: u8,
    aux: u64,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let header = header(kind, aux, body.len(), fds.len())?.to_bytes();
    let slices = [IoSlice::new(&header), IoSlice::new(body)];
    let sent = socket::send_with_fds(&socket, &slices, fds, Wait::Yes)?;
    socket::send_all(&socket, header.get(sent..).unwrap_or_default())?;
    socket::send_all(
        &socket,
        body.get(sent.saturating_sub(HEADER_LEN)..)
            .unwrap_or_default(),
    )
}

/// Sends an encoded value with as many descriptors as it holds, waiting while the socket is full.
pub(crate) fn send_value(
    socket: impl AsFd,
    kind: u8,
    body: &[u8],
    fds: &[Arc<OwnedFd>],
) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    let (before, last) = split_fds(&fds);
    for fds in before {
        let header = Header::more_fds(fds.len()).to_bytes();
        let sent = socket::send_with_fds(&socket, &[IoSlice::new(&header)], fds, Wait::Yes)?;
        socket::send_all(&socket, &header[sent..])?;
    }
    send(&socket, kind, 0, body, last)
}

/// What goes with frames of their own, and what goes with the value's.
pub(crate) fn split_fds<'a, 'b>(
    fds: &'a [BorrowedFd<'b>],
) -> (
    impl Iterator<Item = &'a [BorrowedFd<'b>]>,
    &'a [BorrowedFd<'b>],
) {
    let n_last = if fds.is_empty() {
        0
    } else {
        (fds.len() - 1) % FDS_PER_FRAME_MAX + 1
    };
    let (before, last) = fds.split_at(fds.len() - n_last);
    (before.chunks(FDS_PER_FRAME_MAX), last)
}

/// The header of a frame with descriptors.
pub(crate) fn header(kind: u8, aux: u64, len: usize, n_fds: usize) -> io::Result<Header> {
    if u32::try_from(len).is_err() || n_fds > FDS_PER_FRAME_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message is too long",
        ));
    }
    Ok(Header::new(kind, aux, len).with_fds(n_fds))
}
