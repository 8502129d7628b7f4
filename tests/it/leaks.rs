//! A process whose children came to no regular end has nothing more than before.
//!
//! That thousands of regular ones leave nothing is a campaign's matter.

use std::io::{PipeWriter, Read, Write};
use std::task::Poll;

use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::{Process, StartMethod};

use crate::alone::alone;
use crate::process::suite::sleep;

#[test]
fn children_that_are_killed_leave_nothing_behind() {
    alone(async || {
        for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
            for _ in 0..50 {
                let builder = Process::builder().start_method(method);
                let child = builder.start(sleep, ()).await.unwrap();
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
                let mut start = Box::pin(builder.start(sleep, ()));
                for _ in 0..n_polls {
                    if let Poll::Ready(child) = futures::poll!(start.as_mut()) {
                        child.unwrap().kill().unwrap();
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    });
}

/// The child runs, and the answer is there or on its way, but nobody has seen it.
#[test]
fn a_start_that_is_given_up_when_its_child_runs_leaves_nothing_behind() {
    alone(async || {
        for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
            for _ in 0..20 {
                let (mut reader, writer) = std::io::pipe().unwrap();
                let builder = Process::builder().start_method(method);
                let mut start = Box::pin(builder.start(say_and_sleep, Fd(writer)));
                if let Poll::Ready(child) = futures::poll!(start.as_mut()) {
                    // It was faster than this thread.
                    child.unwrap().kill().unwrap();
                    continue;
                }
                reader.read_exact(&mut [0]).unwrap();

                drop(start);

                assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            }
        }
    });
}

fn say_and_sleep(Fd(mut writer): Fd<PipeWriter>) {
    writer.write_all(&[0]).unwrap();
    sleep(());
}
