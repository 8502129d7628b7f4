//! The floors: a stream socket in tokio, with nothing on it but bytes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter, Interest};
use tokio::net::UnixStream;

use crate::harness::{median_us_async, per_op_ns, runtime};
use crate::kernel;
use crate::message::count;
use crate::rival::{Place, Rival};

const ROUND_TRIPS: usize = 20_000;
const LEN: usize = 64;

/// Microseconds there and back, registered for reading only.
pub(crate) fn round_trip(place: Place) -> f64 {
    place.take();
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let socket = register(theirs);
            let mut bytes = [0; LEN];
            loop {
                receive(&socket, &mut bytes).await;
                send(&socket, &bytes);
            }
        });
    });
    runtime().block_on(async {
        let socket = register(ours);
        let mut bytes = [7; LEN];
        median_us_async(ROUND_TRIPS, async || {
            send(&socket, &bytes);
            receive(&socket, &mut bytes).await;
        })
        .await
    })
}

/// The same with tokio's own type.
pub(crate) fn round_trip_unix_stream(place: Place) -> f64 {
    place.take();
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let mut stream = unix_stream(theirs);
            let mut bytes = [0; LEN];
            while stream.read_exact(&mut bytes).await.is_ok() {
                stream.write_all(&bytes).await.expect("a peer");
            }
        });
    });
    runtime().block_on(async {
        let mut stream = unix_stream(ours);
        let mut bytes = [7; LEN];
        median_us_async(ROUND_TRIPS, async || {
            stream.write_all(&bytes).await.expect("a peer");
            stream.read_exact(&mut bytes).await.expect("a peer");
        })
        .await
    })
}

/// Nanoseconds a message one way: small ones through a buffer of 64 KiB, large ones one by one.
pub(crate) fn one_way(len: usize) -> f64 {
    let n = count(len);
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let mut stream = BufWriter::with_capacity(64 << 10, unix_stream(theirs));
            let message = vec![7; len];
            for _ in 0..n {
                stream.write_all(&message).await.expect("a peer");
            }
            stream.flush().await.expect("a peer");
            std::future::pending::<()>().await;
        });
    });
    runtime().block_on(async {
        let mut stream = unix_stream(ours);
        let mut bytes = vec![0; len.max(64 << 10)];
        // The first byte: the peer is up.
        let mut received = stream.read(&mut bytes).await.expect("a peer");
        let started = Instant::now();
        while received < n * len {
            received += stream.read(&mut bytes).await.expect("a peer");
        }
        per_op_ns(started.elapsed(), n)
    })
}

pub(crate) fn unix_stream(fd: OwnedFd) -> UnixStream {
    kernel::set_nonblocking(&fd);
    UnixStream::from_std(fd.into()).expect("a registration")
}

fn register(fd: OwnedFd) -> AsyncFd<OwnedFd> {
    kernel::set_nonblocking(&fd);
    // SAFETY: an `OwnedFd` is open, and the same, for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.expect("a registration")
}

async fn receive(socket: &AsyncFd<OwnedFd>, into: &mut [u8]) {
    let mut filled = 0;
    while filled < into.len() {
        match kernel::try_read(socket.as_raw_fd(), &mut into[filled..]) {
            Ok(0) => panic!("the peer is gone"),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await.expect("a driver").clear_ready();
            }
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// One message at a time is on its way: it always fits.
fn send(socket: &AsyncFd<OwnedFd>, bytes: &[u8]) {
    let n = kernel::try_write(socket.as_raw_fd(), bytes).expect("room");
    assert_eq!(n, bytes.len());
}
