//! What becomes of the others when a process is killed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tokio_multiprocess::{Process, StartMethod};

use crate::process::suite::{assert_ends, sleep};

/// In the environment of an application that is started to be killed.
const VICTIM: &str = "VICTIM";

/// Tells its own subprocess, and blocks or spins for good.
fn parent_of_a_subprocess(spins: bool) {
    let sleeper = Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn();
    println!("pid {}", sleeper.unwrap().id());
    if spins {
        loop {
            std::hint::spin_loop();
        }
    }
    sleep(());
}

/// Starts children by each method, which start subprocesses and children.
async fn application() {
    for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
        for spins in [false, true] {
            let builder = Process::builder().start_method(method);
            let child = builder.start(parent_of_a_subprocess, spins).await.unwrap();
            println!("pid {}", child.pid());
            let builder = Process::builder().start_method(method);
            let nested = |()| {
                let grandchild = futures::executor::block_on(Process::start(sleep, ())).unwrap();
                println!("pid {}", grandchild.pid());
                sleep(());
            };
            let child = builder.start(nested, ()).await.unwrap();
            println!("pid {}", child.pid());
        }
    }
    std::future::pending().await
}

#[tokio::test]
async fn nobody_outlives_an_application_that_is_killed() {
    if std::env::var_os(VICTIM).is_some() {
        application().await;
    }
    let name = "death::nobody_outlives_an_application_that_is_killed";
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args([name, "--exact", "--nocapture"]).env(VICTIM, "1");
    let mut victim = test.stdout(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(victim.stdout.take().unwrap());

    let lines = stdout.lines().map(Result::unwrap);
    let pids = lines.filter_map(|line| line.split_once("pid ")?.1.parse().ok());
    // Two methods, spinning and not: a child and its subprocess, a child and its child.
    let pids = pids.take(2 * 2 * 4).collect::<Vec<u32>>();
    victim.kill().unwrap();
    victim.wait().unwrap();
    for pid in pids {
        assert_ends(pid);
    }
}
