//! The lock that its owner can take again.

use tokio_multiprocess::Process;
use tokio_multiprocess::sync::{RLock, RLockOwner};

use crate::soon;

fn is_locked(lock: RLock) -> (bool, bool) {
    (lock.is_locked(), lock.try_lock().is_ok())
}

#[tokio::test]
async fn an_owner_takes_it_again_and_others_do_not() {
    let lock = RLock::new().unwrap();
    let owner = RLockOwner::new();
    let first = soon(lock.lock_as(&owner)).await.unwrap();
    let second = soon(lock.lock_as(&owner)).await.unwrap();

    assert_eq!(second.depth(), 2);
    assert!(lock.try_lock_as(&RLockOwner::new()).is_err());
    let child = soon(Process::start(is_locked, lock.clone())).await.unwrap();
    assert_eq!(soon(child.join()).await.unwrap(), (true, false));

    drop((first, second));
    let child = soon(Process::start(is_locked, lock)).await.unwrap();
    assert_eq!(soon(child.join()).await.unwrap(), (false, true));
}
