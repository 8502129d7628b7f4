//! A function runs in a process of its own, with an argument.
//!
//! Run with `cargo run --example hello_process`.

use tokio_multiprocess::Process;

fn greet(name: String) {
    println!("hello {name}");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = Process::start(greet, "bob".to_owned()).await?;
    process.join().await?;
    Ok(())
}
