//! The lock that its owner can take again.

use tokio_multiprocess::sync::{RLock, RLockOwner};

use crate::process::suite::By;
use crate::soon;

fn is_locked(lock: RLock) -> (bool, bool) {
    (lock.is_locked(), lock.try_lock().is_ok())
}

pub(crate) async fn an_owner_takes_it_again_and_others_do_not(by: By) {
    let lock = RLock::new().unwrap();
    let owner = RLockOwner::new();
    let first = soon(lock.lock_as(&owner)).await.unwrap();
    let second = soon(lock.lock_as(&owner)).await.unwrap();

    assert_eq!(second.depth(), 2);
    assert!(lock.try_lock_as(&RLockOwner::new()).is_err());
    let child = by.start(is_locked, lock.clone()).await;
    assert_eq!(soon(child.join()).await.unwrap(), (true, false));

    drop((first, second));
    let child = by.start(is_locked, lock).await;
    assert_eq!(soon(child.join()).await.unwrap(), (false, true));
}
