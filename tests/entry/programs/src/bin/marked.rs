//! Tells what a child of it finds in its environment that it has not itself, so that a test can
//! pretend to be its parent.

use std::fs;

use tokio_multiprocess::{Process, StartMethod};

/// As it was at exec, whatever has been removed since.
fn environment((): ()) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/environ").unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn main() {
    println!("main runs");
    if std::env::args().nth(1).is_none() {
        return;
    }
    let own = environment(());
    let childs = programs::block_on(async {
        let builder = Process::builder().start_method(StartMethod::SPAWN);
        let child = builder.start(environment, ()).await.unwrap();
        child.join().await.unwrap()
    });
    for variable in childs.iter().filter(|variable| !own.contains(variable)) {
        println!("marker {variable}");
    }
}
