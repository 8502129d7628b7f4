//! A child that was started by spawn puts a greeting into a queue.
//!
//! Run with `cargo run --example start_method_queue`.

use tokio_multiprocess::{AsyncQueue, Context, QueueSender, StartMethod};

async fn greet(queue: QueueSender<String>) {
    queue
        .put("hello".to_owned())
        .await
        .expect("somebody gets it");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let context = Context::new(StartMethod::SPAWN);
    let (sender, receiver) = AsyncQueue::unbounded()?.split();
    let child = context.process(greet, sender).await?;

    println!("{}", receiver.get().await?);
    child.join().await?;
    Ok(())
}
