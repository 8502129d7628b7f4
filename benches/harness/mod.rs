//! Runs contenders in interleaved rounds and prints what came of it as ratios.
//!
//! Every figure is taken in a process of its own: the program starts itself again with
//! `--measure NAME`, and that process prints one number. So no contender sees the threads, the heap
//! or the open files of another, and a floor that forks does so from a process with one thread.
//!
//! Within a row the contenders take turns (A B C A B C ...), and a row's figure is the median of its
//! rounds: a machine that slows down for a while slows down all of them. Absolute figures move
//! with the machine; what is claimed, and what the table judges, are ratios taken in one run.

mod claim;
mod sample;
mod table;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::time::Instant;

pub(crate) use claim::{Claim, Row, Unit};
pub(crate) use sample::{median, median_us, median_us_async, per_op_ns, runtime};

/// Seconds after which one measurement is taken for hung, by a signal that ends its process.
const MEASUREMENT_SECONDS_MAX: u32 = 120;

/// Something that can be measured.
#[derive(Clone, Copy)]
pub(crate) enum Contender {
    /// A function of this program, run in a fresh process of it.
    Here(fn() -> f64),
    /// The arguments of a script in Python, separated by spaces.
    Python(&'static str),
}

/// How a run is told what to do.
struct Options {
    rounds: usize,
    rows: Vec<u32>,
}

/// The whole program: measures one contender if it was started for that, else runs all claims.
///
/// `script` is what the contenders in Python are arguments of.
pub(crate) fn main(
    contenders: &[(&'static str, Contender)],
    claims: &[Claim],
    script: &str,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--measure"
    {
        return measure_here(contenders, name);
    }
    let options = Options::parse(&arguments);
    let started = Instant::now();
    let version = python_version();
    let python = version.as_ref().map(|_| script);
    println!(
        "{} rounds, interleaved; {}; {} cores; python: {}",
        options.rounds,
        if cfg!(target_feature = "crt-static") {
            "static"
        } else {
            "dynamic"
        },
        std::thread::available_parallelism().map_or(0, usize::from),
        version
            .as_deref()
            .unwrap_or("missing, its lines are skipped"),
    );

    let mut rows: Vec<u32> = claims.iter().map(|claim| claim.row).collect();
    rows.dedup();
    rows.retain(|row| options.rows.is_empty() || options.rows.contains(row));
    let mut missed = 0;
    table::head();
    for row in rows {
        let claims: Vec<&Claim> = claims.iter().filter(|claim| claim.row == row).collect();
        let figures = rounds(contenders, &claims, options.rounds, python);
        for claim in claims {
            missed += usize::from(!table::line(claim, &figures));
        }
    }
    println!(
        "\n{missed} targets missed; {:.0} s",
        started.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

impl Options {
    /// `cargo bench -- 3 14 --rounds 7`: rows 3 and 14, seven rounds. `--bench` is what cargo adds.
    ///
    /// Without `--bench` somebody only wants to know whether the program works: one round.
    fn parse(arguments: &[String]) -> Self {
        let mut options = Self {
            rounds: 1,
            rows: Vec::new(),
        };
        let mut arguments = arguments.iter();
        let mut rounds = None;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => options.rounds = 5,
                "--rounds" => rounds = arguments.next().and_then(|number| number.parse().ok()),
                number => options.rows.extend(number.parse::<u32>().ok()),
            }
        }
        options.rounds = rounds.unwrap_or(options.rounds);
        options
    }
}

/// Takes every contender that `claims` name in turn, `n` times over.
fn rounds(
    contenders: &[(&'static str, Contender)],
    claims: &[&Claim],
    n: usize,
    python: Option<&str>,
) -> BTreeMap<&'static str, Vec<f64>> {
    let mut names: Vec<&'static str> = Vec::new();
    for name in claims
        .iter()
        .flat_map(|claim| [Some(claim.ours), claim.against])
        .flatten()
    {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut figures = BTreeMap::<_, Vec<f64>>::new();
    for _ in 0..n {
        for name in &names.clone() {
            let figure = match find(contenders, name) {
                Contender::Python(arguments) => match python {
                    Some(script) => {
                        let mut command = Command::new("python3");
                        measured(command.arg(script).args(arguments.split(' ')))
                    }
                    None => continue,
                },
                Contender::Here(_) => {
                    let mut command = Command::new("/proc/self/exe");
                    command.args(["--measure", name]);
                    measured(&mut command)
                }
            };
            match figure {
                Ok(figure) => figures.entry(*name).or_default().push(figure),
                Err(why) => {
                    println!("| {name} failed: {why}");
                    names.retain(|other| other != name);
                }
            }
        }
    }
    figures
}

fn find(contenders: &[(&'static str, Contender)], name: &str) -> Contender {
    let found = contenders.iter().find(|(known, _)| *known == name);
    found
        .unwrap_or_else(|| panic!("no contender is called {name}"))
        .1
}

fn measure_here(contenders: &[(&'static str, Contender)], name: &str) -> ExitCode {
    let Contender::Here(measure) = find(contenders, name) else {
        panic!("{name} is not measured by this program");
    };
    nix::unistd::alarm::set(MEASUREMENT_SECONDS_MAX);
    println!("{}", measure());
    ExitCode::SUCCESS
}

/// Runs a process that prints one number as its last word.
fn measured(command: &mut Command) -> Result<f64, String> {
    command.env("RUST_BACKTRACE", "0");
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint: Vec<&str> = complaint.lines().filter(|line| !line.is_empty()).collect();
        return Err(format!("{}: {}", output.status, complaint.join(" ")));
    }
    let number = said
        .split_whitespace()
        .last()
        .and_then(|word| word.parse().ok());
    number.ok_or_else(|| format!("it printed {said:?}, no number"))
}

/// What `python3` calls itself, if there is one.
fn python_version() -> Option<String> {
    let output = Command::new("python3").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
