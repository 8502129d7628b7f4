//! What becomes of objects whose creator has reached a limit of the system.

use std::fs::File;
use std::io::ErrorKind;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio_multiprocess::sync::Lock;
use tokio_multiprocess::{AsyncPipe, AsyncQueue, Process};

use crate::alone::alone;
use crate::soon;

/// Has this process open all files that it may.
fn open_all() -> Vec<File> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 100, hard).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// Takes the lock while somebody else waits for it, and gives it back.
async fn hand_over(lock: &Lock) {
    let guard = lock.lock().await.unwrap();
    let waiters = [lock.clone(), lock.clone(), lock.clone()].map(|lock| {
        tokio::spawn(async move {
            let _guard = lock.lock().await.unwrap();
        })
    });
    tokio::task::yield_now().await;
    drop(guard);
    for waiter in waiters {
        soon(waiter).await.unwrap();
    }
}

#[test]
fn a_lock_too_many_for_the_limit_of_files_is_an_error_and_harms_no_other() {
    alone(async || {
        let first = Lock::new().unwrap();
        let mut files = open_all();
        files.truncate(files.len() - 20);
        let mut locks = Vec::new();
        let error = loop {
            match Lock::new() {
                Ok(lock) => locks.push(lock),
                Err(error) => break error,
            }
        };

        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert!(!locks.is_empty());
        for lock in locks.iter().chain([&first]) {
            hand_over(lock).await;
        }

        drop((files, locks));
        hand_over(&Lock::new().unwrap()).await;
        hand_over(&first).await;
    });
}

/// Takes each lock that comes and keeps them.
async fn keep(pipe: AsyncPipe<(), Lock>) {
    let mut guards = Vec::new();
    while let Ok(lock) = pipe.recv().await {
        guards.push(lock.lock().await.unwrap());
        pipe.send(()).await.unwrap();
    }
    std::future::pending().await
}

#[test]
fn who_gets_a_lock_when_its_creator_has_no_files_left_is_let_in_when_it_has() {
    alone(async || {
        let mut children = Vec::new();
        for _ in 0..4 {
            let (ours, theirs) = AsyncPipe::<Lock, ()>::pair().unwrap();
            let child = Process::start(keep, theirs).await.unwrap();
            children.push((child, ours, Lock::new().unwrap()));
        }
        let files = open_all();
        // More than the creator has descriptors to spare for.
        for (_, pipe, lock) in &children {
            pipe.send(lock.clone()).await.unwrap();
            soon(pipe.recv()).await.unwrap();
        }
        for (child, ..) in &children {
            child.kill().unwrap();
            let _ = soon(child.wait()).await;
        }
        drop(files);

        for (.., lock) in &children {
            assert!(soon(lock.lock()).await.unwrap().recovered());
        }
        hand_over(&Lock::new().unwrap()).await;
    });
}

#[test]
fn an_object_beyond_the_limit_of_a_files_size_is_an_error() {
    alone(async || {
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 1 << 26, hard).unwrap();

        let refused = AsyncQueue::<u8>::unbounded().unwrap_err();

        assert_eq!(refused.kind(), ErrorKind::FileTooLarge);
        hand_over(&Lock::new().unwrap()).await;
    });
}
