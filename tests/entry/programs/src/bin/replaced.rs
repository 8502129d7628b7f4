//! Has its own file deleted, or replaced by the file that it is told, before it starts anything.

use std::{env, fs};

use tokio_multiprocess::{Process, StartMethod};

fn main() {
    let own = env::current_exe().unwrap();
    match env::args().nth(1) {
        Some(other) => fs::rename(other, &own).unwrap(),
        None => fs::remove_file(&own).unwrap(),
    }
    for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
        programs::block_on(async {
            let builder = Process::builder().start_method(method);
            let child = builder.start(programs::square, 4).await.unwrap();
            assert_eq!(child.join().await.unwrap(), 16);
        });
    }
    println!("its children are what it was");
}
