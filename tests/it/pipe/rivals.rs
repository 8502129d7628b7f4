//! Tasks, threads and runtimes that share one end of a pipe.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_multiprocess::RecvError;
use tokio_multiprocess::pipe::{self, PipeSender};

use crate::soon;

/// Only ever fails.
const PATIENCE: Duration = Duration::from_secs(30);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn tasks_of_two_runtimes_send_by_one_end() {
    const EACH: usize = 100;
    async fn send(tx: Arc<PipeSender<Vec<u8>>>) {
        for _ in 0..EACH {
            tx.send(vec![1; 30_000]).await.unwrap();
        }
    }
    let (tx, rx) = pipe::one_way::<Vec<u8>>().unwrap();
    let tx = Arc::new(tx);
    let senders = [(); 2].map(|()| {
        let tx = Arc::clone(&tx);
        thread::spawn(move || {
            runtime().block_on(async {
                let mut tasks = JoinSet::new();
                for _ in 0..4 {
                    tasks.spawn(send(Arc::clone(&tx)));
                }
                soon(tasks.join_all()).await;
            });
        })
    });
    drop(tx);

    let mut n = 0;
    while rx.blocking_recv().is_ok() {
        n += 1;
    }

    assert_eq!(n, 2 * 4 * EACH);
    for sender in senders {
        sender.join().unwrap();
    }
}

/// Another sender may write its rest for it, and fill the socket again.
#[test]
fn a_thread_that_sends_goes_on_when_its_message_has_left() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    for _ in 0..10 {
        let (tx, rx) = pipe::one_way::<String>().unwrap();
        let tx = Arc::new(tx);
        let (tell, told) = mpsc::channel();
        let blocking = thread::spawn({
            let tx = Arc::clone(&tx);
            move || {
                tx.blocking_send("a".repeat(3_000_000)).unwrap();
                tell.send(()).unwrap();
            }
        });
        let other = runtime.spawn({
            let tx = Arc::clone(&tx);
            async move { tx.send("b".repeat(8_000_000)).await.unwrap() }
        });

        // Nothing more is read until the sender of what was read first is through.
        let first = rx.blocking_recv().unwrap();
        if first.starts_with('a') {
            told.recv_timeout(PATIENCE).unwrap();
        }
        rx.blocking_recv().unwrap();

        blocking.join().unwrap();
        runtime.block_on(async { soon(other).await.unwrap() });
    }
}

/// All of them are sent by the one thread that sends what is left, which is told of more while it
/// writes.
#[test]
fn what_was_accepted_before_an_end_was_dropped_arrives() {
    const PIPES: usize = 60;
    let text = "x".repeat(2_500_000);
    let threads = [(); 4].map(|()| {
        let text = text.clone();
        thread::spawn(move || {
            for _ in 0..PIPES {
                let (tx, rx) = pipe::one_way::<String>().unwrap();
                let reader = thread::spawn(move || {
                    let mut n = 0;
                    loop {
                        match rx.blocking_recv() {
                            Ok(_) => n += 1,
                            Err(end) => return (n, matches!(end, RecvError::Closed)),
                        }
                    }
                });
                for _ in 0..2 {
                    let mut message = text.clone();
                    while let Err(refused) = tx.try_send(message) {
                        assert!(refused.is_full(), "{refused}");
                        message = refused.into_inner();
                        thread::yield_now();
                    }
                }
                drop(tx);
                assert_eq!(reader.join().unwrap(), (2, true));
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}
