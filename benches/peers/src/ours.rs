//! This library: the ends of a pipe are arguments of a process that it starts.

use std::time::Instant;

use tokio_multiprocess::{AsyncPipe, PipeReceiver, PipeSender, Process, pipe};

use crate::harness::{median_us_async, per_op_ns, runtime};
use crate::message::{Large, Small, count, large};
use crate::rival::Place;

/// Microseconds there and back.
pub(crate) fn round_trip(place: Place) -> f64 {
    place.take();
    runtime().block_on(async {
        let (ours, theirs) = AsyncPipe::<Small, Small>::pair().expect("a pipe");
        let rival = Process::builder().kill_on_drop(true);
        let _rival = rival.start(echo, theirs).await.expect("a process");
        let message = Small::new(1);
        median_us_async(20_000, async || {
            ours.send(message).await.expect("a peer");
            assert_eq!(ours.recv().await.expect("a peer"), message);
        })
        .await
    })
}

/// Nanoseconds a typed message, one way, fed: flushed when the buffer is full, and at the end.
pub(crate) fn small() -> f64 {
    let n = count(64);
    runtime().block_on(async {
        let (sender, receiver) = pipe::one_way::<Small>().expect("a pipe");
        let rival = Process::builder().kill_on_drop(true);
        let _rival = rival
            .start(feed, (sender, n as u64))
            .await
            .expect("a process");
        receiver.recv().await.expect("a peer");
        let started = Instant::now();
        for number in 1..=n as u64 {
            assert_eq!(receiver.recv().await.expect("a peer").number(), number);
        }
        per_op_ns(started.elapsed(), n)
    })
}

/// Nanoseconds a typed message of bytes, one way, fed.
pub(crate) fn typed_bytes(len: usize) -> f64 {
    let n = count(len);
    runtime().block_on(async {
        let (sender, receiver) = pipe::one_way::<Large>().expect("a pipe");
        let rival = Process::builder().kill_on_drop(true);
        let _rival = rival
            .start(feed_bytes, (sender, len, n))
            .await
            .expect("a process");
        receiver.recv().await.expect("a peer");
        let started = Instant::now();
        for _ in 0..n {
            assert_eq!(receiver.recv().await.expect("a peer").len(), len);
        }
        per_op_ns(started.elapsed(), n)
    })
}

/// Nanoseconds a message of bytes, one way.
pub(crate) fn bytes(len: usize) -> f64 {
    let n = count(len);
    runtime().block_on(async {
        let (sender, receiver): (_, PipeReceiver<()>) = pipe::one_way().expect("a pipe");
        // 64 MiB are the limit that a pipe begins with.
        receiver.set_limit(len + 64);
        sender.set_limit(len + 64);
        let rival = Process::builder().kill_on_drop(true);
        let _rival = rival
            .start(send, (sender, len, n))
            .await
            .expect("a process");
        receiver.recv_bytes().await.expect("a peer");
        let started = Instant::now();
        for _ in 0..n {
            assert_eq!(receiver.recv_bytes().await.expect("a peer").len(), len);
        }
        per_op_ns(started.elapsed(), n)
    })
}

async fn echo(pipe: AsyncPipe<Small, Small>) {
    while let Ok(message) = pipe.recv().await {
        pipe.send(message).await.expect("a peer");
    }
}

async fn feed((sender, n): (PipeSender<Small>, u64)) {
    for number in 0..=n {
        sender.feed(Small::new(number)).await.expect("a peer");
    }
    sender.flush().await.expect("a peer");
}

async fn feed_bytes((sender, len, n): (PipeSender<Large>, usize, usize)) {
    let message = large(len);
    for _ in 0..=n {
        sender.feed(message.clone()).await.expect("a peer");
    }
    sender.flush().await.expect("a peer");
}

async fn send((sender, len, n): (PipeSender<()>, usize, usize)) {
    let message = vec![7; len];
    for _ in 0..=n {
        sender.send_bytes(&message).await.expect("a peer");
    }
}
