//! Every instruction of every operation: killed there, preempted there, stopped there.
//!
//! A victim performs one operation on real shared objects while this process, which looks after
//! them, single-steps it. At each instruction of the program's own code it is killed, or others
//! arrive, or both; then everybody else must go on with nobody's help. A protocol heals itself
//! whenever somebody sends something, so what is checked is progress when all the rest wait.
//!
//! `cargo test --test kill` takes a sample; `cargo test --release --test kill -- --full` takes every
//! instruction (`--only=NAME` those of one line) and prints the table. Of a pair of instructions, one at which
//! others arrive and a later one at which the victim is killed, the first is every one, and the
//! second is every one up to which something has changed that others can see: a shared word, or a
//! system call that was made. In between a killed process leaves the same behind.
//!
//! A build with `RUSTFLAGS="--cfg mutants"` and `-- --mutants` breaks one rule of the protocols after
//! the other, and each of them must be found.
//!
//! All processes share one processor, so that nobody spins in front of what is looked at, and a step
//! need not wake another one.

mod campaign;
mod cast;
mod route;
mod table;
mod trace;

use std::env;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::campaign::Effort;
use crate::table::{CAMPAIGNS, RULES};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let wants = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if wants("--list") {
        return ExitCode::SUCCESS;
    }
    if wants("--mutants") {
        return mutants();
    }
    stay_on_one_processor();
    let (stride, seconds) = match () {
        () if wants("--full") => (1, 600),
        () if wants("--mutant") => (1, 120),
        () => (61, 1),
    };
    let effort = Effort {
        stride,
        time: Duration::from_secs(seconds),
    };
    println!(
        "{:<38} {:>7} {:>6} {:>6} {:>7} {:>7} {:>8}",
        "at each instruction of", "points", "runs", "stuck", "faults", "leaked", "seconds"
    );
    let mut failed = false;
    let start = Instant::now();
    let (mut points, mut runs) = (0, 0);
    let only = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--only="));
    for campaign in CAMPAIGNS
        .iter()
        .filter(|campaign| only.is_none_or(|only| campaign.name == only))
    {
        match campaign::run(campaign, effort) {
            Ok(figures) => {
                failed |= !figures.is_fine();
                points += figures.points;
                runs += figures.runs;
                println!(
                    "{:<38} {:>7} {:>6} {:>6} {:>7} {:>7} {:>8.1}{}",
                    campaign.name,
                    figures.points,
                    figures.runs,
                    figures.stuck.len(),
                    figures.faults,
                    figures.leaked,
                    figures.time.as_secs_f64(),
                    if figures.is_complete {
                        ""
                    } else {
                        " (out of time)"
                    },
                );
                for stuck in &figures.stuck {
                    println!("    stuck: {stuck}");
                }
            }
            Err(error) => {
                println!("{:<38} {error}", campaign.name);
                failed = true;
            }
        }
        if failed && wants("--mutant") {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{:<38} {points:>7} {runs:>6} {seconds:>32.1}", "all");
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Confines this process and all that it will start to one of the processors that it may use.
fn stay_on_one_processor() {
    let this = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(this) else {
        return;
    };
    let first = (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu) == Ok(true));
    let mut one = CpuSet::new();
    if let Some(first) = first
        && one.set(first).is_ok()
    {
        // A failure costs time, nothing else.
        let _ = sched_setaffinity(this, &one);
    }
}

/// Breaks every rule, one after the other, and sees the campaigns fail.
fn mutants() -> ExitCode {
    if !cfg!(mutants) {
        println!("only a build with RUSTFLAGS=\"--cfg mutants\" can break rules");
        return ExitCode::FAILURE;
    }
    let Ok(program) = env::current_exe() else {
        return ExitCode::FAILURE;
    };
    let mut n_missed = 0;
    for (rule, patient, campaign) in RULES {
        let start = Instant::now();
        let mut command = Command::new(&program);
        command.arg("--mutant").arg(format!("--only={campaign}"));
        command.env("TOKIO_MULTIPROCESS_BREAKS", rule);
        if *patient {
            command.env("TOKIO_MULTIPROCESS_PATIENT", "1");
        }
        let found = command
            .output()
            .is_ok_and(|output| !output.status.success());
        n_missed += usize::from(!found);
        let verdict = if found { "found" } else { "MISSED" };
        let seconds = start.elapsed().as_secs_f64();
        println!("{rule:<20} by {campaign:<38} {verdict:<6} {seconds:>6.1} s");
    }
    println!("{n_missed} of {} missed", RULES.len());
    if n_missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
