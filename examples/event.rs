//! Workers run while a flag stands, and stop when it is raised.
//!
//! Run with `cargo run --example event`.

use std::error::Error;

use tokio_multiprocess::Process;
use tokio_multiprocess::shared::RawValue;
use tokio_multiprocess::sync::Event;

/// Works until it is told to stop; a look at the flag is one load.
fn work((stop, rounds): (Event, RawValue<u64>)) -> u64 {
    let mut mine = 0;
    while !stop.is_set() {
        mine += 1;
        rounds.update(|n| n + 1);
    }
    mine
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (stop, rounds) = (Event::new()?, RawValue::new(0)?);
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Process::start(work, (stop.clone(), rounds.clone())).await?);
    }

    while rounds.load() < 100_000 {
        tokio::task::yield_now().await;
    }
    stop.set();

    let mut sum = 0;
    for worker in workers {
        let pid = worker.pid();
        let mine = worker.join().await?;
        println!("worker {pid} stopped after {mine} rounds");
        sum += mine;
    }
    assert_eq!(sum, rounds.load());
    println!("together {sum}");
    Ok(())
}
