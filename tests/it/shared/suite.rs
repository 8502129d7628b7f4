//! What holds for shared memory whichever way the other processes were started.
//!
//! `super` runs these for the two safe methods, and tests/fork.rs for the fork.

use tokio_multiprocess::shared::{Array, RawArray, RawValue, SharedBytes, Value};

use crate::process::suite::By;
use crate::soon;

const ADDITIONS: u64 = 20_000;

async fn change((value, array): (Value<f64>, Array<i32>)) {
    value.set(2.5).await.unwrap();
    for number in array.lock().await.unwrap().iter_mut() {
        *number = -*number;
    }
}

pub(crate) async fn what_a_child_writes_is_there_for_its_parent(by: By) {
    let value = Value::new(0.0).unwrap();
    let array = Array::from_slice(&(0..10).collect::<Vec<i32>>()).unwrap();

    let child = by.start_async(change, (value.clone(), array.clone())).await;
    soon(child.join()).await.unwrap();

    assert_eq!(soon(value.get()).await.unwrap(), 2.5);
    let negated: Vec<i32> = (0..10).map(|n| -n).collect();
    assert_eq!(soon(array.to_vec()).await.unwrap(), negated);
}

async fn add((locked, raw): (Value<u64>, RawValue<u64>)) {
    for _ in 0..ADDITIONS {
        *locked.lock().await.unwrap() += 1;
        raw.update(|n| n + 1);
    }
}

pub(crate) async fn additions_of_four_processes_are_all_there(by: By) {
    let (locked, raw) = (Value::new(0).unwrap(), RawValue::new(0).unwrap());
    let mut children = Vec::new();

    for _ in 0..4 {
        children.push(by.start_async(add, (locked.clone(), raw.clone())).await);
    }
    for child in children {
        soon(child.join()).await.unwrap();
    }

    assert_eq!(soon(locked.get()).await.unwrap(), 4 * ADDITIONS);
    assert_eq!(raw.load(), 4 * ADDITIONS);
}

fn sums((numbers, sums): (RawArray<u32>, RawArray<u64>)) {
    let mut sum = 0;
    for index in 0..numbers.len() {
        sum += u64::from(numbers.load(index));
        sums.store(index, sum);
    }
}

pub(crate) async fn raw_arrays_are_read_and_written_element_by_element(by: By) {
    let numbers = RawArray::from_slice(&[1, 2, 3, 4]).unwrap();
    let prefixes = RawArray::zeroed(4).unwrap();

    let child = by.start(sums, (numbers, prefixes.clone())).await;
    soon(child.join()).await.unwrap();

    assert_eq!(prefixes.to_vec(), [1, 3, 6, 10]);
}

fn read(bytes: SharedBytes) -> Vec<u8> {
    bytes.to_vec()
}

pub(crate) async fn shared_bytes_are_the_same_in_every_process(by: By) {
    for bytes in [Vec::new(), vec![7; 100_000]] {
        let shared = SharedBytes::new(&bytes).unwrap();

        let child = by.start(read, shared).await;

        assert_eq!(soon(child.join()).await.unwrap(), bytes);
    }
}

async fn die_writing(value: Value<u64>) {
    let mut guard = value.lock().await.unwrap();
    *guard = 13;
    std::process::abort();
}

pub(crate) async fn a_guard_tells_of_a_death_though_the_value_was_used_without_one_before(by: By) {
    let value = Value::new(0).unwrap();
    let child = by.start_async(die_writing, value.clone()).await;
    soon(child.join()).await.unwrap_err();

    assert_eq!(soon(value.get()).await.unwrap(), 13);
    assert_eq!(format!("{value:?}"), "Value(13)");
    soon(value.set(14)).await.unwrap();
    value.blocking_set(value.try_get().unwrap() + 1).unwrap();

    let guard = soon(value.lock()).await.unwrap();
    assert_eq!((guard.recovered(), *guard), (true, 15));
    drop(guard);
    assert!(!soon(value.lock()).await.unwrap().recovered());
}
