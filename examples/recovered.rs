//! A process dies in the middle of a change, and the next holder of the lock repairs the data.
//!
//! Run with `cargo run --example recovered`.

use std::error::Error;

use tokio_multiprocess::Process;
use tokio_multiprocess::shared::Array;

/// Moves money from one account to the other, and dies half-way.
async fn move_and_die(accounts: Array<i64>) {
    let mut accounts = accounts.lock().await.expect("the parent is there");
    accounts[0] -= 30;
    std::process::abort();
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let accounts = Array::from_slice(&[100_i64, 0])?;
    let child = Process::start(move_and_die, accounts.clone()).await?;
    let died = child.join().await.expect_err("it aborts");
    println!("the child died: {died}");

    let mut guard = accounts.lock().await?;
    println!(
        "recovered: {}, accounts: {:?}",
        guard.recovered(),
        &guard[..]
    );
    if guard.recovered() {
        let missing = 100 - guard.iter().sum::<i64>();
        guard[0] += missing;
    }
    drop(guard);

    let guard = accounts.lock().await?;
    println!(
        "recovered: {}, accounts: {:?}",
        guard.recovered(),
        &guard[..]
    );
    assert_eq!(guard[..], [100, 0]);
    Ok(())
}
