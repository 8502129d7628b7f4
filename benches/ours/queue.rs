//! Queues: small and large items from one process to another, from four to four, and there and back.

use std::borrow::Cow;
use std::time::Instant;

use tokio_multiprocess::{AsyncQueue, Process, QueueReceiver, QueueSender};

use crate::harness::{median_us_async, per_op_ns, runtime};

/// How many items may wait.
const CAPACITY: usize = 1024;

/// Text, which serde passes on whole; the bytes of a `Vec<u8>` it would take one by one. Who puts it
/// keeps its own, as Python does.
type Item = Cow<'static, str>;

async fn produce((queue, n, len): (QueueSender<(u64, Item)>, u64, usize)) {
    let body: &str = "7".repeat(len).leak();
    for i in 0..n {
        queue.put((i, body.into())).await.expect("it is got");
    }
}

async fn consume((queue, n): (QueueReceiver<(u64, Item)>, QueueSender<u64>)) {
    let mut count = 0;
    while queue.get().await.is_ok() {
        count += 1;
    }
    n.put(count).await.expect("it is got");
}

/// Nanoseconds an item of `len` bytes, from `each` processes to as many.
pub(crate) fn items(each: u64, n_items: u64, len: usize) -> f64 {
    runtime().block_on(async {
        let capacity = if len > 100_000 { 8 } else { CAPACITY };
        let (sender, receiver) = AsyncQueue::bounded(capacity).expect("a queue").split();
        let (count, counts) = AsyncQueue::unbounded().expect("a queue").split();
        let mut children = Vec::new();
        for _ in 0..each {
            let arg = (receiver.clone(), count.clone());
            children.push(Process::start(consume, arg).await.expect("a child"));
        }
        let begun = Instant::now();
        for _ in 0..each {
            let arg = (sender.clone(), n_items / each, len);
            children.push(Process::start(produce, arg).await.expect("a child"));
        }
        drop((sender, receiver, count));
        let mut total = 0;
        while let Ok(n) = counts.get().await {
            total += n;
        }
        let elapsed = begun.elapsed();
        assert_eq!(total, n_items / each * each);
        for child in children {
            child.join().await.expect("a clean end");
        }
        per_op_ns(elapsed, n_items as usize)
    })
}

/// Nanoseconds an item of 128 bytes that is put, when so many of two are got at once.
pub(crate) fn backlog(n_got: usize) -> f64 {
    const ROUNDS: usize = 20_000;
    let queue = AsyncQueue::<Item>::unbounded().expect("a queue");
    let body: &str = "7".repeat(128).leak();
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        for _ in 0..2 {
            queue.try_put(body.into()).expect("there is room");
        }
        for _ in 0..n_got {
            queue.try_get().expect("an item");
        }
    }
    per_op_ns(begun.elapsed(), 2 * ROUNDS)
}

async fn echo((input, output): (QueueReceiver<Item>, QueueSender<Item>)) {
    while let Ok(item) = input.get().await {
        output.put(item).await.expect("it is got");
    }
}

/// Microseconds of a round trip of 64 bytes by two queues.
pub(crate) fn round_trip() -> f64 {
    runtime().block_on(async {
        let (there, input) = AsyncQueue::bounded(1).expect("a queue").split();
        let (output, back) = AsyncQueue::bounded(1).expect("a queue").split();
        let child = Process::start(echo, (input, output))
            .await
            .expect("a child");
        let figure = median_us_async(3000, async || {
            there.put("7".repeat(64).into()).await.expect("it is got");
            assert_eq!(back.get().await.expect("an item").len(), 64);
        });
        let figure = figure.await;
        drop(there);
        child.join().await.expect("a clean end");
        figure
    })
}
