//! Semaphores.

use tokio_multiprocess::sync::{BoundedSemaphore, Semaphore};

use super::suite::semaphore as suite;
use crate::process::suite::By;
use crate::soon;

by_both_safe_ways! {
    permits_are_shared_by_all_processes
    the_permit_of_a_killed_process_comes_back
}

#[tokio::test]
async fn a_release_without_a_permit_adds_one() {
    let semaphore = Semaphore::new(0).unwrap();
    let waiter = tokio::spawn({
        let semaphore = semaphore.clone();
        async move { semaphore.acquire().await.unwrap().forget() }
    });

    semaphore.release();

    soon(waiter).await.unwrap();
    semaphore.release();
    semaphore.release();
    assert_eq!(semaphore.available_permits(), 2);
}

#[tokio::test]
async fn more_permits_than_have_words_go_through_the_ledger() {
    let semaphore = Semaphore::new(70_000).unwrap();
    assert_eq!(semaphore.available_permits(), 70_000);

    let mut permits = Vec::new();
    for _ in 0..65_537 {
        permits.push(soon(semaphore.acquire()).await.unwrap());
    }

    assert_eq!(semaphore.available_permits(), 70_000 - 65_537);
    let last = permits.pop().unwrap();
    drop(permits);
    last.forget();
    // The ledger hears of it by a message, as the next one of this process does.
    drop(soon(semaphore.acquire()).await.unwrap());
    assert!(semaphore.available_permits() >= 65_536);
}

#[tokio::test]
async fn a_bounded_semaphore_cannot_be_released_above_its_start() {
    let semaphore = BoundedSemaphore::new(2).unwrap();
    assert!(semaphore.release().is_err());

    soon(semaphore.acquire()).await.unwrap().forget();

    semaphore.release().unwrap();
    assert!(semaphore.release().is_err());
    assert_eq!(semaphore.available_permits(), 2);
}

#[tokio::test]
async fn what_has_no_word_is_counted_and_can_be_acquired() {
    let semaphore = Semaphore::new(0).unwrap();
    for _ in 0..20 {
        semaphore.release();
    }

    let mut permits = Vec::new();
    while let Ok(permit) = semaphore.try_acquire() {
        permits.push(permit);
    }
    assert_eq!(permits.len(), 16);
    for _ in 16..20 {
        permits.push(soon(semaphore.acquire()).await.unwrap());
    }
    assert_eq!(semaphore.available_permits(), 0);
}

#[tokio::test]
async fn there_can_be_as_many_permits_as_can_be_counted() {
    let semaphore = Semaphore::new(usize::MAX).unwrap();
    let permit = soon(semaphore.acquire()).await.unwrap();

    semaphore.release();
    soon(async {
        while semaphore.available_permits() < usize::MAX {
            tokio::task::yield_now().await;
        }
    })
    .await;

    drop(permit);
    assert_eq!(semaphore.available_permits(), usize::MAX);
}
