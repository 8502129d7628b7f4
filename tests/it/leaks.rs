//! A process that has started and ended many children has nothing more than before.

use tokio_multiprocess::{Process, StartMethod};

use crate::alone::alone;

const N_CYCLES: usize = 1000;

#[test]
fn a_thousand_spawned_children_leave_nothing_behind() {
    alone(async || cycles(StartMethod::SPAWN).await);
}

#[test]
fn a_thousand_children_of_the_fork_server_leave_nothing_behind() {
    alone(async || cycles(StartMethod::FORK_SERVER).await);
}

#[test]
fn children_that_are_killed_leave_nothing_behind() {
    alone(async || {
        for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
            for _ in 0..50 {
                let builder = Process::builder().start_method(method);
                let child = builder
                    .start(crate::process::suite::sleep, ())
                    .await
                    .unwrap();
                child.kill().unwrap();
                assert!(child.join().await.is_err());
            }
        }
    });
}

#[test]
fn children_whose_handles_are_dropped_leave_nothing_behind() {
    alone(async || {
        for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
            for _ in 0..50 {
                let builder = Process::builder().start_method(method);
                drop(builder.start(|()| (), ()).await.unwrap());
            }
        }
    });
}

#[test]
fn starts_that_are_given_up_leave_nothing_behind() {
    alone(async || {
        for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
            for n_polls in 0..20 {
                let builder = Process::builder().start_method(method);
                let mut start = Box::pin(builder.start(crate::process::suite::sleep, ()));
                for _ in 0..n_polls {
                    let _ = futures::poll!(start.as_mut());
                    tokio::task::yield_now().await;
                }
            }
        }
    });
}

async fn cycles(method: StartMethod) {
    let memory = resident_bytes();
    for n in 0..N_CYCLES {
        let builder = Process::builder().start_method(method);
        let child = builder.start(|n| n, n).await.unwrap();
        assert_eq!(child.join().await.unwrap(), n);
    }
    let more = resident_bytes().saturating_sub(memory);
    assert!(
        more < 1 << 20,
        "{more} bytes more after {N_CYCLES} children"
    );
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let line = lines
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kilobytes = line.trim().strip_suffix(" kB").unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
}
