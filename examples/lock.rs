//! Ten children print lines piece by piece, and a lock keeps them whole.
//!
//! Run with `cargo run --example lock`.

use std::error::Error;
use std::io::{Write, stdout};

use tokio_multiprocess::Process;
use tokio_multiprocess::sync::Lock;

async fn greet((lock, n): (Lock, u32)) {
    let _guard = lock.lock().await.expect("the parent is there");
    for piece in ["hello ", "world ", &format!("{n}\n")] {
        print!("{piece}");
        stdout().flush().expect("stdout is open");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lock = Lock::new()?;
    let mut children = Vec::new();
    for n in 0..10 {
        children.push(Process::start(greet, (lock.clone(), n)).await?);
    }
    for child in children {
        child.join().await?;
    }
    Ok(())
}
