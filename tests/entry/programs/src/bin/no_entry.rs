//! Never calls `init`, and is built without the hook: a child of it would only be a second `main`.

use tokio_multiprocess::{Process, StartMethod};

fn main() {
    println!("main runs");
    for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
        let builder = Process::builder().start_method(method);
        let started = programs::block_on(builder.start(programs::square, 3));
        println!("{:?}", started.unwrap_err());
    }
}
