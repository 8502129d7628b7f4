//! One child by each way to start one, and one by a context that was told its way.
//!
//! Run with `cargo run --example start_methods`.

use std::process::id;
use std::time::Instant;

use futures::executor::block_on;
use tokio_multiprocess::{Context, Process, StartMethod, start_method};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn greet(way: String) -> u32 {
    println!("  hello from process {}, made by {way}", id());
    id()
}

fn main() -> Outcome {
    println!("this is process {}", id());
    // A fork copies this process as it is, so it comes before a runtime and its threads.
    block_on(by_fork())?;
    tokio::runtime::Runtime::new()?.block_on(by_name())
}

#[expect(
    unsafe_code,
    reason = "fork has a contract that only its caller can keep"
)]
async fn by_fork() -> Outcome {
    let captured = vec![1, 2, 3];
    println!("fork: a closure that captures {captured:?}");
    let sum = move || captured.iter().sum::<i32>();
    // SAFETY: nothing of tokio has been used in this process and it has no other thread; the
    // child only adds numbers.
    let child = unsafe { Process::builder().fork(sum) }?;
    println!("  {} computed {}", child.pid(), child.join().await?);
    Ok(())
}

async fn by_name() -> Outcome {
    let methods = [
        ("spawn", StartMethod::SPAWN),
        ("fork server", StartMethod::FORK_SERVER),
    ];
    for (way, method) in methods {
        println!("{way}:");
        let since = Instant::now();
        let builder = Process::builder().start_method(method);
        let child = builder.start(greet, way.to_owned()).await?;
        let pid = child.join().await?;
        println!("  {pid} came and went in {:?}", since.elapsed());
    }

    println!("a context, where the default is {:?}:", start_method());
    let context = Context::new(StartMethod::SPAWN);
    let child = context
        .process(greet, "the context's way".to_owned())
        .await?;
    child.join().await?;
    Ok(())
}
