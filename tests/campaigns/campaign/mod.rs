//! Runs the cases of a campaign, each in a process of its own, and says what came of them.
//!
//! A case is a function that panics when the promise is broken, and returns a line of figures when
//! it holds. The program starts itself again for each: so that what a case counts (descriptors,
//! threads, children, memory) is its own, and so that a hang ends by an alarm, which a blocked
//! program cannot hold up.
//!
//! `cargo test` runs the short form. `cargo test --test NAME -- --long` runs the one whose figures
//! are worth quoting; `--seed N` repeats a run. The arguments of the usual test harness, and of
//! nextest, are understood as far as they make sense.

#![allow(dead_code, reason = "each campaign uses its share of this module")]

pub(crate) mod census;
pub(crate) mod method;

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Seconds after which a case is taken for hung: in its short form, and in its long one.
const CASE_SECONDS_MAX: [u32; 2] = [60, 1200];

/// One promise, put to the test.
pub(crate) struct Case {
    /// A sentence of the specification, with underscores.
    pub(crate) name: &'static str,
    /// Panics if it does not hold; returns the figures of the run.
    pub(crate) run: fn(&mut Plan) -> String,
}

/// How large a run is, and its source of chance.
pub(crate) struct Plan {
    long: bool,
    /// Seeded with what the driver prints.
    pub(crate) chance: fastrand::Rng,
}

impl Plan {
    /// The size of the run: `short` under `cargo test`, `long` when asked for.
    pub(crate) fn size(&self, short: usize, long: usize) -> usize {
        if self.long { long } else { short }
    }

    /// A bound on time: `short` under `cargo test`, where other tests take their share of the
    /// machine, `long` when the campaign is run by itself.
    pub(crate) fn limit(&self, short: Duration, long: Duration) -> Duration {
        if self.long { long } else { short }
    }
}

struct Options {
    list: bool,
    only_ignored: bool,
    exact: bool,
    long: bool,
    seed: u64,
    case: Option<String>,
    filters: Vec<String>,
}

/// The whole program.
pub(crate) fn main(cases: &[Case]) -> ExitCode {
    let options = Options::parse();
    if options.only_ignored {
        return ExitCode::SUCCESS;
    }
    if let Some(name) = &options.case {
        return run_here(cases, name, &options);
    }
    let cases = cases.iter().filter(|case| options.wants(case.name));
    if options.list {
        cases.for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let failed: Vec<_> = cases.filter(|case| !run_apart(case, &options)).collect();
    failed
        .iter()
        .for_each(|case| println!("FAILED: {}", case.name));
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a case in a process of its own; true if it held.
fn run_apart(case: &Case, options: &Options) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--case", case.name, "--seed", &options.seed.to_string()]);
    if options.long {
        command.arg("--long");
    }
    // Panics are what some cases are about; what is said on stderr is only of interest if it fails.
    let complaints = memfd_create("complaints", MFdFlags::MFD_CLOEXEC).expect("a file in memory");
    command.stderr(complaints.try_clone().expect("a descriptor"));
    let started = Instant::now();
    let status = command.status().expect("this program can be started");
    let seconds = started.elapsed().as_secs_f64();
    let said = match status.signal() {
        Some(signal) if signal == nix::sys::signal::SIGALRM as i32 => "HUNG".to_owned(),
        _ if status.success() => "ok".to_owned(),
        _ => format!("FAILED ({status})"),
    };
    if !status.success() {
        let mut complaints = File::from(complaints);
        complaints.rewind().expect("a file in memory");
        io::copy(&mut complaints, &mut io::stderr()).expect("a file in memory");
    }
    println!(
        "{}: {said}; seed {}, {seconds:.1} s",
        case.name, options.seed
    );
    status.success()
}

fn run_here(cases: &[Case], name: &str, options: &Options) -> ExitCode {
    let case = cases
        .iter()
        .find(|case| case.name == name)
        .expect("a case of that name");
    nix::unistd::alarm::set(CASE_SECONDS_MAX[usize::from(options.long)]);
    let chance = fastrand::Rng::with_seed(options.seed);
    let figures = (case.run)(&mut Plan {
        long: options.long,
        chance,
    });
    println!("{name}: {figures}");
    ExitCode::SUCCESS
}

impl Options {
    fn parse() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut options = Self {
            list: false,
            only_ignored: false,
            exact: false,
            long: std::env::var_os("CAMPAIGN_LONG").is_some(),
            seed: now.map_or(0, |since| since.as_secs()),
            case: None,
            filters: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => options.list = true,
                "--ignored" => options.only_ignored = true,
                "--exact" => options.exact = true,
                "--long" => options.long = true,
                "--case" => options.case = arguments.next(),
                "--seed" => {
                    let seed = arguments.next().and_then(|seed| seed.parse().ok());
                    options.seed = seed.expect("--seed takes a number");
                }
                // These have a value that must not be taken for a filter.
                "--format" | "--test-threads" | "--skip" | "--color" => drop(arguments.next()),
                flag if flag.starts_with('-') => (),
                _ => options.filters.push(argument),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        let fits = |filter: &String| {
            if self.exact {
                name == filter
            } else {
                name.contains(filter.as_str())
            }
        };
        self.filters.is_empty() || self.filters.iter().any(fits)
    }
}
