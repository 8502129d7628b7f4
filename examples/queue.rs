//! A child puts a list into a queue and the parent prints it, as in Python's documentation.
//!
//! Run with `cargo run --example queue`.

use serde::{Deserialize, Serialize};
use tokio_multiprocess::{AsyncQueue, Process, QueueSender};

#[derive(Debug, Serialize, Deserialize)]
enum Item {
    Number(i64),
    Nothing,
    Word(String),
}

async fn f(queue: QueueSender<Vec<Item>>) {
    let items = vec![Item::Number(42), Item::Nothing, Item::Word("hello".into())];
    queue.put(items).await.expect("somebody gets it");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (sender, receiver) = AsyncQueue::bounded(1)?.split();
    let child = Process::start(f, sender).await?;

    println!("{:?}", receiver.get().await?);
    child.join().await?;
    Ok(())
}
