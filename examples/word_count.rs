//! Counts the words of all text files under some folders, one task a file, on every CPU.
//!
//! Run with `cargo run --release --example word_count`, and with `-- --help` for what else it does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use clap::Parser;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio_multiprocess::{Pool, TaskError, cpu_count};
use walkdir::WalkDir;

/// Counts the words of all text files, one task a file, in parallel by processes.
#[derive(Parser)]
struct Options {
    /// Where to look for files [default: the sources of all dependencies that cargo has unpacked].
    folders: Vec<PathBuf>,
    /// How many workers to start.
    #[arg(long, default_value_t = cpu_count())]
    processes: usize,
    /// Count again, sequentially, compare, and print the speed-up.
    #[arg(long)]
    check: bool,
    /// Kill a random worker every 50 ms, and show that only what it was counting is lost.
    #[arg(long)]
    chaos: bool,
    /// How often a file whose worker died is counted again.
    #[arg(long, default_value_t = 0)]
    retries: u32,
}

/// What one task gives back: how often each word stands in a file. The words are one text, which
/// is faster to take apart than many are to send.
#[derive(Serialize, Deserialize)]
struct FileCount {
    path: PathBuf,
    words: String,
    times: Vec<u64>,
}

/// What all tasks together give.
#[derive(Default)]
struct Total {
    words_by_file: BTreeMap<PathBuf, u64>,
    by_word: HashMap<String, u64>,
    lost: Vec<TaskError>,
}

/// The task: runs in a worker, and for the comparison in this process too.
fn count(path: PathBuf) -> FileCount {
    let mut by_word = HashMap::<&str, u64>::new();
    // What cannot be read or is no text has no words.
    let text = fs::read_to_string(&path).unwrap_or_default();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    for word in words.filter(|word| !word.is_empty()) {
        *by_word.entry(word).or_default() += 1;
    }
    let (words, times): (Vec<_>, _) = by_word.into_iter().unzip();
    let words = words.join(" ");
    FileCount { path, words, times }
}

impl Total {
    fn add(&mut self, file: FileCount) {
        let n_words = file.times.iter().sum();
        self.words_by_file.insert(file.path, n_words);
        for (word, n) in file.words.split(' ').zip(file.times) {
            match self.by_word.get_mut(word) {
                Some(total) => *total += n,
                None => drop(self.by_word.insert(word.to_owned(), n)),
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let files = files_under(&options.folders);
    let builder = Pool::builder()
        .processes(options.processes)
        .retries(options.retries);
    let pool = builder.build().await?;

    let mut n_kills = 0;
    let since = Instant::now();
    let total = tokio::select! {
        total = in_parallel(&pool, files.clone()) => total?,
        () = kill_workers(&pool, &mut n_kills), if options.chaos => unreachable!("it never ends"),
    };
    let parallel = since.elapsed();
    pool.terminate().await?;

    print_table(&total, options.processes, parallel);
    if options.chaos {
        print_losses(&files, &total, n_kills)?;
    }
    if options.check || options.chaos {
        compare(&total, parallel)?;
    }
    Ok(())
}

async fn in_parallel(pool: &Pool, files: Vec<PathBuf>) -> Result<Total, TaskError> {
    let style = "{bar:40} {pos}/{len} files, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("the template is right");
    let bar = ProgressBar::new(files.len() as u64).with_style(style);

    let mut total = Total::default();
    let mut counts = pool.imap_unordered(count, files);
    while let Some(result) = counts.next().await {
        bar.inc(1);
        match result {
            Ok(file) => total.add(file),
            Err(lost @ TaskError::WorkerDied { .. }) => total.lost.push(lost),
            Err(other) => return Err(other),
        }
    }
    bar.finish_and_clear();
    Ok(total)
}

async fn kill_workers(pool: &Pool, n_kills: &mut usize) {
    let mut clock = tokio::time::interval(Duration::from_millis(50));
    clock.tick().await; // The first tick comes at once.
    loop {
        clock.tick().await;
        let stats = pool.stats();
        // One that is being started has no pid yet.
        if let Some(pid) = fastrand::choice(&stats.workers).and_then(|worker| worker.pid) {
            let killed = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            *n_kills += usize::from(killed.is_ok());
        }
    }
}

fn print_table(total: &Total, n_processes: usize, took: Duration) {
    let mut top = total.by_word.iter().collect::<Vec<_>>();
    top.sort_by_key(|&(word, &n)| (std::cmp::Reverse(n), word));
    println!("{:<12} {:>12}", "word", "times");
    for (word, n) in top.iter().take(10) {
        println!("{word:<12} {n:>12}");
    }
    let n_words = total.words_by_file.values().sum::<u64>();
    let n_files = total.words_by_file.len();
    println!("{:<12} {n_words:>12}", "total");
    println!("{n_files} files in {took:.2?} by {n_processes} processes");
}

/// Every file is either counted or reported, and nothing is lost that no kill explains.
fn print_losses(files: &[PathBuf], total: &Total, n_kills: usize) -> Result<(), String> {
    println!(
        "\nkilled {n_kills} workers; {} tasks were reported lost:",
        total.lost.len()
    );
    for error in &total.lost {
        println!("  {error}");
    }
    let lost = files
        .iter()
        .filter(|file| !total.words_by_file.contains_key(*file));
    let lost = lost.collect::<BTreeSet<_>>();
    for file in &lost {
        println!("  not counted: {}", file.display());
    }
    if lost.len() != total.lost.len() || lost.len() > n_kills {
        return Err(format!("{} files are missing", lost.len()));
    }
    Ok(())
}

/// Counts the same files in this process, one after the other, and says whether all is the same.
fn compare(total: &Total, parallel: Duration) -> Result<(), String> {
    let since = Instant::now();
    let mut again = Total::default();
    for path in total.words_by_file.keys() {
        again.add(count(path.clone()));
    }
    let sequential = since.elapsed();
    if again.words_by_file != total.words_by_file || again.by_word != total.by_word {
        return Err("the counts differ from a sequential run".to_owned());
    }
    let ratio = sequential.as_secs_f64() / parallel.as_secs_f64();
    println!("\na sequential run gives the same counts for each of these files");
    println!("it took {sequential:.2?}: the speed-up is {ratio:.2}x");
    Ok(())
}

fn files_under(folders: &[PathBuf]) -> Vec<PathBuf> {
    let default = [unpacked_dependencies()];
    let folders = if folders.is_empty() {
        &default
    } else {
        folders
    };
    let entries = folders.iter().flat_map(WalkDir::new).filter_map(Result::ok);
    let files = entries.filter(|entry| entry.file_type().is_file());
    files.map(walkdir::DirEntry::into_path).collect()
}

/// Tens of megabytes of text that whoever builds this has on the disk; else this crate's own.
fn unpacked_dependencies() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    let sources = home.map(|home| home.join("registry/src"));
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf();
    sources.filter(|sources| sources.is_dir()).unwrap_or(own)
}
