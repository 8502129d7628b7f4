//! The application is killed with SIGKILL at random moments, and nobody of its processes stays.
//!
//! The case makes itself the reaper of orphans, so every process that outlives the application is
//! its child, whatever group or parent it had. The application has a pool whose workers are idle,
//! spin, or are blocked, and each worker has a grandchild by this library and an ordinary
//! subprocess.
//!
//! `cargo test --test campaign_left_behind -- --long`: 200 kills by each start method.

#![allow(unsafe_code, reason = "fork is unsafe")]

mod campaign;

use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio_multiprocess::{Process, StartMethod};

use campaign::census::{children_of, descendants_of};
use campaign::method::{Method, runtime};
use campaign::{Case, Plan};

/// The argument with which this program is the application that will be killed.
const APPLICATION: &str = "--application";

/// How long a process may outlive the application, when this campaign has the machine to itself.
const SURVIVAL_MAX: Duration = Duration::from_secs(1);

/// How long it may where other tests run at the same time. Who outlives this is there for ever.
const SURVIVAL_ON_A_BUSY_MACHINE_MAX: Duration = Duration::from_secs(10);

const WORKERS: usize = 3;

fn main() -> ExitCode {
    tokio_multiprocess::init();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, method, state] = &arguments[..]
        && flag == APPLICATION
    {
        application(Method::named(method), State::named(state))
    }
    campaign::main(&[
        Case {
            name: "nobody_outlives_a_killed_application_by_spawn",
            run: |plan| kills(Method::Spawn, plan),
        },
        Case {
            name: "nobody_outlives_a_killed_application_by_fork_server",
            run: |plan| kills(Method::ForkServer, plan),
        },
        Case {
            name: "nobody_outlives_a_killed_application_by_fork",
            run: |plan| kills(Method::Fork, plan),
        },
        Case {
            name: "a_child_outlives_the_thread_that_started_it",
            run: |_| outlives_its_thread(),
        },
    ])
}

/// What the workers do when the application dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Idle,
    Spinning,
    Blocked,
}

impl State {
    const ALL: [Self; 3] = [Self::Idle, Self::Spinning, Self::Blocked];

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Spinning => "spinning",
            Self::Blocked => "blocked",
        }
    }

    fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|state| state.name() == name);
        found.unwrap_or_else(|| panic!("no state is called {name}"))
    }
}

/// Kills applications, and waits each time until nobody is left.
fn kills(method: Method, plan: &mut Plan) -> String {
    nix::sys::prctl::set_child_subreaper(true).expect("a reaper of orphans");
    let n_kills = plan.size(15, 200);
    let mut longest = Duration::ZERO;
    let (mut processes, mut mid_start) = (0, 0);
    // How long an application takes until it is up; half as long again, so that a third of the
    // kills finds it at rest and the others on the way.
    let up_after = applied(method, State::Blocked, None)
        .up_after
        .expect("it was waited for");
    for kill in 0..n_kills {
        let state = State::ALL[kill % State::ALL.len()];
        let patience = up_after.mul_f64(plan.chance.f64() * 1.5);
        let death = applied(method, state, Some(patience));
        longest = longest.max(death.survived);
        processes += death.processes;
        mid_start += usize::from(death.up_after.is_none());
    }
    assert!(
        longest < plan.limit(SURVIVAL_ON_A_BUSY_MACHINE_MAX, SURVIVAL_MAX),
        "the last was gone after {longest:?} only"
    );
    format!(
        "{n_kills} kills ({mid_start} of them before all workers were up), {processes} processes \
         left by then; the last was gone after {longest:?}; 0 survivors",
    )
}

/// How an application died.
struct Death {
    up_after: Option<Duration>,
    /// Processes that it had.
    processes: usize,
    /// From its death to that of the last of them.
    survived: Duration,
}

/// Starts an application, and kills it when it is up or when `patience` ends.
fn applied(method: Method, state: State, patience: Option<Duration>) -> Death {
    let own = std::process::id();
    let mut command = Command::new("/proc/self/exe");
    command.args([APPLICATION, method.name(), state.name()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let started = Instant::now();
    let mut application = command.spawn().expect("an application");
    let mut words = application.stdout.take().expect("its output");
    let up = thread::spawn(move || {
        let up = std::io::Read::read(&mut words, &mut [0]).is_ok_and(|n| n == 1);
        up.then(|| started.elapsed())
    });
    let up = match patience {
        Some(patience) => {
            // Nothing is waited for: this is a random moment, whatever goes on then.
            thread::sleep(patience);
            Err(up)
        }
        None => Ok(up.join().expect("no panic")),
    };
    let processes = descendants_of(application.id()).len();
    application.kill().expect("a kill");
    let killed = Instant::now();
    application.wait().expect("its end");
    let survived = loop {
        reap_orphans(own);
        let left = descendants_of(own);
        let elapsed = killed.elapsed();
        if left.is_empty() {
            break elapsed;
        }
        assert!(
            elapsed < SURVIVAL_ON_A_BUSY_MACHINE_MAX,
            "{method:?}, {state:?}: there for ever: {left:#?}"
        );
        // They are nobody's children any more: only the process table tells of their end.
        thread::sleep(Duration::from_micros(200));
    };
    Death {
        up_after: up.unwrap_or_else(|up| up.join().expect("no panic")),
        processes,
        survived,
    }
}

fn reap_orphans(own: u32) {
    for child in children_of(own) {
        let pid = Pid::from_raw(i32::try_from(child.pid).expect("a pid"));
        // One that lives on is looked at again; nobody else reaps.
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// The program that is killed.
fn application(method: Method, state: State) -> ! {
    runtime().block_on(async {
        let pool = method
            .pool()
            .processes(WORKERS)
            .build()
            .await
            .expect("a pool");
        // As many tasks as workers: an idle worker is given one before another gets a second.
        let families = (0..WORKERS).map(|_| pool.apply_async(start_family, ()));
        for family in families.collect::<Vec<_>>() {
            family.await.expect("a family");
        }
        let busy: Vec<_> = (0..WORKERS)
            .map(|_| pool.apply_async(behave, state))
            .collect();
        print!("x");
        std::io::Write::flush(&mut std::io::stdout()).expect("a case that listens");
        for task in busy {
            task.await.expect("a task that does not end by itself");
        }
        std::future::pending().await
    })
}

/// A grandchild by this library, and a subprocess by the standard one.
async fn start_family((): ()) {
    let grandchild = Process::start(sleep_for_ever, ())
        .await
        .expect("a grandchild");
    // Dropping the handle lets it run on.
    drop(grandchild);
    let mut subprocess = Command::new("sleep");
    subprocess
        .arg("1000")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    drop(subprocess.spawn().expect("a subprocess"));
}

fn behave(state: State) {
    match state {
        State::Idle => (),
        State::Spinning => loop {
            std::hint::spin_loop();
        },
        State::Blocked => sleep_for_ever(()),
    }
}

fn sleep_for_ever((): ()) {
    loop {
        thread::park();
    }
}

/// The kernel ends a child with the thread that created it, if asked to: which thread is that?
fn outlives_its_thread() -> String {
    let mut started = 0;
    for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
        let start = async move || {
            let builder = Process::builder().start_method(method);
            builder.start(answer_later, 7).await.expect("a child")
        };
        let by_thread = thread::spawn(move || runtime().block_on(start()));
        let by_thread = by_thread.join().expect("no panic");
        let multi = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_keep_alive(Duration::from_millis(1))
            .build()
            .expect("a runtime");
        let by_blocking = multi.block_on(async {
            let handle = tokio::runtime::Handle::current();
            let task = tokio::task::spawn_blocking(move || handle.block_on(start()));
            task.await.expect("no panic")
        });
        // The blocking thread ends while the child sleeps, and so do both runtimes.
        drop(multi);
        for process in [by_thread, by_blocking] {
            let answer = runtime().block_on(process.join());
            assert_eq!(answer.expect("it lived on"), 7);
            started += 1;
        }
    }
    format!("{started} children outlived the thread and the runtime that started them")
}

fn answer_later(answer: u64) -> u64 {
    // Longer than the thread that started it lives.
    thread::sleep(Duration::from_millis(300));
    answer
}
