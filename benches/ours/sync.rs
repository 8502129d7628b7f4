//! Locks, semaphores, events, conditions, barriers and values: alone, contended, and handed over.

use std::hint::black_box;
use std::time::Instant;

use tokio::task::JoinSet;
use tokio_multiprocess::Process;
use tokio_multiprocess::shared::{RawArray, RawValue, Value};
use tokio_multiprocess::sync::{Barrier, Condition, Event, Lock, Semaphore};

use crate::floor::sync::{CONTENDED, CROWD, HAND_OVERS, MANY, MEETINGS, pause};
use crate::harness::{per_op_ns, runtime};

async fn uncontended(mut one: impl AsyncFnMut()) -> f64 {
    for _ in 0..MANY / 10 {
        one().await;
    }
    let started = Instant::now();
    for _ in 0..MANY {
        one().await;
    }
    per_op_ns(started.elapsed(), MANY)
}

/// Nanoseconds to take a free lock and give it back, with a guard that borrows.
pub(crate) fn lock_borrowed() -> f64 {
    let lock = Lock::new().expect("a lock");
    runtime().block_on(async {
        let started = Instant::now();
        for _ in 0..MANY {
            drop(lock.lock_ref().await.expect("the creator lives"));
        }
        per_op_ns(started.elapsed(), MANY)
    })
}

/// The same with a guard that owns.
pub(crate) fn lock_owned() -> f64 {
    let lock = Lock::new().expect("a lock");
    runtime().block_on(uncontended(async || {
        drop(lock.lock().await.expect("the creator lives"));
    }))
}

/// Nanoseconds to take a permit and give it back.
pub(crate) fn semaphore_alone() -> f64 {
    let semaphore = Semaphore::new(1).expect("a semaphore");
    runtime().block_on(uncontended(async || {
        drop(semaphore.acquire().await.expect("the creator lives"));
    }))
}

/// Nanoseconds to ask an event.
pub(crate) fn is_set() -> f64 {
    let event = Event::new().expect("an event");
    runtime().block_on(uncontended(async || {
        black_box(black_box(&event).is_set());
    }))
}

/// Nanoseconds to add to an atomic value.
pub(crate) fn add() -> f64 {
    let value = RawValue::new(0_u64).expect("a value");
    runtime().block_on(uncontended(async || {
        value.update(|n| n + 1);
    }))
}

/// Nanoseconds to add to a value under its lock.
pub(crate) fn add_locked() -> f64 {
    let value = Value::new(0_u64).expect("a value");
    runtime().block_on(uncontended(async || {
        *value.lock().await.expect("the creator lives") += 1;
    }))
}

/// Begins together in all of `n` processes.
fn meet(ready: &RawArray<u64>, n: u64) {
    ready.update(0, |ready| ready + 1);
    while ready.load(0) < n {
        std::thread::yield_now();
    }
}

type Contention = (Lock, RawArray<u64>, u64);

async fn contend((lock, cells, n): Contention) {
    meet(&cells, n);
    for _ in 0..CONTENDED / n as usize {
        let guard = lock.lock_ref().await.expect("the creator lives");
        pause();
        cells.store(1, cells.load(1) + 1);
        drop(guard);
        pause();
    }
}

/// Nanoseconds a round of so many processes that contend for a lock.
pub(crate) fn lock_contended(n: u64) -> f64 {
    let lock = Lock::new().expect("a lock");
    let cells = RawArray::zeroed(2).expect("cells");
    let argument = (lock, cells.clone(), n);
    let elapsed = all(n, argument, contend);
    let rounds = CONTENDED / n as usize * n as usize;
    assert_eq!(cells.load(1), rounds as u64);
    per_op_ns(elapsed, rounds)
}

/// Runs `body` here and in `n - 1` children, and tells how long until all are through.
fn all<A, F>(n: u64, argument: A, body: fn(A) -> F) -> std::time::Duration
where
    A: Clone + serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    runtime().block_on(async {
        let mut children = Vec::new();
        for _ in 1..n {
            let child = Process::start(body, argument.clone()).await;
            children.push(child.expect("a child"));
        }
        let started = Instant::now();
        body(argument).await;
        let elapsed = started.elapsed();
        for child in children {
            child.join().await.expect("a clean end");
        }
        elapsed
    })
}

/// Who has the ball begins.
fn begins(cells: &RawArray<u64>) -> bool {
    cells.update(1, |n| n + 1) == 0
}

type Balls<T> = (T, T, RawArray<u64>);

fn round_trip<T, F>(balls: (T, T), body: fn(Balls<T>) -> F) -> f64
where
    T: Clone + serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let cells = RawArray::zeroed(2).expect("cells");
    let elapsed = all(2, (balls.0, balls.1, cells), body);
    per_op_ns(elapsed, HAND_OVERS) / 1e3
}

async fn play_events((there, back, cells): Balls<Event>) {
    let first = begins(&cells);
    meet(&cells, 2);
    let (mine, other) = if first {
        (&back, &there)
    } else {
        (&there, &back)
    };
    for _ in 0..HAND_OVERS {
        if first {
            other.set();
        }
        mine.wait().await.expect("the creator lives");
        mine.clear();
        if !first {
            other.set();
        }
    }
}

/// Microseconds there and back by two events.
pub(crate) fn event_round_trip() -> f64 {
    let event = || Event::new().expect("an event");
    round_trip((event(), event()), play_events)
}

async fn play_semaphores((there, back, cells): Balls<Semaphore>) {
    let first = begins(&cells);
    meet(&cells, 2);
    let (mine, other) = if first {
        (&back, &there)
    } else {
        (&there, &back)
    };
    for _ in 0..HAND_OVERS {
        if first {
            other.release();
        }
        mine.acquire().await.expect("the creator lives").forget();
        if !first {
            other.release();
        }
    }
}

/// Microseconds there and back by two semaphores.
pub(crate) fn semaphore_round_trip() -> f64 {
    let semaphore = || Semaphore::new(0).expect("a semaphore");
    round_trip((semaphore(), semaphore()), play_semaphores)
}

/// Nanoseconds a turn when a crowd of tasks of one process queues up for a lock.
pub(crate) fn lock_by_tasks() -> f64 {
    let lock = Lock::new().expect("a lock");
    runtime().block_on(async {
        let mut tasks = JoinSet::new();
        let started = Instant::now();
        for _ in 0..CROWD {
            let lock = lock.clone();
            tasks.spawn(async move {
                let guard = lock.lock().await.expect("the creator lives");
                tokio::task::yield_now().await;
                drop(guard);
            });
        }
        tasks.join_all().await;
        per_op_ns(started.elapsed(), CROWD)
    })
}

fn play_blocking((there, back, cells): Balls<Semaphore>) {
    let first = begins(&cells);
    meet(&cells, 2);
    let (mine, other) = if first {
        (&back, &there)
    } else {
        (&there, &back)
    };
    for _ in 0..HAND_OVERS {
        if first {
            other.release();
        }
        mine.blocking_acquire().expect("the creator lives").forget();
        if !first {
            other.release();
        }
    }
}

/// The same by threads that sleep, as Python's do.
pub(crate) fn semaphore_round_trip_blocking() -> f64 {
    let semaphore = || Semaphore::new(0).expect("a semaphore");
    let play = async |balls: Balls<Semaphore>| {
        tokio::task::spawn_blocking(|| play_blocking(balls))
            .await
            .expect("no panic");
    };
    let cells = RawArray::zeroed(2).expect("cells");
    let (there, back) = (semaphore(), semaphore());
    let elapsed = runtime().block_on(async {
        let balls = (there.clone(), back.clone(), cells.clone());
        let child = Process::start(play_blocking, balls).await.expect("a child");
        let started = Instant::now();
        play((there, back, cells)).await;
        let elapsed = started.elapsed();
        child.join().await.expect("a clean end");
        elapsed
    });
    per_op_ns(elapsed, HAND_OVERS) / 1e3
}

async fn play_condition((lock, condition, cells): (Lock, Condition, RawArray<u64>)) {
    let role = cells.update(1, |n| n + 1);
    meet(&cells, 2);
    for _ in 0..HAND_OVERS {
        let guard = lock.lock().await.expect("the creator lives");
        let not_my_turn = |_: &mut _| cells.load(2) % 2 != role;
        let guard = condition.wait_while(guard, not_my_turn).await;
        let guard = guard.expect("the creator lives");
        cells.store(2, cells.load(2) + 1);
        condition.notify_one();
        drop(guard);
    }
}

/// Microseconds there and back by a condition.
pub(crate) fn condition_round_trip() -> f64 {
    let lock = Lock::new().expect("a lock");
    let condition = Condition::new(&lock).expect("a condition");
    let cells = RawArray::zeroed(3).expect("cells");
    let elapsed = all(2, (lock, condition, cells), play_condition);
    per_op_ns(elapsed, HAND_OVERS) / 1e3
}

async fn come((barrier, cells): (Barrier, RawArray<u64>)) {
    meet(&cells, barrier.parties() as u64);
    for _ in 0..MEETINGS {
        barrier.wait().await.expect("a barrier that is whole");
    }
}

/// Microseconds for so many processes to meet.
pub(crate) fn barrier(n: u64) -> f64 {
    let barrier = Barrier::new(n as usize).expect("a barrier");
    let cells = RawArray::zeroed(1).expect("cells");
    let elapsed = all(n, (barrier, cells), come);
    per_op_ns(elapsed, MEETINGS) / 1e3
}
