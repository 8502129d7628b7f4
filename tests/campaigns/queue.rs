//! Producers and consumers of one queue are killed at random moments.
//!
//! Nothing is torn and nothing is delivered twice; items of one producer come in their order; the
//! survivors never stop; and what is missing in the end are at most the items that killed consumers
//! had got, one each. With leases nothing is missing.
//!
//! And consumers that wait for an item that does not come do nothing at all.
//!
//! `cargo test --release --test campaign_queue -- --long`: 2,000 kills over a million items by each
//! start method, and ten idle seconds.

#![allow(unsafe_code, reason = "fork is unsafe")]

mod campaign;

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio_multiprocess::queue::Lease;
use tokio_multiprocess::{AsyncQueue, GetError, Process, QueueReceiver, QueueSender, StartMethod};

use campaign::census::Census;
use campaign::method::{Method, runtime};
use campaign::{Case, Plan};

/// So many producers, and so many consumers.
const EACH: usize = 4;

/// How many results may wait to be counted.
const RESULTS_MAX: usize = 256;

/// The longest that the survivors may need for the next item.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    tokio_multiprocess::init();
    campaign::main(&[
        Case {
            name: "kills_lose_what_was_got_by_spawn",
            run: |plan| run(Method::Spawn, false, plan),
        },
        Case {
            name: "kills_lose_what_was_got_by_fork_server",
            run: |plan| run(Method::ForkServer, false, plan),
        },
        Case {
            name: "kills_lose_what_was_got_by_fork",
            run: |plan| run(Method::Fork, false, plan),
        },
        Case {
            name: "kills_lose_nothing_with_leases_by_spawn",
            run: |plan| run(Method::Spawn, true, plan),
        },
        Case {
            name: "kills_lose_nothing_with_leases_by_fork_server",
            run: |plan| run(Method::ForkServer, true, plan),
        },
        Case {
            name: "kills_lose_nothing_with_leases_by_fork",
            run: |plan| run(Method::Fork, true, plan),
        },
        Case {
            name: "sixteen_idle_consumers_never_wake_up",
            run: idle,
        },
    ])
}

/// An item: who made it, its number there, and what must follow from both.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    producer: u64,
    number: u64,
    body: Vec<u64>,
}

impl Item {
    fn new(producer: u64, number: u64) -> Self {
        // Some lie in a slot, some in a block, some in many.
        let len = match number % 16 {
            0 => 2000,
            1..4 => 60,
            _ => 2,
        };
        let body = (0..len).map(|i| Self::word(producer, number, i)).collect();
        Self {
            producer,
            number,
            body,
        }
    }

    fn word(producer: u64, number: u64, i: u64) -> u64 {
        (producer << 40 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i
    }

    fn is_whole(&self) -> bool {
        let word =
            |(i, word): (usize, &u64)| *word == Self::word(self.producer, self.number, i as u64);
        self.body.iter().enumerate().all(word)
    }
}

type Produce = (u64, QueueSender<Item>);
type Consume = (QueueReceiver<Item>, QueueSender<(u64, u64)>, bool);

async fn produce((producer, queue): Produce) {
    for number in 0.. {
        if queue.put(Item::new(producer, number)).await.is_err() {
            return;
        }
    }
}

async fn consume((queue, results, leases): Consume) {
    loop {
        let lease: Result<Option<Lease<Item>>, GetError> = match leases {
            true => queue.get_leased().await.map(Some),
            false => Ok(None),
        };
        let (item, lease) = match lease {
            Ok(Some(lease)) => (Item::clone(&lease), Some(lease)),
            Ok(None) => match queue.get().await {
                Ok(item) => (item, None),
                Err(_) => return,
            },
            Err(_) => return,
        };
        assert!(item.is_whole(), "torn");
        results
            .put((item.producer, item.number))
            .await
            .expect("a result is counted");
        if let Some(lease) = lease {
            lease.done();
        }
    }
}

async fn start<A, O>(method: Method, f: fn(A) -> O, arg: A) -> Process<()>
where
    A: Serialize + serde::de::DeserializeOwned + Send + 'static,
    O: Future<Output = ()> + 'static,
{
    let builder = Process::builder();
    let started = match method {
        Method::Spawn => builder.start_method(StartMethod::SPAWN).start(f, arg).await,
        Method::ForkServer => {
            let builder = builder.start_method(StartMethod::FORK_SERVER);
            builder.start(f, arg).await
        }
        Method::Fork => {
            // SAFETY: a case runs in a process of its own, whose other threads are the library's.
            unsafe { builder.fork(move || runtime().block_on(f(arg))) }
        }
    };
    started.expect("a child")
}

fn run(method: Method, leases: bool, plan: &mut Plan) -> String {
    let n_kills = plan.size(40, 2_000);
    let per_kill = plan.size(100, 500);
    runtime().block_on(async {
        // What the library starts once and keeps is counted before, not after.
        let (sender, receiver) = AsyncQueue::unbounded().expect("a queue").split();
        drop(receiver);
        let warm = start(method, produce, (0, sender)).await;
        warm.wait().await;
        let before = Census::take_at_rest();

        let mut builder = AsyncQueue::<Item>::builder();
        builder = builder.capacity(16.try_into().expect("not zero"));
        if leases {
            builder = builder.leases();
        }
        let queue = builder.build().expect("a queue");
        // With a limit, or what comes while a child is started would pile up.
        let results = AsyncQueue::<(u64, u64)>::bounded(RESULTS_MAX).expect("a queue");
        let mut n_producers = 0;
        let mut children = Vec::new();
        for i in 0..2 * EACH {
            children.push(one(method, i, leases, &queue, &results, &mut n_producers).await);
        }
        let mut came: HashMap<u64, HashSet<u64>> = HashMap::new();
        let mut n_doubled = 0;
        let mut n_items = 0;
        let mut n_consumers_killed = 0;
        for _ in 0..n_kills {
            for _ in 0..plan.chance.usize(1..2 * per_kill) {
                let item = tokio::time::timeout(PATIENCE, results.get()).await;
                let (producer, number) = item.expect("the survivors go on").expect("a result");
                n_doubled += usize::from(!came.entry(producer).or_default().insert(number));
                n_items += 1;
            }
            let victim = plan.chance.usize(..children.len());
            let pid = Pid::from_raw(children[victim].pid().cast_signed());
            kill(pid, Signal::SIGKILL).expect("it lives");
            children[victim].wait().await;
            n_consumers_killed += usize::from(victim >= EACH);
            children[victim] =
                one(method, victim, leases, &queue, &results, &mut n_producers).await;
        }

        // No more producers: what is left is got, and the consumers find the end.
        for child in &children[..EACH] {
            kill(Pid::from_raw(child.pid().cast_signed()), Signal::SIGKILL).expect("it lives");
            child.wait().await;
        }
        queue.close();
        let ends = async {
            for child in &children[EACH..] {
                let end = tokio::time::timeout(PATIENCE, child.wait()).await;
                assert!(end.expect("consumers find the end").success());
            }
            results.close();
        };
        let rest = async {
            while let Ok((producer, number)) = results.get().await {
                n_doubled += usize::from(!came.entry(producer).or_default().insert(number));
                n_items += 1;
            }
        };
        futures::join!(ends, rest);
        // A producer's items are numbered without a gap as far as it came.
        let highest = |numbers: &HashSet<u64>| numbers.iter().max().map_or(0, |max| max + 1);
        let n_put: u64 = came.values().map(highest).sum();
        let n_came: usize = came.values().map(HashSet::len).sum();
        let n_lost = n_put as usize - n_came;
        if leases {
            assert_eq!(n_lost, 0, "lost, with leases");
            assert!(n_doubled <= n_consumers_killed, "{n_doubled} came twice");
        } else {
            assert_eq!(n_doubled, 0, "came twice");
            assert!(n_lost <= n_consumers_killed, "{n_lost} are lost");
        }
        drop((queue, results, children));
        before.is_reached_again();
        format!("{n_kills} kills, {n_items} items, {n_lost} lost, {n_doubled} came twice")
    })
}

/// Consumers of a queue that nothing is put into; each says when it waits.
async fn wait_in_vain((queue, ready): (QueueReceiver<u64>, QueueSender<()>)) {
    let mut waits = std::pin::pin!(queue.get());
    assert!(futures::poll!(waits.as_mut()).is_pending(), "it is empty");
    ready.put(()).await.expect("it is counted");
    let _ = waits.await;
}

fn idle(plan: &mut Plan) -> String {
    const N: usize = 16;
    let time = plan.limit(Duration::from_secs(1), Duration::from_secs(10));
    let (sender, children) = runtime().block_on(async {
        let (sender, receiver) = AsyncQueue::unbounded().expect("a queue").split();
        let (ready, are_ready) = AsyncQueue::unbounded().expect("a queue").split();
        let mut children = Vec::new();
        for _ in 0..N {
            let arg = (receiver.clone(), ready.clone());
            children.push(start(Method::ForkServer, wait_in_vain, arg).await);
        }
        for _ in 0..N {
            are_ready.get().await.expect("it is ready");
        }
        (sender, children)
    });
    let mut pids: Vec<u32> = children.iter().map(Process::pid).collect();
    // Of this one too, which looks after the queue; the thread that sleeps here is left out.
    pids.push(std::process::id());
    let count = || pids.iter().map(|pid| n_switches(*pid)).collect::<Vec<_>>();
    let mut before = count();
    loop {
        // They are at rest once nothing has moved for a while.
        std::thread::sleep(Duration::from_millis(100));
        let now = count();
        if now == before {
            break;
        }
        before = now;
    }
    // The time in which nobody may wake up.
    std::thread::sleep(time);
    assert_eq!(count(), before, "somebody woke up");
    drop(sender);
    for child in children {
        assert!(runtime().block_on(child.wait()).success());
    }
    format!("{N} consumers, {} s, no wake-up", time.as_secs())
}

/// How often the threads of a process have gone to sleep or lost the processor, but for its main
/// thread if it is this process.
fn n_switches(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let mut n = 0;
    for task in tasks.flatten() {
        if pid == std::process::id() && task.file_name() == *pid.to_string() {
            continue;
        }
        let status = std::fs::read_to_string(task.path().join("status")).expect("it lives");
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        n += lines
            .filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok())
            .sum::<u64>();
    }
    n
}

/// Producer or consumer, by its place.
async fn one(
    method: Method,
    place: usize,
    leases: bool,
    queue: &AsyncQueue<Item>,
    results: &AsyncQueue<(u64, u64)>,
    n_producers: &mut u64,
) -> Process<()> {
    if place < EACH {
        *n_producers += 1;
        start(method, produce, (*n_producers, queue.sender())).await
    } else {
        let arg = (queue.receiver(), results.sender(), leases);
        start(method, consume, arg).await
    }
}
