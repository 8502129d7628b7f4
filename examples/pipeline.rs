//! Three processes in a row: one reads files, one looks at the pieces, one puts the findings
//! together. Whoever is fast waits for whoever is slow, so memory stays small whatever the input.
//!
//! Run with `cargo run --example pipeline -- FILES...`; without files it takes its own program.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_multiprocess::Process;
use tokio_multiprocess::pipe::{self, PipeReceiver, PipeSender};

/// Reads pieces of 256 KiB; tells how many, and how long it was held back.
fn read((files, out): (Vec<PathBuf>, PipeSender<()>)) -> (u64, Duration) {
    let mut piece = vec![0; 256 << 10];
    let (mut n_pieces, mut held_back) = (0, Duration::ZERO);
    for path in files {
        let mut file = File::open(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        loop {
            let len = file.read(&mut piece).expect("a file can be read");
            if len == 0 {
                break;
            }
            let begun = Instant::now();
            out.blocking_send_bytes(&piece[..len])
                .expect("the next stage lives");
            held_back += begun.elapsed();
            n_pieces += 1;
        }
    }
    (n_pieces, held_back)
}

/// Counts how often each byte occurs, which is slower than reading.
fn count((pieces, out): (PipeReceiver<()>, PipeSender<Vec<u64>>)) {
    while let Ok(piece) = pieces.blocking_recv_bytes() {
        let mut counts = vec![0; 256];
        piece
            .iter()
            .for_each(|byte| counts[usize::from(*byte)] += 1);
        out.blocking_send(counts).expect("the next stage lives");
    }
}

/// Adds up what is found; gives the five most frequent bytes.
async fn sum(found: PipeReceiver<Vec<u64>>) -> Vec<(u64, usize)> {
    let mut total = vec![0; 256];
    while let Ok(counts) = found.recv().await {
        total
            .iter_mut()
            .zip(counts)
            .for_each(|(sum, count)| *sum += count);
    }
    let mut total: Vec<_> = total.into_iter().zip(0..).collect();
    total.sort_unstable_by(|a, b| b.cmp(a));
    total[..5].to_vec()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    if files.is_empty() {
        files.push(std::env::current_exe()?);
    }
    let (pieces_out, pieces_in) = pipe::one_way()?;
    let (found_out, found_in) = pipe::one_way()?;
    let begun = Instant::now();

    let reader = Process::start(read, (files, pieces_out)).await?;
    let counter = Process::start(count, (pieces_in, found_out)).await?;
    let adder = Process::start(sum, found_in).await?;

    let (n_pieces, held_back) = reader.join().await?;
    counter.join().await?;
    let frequent = adder.join().await?;
    println!("{n_pieces} pieces in {:.1?}", begun.elapsed());
    println!("the reader was held back for {held_back:.1?} of them");
    for (count, byte) in frequent {
        println!("{byte:#04x} occurs {count} times");
    }
    Ok(())
}
