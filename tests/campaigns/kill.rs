//! Workers are killed at random moments, from outside and by their own tasks.
//!
//! Every task resolves exactly once. A task that fails was either fatal itself, or was running in
//! a worker that was killed from outside, and then it is that worker's only victim. Afterwards the
//! pool has as many workers as before, and nothing is left over.
//!
//! `cargo test --test campaign_kill -- --long`: 50,000 tasks and 500 deaths by each start method.

#![allow(
    unsafe_code,
    reason = "a segmentation fault has to be made, and fork is unsafe"
)]

mod campaign;

use std::collections::HashSet;
use std::mem;
use std::process::ExitCode;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, stream};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_multiprocess::{ExitStatus, Pool, TaskError};

use campaign::census::Census;
use campaign::method::{Method, runtime};
use campaign::{Case, Plan};

const WORKERS: usize = 4;

/// What workers are killed with from outside.
const KILLS: [Signal; 2] = [Signal::SIGKILL, Signal::SIGSEGV];

/// How long a killed worker may be missing from the pool: beside other tests, and by itself.
const RESTORED_MAX: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(1)];

fn main() -> ExitCode {
    tokio_multiprocess::init();
    campaign::main(&[
        Case {
            name: "kills_harm_nobody_else_by_spawn",
            run: |plan| run(Method::Spawn, plan),
        },
        Case {
            name: "kills_harm_nobody_else_by_fork_server",
            run: |plan| run(Method::ForkServer, plan),
        },
        Case {
            name: "kills_harm_nobody_else_by_fork",
            run: |plan| run(Method::Fork, plan),
        },
    ])
}

/// What a task is told to do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Order {
    number: u64,
    sleep_us: u64,
    fate: Fate,
}

/// How a task ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Fate {
    Return,
    Segfault,
    Abort,
    Exit(i32),
}

fn task(order: Order) -> u64 {
    // The work of this task: a kill may come while it waits in the kernel.
    thread::sleep(Duration::from_micros(order.sleep_us));
    match order.fate {
        Fate::Return => answer(order.number),
        // SAFETY: it is not safe: the fault is what the test is about.
        Fate::Segfault => unsafe { std::ptr::without_provenance::<u64>(8).read_volatile() },
        Fate::Abort => std::process::abort(),
        Fate::Exit(code) => std::process::exit(code),
    }
}

fn answer(number: u64) -> u64 {
    number * 3 + 1
}

impl Fate {
    const FATAL: [Self; 4] = [Self::Segfault, Self::Abort, Self::Exit(3), Self::Exit(0)];

    fn explains(self, status: ExitStatus) -> bool {
        match self {
            Self::Return => false,
            Self::Segfault => status.signal() == Some(Signal::SIGSEGV as i32),
            Self::Abort => status.signal() == Some(Signal::SIGABRT as i32),
            Self::Exit(code) => status.code() == Some(code),
        }
    }
}

fn run(method: Method, plan: &mut Plan) -> String {
    let n_tasks = plan.size(4_000, 50_000);
    let n_deaths = plan.size(40, 500);
    let orders = Rc::new(orders(plan, n_tasks, n_deaths / 2));
    runtime().block_on(async {
        // What the library starts once and keeps is counted before, not after.
        warm_up(method).await;
        let before = Census::take_at_rest();

        let pool = method
            .pool()
            .processes(WORKERS)
            .build()
            .await
            .expect("a pool");
        let started = Instant::now();
        // Half of the deaths are the tasks' own, half come from outside; the tasks go in by both
        // doors, so each door has half of each.
        let mut toll = Toll::default();
        let (by_apply, by_stream) = orders.split_at(n_tasks / 2);
        for door in [Door::Apply, Door::Stream] {
            let orders = if door == Door::Apply {
                by_apply
            } else {
                by_stream
            };
            let killer = Killer::start(&pool, plan, n_deaths / 4, orders.len());
            let results = door.results(&pool, orders.to_vec());
            toll.add(door, results, &killer.progress).await;
            toll.kills.extend(killer.ended().await);
        }
        let elapsed = started.elapsed();
        let n_kills = toll.kills.len();
        toll.judge(&orders);

        let [beside_others, by_itself] = RESTORED_MAX;
        let restored = wait_for_workers(&pool, plan.limit(beside_others, by_itself)).await;
        let squares = pool
            .map(double, 0..100)
            .await
            .expect("a pool that still works");
        assert!(squares.into_iter().eq((0..100).map(|x| x * 2)));
        pool.close().await.expect("a clean end");
        before.is_reached_again();
        format!(
            "{n_tasks} tasks, {n_deaths} deaths: {} fatal tasks, {} kills from outside of which {} \
             hit a task; innocents failed 0; workers back after {restored:?}; {:.1} s",
            toll.fatal,
            n_kills,
            toll.struck,
            elapsed.as_secs_f64(),
        )
    })
}

async fn warm_up(method: Method) {
    let pool = method.pool().processes(1).build().await.expect("a pool");
    pool.apply(double, 1).await.expect("a result");
    pool.close().await.expect("a clean end");
}

fn double(x: u64) -> u64 {
    x * 2
}

fn orders(plan: &mut Plan, n_tasks: usize, n_fatal: usize) -> Vec<Order> {
    let mut order = |number| Order {
        number,
        sleep_us: plan.chance.u64(0..150),
        fate: Fate::Return,
    };
    let mut orders: Vec<Order> = (0..n_tasks as u64).map(&mut order).collect();
    let places = plan.chance.choose_multiple(0..n_tasks, n_fatal);
    for (place, fate) in places.into_iter().zip(Fate::FATAL.into_iter().cycle()) {
        orders[place].fate = fate;
    }
    orders
}

/// How tasks get into a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Apply,
    Stream,
}

/// A result, and the task it belongs to where the door tells.
type Resolved = (Option<u64>, Result<u64, TaskError>);

impl Door {
    /// The first half goes in by one door, the second half by the other.
    fn of(order: &Order, n_tasks: usize) -> Self {
        if order.number < n_tasks as u64 / 2 {
            Self::Apply
        } else {
            Self::Stream
        }
    }

    fn results(self, pool: &Pool, orders: Vec<Order>) -> Box<dyn Stream<Item = Resolved> + Unpin> {
        match self {
            Self::Apply => {
                let pool = pool.clone();
                let tasks = stream::iter(orders).map(move |order| {
                    let task = pool.apply_async(task, order);
                    async move { (Some(order.number), task.await) }
                });
                Box::new(tasks.buffer_unordered(256).boxed_local())
            }
            Self::Stream => {
                let results = pool.imap_unordered(task, orders);
                Box::new(results.map(|result| (None, result)))
            }
        }
    }
}

/// A worker's death, and the task that it was charged to.
#[derive(Debug, Clone, Copy)]
struct Death {
    pid: u32,
    status: ExitStatus,
    door: Door,
    number: Option<u64>,
}

impl Death {
    /// Whether `order` is a task that can have brought it about.
    fn is_by(&self, order: &Order, n_tasks: usize) -> bool {
        let fits = self.number.is_none_or(|number| number == order.number);
        fits && self.door == Door::of(order, n_tasks) && order.fate.explains(self.status)
    }
}

/// What has become of the tasks.
#[derive(Debug, Default)]
struct Toll {
    /// Answers that have come, each of them once.
    answered: HashSet<u64>,
    /// Tasks that resolved, by any end.
    resolved: usize,
    deaths: Vec<Death>,
    /// Kills from outside: a number may come back for another process, and be killed again.
    kills: Vec<u32>,
    /// Deaths that a task brought upon itself.
    fatal: usize,
    /// Deaths from outside that struck a task.
    struck: usize,
}

impl Toll {
    async fn add(
        &mut self,
        door: Door,
        mut results: Box<dyn Stream<Item = Resolved> + Unpin>,
        progress: &mpsc::UnboundedSender<()>,
    ) {
        while let Some((number, result)) = results.next().await {
            self.resolved += 1;
            // Nobody listens any more when all kills are done.
            let _ = progress.send(());
            match result {
                Ok(answered) => {
                    assert!(number.is_none_or(|number| answer(number) == answered));
                    assert!(self.answered.insert(answered), "{answered} came twice");
                }
                Err(TaskError::WorkerDied { pid, status, .. }) => {
                    self.deaths.push(Death {
                        pid,
                        status,
                        door,
                        number,
                    });
                }
                Err(other) => panic!("task {number:?} failed for no reason of ours: {other}"),
            }
        }
    }

    /// Finds a reason for every failure, and a failure for every task that has no answer.
    fn judge(&mut self, orders: &[Order]) {
        assert_eq!(self.resolved, orders.len(), "not every task resolved");
        let unanswered = |order: &&Order| !self.answered.contains(&answer(order.number));
        let unanswered: Vec<&Order> = orders.iter().filter(unanswered).collect();
        assert_eq!(unanswered.len(), self.deaths.len());
        let is_fatal = |order: &&Order| order.fate != Fate::Return;
        let mut suspects: Vec<&Order> = unanswered.into_iter().filter(is_fatal).collect();
        // First the deaths that only a task can have brought about: a task that the stream lost
        // has no number, so any fatal one of its kind is a reason, but each only once.
        let mut deaths = mem::take(&mut self.deaths);
        deaths.sort_by_key(|death| self.kills.contains(&death.pid));
        for death in deaths {
            let culprit = suspects
                .iter()
                .position(|order| death.is_by(order, orders.len()));
            if let Some(culprit) = culprit {
                suspects.swap_remove(culprit);
                self.fatal += 1;
            } else {
                let by_signal = |signal| death.status.signal() == Some(signal as i32);
                let kill = self.kills.iter().position(|pid| *pid == death.pid);
                let kill = kill.filter(|_| KILLS.into_iter().any(by_signal));
                let Some(kill) = kill else {
                    panic!("an innocent task failed: {death:?}; suspects {suspects:?}");
                };
                self.kills.swap_remove(kill);
                self.struck += 1;
            }
        }
        // What is left was fatal, and was struck from outside before it came to that.
        assert!(
            suspects.len() <= self.struck,
            "{suspects:?} have no answer and no death"
        );
    }
}

/// Kills workers while tasks resolve.
struct Killer {
    /// Told of every task that resolves.
    progress: mpsc::UnboundedSender<()>,
    task: tokio::task::JoinHandle<Vec<u32>>,
}

impl Killer {
    /// Kills `n_kills` workers, each shortly after a random task has resolved.
    fn start(pool: &Pool, plan: &mut Plan, n_kills: usize, n_tasks: usize) -> Self {
        let (progress, mut resolved) = mpsc::unbounded_channel();
        let mut moments = plan.chance.choose_multiple(0..n_tasks * 9 / 10, n_kills);
        moments.sort_unstable();
        let mut chance = plan.chance.fork();
        let pool = pool.clone();
        let task = tokio::spawn(async move {
            let mut killed = Vec::new();
            let mut so_far = 0;
            for moment in moments {
                while so_far <= moment && resolved.recv().await.is_some() {
                    so_far += 1;
                }
                // A random moment of the task that runs now, not of its beginning.
                tokio::time::sleep(Duration::from_micros(chance.u64(0..2000))).await;
                // Between a death and the replacement there may be none.
                let victim = loop {
                    match chance.choice(&pids(&pool)) {
                        Some(&victim) => break victim,
                        // All are being replaced, of which nobody is told.
                        None => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                };
                let signal = KILLS[chance.usize(0..KILLS.len())];
                let pid = i32::try_from(victim).expect("a pid");
                if kill(Pid::from_raw(pid), signal).is_ok() {
                    killed.push(victim);
                }
            }
            killed
        });
        Self { progress, task }
    }

    async fn ended(self) -> Vec<u32> {
        drop(self.progress);
        self.task.await.expect("the killer does not panic")
    }
}

/// Waits until the pool has all its workers again.
async fn wait_for_workers(pool: &Pool, limit: Duration) -> Duration {
    let started = Instant::now();
    loop {
        let workers = pids(pool).len();
        if workers == WORKERS {
            return started.elapsed();
        }
        assert!(
            started.elapsed() < limit,
            "only {workers} workers came back"
        );
        // The pool tells nobody of a worker that is back; how soon it is, is the figure.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The workers that live.
fn pids(pool: &Pool) -> Vec<u32> {
    let workers = pool.stats().workers;
    workers
        .into_iter()
        .filter_map(|worker| worker.pid)
        .collect()
}
