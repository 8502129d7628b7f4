//! A process and its child say who they are.
//!
//! Run with `cargo run --example process_info`.

use std::os::unix::process::parent_id;
use std::process::id;

use tokio_multiprocess::{Process, current_process, parent_process};

fn info(title: &str) {
    println!("{title}");
    println!("module: {}", module_path!());
    println!("name: {}", current_process().name);
    match parent_process() {
        Some(parent) => println!("parent process: {} ({})", parent.pid(), parent.name()),
        None => println!("parent process: {}", parent_id()),
    }
    println!("process id: {}", id());
    println!();
}

fn greet(name: String) {
    info("function greet");
    println!("hello {name}");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    info("main line");
    let process = Process::start(greet, "bob".to_owned()).await?;
    process.join().await?;
    Ok(())
}
