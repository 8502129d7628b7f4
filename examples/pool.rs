//! A pool of four workers, used in every way, as in the example that Python's manual gives.
//!
//! Run with `cargo run --example pool`.

use std::time::Duration;

use futures::TryStreamExt;
use futures::future::try_join_all;
use tokio::time::timeout;
use tokio_multiprocess::{Pool, TaskError};

fn f(x: u64) -> u64 {
    x * x
}

fn pid((): ()) -> u32 {
    std::process::id()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let second = Duration::from_secs(1);
    let pool = Pool::new(4).await?;

    // Prints [0, 1, 4, ..., 81].
    println!("{:?}", pool.map(f, 0..10).await?);

    // Prints the same numbers in any order.
    let mut squares = pool.imap_unordered(f, 0..10);
    while let Some(square) = squares.try_next().await? {
        println!("{square}");
    }

    // Runs in one process only; prints 400.
    println!("{}", timeout(second, pool.apply_async(f, 20)).await??);

    // The pid of that process.
    println!("{}", timeout(second, pool.apply_async(pid, ())).await??);

    // Several tasks at once may use more processes.
    let pids = (0..4).map(|_| pool.apply_async(pid, ()));
    println!("{:?}", timeout(second, try_join_all(pids)).await??);

    // One worker sleeps for ten seconds, which is too long for us.
    let sleep = pool.apply_async(std::thread::sleep, Duration::from_secs(10));
    if timeout(second, sleep).await.is_err() {
        println!("we lacked patience and gave up waiting");
    }
    let answer = pool.apply(f, 7).await?;
    println!("for the moment, the pool remains available for more work: {answer}");

    // `close` would wait for the sleeper; Python's `with` block ends like this too.
    pool.terminate().await?;
    match pool.apply(f, 8).await {
        Err(TaskError::PoolClosed) => println!("now the pool is closed and no longer available"),
        other => println!("not refused: {other:?}"),
    }
    Ok(())
}
