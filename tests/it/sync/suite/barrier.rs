//! Barriers between processes.

use std::collections::BTreeSet;
use tokio_multiprocess::BrokenBarrier;
use tokio_multiprocess::shared::RawValue;
use tokio_multiprocess::sync::{Barrier, Event};

use crate::process::suite::By;
use crate::soon;

const GENERATIONS: u64 = 50;

async fn keep_step((barrier, steps): (Barrier, RawValue<u64>)) -> Vec<usize> {
    let mut indices = Vec::new();
    for generation in 0..GENERATIONS {
        // Nobody is a generation ahead or behind.
        assert_eq!(steps.update(|n| n + 1) / 3, generation);
        indices.push(barrier.wait().await.unwrap().index());
    }
    indices
}

pub(crate) async fn parties_of_three_processes_keep_step(by: By) {
    let (barrier, steps) = (Barrier::new(3).unwrap(), RawValue::new(0).unwrap());
    let mut children = Vec::new();
    for _ in 0..2 {
        let arg = (barrier.clone(), steps.clone());
        children.push(by.start_async(keep_step, arg).await);
    }

    let mut indices = vec![soon(keep_step((barrier, steps))).await];
    for child in children {
        indices.push(soon(child.join()).await.unwrap());
    }

    for generation in 0..GENERATIONS as usize {
        let of_all: BTreeSet<usize> = indices.iter().map(|of_one| of_one[generation]).collect();
        assert_eq!(of_all, BTreeSet::from([0, 1, 2]));
    }
}

async fn arrive((barrier, there): (Barrier, Event)) -> bool {
    there.set();
    barrier.wait().await.is_ok()
}

pub(crate) async fn a_party_that_is_killed_breaks_the_barrier_until_it_is_reset(by: By) {
    let (barrier, there) = (Barrier::new(3).unwrap(), Event::new().unwrap());
    let child = by.start_async(arrive, (barrier.clone(), there)).await;
    let mut waiter = Box::pin(barrier.wait());
    assert!(futures::poll!(waiter.as_mut()).is_pending());
    soon(async {
        while barrier.n_waiting() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    child.kill().unwrap();

    assert_eq!(soon(waiter).await, Err(BrokenBarrier::Broken));
    assert!(barrier.is_broken());
    assert_eq!(soon(barrier.wait()).await, Err(BrokenBarrier::Broken));
    barrier.reset();
    let all = async { tokio::join!(barrier.wait(), barrier.wait(), barrier.wait()) };
    let (a, b, c) = soon(async {
        while barrier.is_broken() {
            tokio::task::yield_now().await;
        }
        all.await
    })
    .await;
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
}
