//! remoc: its base channel over a Unix stream.

use std::os::fd::OwnedFd;
use std::time::Instant;

use remoc::rch::base::{Receiver, Sender};

use crate::harness::{median_us_async, per_op_ns, runtime};
use crate::kernel;
use crate::message::{Large, Small, count, large};
use crate::raw::unix_stream;
use crate::rival::{Place, Rival};

/// Microseconds there and back.
pub(crate) fn round_trip(place: Place) -> f64 {
    place.take();
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let (mut sender, mut receiver) = connect::<Small>(theirs).await;
            while let Ok(Some(message)) = receiver.recv().await {
                sender.send(message).await.expect("a peer");
            }
        });
    });
    runtime().block_on(async {
        let (mut sender, mut receiver) = connect::<Small>(ours).await;
        let message = Small::new(1);
        median_us_async(10_000, async || {
            sender.send(message).await.expect("a peer");
            assert_eq!(receiver.recv().await.expect("a peer"), Some(message));
        })
        .await
    })
}

/// Nanoseconds a typed message, one way.
pub(crate) fn small() -> f64 {
    one_way(count(64), Small::new)
}

/// Nanoseconds a message of bytes, one way.
pub(crate) fn bytes(len: usize) -> f64 {
    one_way::<Large>(count(len), move |_| large(len))
}

fn one_way<T: remoc::RemoteSend + Sync>(n: usize, message: impl Fn(u64) -> T) -> f64 {
    let (ours, theirs) = kernel::socket_pair(libc::SOCK_STREAM);
    let _rival = Rival::start(|| {
        runtime().block_on(async {
            let (mut sender, _receiver) = connect::<T>(theirs).await;
            for number in 0..=n as u64 {
                assert!(sender.send(message(number)).await.is_ok(), "a peer");
            }
            std::future::pending::<()>().await;
        });
    });
    runtime().block_on(async {
        let (_sender, mut receiver) = connect::<T>(ours).await;
        receiver.recv().await.expect("a peer");
        let started = Instant::now();
        for _ in 0..n {
            assert!(receiver.recv().await.expect("a peer").is_some());
        }
        per_op_ns(started.elapsed(), n)
    })
}

async fn connect<T: remoc::RemoteSend + Sync>(socket: OwnedFd) -> (Sender<T>, Receiver<T>) {
    let (read, write) = unix_stream(socket).into_split();
    let connected = remoc::Connect::io(remoc::Cfg::default(), read, write).await;
    let (connection, sender, receiver) = connected.expect("a connection");
    tokio::spawn(connection);
    (sender, receiver)
}
