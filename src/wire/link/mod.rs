//! One direction of a stream socket, as the two ends see it: frames in, frames out.
//!
//! [`Outlet`] sends and [`Inlet`] receives. Neither belongs to a runtime (see [`reactor`](crate::sys::reactor)),
//! both can be awaited, polled and used by a thread that blocks, and both can be handed over to
//! another process with what they hold. What an outlet still holds when nobody waits for it any
//! more is sent by the [`leftovers`] thread.

mod inlet;
mod leftovers;
mod outlet;

pub(crate) use self::inlet::{Inlet, Next};
pub(crate) use self::leftovers::wait_for_leftovers;
pub(crate) use self::outlet::{Encoded, Outlet, Refusal};

/// Where an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Here,
    /// In a value that is being handed over, which may still fail.
    Leaving,
    Left,
}

/// How often an operation that has not to wait asks tokio whether it is another task's turn.
///
/// To ask takes as long as half of what a short message takes, and tokio lets a task have 128
/// turns before it makes it wait, which is some 10 microseconds of such messages.
#[derive(Debug, Default)]
struct Pace(u8);

impl Pace {
    const QUICK: u8 = 8;

    /// Whether this one need not ask.
    #[inline]
    fn is_quick(&mut self) -> bool {
        self.0 = self.0.wrapping_add(1);
        !self.0.is_multiple_of(Self::QUICK)
    }
}

/// Why an end cannot be sent away.
const LEAVING: &str = "the end of a pipe is in another message that is being sent";
const LEFT: &str = "the end of a pipe has been sent to another process";

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::error::RecvError;
    use crate::sys::socket::{self, Wait};
    use crate::wire::fds::Outgoing;
    use crate::wire::frame::{HEADER_LEN, Header};

    const LIMIT: u32 = 1000;

    /// An inlet, and the socket of a peer that writes what it likes.
    fn inlet() -> (UnixStream, Inlet) {
        let (peer, ours) = UnixStream::pair().unwrap();
        (peer, Inlet::new(ours.into(), LIMIT, (&[], Vec::new())))
    }

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        [&Header::new(kind, 0, body.len()).to_bytes(), body].concat()
    }

    #[test]
    fn a_stream_that_ends_inside_of_a_frame_is_torn_and_otherwise_closed() {
        let whole = frame(1, b"whole");
        for cut in 0..=whole.len() {
            let (mut peer, inlet) = inlet();
            peer.write_all(&whole).unwrap();
            peer.write_all(&whole[..cut]).unwrap();
            drop(peer);

            assert_eq!(inlet.blocking_next().unwrap().body, "whole");
            let end = inlet.blocking_next();
            match cut {
                0 => assert!(matches!(end, Err(RecvError::Closed)), "{cut}: {end:?}"),
                _ if cut == whole.len() => assert!(end.is_ok()),
                _ => {
                    assert!(matches!(end, Err(RecvError::Torn)), "{cut}: {end:?}");
                    assert!(matches!(inlet.try_next(), Err(RecvError::Torn)));
                }
            }
        }
    }

    #[test]
    fn what_a_peer_sent_is_received_though_it_left_without_reading() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut to_peer = ours.try_clone().unwrap();
        let inlet = Inlet::new(ours.into(), LIMIT, (&[], Vec::new()));
        to_peer.write_all(b"unread").unwrap();
        peer.write_all(&frame(1, b"last")).unwrap();
        drop(peer);

        assert_eq!(inlet.blocking_next().unwrap().body, "last");
        assert!(matches!(inlet.blocking_next(), Err(RecvError::Closed)));
    }

    #[test]
    fn what_breaks_the_protocol_is_an_error_each_time() {
        let fds = frame(1, b"");
        let claims_fds = [&fds[..5], &[3], &fds[6..]].concat();
        for bytes in [vec![0xff; HEADER_LEN], claims_fds, frame(0xff, b"")] {
            let (mut peer, inlet) = inlet();
            peer.write_all(&bytes).unwrap();
            for _ in 0..2 {
                let refused = inlet.blocking_next();
                assert!(
                    matches!(refused, Err(RecvError::Protocol(_))),
                    "{refused:?}"
                );
            }
        }
    }

    #[test]
    fn descriptors_that_no_frame_claims_are_closed_with_the_endpoint() {
        let (peer, inlet) = inlet();
        let (reader, writer) = std::io::pipe().unwrap();
        let bytes = frame(1, b"");
        let slices = [IoSlice::new(&bytes)];
        socket::send_with_fds(&peer, &slices, &[writer.as_fd()], Wait::Yes).unwrap();
        drop(writer);

        assert!(matches!(inlet.blocking_next(), Err(RecvError::Protocol(_))));
        drop(inlet);

        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
    }

    #[test]
    fn an_outlet_that_is_dropped_sends_the_rest_from_another_thread() {
        let (ours, peer) = UnixStream::pair().unwrap();
        let outlet = Outlet::new(OwnedFd::from(ours), u32::MAX, Vec::new());
        let mut bytes = outlet.buffer();
        let body = vec![7; 5 << 20];
        bytes[..HEADER_LEN].copy_from_slice(&Header::new(1, 0, body.len()).to_bytes());
        bytes.extend_from_slice(&body);
        let outgoing = Outgoing::default();
        outlet.try_send(Encoded { bytes, outgoing }).unwrap();
        drop(outlet);

        let inlet = Inlet::new(peer.into(), u32::MAX, (&[], Vec::new()));
        assert!(inlet.blocking_next().unwrap().body == body);
        assert!(matches!(inlet.blocking_next(), Err(RecvError::Closed)));
    }
}
