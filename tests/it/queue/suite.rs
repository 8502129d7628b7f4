//! What holds for a queue whichever way its other processes were started.
//!
//! Each function here is a test that is told the way. `super` runs them for the two safe methods, and
//! tests/fork.rs for the fork. A forked child has copies of all handles that its parent had, so where
//! a child is to find the end of a queue, the queue is closed.

use std::os::fd::OwnedFd;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio_multiprocess::sync::Event;
use tokio_multiprocess::{AsyncQueue, GetError, Process, PutError, QueueReceiver, QueueSender};

use super::By;
use crate::soon;

async fn put_twenty(queue: QueueSender<u32>) {
    for i in 0..20 {
        queue.put(i).await.unwrap();
    }
}

pub(crate) async fn items_of_a_child_arrive_in_order(by: By) {
    let (sender, receiver) = AsyncQueue::bounded(3).unwrap().split();
    let child = by.start_async(put_twenty, sender).await;

    let items: Vec<u32> = soon(receiver.into_stream().try_collect()).await.unwrap();

    assert_eq!(items, (0..20).collect::<Vec<_>>());
    soon(child.join()).await.unwrap();
}

async fn get_all(queue: QueueReceiver<u32>) -> Vec<u32> {
    queue.into_stream().try_collect().await.unwrap()
}

pub(crate) async fn items_reach_a_child_in_order(by: By) {
    let (sender, receiver) = AsyncQueue::bounded(3).unwrap().split();
    let child = by.start_async(get_all, receiver).await;

    for i in 0..20 {
        soon(sender.put(i)).await.unwrap();
    }
    sender.close();

    assert_eq!(
        soon(child.join()).await.unwrap(),
        (0..20).collect::<Vec<_>>()
    );
}

pub(crate) async fn a_queue_ends_when_its_producers_are_gone(by: By) {
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let first = by.start_async(put_twenty, sender.clone()).await;
    let second = by.start_async(put_twenty, sender).await;

    let items: Vec<u32> = soon(receiver.into_stream().try_collect()).await.unwrap();

    assert_eq!(items.len(), 40);
    soon(first.join()).await.unwrap();
    soon(second.join()).await.unwrap();
}

async fn put_one_and_stay((queue, done): (QueueSender<u32>, Event)) {
    queue.put(1).await.unwrap();
    done.set();
    std::future::pending::<()>().await;
}

pub(crate) async fn a_queue_ends_when_its_producers_are_killed(by: By) {
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let done = Event::new().unwrap();
    let child = by
        .start_async(put_one_and_stay, (sender, done.clone()))
        .await;
    soon(done.wait()).await.unwrap();
    let ends = tokio::spawn(async move {
        let first = receiver.get().await.unwrap();
        (first, receiver.get().await)
    });

    child.kill().unwrap();

    let (first, end) = soon(ends).await.unwrap();
    assert_eq!(first, 1);
    assert!(matches!(end, Err(GetError::Closed)), "{end:?}");
}

pub(crate) async fn a_full_queue_makes_a_child_wait(by: By) {
    let (sender, receiver) = AsyncQueue::bounded(2).unwrap().split();
    let child = by.start_async(put_twenty, sender).await;

    for i in 0..20 {
        assert!(receiver.len() <= 2);
        assert_eq!(soon(receiver.get()).await.unwrap(), i);
    }
    soon(child.join()).await.unwrap();
}

async fn stay((_queue, ready): (QueueReceiver<u32>, Event)) {
    ready.set();
    std::future::pending::<()>().await;
}

pub(crate) async fn a_producer_gets_its_item_back_when_the_consumers_are_killed(by: By) {
    let (sender, receiver) = AsyncQueue::bounded(1).unwrap().split();
    let ready = Event::new().unwrap();
    let child = by.start_async(stay, (receiver, ready.clone())).await;
    soon(ready.wait()).await.unwrap();
    soon(sender.put(1)).await.unwrap();
    let waits = tokio::spawn(async move { sender.put(2).await });

    child.kill().unwrap();

    let refused = soon(waits).await.unwrap();
    assert!(matches!(refused, Err(PutError::Closed(2))), "{refused:?}");
}

async fn echo((input, output): (QueueReceiver<Vec<u8>>, QueueSender<Vec<u8>>)) {
    while let Ok(item) = input.get().await {
        output.put(item).await.unwrap();
    }
}

fn bytes(len: usize) -> Vec<u8> {
    let mut next = len as u32;
    let byte = |_| {
        next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (next >> 24) as u8
    };
    (0..len).map(byte).collect()
}

pub(crate) async fn large_items_arrive_unchanged(by: By) {
    let (there, input) = AsyncQueue::bounded(4).unwrap().split();
    let (output, back) = AsyncQueue::bounded(4).unwrap().split();
    let child = by.start_async(echo, (input, output)).await;

    for len in [
        0, 1, 87, 88, 89, 4096, 4097, 70_000, 5_000_000, 3, 1_000_000,
    ] {
        let item = bytes(len);
        soon(there.put(item.clone())).await.unwrap();
        assert!(soon(back.get()).await.unwrap() == item, "{len}");
    }
    there.close();
    soon(child.join()).await.unwrap();
}

#[derive(Serialize, Deserialize, Debug)]
struct Parcel {
    name: String,
    #[serde(with = "tokio_multiprocess::fd")]
    fd: OwnedFd,
}

async fn write_to(queue: QueueReceiver<Parcel>) {
    use std::io::Write;
    while let Ok(parcel) = queue.get().await {
        let mut file = std::fs::File::from(parcel.fd);
        file.write_all(parcel.name.as_bytes()).unwrap();
    }
}

pub(crate) async fn descriptors_travel_in_items(by: By) {
    use std::io::Read;
    let (sender, receiver) = AsyncQueue::bounded(2).unwrap().split();
    let child = by.start_async(write_to, receiver).await;
    let mut readers = Vec::new();

    for i in 0..10 {
        let (reader, writer) = std::io::pipe().unwrap();
        let name = format!("item {i}");
        let fd = writer.into();
        soon(sender.put(Parcel { name, fd })).await.unwrap();
        readers.push(reader);
    }
    sender.close();
    soon(child.join()).await.unwrap();

    for (i, mut reader) in readers.into_iter().enumerate() {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("item {i}"));
    }
}

async fn answer(requests: QueueReceiver<(u32, QueueSender<u32>)>) {
    while let Ok((number, reply)) = requests.get().await {
        reply.put(number * 2).await.unwrap();
    }
}

pub(crate) async fn queues_travel_in_queues(by: By) {
    let (requests, receiver) = AsyncQueue::unbounded().unwrap().split();
    let child = by.start_async(answer, receiver).await;

    for i in 0..5 {
        let (reply, answers) = AsyncQueue::bounded(1).unwrap().split();
        soon(requests.put((i, reply))).await.unwrap();

        assert_eq!(soon(answers.get()).await.unwrap(), 2 * i);
        // The child has dropped its sender, so this queue ends.
        assert!(matches!(soon(answers.get()).await, Err(GetError::Closed)));
    }
    requests.close();
    soon(child.join()).await.unwrap();
}

async fn use_the_inner((outer, go_on): (QueueReceiver<QueueSender<u32>>, Event)) {
    go_on.wait().await.unwrap();
    let inner = outer.get().await.unwrap();
    inner.put(7).await.unwrap();
}

pub(crate) async fn a_handle_in_a_message_counts(by: By) {
    let (outer, receiver) = AsyncQueue::unbounded().unwrap().split();
    let (inner, items) = AsyncQueue::unbounded().unwrap().split();
    let go_on = Event::new().unwrap();
    let child = by
        .start_async(use_the_inner, (receiver, go_on.clone()))
        .await;

    soon(outer.put(inner)).await.unwrap();
    // Its only sender lies in the outer queue now.
    assert!(matches!(items.try_get(), Err(GetError::Empty)));
    go_on.set();

    assert_eq!(soon(items.get()).await.unwrap(), 7);
    assert!(matches!(soon(items.get()).await, Err(GetError::Closed)));
    soon(child.join()).await.unwrap();
}

async fn work((queue, n_done): (QueueReceiver<u32>, QueueSender<u32>)) {
    while let Ok(item) = queue.get().await {
        n_done.put(item).await.unwrap();
        queue.task_done().unwrap();
    }
}

pub(crate) async fn join_waits_for_all_workers(by: By) {
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let (done, results) = AsyncQueue::unbounded().unwrap().split();
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(by.start_async(work, (receiver.clone(), done.clone())).await);
    }
    drop((receiver, done));

    for i in 0..100 {
        soon(sender.put(i)).await.unwrap();
    }
    soon(sender.join()).await.unwrap();

    // Each was put there before it was reported.
    assert_eq!(results.len(), 100);
    sender.close();
    for worker in workers {
        soon(worker.join()).await.unwrap();
    }
}

async fn get_a_parcel_and_stay((queue, got): (QueueReceiver<Parcel>, Event)) {
    let _parcel = queue.get().await.unwrap();
    got.set();
    std::future::pending::<()>().await;
}

pub(crate) async fn what_nobody_can_get_any_more_is_dropped_and_counts_as_done(by: By) {
    use std::io::Read;
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let got = Event::new().unwrap();
    let child = by
        .start_async(get_a_parcel_and_stay, (receiver, got.clone()))
        .await;
    let mut readers = Vec::new();
    for i in 0..3 {
        let (reader, writer) = std::io::pipe().unwrap();
        let (name, fd) = (format!("item {i}"), writer.into());
        soon(sender.put(Parcel { name, fd })).await.unwrap();
        readers.push(reader);
    }
    soon(got.wait()).await.unwrap();
    let joins = tokio::spawn({
        let sender = sender.clone();
        async move { sender.join().await }
    });

    child.kill().unwrap();

    soon(joins).await.unwrap().unwrap();
    assert!(sender.is_empty());
    for mut reader in readers {
        let ends = tokio::task::spawn_blocking(move || reader.read(&mut [0]));
        assert_eq!(soon(ends).await.unwrap().unwrap(), 0);
    }
}

async fn get_and_stay((queue, got): (QueueReceiver<u32>, Event)) {
    let _item = queue.get().await.unwrap();
    got.set();
    std::future::pending::<()>().await;
}

pub(crate) async fn what_a_dead_consumer_had_got_counts_as_done(by: By) {
    let queue = AsyncQueue::bounded(4).unwrap();
    let got = Event::new().unwrap();
    let child = by
        .start_async(get_and_stay, (queue.receiver(), got.clone()))
        .await;
    soon(queue.put(1)).await.unwrap();
    soon(got.wait()).await.unwrap();
    let joins = tokio::spawn({
        let queue = queue.clone();
        async move { queue.join().await }
    });

    child.kill().unwrap();

    soon(joins).await.unwrap().unwrap();
}

async fn lease_and_stay((queue, got): (QueueReceiver<u32>, Event)) {
    let _lease = queue.get_leased().await.unwrap();
    got.set();
    std::future::pending::<()>().await;
}

pub(crate) async fn a_lease_of_a_dead_consumer_is_delivered_again(by: By) {
    let (sender, receiver) = AsyncQueue::builder().leases().build().unwrap().split();
    let got = Event::new().unwrap();
    let child = by
        .start_async(lease_and_stay, (receiver.clone(), got.clone()))
        .await;
    for i in 0..3 {
        soon(sender.put(i)).await.unwrap();
    }
    soon(got.wait()).await.unwrap();
    // Closed, but what is leased may still come.
    sender.close();

    child.kill().unwrap();
    let mut items = Vec::new();
    while let Ok(lease) = soon(receiver.get_leased()).await {
        items.push(lease.done());
    }

    items.sort_unstable();
    assert_eq!(items, [0, 1, 2]);
    soon(receiver.join()).await.unwrap();
}

fn echo_blocking((input, output): (QueueReceiver<u32>, QueueSender<u32>)) {
    while let Ok(item) = input.blocking_get() {
        output.blocking_put(item).unwrap();
    }
}

pub(crate) async fn blocking_twins_work_between_processes(by: By) {
    let (there, input) = AsyncQueue::bounded(1).unwrap().split();
    let (output, back) = AsyncQueue::bounded(1).unwrap().split();
    let child = by.start(echo_blocking, (input, output)).await;

    let sends = tokio::task::spawn_blocking(move || {
        for i in 0..200 {
            there.blocking_put(i).unwrap();
        }
        there.close();
    });
    for i in 0..200 {
        assert_eq!(soon(back.get()).await.unwrap(), i);
    }
    soon(sends).await.unwrap();
    soon(child.join()).await.unwrap();
}

async fn make_one(out: QueueSender<AsyncQueue<u32>>) {
    let queue = AsyncQueue::bounded(1).unwrap();
    queue.put(1).await.unwrap();
    out.put(queue).await.unwrap();
    std::future::pending::<()>().await;
}

pub(crate) async fn the_creators_death_is_an_error_for_all(by: By) {
    let (out, queues) = AsyncQueue::unbounded().unwrap().split();
    let child = by.start_async(make_one, out).await;
    let queue = soon(queues.get()).await.unwrap();
    let waits = tokio::spawn({
        let queue = queue.clone();
        async move { queue.put(2).await }
    });
    let sleeps = tokio::task::spawn_blocking({
        let queue = queue.clone();
        move || queue.blocking_put(3)
    });

    child.kill().unwrap();

    let refused = soon(waits).await.unwrap();
    assert!(
        matches!(refused, Err(PutError::CreatorGone(2))),
        "{refused:?}"
    );
    let refused = soon(sleeps).await.unwrap();
    assert!(
        matches!(refused, Err(PutError::CreatorGone(3))),
        "{refused:?}"
    );
    let refused = queue.try_put(4);
    assert!(
        matches!(refused, Err(PutError::CreatorGone(4))),
        "{refused:?}"
    );
    assert!(matches!(
        soon(queue.get()).await,
        Err(GetError::CreatorGone(_))
    ));
}

async fn get_forever((queue, ready, got): (QueueReceiver<u32>, Event, QueueSender<u32>)) {
    ready.set();
    while let Ok(item) = queue.get().await {
        got.put(item).await.unwrap();
    }
}

/// Stops or continues a child and waits until that has happened.
async fn signal(child: &Process<()>, signal: i32) {
    let pid = child.pid().cast_signed();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::try_from(signal).unwrap(),
    )
    .unwrap();
    let wanted = if signal == 19 { 'T' } else { 'S' };
    soon(async {
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let state = stat.rsplit(')').next().unwrap().trim().chars().next();
            if state == Some(wanted) || (wanted == 'S' && state == Some('R')) {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(crate) async fn a_stopped_consumer_stops_nobody_else(by: By) {
    let (sender, receiver) = AsyncQueue::bounded(4).unwrap().split();
    let (got, results) = AsyncQueue::unbounded().unwrap().split();
    let mut children = Vec::new();
    for _ in 0..2 {
        let ready = Event::new().unwrap();
        let arg = (receiver.clone(), ready.clone(), got.clone());
        children.push(by.start_async(get_forever, arg).await);
        soon(ready.wait()).await.unwrap();
    }
    drop((receiver, got));
    signal(&children[0], 19).await;

    // Each of these may wake the stopped one first.
    for i in 0..50 {
        soon(sender.put(i)).await.unwrap();
        assert_eq!(soon(results.get()).await.unwrap(), i);
    }

    signal(&children[0], 18).await;
    sender.close();
    for child in children {
        soon(child.join()).await.unwrap();
    }
}

async fn put_forever((queue, ready): (QueueSender<u32>, Event)) {
    for i in 0.. {
        if queue.put(i).await.is_err() {
            return;
        }
        if i == 100 {
            ready.set();
        }
    }
}

pub(crate) async fn a_stopped_producer_stops_nobody_else(by: By) {
    for _ in 0..5 {
        let queue = AsyncQueue::bounded(1).unwrap();
        let ready = Event::new().unwrap();
        let child = by
            .start_async(put_forever, (queue.sender(), ready.clone()))
            .await;
        let drains = tokio::spawn({
            let receiver = queue.receiver();
            let ready = ready.clone();
            async move {
                while !ready.is_set() {
                    receiver.get().await.unwrap();
                }
            }
        });
        soon(ready.wait()).await.unwrap();
        signal(&child, 19).await;
        // It may wait for an item that does not come.
        drains.abort();
        let _ = soon(drains).await;

        while queue.try_get().is_ok() {}
        for i in 0..10 {
            soon(queue.put(1_000_000 + i)).await.unwrap();
            assert_eq!(soon(queue.get()).await.unwrap(), 1_000_000 + i);
        }
        child.kill().unwrap();
        let _ = soon(child.wait()).await;
    }
}

async fn put_numbers((queue, first, n): (QueueSender<u64>, u64, u64)) {
    for i in first..first + n {
        queue.put(i).await.unwrap();
    }
}

async fn get_numbers(queue: QueueReceiver<u64>) -> Vec<u64> {
    queue.into_stream().try_collect().await.unwrap()
}

pub(crate) async fn many_producers_and_consumers_lose_and_double_nothing(by: By) {
    const N: u64 = 2_000;
    let (sender, receiver) = AsyncQueue::bounded(16).unwrap().split();
    let mut producers = Vec::new();
    let mut consumers = Vec::new();
    for i in 0..4 {
        consumers.push(by.start_async(get_numbers, receiver.clone()).await);
        producers.push(
            by.start_async(put_numbers, (sender.clone(), i * N, N))
                .await,
        );
    }
    drop(receiver);

    for producer in producers {
        soon(producer.join()).await.unwrap();
    }
    sender.close();
    let mut all = Vec::new();
    for consumer in consumers {
        let items = soon(consumer.join()).await.unwrap();
        for i in 0..4 {
            let of_one = items.iter().filter(|item| **item / N == i);
            assert!(of_one.is_sorted(), "order per producer");
        }
        all.extend(items);
    }

    all.sort_unstable();
    assert_eq!(all, (0..4 * N).collect::<Vec<_>>());
}
