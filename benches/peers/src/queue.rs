//! This library's queue: a child by the default method puts, this process gets.

use std::borrow::Cow;
use std::time::Instant;

use tokio_multiprocess::{AsyncQueue, Process, QueueReceiver, QueueSender};

use crate::harness::{median_us_async, per_op_ns, runtime};
use crate::message::{Small, count};
use crate::rival::Place;

/// A large message, of which who puts it keeps its own, as all the others do.
type Text = Cow<'static, str>;

/// How many messages may wait: as many as iceoryx2 keeps here, and fewer large ones.
const CAPACITY: usize = 64;
const CAPACITY_LARGE: usize = 8;

/// Microseconds there and back.
pub(crate) fn round_trip(place: Place) -> f64 {
    place.take();
    runtime().block_on(async {
        let (there, input) = AsyncQueue::bounded(1).expect("a queue").split();
        let (output, back) = AsyncQueue::bounded(1).expect("a queue").split();
        let rival = Process::builder().kill_on_drop(true);
        let _rival = rival.start(echo, (input, output)).await.expect("a process");
        let message = Small::new(1);
        median_us_async(20_000, async || {
            there.put(message).await.expect("a peer");
            assert_eq!(back.get().await.expect("a peer"), message);
        })
        .await
    })
}

/// Nanoseconds a typed message, one way.
pub(crate) fn small() -> f64 {
    let n = count(64);
    runtime().block_on(async {
        let (sender, receiver) = AsyncQueue::bounded(CAPACITY).expect("a queue").split();
        let rival = Process::builder().kill_on_drop(true);
        let _rival = rival
            .start(put, (sender, n as u64))
            .await
            .expect("a process");
        receiver.get().await.expect("a peer");
        let started = Instant::now();
        for number in 1..=n as u64 {
            assert_eq!(receiver.get().await.expect("a peer").number(), number);
        }
        per_op_ns(started.elapsed(), n)
    })
}

/// Nanoseconds a typed message of text, one way.
pub(crate) fn text(len: usize) -> f64 {
    let n = count(len);
    runtime().block_on(async {
        let capacity = if len > 1 << 16 {
            CAPACITY_LARGE
        } else {
            CAPACITY
        };
        let (sender, receiver) = AsyncQueue::<Text>::bounded(capacity)
            .expect("a queue")
            .split();
        let rival = Process::builder().kill_on_drop(true);
        let _rival = rival
            .start(put_text, (sender, len, n))
            .await
            .expect("a process");
        receiver.get().await.expect("a peer");
        let started = Instant::now();
        for _ in 0..n {
            assert_eq!(receiver.get().await.expect("a peer").len(), len);
        }
        per_op_ns(started.elapsed(), n)
    })
}

async fn echo((input, output): (QueueReceiver<Small>, QueueSender<Small>)) {
    while let Ok(message) = input.get().await {
        output.put(message).await.expect("a peer");
    }
}

async fn put((sender, n): (QueueSender<Small>, u64)) {
    for number in 0..=n {
        sender.put(Small::new(number)).await.expect("a peer");
    }
}

async fn put_text((sender, len, n): (QueueSender<Text>, usize, usize)) {
    let message: &str = "7".repeat(len).leak();
    for _ in 0..=n {
        sender.put(message.into()).await.expect("a peer");
    }
}
