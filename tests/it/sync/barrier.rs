//! Barriers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio_multiprocess::BrokenBarrier;
use tokio_multiprocess::sync::Barrier;

use super::suite::barrier as suite;
use crate::process::suite::By;
use crate::soon;

by_both_safe_ways! {
    parties_of_three_processes_keep_step
    a_party_that_is_killed_breaks_the_barrier_until_it_is_reset
}

static ACTIONS: AtomicU32 = AtomicU32::new(0);

#[tokio::test]
async fn one_party_of_each_generation_runs_the_action() {
    let barrier = Barrier::builder(3)
        .action(|()| {
            ACTIONS.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();

    for generation in 1..=10 {
        let (a, b, c) =
            soon(async { tokio::join!(barrier.wait(), barrier.wait(), barrier.wait()) }).await;

        let leaders = [a, b, c].map(|passed| passed.unwrap().is_leader());
        assert_eq!(leaders.iter().filter(|leads| **leads).count(), 1);
        assert_eq!(ACTIONS.load(Ordering::Relaxed), generation);
    }
}

#[tokio::test]
async fn an_abort_and_a_late_party_break_the_barrier() {
    let barrier = Barrier::builder(2)
        .timeout(Duration::from_millis(1))
        .build()
        .unwrap();
    assert_eq!(soon(barrier.wait()).await, Err(BrokenBarrier::Broken));

    let barrier = Barrier::new(2).unwrap();
    let mut waiter = Box::pin(barrier.wait());
    assert!(futures::poll!(waiter.as_mut()).is_pending());
    barrier.abort();
    assert_eq!(soon(waiter).await, Err(BrokenBarrier::Broken));
}

#[tokio::test]
async fn a_single_party_never_waits() {
    let barrier = Barrier::new(1).unwrap();

    for _ in 0..10 {
        assert!(soon(barrier.wait()).await.unwrap().is_leader());
    }
}

#[tokio::test]
async fn whoever_resets_the_barrier_comes_to_the_new_generation() {
    let barrier = Barrier::new(1).unwrap();

    for _ in 0..100 {
        barrier.abort();
        assert_eq!(soon(barrier.wait()).await, Err(BrokenBarrier::Broken));
        barrier.reset();
        assert!(soon(barrier.wait()).await.is_ok());

        barrier.abort();
        assert_eq!(barrier.blocking_wait(), Err(BrokenBarrier::Broken));
        barrier.reset();
        assert!(barrier.blocking_wait().is_ok());
    }
}

#[tokio::test]
async fn a_party_that_gives_up_while_the_action_runs_breaks_the_barrier_for_the_leader_too() {
    let barrier = Barrier::builder(2)
        .timeout(Duration::from_millis(1))
        .action(|()| std::thread::sleep(Duration::from_millis(5)))
        .build()
        .unwrap();
    let mut first = Box::pin(barrier.wait());
    assert!(futures::poll!(first.as_mut()).is_pending());
    let leader = std::thread::spawn({
        let barrier = barrier.clone();
        move || barrier.blocking_wait()
    });

    let first = soon(first).await;

    assert_eq!(first.is_ok(), leader.join().unwrap().is_ok());
}
