//! Producers list the source files below a folder, consumers count their lines, and one of these is
//! killed in the middle: thanks to leases no file is missed and none is counted twice.
//!
//! Run with `cargo run --example work_queue`, or with another folder: `… -- src`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io};

use tokio_multiprocess::{AsyncQueue, Process, QueueReceiver, QueueSender};

fn list(folder: PathBuf, queue: &QueueSender<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(path, queue)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            queue.blocking_put(path).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

fn produce((folder, queue): (PathBuf, QueueSender<PathBuf>)) {
    list(folder, &queue).expect("the folder can be read");
}

async fn consume((files, counts): (QueueReceiver<PathBuf>, QueueSender<(PathBuf, usize)>)) {
    while let Ok(lease) = files.get_leased().await {
        let n_lines = fs::read_to_string(&*lease).map_or(0, |text| text.lines().count());
        counts
            .put((lease.clone(), n_lines))
            .await
            .expect("somebody counts");
        // Killed before this line, somebody else counts the file again.
        lease.done();
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).unwrap_or_else(|| "src".into());
    let (files, waiting) = AsyncQueue::builder().leases().build()?.split();
    let (counts, results) = AsyncQueue::bounded(4)?.split();
    let mut consumers = Vec::new();
    for _ in 0..3 {
        consumers.push(Process::start(consume, (waiting.clone(), counts.clone())).await?);
    }
    drop(counts);
    let producer = Process::start(produce, (folder.into(), files.clone())).await?;

    let mut n_lines = BTreeMap::new();
    let (first, n) = results.get().await?;
    n_lines.insert(first, n);
    println!("killing consumer {}", consumers[0].pid());
    consumers[0].kill()?;

    producer.join().await?;
    drop(files);
    drop(waiting);
    while let Ok((path, n)) = results.get().await {
        n_lines.insert(path, n);
    }
    let all: usize = n_lines.values().sum();
    println!("{} files, {all} lines", n_lines.len());
    Ok(())
}
