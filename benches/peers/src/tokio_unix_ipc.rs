//! tokio-unix-ipc: typed by serde, and its raw channel.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use tokio_unix_ipc::{Receiver, Sender, channel_from_std, raw_channel_from_std};

use crate::harness::{median_us_async, per_op_ns, runtime};
use crate::kernel;
use crate::message::{Large, Small, count, large};
use crate::rival::{Place, Rival};

/// Microseconds there and back.
pub(crate) fn round_trip(place: Place) -> f64 {
    place.take();
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let (sender, receiver) = ends::<Small>(theirs);
            while let Ok(message) = receiver.recv().await {
                sender.send(message).await.expect("a peer");
            }
        });
    });
    runtime().block_on(async {
        let (sender, receiver) = ends::<Small>(ours);
        let message = Small::new(1);
        median_us_async(20_000, async || {
            sender.send(message).await.expect("a peer");
            assert_eq!(receiver.recv().await.expect("a peer"), message);
        })
        .await
    })
}

/// Nanoseconds a typed message, one way.
pub(crate) fn small() -> f64 {
    one_way(count(64), Small::new)
}

/// Nanoseconds a message of bytes in a typed channel, one way.
pub(crate) fn typed_bytes(len: usize) -> f64 {
    one_way::<Large>(count(len), move |_| large(len))
}

/// Nanoseconds a message in the raw channel, one way.
pub(crate) fn raw(len: usize) -> f64 {
    let n = count(len);
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let (sender, _receiver) = raw_channel_from_std(stream(theirs)).expect("a channel");
            let message = vec![7; len];
            for _ in 0..=n {
                sender.send(&message, &[]).await.expect("a peer");
            }
            std::future::pending::<()>().await;
        });
    });
    runtime().block_on(async {
        let (_sender, receiver) = raw_channel_from_std(stream(ours)).expect("a channel");
        receiver.recv().await.expect("a peer");
        let started = Instant::now();
        for _ in 0..n {
            assert_eq!(receiver.recv().await.expect("a peer").0.len(), len);
        }
        per_op_ns(started.elapsed(), n)
    })
}

fn one_way<T>(n: usize, message: impl Fn(u64) -> T) -> f64
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let (sender, _receiver) = ends::<T>(theirs);
            for number in 0..=n as u64 {
                sender.send(message(number)).await.expect("a peer");
            }
            std::future::pending::<()>().await;
        });
    });
    runtime().block_on(async {
        let (_sender, receiver) = ends::<T>(ours);
        receiver.recv().await.expect("a peer");
        let started = Instant::now();
        for _ in 0..n {
            receiver.recv().await.expect("a peer");
        }
        per_op_ns(started.elapsed(), n)
    })
}

fn ends<T>(socket: OwnedFd) -> (Sender<T>, Receiver<T>)
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    channel_from_std(stream(socket)).expect("a channel")
}

fn stream(socket: OwnedFd) -> UnixStream {
    kernel::set_nonblocking(&socket);
    socket.into()
}
