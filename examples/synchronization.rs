//! A tour: a barrier, a semaphore, a condition and a lock that its owner takes again.
//!
//! Run with `cargo run --example synchronization`.

use std::error::Error;

use serde::{Deserialize, Serialize};
use tokio_multiprocess::Process;
use tokio_multiprocess::shared::Value;
use tokio_multiprocess::sync::{Barrier, Condition, RLock, Semaphore};

#[derive(Clone, Serialize, Deserialize)]
struct Shared {
    start: Barrier,
    seats: Semaphore,
    lock: RLock,
    changed: Condition,
    n_done: Value<u32>,
}

async fn take_part((shared, n): (Shared, u32)) -> Result<(), String> {
    let text = |error: tokio_multiprocess::CreatorGone| error.to_string();
    let passed = shared
        .start
        .wait()
        .await
        .map_err(|error| error.to_string())?;
    if passed.is_leader() {
        println!("all are here, child {n} came last");
    }
    {
        let _seat = shared.seats.acquire().await.map_err(text)?;
        println!("child {n} has one of two seats");
    }
    let outer = shared.lock.lock().await.map_err(text)?;
    let _inner = outer.again();
    *shared.n_done.lock().await.map_err(text)? += 1;
    shared.changed.notify_one();
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lock = RLock::new()?;
    let shared = Shared {
        start: Barrier::new(3)?,
        seats: Semaphore::new(2)?,
        changed: Condition::new(&lock)?,
        lock,
        n_done: Value::new(0)?,
    };
    let mut children = Vec::new();
    for n in 0..3 {
        children.push(Process::start(take_part, (shared.clone(), n)).await?);
    }

    let mut guard = shared.lock.lock().await?;
    while shared.n_done.get().await? < 3 {
        guard = shared.changed.wait(guard).await?;
    }
    drop(guard);
    println!("all are done");
    for child in children {
        child.join().await??;
    }
    Ok(())
}
