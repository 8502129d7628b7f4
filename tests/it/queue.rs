//! Queues between processes: the checklist, by both safe start methods where children take part.

mod suite;

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use futures::StreamExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::{
    AsyncQueue, GetError, Process, PutError, QueueReceiver, QueueSender, TaskDoneError,
};

use crate::alone::alone;
use crate::process::suite::By;
use crate::soon;

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
    what_nobody_can_get_any_more_is_dropped_and_counts_as_done
    what_a_dead_consumer_had_got_counts_as_done
    a_lease_of_a_dead_consumer_is_delivered_again
    blocking_twins_work_between_processes
    the_creators_death_is_an_error_for_all
    a_stopped_consumer_stops_nobody_else
    a_stopped_producer_stops_nobody_else
    many_producers_and_consumers_lose_and_double_nothing
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

async fn count_letters(queue: QueueReceiver<String>) -> (usize, usize) {
    let text = queue.get().await.unwrap();
    (text.len(), text.trim_matches('7').len())
}

#[tokio::test]
async fn an_item_can_be_as_large_as_the_memory_allows() {
    const LEN: usize = 256 << 20;
    let (sender, receiver) = AsyncQueue::bounded(1).unwrap().split();
    let child = soon(Process::start(count_letters, receiver)).await.unwrap();

    let text = ["x", "7".repeat(LEN - 2).as_str(), "x"].concat();
    soon(sender.put(text)).await.unwrap();

    assert_eq!(soon(child.join()).await.unwrap(), (LEN, LEN));
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
    let child = soon(Process::start(put_until_closed, sender))
        .await
        .unwrap();
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
    let child = soon(Process::start(expect_all_in_order, receiver))
        .await
        .unwrap();
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
        children.push(soon(Process::start(wait_four_times, arg)).await.unwrap());
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

#[test]
fn a_lease_that_is_done_ends_a_join_that_is_about_to_sleep() {
    const ROUNDS: u64 = 5_000;
    let queue = AsyncQueue::builder().leases().build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (turn, joined) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let joins = std::thread::spawn({
        let (queue, turn, joined) = (queue.clone(), Arc::clone(&turn), Arc::clone(&joined));
        move || {
            for round in 1..=ROUNDS {
                while turn.load(SeqCst) < round {
                    std::hint::spin_loop();
                }
                queue.blocking_join().unwrap();
                joined.store(round, SeqCst);
            }
        }
    });

    for round in 1..=ROUNDS {
        queue.try_put(1).unwrap();
        let lease = runtime.block_on(queue.get_leased()).unwrap();
        turn.store(round, SeqCst);
        // At another moment of the join each time.
        for _ in 0..round % 400 {
            std::hint::spin_loop();
        }
        lease.done();
        let begun = Instant::now();
        while joined.load(SeqCst) < round {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "asleep in round {round}"
            );
            std::thread::yield_now();
        }
    }
    joins.join().unwrap();
}

/// What can be put and not be got: decoding it fails, or panics.
#[derive(Debug)]
struct Poison {
    panics: bool,
}

impl Serialize for Poison {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.panics.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Poison {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        assert!(!bool::deserialize(deserializer)?, "on purpose");
        Err(serde::de::Error::custom("poison"))
    }
}

#[tokio::test]
async fn an_item_that_cannot_be_decoded_counts_as_done() {
    let plain = AsyncQueue::unbounded().unwrap();
    let leases = AsyncQueue::builder().leases().build().unwrap();
    for queue in [plain, leases] {
        for panics in [false, true] {
            queue.try_put(Poison { panics }).unwrap();
            let gets = tokio::spawn({
                let queue = queue.clone();
                async move {
                    match queue.get_leased().await {
                        Err(GetError::NoLeases) => queue.get().await.err(),
                        leased => leased.err(),
                    }
                }
            });

            let refused = soon(gets).await;

            assert_eq!(refused.is_err(), panics);
            assert!(panics || matches!(refused, Ok(Some(GetError::Decode(_)))));
            soon(queue.join()).await.unwrap();
            assert!(queue.is_empty());
        }
    }
}

#[tokio::test]
async fn a_stream_that_has_ended_stays_so() {
    let queue = AsyncQueue::unbounded().unwrap();
    queue.try_put(1).unwrap();
    let mut stream = queue.into_stream();

    assert_eq!(soon(stream.next()).await.unwrap().unwrap(), 1);
    assert!(soon(stream.next()).await.is_none());
    assert!(soon(stream.next()).await.is_none());
}

#[test]
fn an_item_whose_descriptors_find_no_room_is_put_back() {
    alone(async || {
        let queue = AsyncQueue::unbounded().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let place = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let this = place(reader.as_raw_fd());
        queue.put(Fd(OwnedFd::from(writer))).await.unwrap();
        // Until the broker has it, which is in this process.
        let n_ends = || (0..100).filter(|fd| place(*fd) == this).count();
        soon(async {
            while n_ends() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 100, hard).unwrap();
        let mut held = Vec::new();
        while let Ok(copy) = reader.try_clone() {
            held.push(copy);
        }

        let refused = soon(queue.get()).await.err();
        assert!(matches!(refused, Some(GetError::System(_))), "{refused:?}");
        drop(held);
        drop(soon(queue.get()).await.unwrap());

        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    });
}

#[tokio::test]
async fn a_lease_that_is_dropped_when_nobody_can_get_any_more_ends_a_join() {
    let (sender, receiver) = AsyncQueue::builder().leases().build().unwrap().split();
    sender.try_put(1).unwrap();
    let lease = soon(receiver.get_leased()).await.unwrap();
    drop(receiver);
    soon(async {
        while !sender.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let joins = tokio::spawn({
        let sender = sender.clone();
        async move { sender.join().await }
    });

    drop(lease);

    soon(joins).await.unwrap().unwrap();
    assert!(sender.is_empty());
}
