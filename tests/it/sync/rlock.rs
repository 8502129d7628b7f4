//! The lock that its owner can take again.

use tokio_multiprocess::sync::{RLock, RLockOwner};

use super::suite::rlock as suite;
use crate::process::suite::By;
use crate::soon;

by_both_safe_ways! {
    an_owner_takes_it_again_and_others_do_not
}

#[tokio::test]
async fn all_who_wait_as_one_owner_get_it_when_the_owner_does() {
    let (lock, owner) = (RLock::new().unwrap(), RLockOwner::new());
    let other = soon(lock.lock()).await.unwrap();
    let both = async { tokio::join!(lock.lock_as(&owner), lock.lock_as(&owner)) };
    let mut both = Box::pin(both);
    assert!(futures::poll!(both.as_mut()).is_pending());

    drop(other);

    let (first, second) = soon(both).await;
    assert_eq!((first.unwrap().depth(), second.unwrap().depth()), (2, 2));
}
