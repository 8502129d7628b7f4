//! Processes that share locks, semaphores, conditions and events are killed at random moments, give
//! up at random moments, and compete.
//!
//! After any number of kills the survivors go on, no two are inside a lock at one time, whoever comes
//! after one that died inside is told, and every permit comes back. A wait that is given up loses
//! nothing of anybody else's. Those who compete for one lock get it about equally often.
//!
//! `cargo test --release --test campaign_sync -- --long`: 10,000 kills by each start method, 100,000
//! waits given up, and eight processes at one lock for ten seconds.

#![allow(unsafe_code, reason = "fork is unsafe")]

mod campaign;

use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio_multiprocess::shared::RawArray;
use tokio_multiprocess::sync::{Condition, Event, Lock, LockGuard, Semaphore};
use tokio_multiprocess::{Process, StartMethod};

use campaign::census::Census;
use campaign::method::{Method, runtime};
use campaign::{Case, Plan};

/// The longest that anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(20);

const PERMITS: usize = 2;

fn main() -> ExitCode {
    tokio_multiprocess::init();
    campaign::main(&[
        Case {
            name: "kills_stop_nobody_by_spawn",
            run: |plan| kills(Method::Spawn, plan),
        },
        Case {
            name: "kills_stop_nobody_by_fork_server",
            run: |plan| kills(Method::ForkServer, plan),
        },
        Case {
            name: "kills_stop_nobody_by_fork",
            run: |plan| kills(Method::Fork, plan),
        },
        Case {
            name: "waits_that_are_given_up_lose_nothing",
            run: given_up,
        },
        Case {
            name: "competitors_get_a_lock_about_equally_often",
            run: fairness,
        },
    ])
}

/// What all share.
#[derive(Clone, Serialize, Deserialize)]
struct Stage {
    lock: Lock,
    changed: Condition,
    permits: Semaphore,
    flag: Event,
    cells: RawArray<u64>,
}

/// Cells: rounds that were done; who is inside the lock; two numbers that are equal outside it; faults.
const ROUNDS: usize = 0;
const INSIDE: usize = 1;
const FIRST: usize = 2;
const SECOND: usize = 3;
const FAULTS: usize = 4;

impl Stage {
    fn new() -> Self {
        let lock = Lock::new().expect("a lock");
        Self {
            changed: Condition::new(&lock).expect("a condition"),
            lock,
            permits: Semaphore::new(PERMITS).expect("a semaphore"),
            flag: Event::new().expect("an event"),
            cells: RawArray::zeroed(5).expect("cells"),
        }
    }

    fn work_inside(&self, guard: &LockGuard) {
        let cells = &self.cells;
        if guard.recovered() {
            cells.store(INSIDE, 0);
            cells.store(SECOND, cells.load(FIRST));
        }
        let is_alone = cells.update(INSIDE, |_| 1) == 0;
        if !is_alone || cells.load(FIRST) != cells.load(SECOND) {
            cells.update(FAULTS, |n| n + 1);
        }
        cells.update(FIRST, |n| n + 1);
        cells.update(SECOND, |n| n + 1);
        cells.store(INSIDE, 0);
    }

    /// One of the operations, by number.
    async fn act(&self, what: u64) {
        const GONE: &str = "the creator lives";
        match what {
            0..4 => self.work_inside(&self.lock.lock().await.expect(GONE)),
            4..6 => drop(self.permits.acquire().await.expect(GONE)),
            6 => {
                let guard = self.lock.lock().await.expect(GONE);
                self.work_inside(&guard);
                let waited =
                    tokio::time::timeout(Duration::from_millis(1), self.changed.wait(guard));
                if let Ok(guard) = waited.await {
                    self.work_inside(&guard.expect(GONE));
                }
            }
            7 => {
                let guard = self.lock.lock().await.expect(GONE);
                self.work_inside(&guard);
                self.changed.notify_one();
            }
            8 => {
                self.flag.set();
                self.flag.clear();
            }
            _ => {
                let wait = self.flag.wait();
                let _ = tokio::time::timeout(Duration::from_millis(1), wait).await;
            }
        }
        self.cells.update(ROUNDS, |n| n + 1);
    }
}

async fn act_for_ever((stage, seed): (Stage, u64)) {
    let mut chance = fastrand::Rng::with_seed(seed);
    loop {
        stage.act(chance.u64(..10)).await;
    }
}

async fn start(method: Method, argument: (Stage, u64)) -> Process<()> {
    let builder = Process::builder();
    let started = match method {
        Method::Spawn => {
            let builder = builder.start_method(StartMethod::SPAWN);
            builder.start(act_for_ever, argument).await
        }
        Method::ForkServer => {
            let builder = builder.start_method(StartMethod::FORK_SERVER);
            builder.start(act_for_ever, argument).await
        }
        Method::Fork => {
            // SAFETY: a case runs in a process of its own, whose other threads are the library's.
            unsafe { builder.fork(move || runtime().block_on(act_for_ever(argument))) }
        }
    };
    started.expect("a child")
}

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let came = tokio::time::timeout(PATIENCE, future).await;
    came.unwrap_or_else(|_| panic!("{what} does not come"))
}

fn kills(method: Method, plan: &mut Plan) -> String {
    let n_kills = plan.size(60, 10_000);
    runtime().block_on(async {
        // What the library starts once and keeps is counted before, not after.
        let stage = Stage::new();
        let warm = start(method, (stage.clone(), 0)).await;
        kill(Pid::from_raw(warm.pid().cast_signed()), Signal::SIGKILL).expect("it lives");
        warm.wait().await;
        let before = Census::take_at_rest();

        let mut children = Vec::new();
        for seed in 0..6 {
            children.push(start(method, (stage.clone(), seed)).await);
        }
        for i in 0..n_kills {
            let pause = plan.chance.u64(..2_000);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            let victim = plan.chance.usize(..children.len());
            let pid = Pid::from_raw(children[victim].pid().cast_signed());
            kill(pid, Signal::SIGKILL).expect("it lives");
            children[victim].wait().await;
            // The others go on, before a new one comes and stirs them.
            let rounds = stage.cells.load(ROUNDS);
            let since = Instant::now();
            while stage.cells.load(ROUNDS) == rounds {
                assert!(since.elapsed() < PATIENCE, "nobody goes on");
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            children[victim] = start(method, (stage.clone(), 1_000 + i as u64)).await;
        }
        for child in &children {
            kill(Pid::from_raw(child.pid().cast_signed()), Signal::SIGKILL).expect("it lives");
            child.wait().await;
        }
        drop(soon("the lock", stage.lock.lock()).await);
        let mut permits = Vec::new();
        for _ in 0..PERMITS {
            permits.push(soon("a permit", stage.permits.acquire()).await);
        }
        let (rounds, faults) = (stage.cells.load(ROUNDS), stage.cells.load(FAULTS));
        assert_eq!(faults, 0, "two were inside, or a death was hidden");
        drop((permits, children));
        before.is_reached_again();
        format!("{n_kills} kills in {rounds} rounds; nobody stuck, nothing leaked")
    })
}

/// Polls a wait a few times and drops it.
async fn give_up<F: Future>(wait: F, n_polls: u64) {
    let mut wait = pin!(wait);
    for _ in 0..n_polls {
        if futures::poll!(wait.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn given_up(plan: &mut Plan) -> String {
    let n = plan.size(4_000, 100_000);
    runtime().block_on(async {
        let stage = Stage::new();
        // Others, in processes of their own, who take what is given up.
        let mut others = Vec::new();
        for seed in 0..2 {
            others.push(start(Method::ForkServer, (stage.clone(), seed)).await);
        }
        for _ in 0..n {
            let n_polls = plan.chance.u64(1..4);
            match plan.chance.u8(..4) {
                0 => give_up(stage.lock.lock(), n_polls).await,
                1 => give_up(stage.permits.acquire(), n_polls).await,
                2 => give_up(stage.flag.wait(), n_polls).await,
                _ => {
                    let guard = soon("the lock", stage.lock.lock()).await;
                    let wait = stage.changed.wait(guard.expect("the creator lives"));
                    give_up(wait, n_polls).await;
                }
            }
        }
        for other in &others {
            kill(Pid::from_raw(other.pid().cast_signed()), Signal::SIGKILL).expect("it lives");
            other.wait().await;
        }
        // A notification and a set find who waits.
        let guard = soon("the lock", stage.lock.lock()).await;
        let mut waiter = Box::pin(stage.changed.wait(guard.expect("the creator lives")));
        assert!(futures::poll!(waiter.as_mut()).is_pending());
        let guard = soon("the lock", stage.lock.lock()).await;
        stage.changed.notify_one();
        drop(guard);
        drop(soon("the notification", waiter).await);
        stage.flag.clear();
        let mut waiter = Box::pin(stage.flag.wait());
        assert!(futures::poll!(waiter.as_mut()).is_pending());
        stage.flag.set();
        soon("the flag", waiter).await.expect("the creator lives");
        let mut permits = Vec::new();
        for _ in 0..PERMITS {
            permits.push(soon("a permit", stage.permits.acquire()).await);
        }
        assert_eq!(stage.cells.load(FAULTS), 0);
        format!("{n} waits given up; no permit, wake-up or notification lost")
    })
}

const COMPETITORS: usize = 8;
/// How long each of them keeps the lock.
const HOLD: Duration = Duration::from_micros(50);

type Competition = (Lock, Event, RawArray<u64>, usize, Duration);

/// Cells: how often each one got the lock, then how long it waited at most, in microseconds.
async fn compete((lock, begin, cells, index, time): Competition) {
    cells.store(COMPETITORS + index, 0);
    begin.wait().await.expect("the creator lives");
    let start = Instant::now();
    while start.elapsed() < time {
        let asked = Instant::now();
        let guard = lock.lock_ref().await.expect("the creator lives");
        let waited = asked.elapsed().as_micros() as u64;
        let got = Instant::now();
        while got.elapsed() < HOLD {
            std::hint::spin_loop();
        }
        drop(guard);
        cells.update(index, |n| n + 1);
        cells.update(COMPETITORS + index, |most| most.max(waited));
    }
}

fn fairness(plan: &mut Plan) -> String {
    // Long enough for a processor that is busy for a moment to even out.
    let time = plan.limit(Duration::from_secs(4), Duration::from_secs(10));
    // Beside other tests the machine is shared by chance.
    let (ratio, longest) = (plan.size(8, 2), plan.size(2_000, 100));
    runtime().block_on(async {
        let lock = Lock::new().expect("a lock");
        let begin = Event::new().expect("an event");
        let cells = RawArray::zeroed(2 * COMPETITORS).expect("cells");
        let mut children = Vec::new();
        for index in 0..COMPETITORS {
            let argument = (lock.clone(), begin.clone(), cells.clone(), index, time);
            children.push(Process::start(compete, argument).await.expect("a child"));
        }
        begin.set();
        for child in children {
            soon("the end", child.join()).await.expect("a clean end");
        }
        let cells = cells.to_vec();
        let (rounds, waits) = cells.split_at(COMPETITORS);
        let (most, least) = (rounds.iter().max(), rounds.iter().min());
        let (most, least) = (most.copied().unwrap_or(0), least.copied().unwrap_or(0));
        let waited = Duration::from_micros(waits.iter().max().copied().unwrap_or(0));
        let figures = format!("rounds {rounds:?}, at most {waited:?} waited");
        assert!(least > 0, "{figures}");
        assert!(most <= ratio as u64 * least, "{figures}");
        assert!(waited <= Duration::from_millis(longest as u64), "{figures}");
        figures
    })
}
