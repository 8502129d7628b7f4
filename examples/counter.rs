//! Four processes add a million times each, by a lock and by an atomic number, and nothing is lost.
//!
//! Run with `cargo run --release --example counter`, or shorter as
//! `cargo run --example counter`.

use std::error::Error;
use std::time::Instant;

use tokio_multiprocess::Process;
use tokio_multiprocess::shared::{RawValue, Value};

const TIMES: u64 = if cfg!(debug_assertions) {
    20_000
} else {
    1_000_000
};

async fn add_locked(counter: Value<u64>) {
    for _ in 0..TIMES {
        *counter.lock().await.expect("the parent is there") += 1;
    }
}

fn add_atomic(counter: RawValue<u64>) {
    for _ in 0..TIMES {
        counter.update(|n| n + 1);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (locked, atomic) = (Value::new(0)?, RawValue::new(0)?);

    let start = Instant::now();
    let mut children = Vec::new();
    for _ in 0..4 {
        children.push(Process::start(add_locked, locked.clone()).await?);
    }
    for child in children {
        child.join().await?;
    }
    println!(
        "under a lock: {} in {:?}",
        locked.get().await?,
        start.elapsed()
    );

    let start = Instant::now();
    let mut children = Vec::new();
    for _ in 0..4 {
        children.push(Process::start(add_atomic, atomic.clone()).await?);
    }
    for child in children {
        child.join().await?;
    }
    println!("atomically:   {} in {:?}", atomic.load(), start.elapsed());

    assert_eq!((locked.get().await?, atomic.load()), (4 * TIMES, 4 * TIMES));
    Ok(())
}
