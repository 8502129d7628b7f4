//! Queues between processes: the checklist, by both safe start methods where children take part.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio_multiprocess::sync::Event;
use tokio_multiprocess::{
    AsyncQueue, GetError, Process, PutError, QueueReceiver, QueueSender, StartMethod, TaskDoneError,
};

use crate::soon;

/// Starts a child by the method under test.
async fn start<A, R, M, O>(by: StartMethod, f: fn(A) -> O, arg: A) -> Process<R>
where
    O: tokio_multiprocess::Outcome<M, Output = R> + 'static,
    A: Serialize + serde::de::DeserializeOwned + Send + 'static,
    R: Serialize + serde::de::DeserializeOwned + Send + 'static,
    M: 'static,
{
    let started = Process::builder().start_method(by).start(f, arg);
    soon(started).await.unwrap()
}

macro_rules! by_both_safe_ways {
    ($($test:ident)*) => {
        mod spawn {
            $(#[tokio::test]
            async fn $test() {
                super::$test(tokio_multiprocess::StartMethod::SPAWN).await;
            })*
        }

        mod fork_server {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(tokio_multiprocess::StartMethod::FORK_SERVER).await;
            })*
        }
    };
}

by_both_safe_ways! {
    items_of_a_child_arrive_in_order
    items_reach_a_child_in_order
    a_queue_ends_when_its_producers_are_gone
    a_queue_ends_when_its_producers_are_killed
    a_full_queue_makes_a_child_wait
    a_producer_gets_its_item_back_when_the_consumers_are_killed
    large_items_arrive_unchanged
    descriptors_travel_in_items
    queues_travel_in_queues
    a_handle_in_a_message_counts
    join_waits_for_all_workers
    what_a_dead_consumer_had_got_counts_as_done
    a_lease_of_a_dead_consumer_is_delivered_again
    blocking_twins_work_between_processes
    the_creators_death_is_an_error_for_all
    a_stopped_consumer_stops_nobody_else
    a_stopped_producer_stops_nobody_else
    many_producers_and_consumers_lose_and_double_nothing
}

async fn put_twenty(queue: QueueSender<u32>) {
    for i in 0..20 {
        queue.put(i).await.unwrap();
    }
}

async fn items_of_a_child_arrive_in_order(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::bounded(3).unwrap().split();
    let child = start(by, put_twenty, sender).await;

    let items: Vec<u32> = soon(receiver.into_stream().try_collect()).await.unwrap();

    assert_eq!(items, (0..20).collect::<Vec<_>>());
    soon(child.join()).await.unwrap();
}

async fn get_all(queue: QueueReceiver<u32>) -> Vec<u32> {
    queue.into_stream().try_collect().await.unwrap()
}

async fn items_reach_a_child_in_order(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::bounded(3).unwrap().split();
    let child = start(by, get_all, receiver).await;

    for i in 0..20 {
        soon(sender.put(i)).await.unwrap();
    }
    drop(sender);

    assert_eq!(
        soon(child.join()).await.unwrap(),
        (0..20).collect::<Vec<_>>()
    );
}

async fn a_queue_ends_when_its_producers_are_gone(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let first = start(by, put_twenty, sender.clone()).await;
    let second = start(by, put_twenty, sender).await;

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

async fn a_queue_ends_when_its_producers_are_killed(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let done = Event::new().unwrap();
    let child = start(by, put_one_and_stay, (sender, done.clone())).await;
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

async fn a_full_queue_makes_a_child_wait(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::bounded(2).unwrap().split();
    let child = start(by, put_twenty, sender).await;

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

async fn a_producer_gets_its_item_back_when_the_consumers_are_killed(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::bounded(1).unwrap().split();
    let ready = Event::new().unwrap();
    let child = start(by, stay, (receiver, ready.clone())).await;
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

async fn large_items_arrive_unchanged(by: StartMethod) {
    let (there, input) = AsyncQueue::bounded(4).unwrap().split();
    let (output, back) = AsyncQueue::bounded(4).unwrap().split();
    let child = start(by, echo, (input, output)).await;

    for len in [
        0, 1, 87, 88, 89, 4096, 4097, 70_000, 5_000_000, 3, 1_000_000,
    ] {
        let item = bytes(len);
        soon(there.put(item.clone())).await.unwrap();
        assert!(soon(back.get()).await.unwrap() == item, "{len}");
    }
    drop(there);
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

async fn descriptors_travel_in_items(by: StartMethod) {
    use std::io::Read;
    let (sender, receiver) = AsyncQueue::bounded(2).unwrap().split();
    let child = start(by, write_to, receiver).await;
    let mut readers = Vec::new();

    for i in 0..10 {
        let (reader, writer) = std::io::pipe().unwrap();
        let name = format!("item {i}");
        let fd = writer.into();
        soon(sender.put(Parcel { name, fd })).await.unwrap();
        readers.push(reader);
    }
    drop(sender);
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

async fn queues_travel_in_queues(by: StartMethod) {
    let (requests, receiver) = AsyncQueue::unbounded().unwrap().split();
    let child = start(by, answer, receiver).await;

    for i in 0..5 {
        let (reply, answers) = AsyncQueue::bounded(1).unwrap().split();
        soon(requests.put((i, reply))).await.unwrap();

        assert_eq!(soon(answers.get()).await.unwrap(), 2 * i);
        // The child has dropped its sender, so this queue ends.
        assert!(matches!(soon(answers.get()).await, Err(GetError::Closed)));
    }
    drop(requests);
    soon(child.join()).await.unwrap();
}

async fn use_the_inner((outer, go_on): (QueueReceiver<QueueSender<u32>>, Event)) {
    go_on.wait().await.unwrap();
    let inner = outer.get().await.unwrap();
    inner.put(7).await.unwrap();
}

async fn a_handle_in_a_message_counts(by: StartMethod) {
    let (outer, receiver) = AsyncQueue::unbounded().unwrap().split();
    let (inner, items) = AsyncQueue::unbounded().unwrap().split();
    let go_on = Event::new().unwrap();
    let child = start(by, use_the_inner, (receiver, go_on.clone())).await;

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

async fn join_waits_for_all_workers(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let (done, results) = AsyncQueue::unbounded().unwrap().split();
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(start(by, work, (receiver.clone(), done.clone())).await);
    }
    drop((receiver, done));

    for i in 0..100 {
        soon(sender.put(i)).await.unwrap();
    }
    soon(sender.join()).await.unwrap();

    // Each was put there before it was reported.
    assert_eq!(results.len(), 100);
    drop(sender);
    for worker in workers {
        soon(worker.join()).await.unwrap();
    }
}

async fn get_and_stay((queue, got): (QueueReceiver<u32>, Event)) {
    let _item = queue.get().await.unwrap();
    got.set();
    std::future::pending::<()>().await;
}

async fn what_a_dead_consumer_had_got_counts_as_done(by: StartMethod) {
    let queue = AsyncQueue::bounded(4).unwrap();
    let got = Event::new().unwrap();
    let child = start(by, get_and_stay, (queue.receiver(), got.clone())).await;
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

async fn a_lease_of_a_dead_consumer_is_delivered_again(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::builder().leases().build().unwrap().split();
    let got = Event::new().unwrap();
    let child = start(by, lease_and_stay, (receiver.clone(), got.clone())).await;
    for i in 0..3 {
        soon(sender.put(i)).await.unwrap();
    }
    soon(got.wait()).await.unwrap();
    // Closed, but what is leased may still come.
    drop(sender);

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

async fn blocking_twins_work_between_processes(by: StartMethod) {
    let (there, input) = AsyncQueue::bounded(1).unwrap().split();
    let (output, back) = AsyncQueue::bounded(1).unwrap().split();
    let child = start(by, echo_blocking, (input, output)).await;

    let sends = tokio::task::spawn_blocking(move || {
        for i in 0..200 {
            there.blocking_put(i).unwrap();
        }
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

async fn the_creators_death_is_an_error_for_all(by: StartMethod) {
    let (out, queues) = AsyncQueue::unbounded().unwrap().split();
    let child = start(by, make_one, out).await;
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

async fn a_stopped_consumer_stops_nobody_else(by: StartMethod) {
    let (sender, receiver) = AsyncQueue::bounded(4).unwrap().split();
    let (got, results) = AsyncQueue::unbounded().unwrap().split();
    let mut children = Vec::new();
    for _ in 0..2 {
        let ready = Event::new().unwrap();
        let arg = (receiver.clone(), ready.clone(), got.clone());
        children.push(start(by, get_forever, arg).await);
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
    drop(sender);
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

async fn a_stopped_producer_stops_nobody_else(by: StartMethod) {
    for _ in 0..5 {
        let queue = AsyncQueue::bounded(1).unwrap();
        let ready = Event::new().unwrap();
        let child = start(by, put_forever, (queue.sender(), ready.clone())).await;
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

async fn many_producers_and_consumers_lose_and_double_nothing(by: StartMethod) {
    const N: u64 = 2_000;
    let (sender, receiver) = AsyncQueue::bounded(16).unwrap().split();
    let mut producers = Vec::new();
    let mut consumers = Vec::new();
    for i in 0..4 {
        consumers.push(start(by, get_numbers, receiver.clone()).await);
        producers.push(start(by, put_numbers, (sender.clone(), i * N, N)).await);
    }
    drop((sender, receiver));

    for producer in producers {
        soon(producer.join()).await.unwrap();
    }
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

#[tokio::test]
async fn a_queue_holds_as_many_items_as_it_says() {
    let queue = AsyncQueue::bounded(6).unwrap();
    assert!(queue.is_empty() && !queue.is_full());

    for i in 0..6 {
        assert_eq!(queue.len(), i);
        queue.try_put(i).unwrap();
    }

    assert!(queue.is_full() && !queue.is_empty());
    assert!(matches!(queue.try_put(6), Err(PutError::Full(6))));
    let waits = tokio::time::timeout(Duration::from_millis(20), queue.put(6)).await;
    assert!(waits.is_err());
    for i in 0..6 {
        assert_eq!(queue.try_get().unwrap(), i);
    }
    assert!(matches!(queue.try_get(), Err(GetError::Empty)));
    let waits = tokio::time::timeout(Duration::from_millis(20), queue.get()).await;
    assert!(waits.is_err());
}

#[tokio::test]
async fn a_queue_of_no_capacity_is_refused() {
    let refused = AsyncQueue::<u8>::bounded(0).unwrap_err();

    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn an_unbounded_queue_grows() {
    let queue = AsyncQueue::unbounded().unwrap();
    for i in 0..20_000_u64 {
        queue.try_put((i, "x".repeat((i % 200) as usize))).unwrap();
    }

    assert_eq!((queue.len(), queue.capacity()), (20_000, None));

    for i in 0..20_000_u64 {
        let (number, text) = soon(queue.get()).await.unwrap();
        assert_eq!((number, text.len()), (i, (i % 200) as usize));
    }
}

#[tokio::test]
async fn an_item_that_cannot_be_encoded_comes_back_and_takes_no_room() {
    struct Refuses;
    impl Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("it will not"))
        }
    }
    let queue = AsyncQueue::bounded(1).unwrap();

    let refused = queue.put(Refuses).await.unwrap_err();

    assert!(matches!(&refused, PutError::Encode(Refuses, why) if why == "it will not"));
    assert_eq!(queue.len(), 0);
}

#[tokio::test]
async fn a_closed_queue_takes_nothing_and_gives_what_it_has() {
    let queue = AsyncQueue::bounded(3).unwrap();
    queue.put(1).await.unwrap();

    queue.close();
    queue.close();

    assert!(queue.is_closed());
    assert!(matches!(queue.put(2).await, Err(PutError::Closed(2))));
    assert!(matches!(queue.try_put(2), Err(PutError::Closed(2))));
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.get().await.unwrap(), 1);
    assert!(matches!(queue.get().await, Err(GetError::Closed)));
    assert!(matches!(queue.try_get(), Err(GetError::Closed)));
    assert!(queue.is_empty());
}

#[tokio::test]
async fn a_close_wakes_everybody_who_waits() {
    let queue = AsyncQueue::<u32>::bounded(1).unwrap();
    let getters: Vec<_> = (0..5)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.get().await })
        })
        .collect();
    tokio::task::yield_now().await;

    queue.close();

    for getter in getters {
        assert!(matches!(soon(getter).await.unwrap(), Err(GetError::Closed)));
    }
}

#[tokio::test]
async fn more_reports_than_items_are_an_error() {
    let queue = AsyncQueue::bounded(3).unwrap();
    assert_eq!(queue.task_done(), Err(TaskDoneError::TooMany));
    queue.put(1).await.unwrap();
    queue.get().await.unwrap();

    queue.task_done().unwrap();

    assert_eq!(queue.task_done(), Err(TaskDoneError::TooMany));
    soon(queue.join()).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_dropped_comes_again_first() {
    let three = NonZeroUsize::new(3).unwrap();
    let queue = AsyncQueue::builder()
        .capacity(three)
        .leases()
        .build()
        .unwrap();
    for i in 0..3 {
        queue.put(i).await.unwrap();
    }

    let lease = queue.get_leased().await.unwrap();
    assert_eq!((*lease, queue.len()), (0, 2));
    drop(lease);

    assert_eq!(queue.len(), 3);
    for i in 0..3 {
        assert_eq!(queue.get_leased().await.unwrap().done(), i);
    }
    soon(queue.join()).await.unwrap();
}

#[tokio::test]
async fn leases_are_chosen_when_the_queue_is_made() {
    let queue = AsyncQueue::<u8>::unbounded().unwrap();

    assert!(matches!(queue.get_leased().await, Err(GetError::NoLeases)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_one_process_share_a_queue() {
    let queue = AsyncQueue::bounded(2).unwrap();
    let getters: Vec<_> = (0..8)
        .map(|_| {
            let receiver = queue.receiver();
            tokio::spawn(async move {
                let mut items = Vec::new();
                while let Ok(item) = receiver.get().await {
                    items.push(item);
                }
                items
            })
        })
        .collect();
    let putters: Vec<_> = (0..8_u32)
        .map(|i| {
            let sender = queue.sender();
            tokio::spawn(async move {
                for j in 0..500 {
                    sender.put(i * 500 + j).await.unwrap();
                }
            })
        })
        .collect();
    drop(queue);

    for putter in putters {
        soon(putter).await.unwrap();
    }
    let mut all = Vec::new();
    for getter in getters {
        all.extend(soon(getter).await.unwrap());
    }

    all.sort_unstable();
    assert_eq!(all, (0..4000).collect::<Vec<_>>());
}

#[test]
fn a_queue_outlives_the_runtime_that_used_it() {
    let queue = AsyncQueue::bounded(1).unwrap();
    for i in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let waits = tokio::spawn({
                let queue = queue.clone();
                async move { queue.get().await }
            });
            tokio::task::yield_now().await;
            soon(queue.put(i)).await.unwrap();
            assert_eq!(soon(waits).await.unwrap().unwrap(), i);
        });
    }
}

/// Polls a future at most so often, as a `select!` does that is over sooner.
async fn polled<F: Future>(n_polls: u32, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..n_polls {
        if let std::task::Poll::Ready(done) = futures::poll!(future.as_mut()) {
            return Some(done);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// How many futures are dropped half-way; each is polled up to three times.
const N_DROPPED: u32 = 50_000;

async fn put_until_closed(queue: QueueSender<u64>) {
    for i in 0.. {
        if queue.put(i).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn gets_that_are_dropped_lose_nothing() {
    let (sender, receiver) = AsyncQueue::bounded(3).unwrap().split();
    let child = start(StartMethod::FORK_SERVER, put_until_closed, sender).await;
    let mut chance = fastrand::Rng::with_seed(7);
    let mut next = 0;
    let mut n_dropped = 0;

    while n_dropped < N_DROPPED {
        match polled(chance.u32(1..4), receiver.get()).await {
            Some(item) => {
                assert_eq!(item.unwrap(), next);
                next += 1;
            }
            None => n_dropped += 1,
        }
        if next % 64 == 0 {
            // Long enough for the sender to sleep, now and then.
            tokio::task::yield_now().await;
        }
    }
    receiver.close();
    while let Ok(item) = soon(receiver.get()).await {
        assert_eq!(item, next);
        next += 1;
    }

    soon(child.join()).await.unwrap();
}

async fn expect_all_in_order(queue: QueueReceiver<u64>) -> u64 {
    let mut next = 0;
    while let Ok(item) = queue.get().await {
        assert_eq!(item, next);
        next += 1;
    }
    next
}

#[tokio::test]
async fn puts_that_are_dropped_put_nothing() {
    let (sender, receiver) = AsyncQueue::bounded(3).unwrap().split();
    let child = start(StartMethod::FORK_SERVER, expect_all_in_order, receiver).await;
    let mut chance = fastrand::Rng::with_seed(8);
    let mut next = 0;
    let mut n_dropped = 0;

    while n_dropped < N_DROPPED {
        match polled(chance.u32(1..4), sender.put(next)).await {
            Some(done) => {
                done.unwrap();
                next += 1;
            }
            None => n_dropped += 1,
        }
    }
    drop(sender);

    assert_eq!(soon(child.join()).await.unwrap(), next);
}

/// How often the threads of a process have been put to sleep or off the processor.
fn n_switches(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |path: std::path::PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines
            .map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap())
            .sum::<u64>()
    };
    tasks.map(|task| of_task(task.unwrap().path())).sum()
}

async fn wait_four_times((queue, ready): (QueueReceiver<u32>, QueueSender<()>)) {
    let waits = (0..4).map(|_| queue.get());
    let all = futures::future::join_all(waits);
    ready.put(()).await.unwrap();
    all.await;
}

#[tokio::test]
async fn sixteen_waiting_consumers_sleep_and_one_item_does_not_wake_all() {
    let (sender, receiver) = AsyncQueue::unbounded().unwrap().split();
    let (ready, are_ready) = AsyncQueue::unbounded().unwrap().split();
    let mut children = Vec::new();
    for _ in 0..4 {
        let arg = (receiver.clone(), ready.clone());
        children.push(start(StartMethod::FORK_SERVER, wait_four_times, arg).await);
        soon(are_ready.get()).await.unwrap();
    }
    let count = || {
        children
            .iter()
            .map(|child| n_switches(child.pid()))
            .collect::<Vec<_>>()
    };
    // Asleep when nothing moves for a while.
    let quiet = |millis: u64| async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    };
    soon(async {
        loop {
            let before = count();
            quiet(200).await;
            if count() == before {
                return;
            }
        }
    })
    .await;

    let before = count();
    quiet(2_000).await;
    assert_eq!(count(), before, "an idle consumer has woken up");

    soon(sender.put(1)).await.unwrap();
    soon(async {
        while !sender.is_empty() || count() == before {
            quiet(20).await;
        }
    })
    .await;
    quiet(200).await;
    let woken = count()
        .iter()
        .zip(&before)
        .filter(|(now, then)| now != then)
        .count();
    // A second one is woken where the first is slow.
    assert!((1..=2).contains(&woken), "one item has woken {woken} of 4");

    drop(sender);
    for child in children {
        let _ = soon(child.wait()).await;
    }
}
