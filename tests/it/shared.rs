//! Shared memory between processes.

use tokio_multiprocess::Process;
use tokio_multiprocess::shared::{Array, RawArray, RawValue, SharedBytes, Value};

use crate::soon;

const ADDITIONS: u64 = 20_000;

async fn change((value, array): (Value<f64>, Array<i32>)) {
    value.set(2.5).await.unwrap();
    for number in array.lock().await.unwrap().iter_mut() {
        *number = -*number;
    }
}

#[tokio::test]
async fn what_a_child_writes_is_there_for_its_parent() {
    let value = Value::new(0.0).unwrap();
    let array = Array::from_slice(&(0..10).collect::<Vec<i32>>()).unwrap();

    let child = soon(Process::start(change, (value.clone(), array.clone())));
    soon(child.await.unwrap().join()).await.unwrap();

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

#[tokio::test]
async fn additions_of_four_processes_are_all_there() {
    let (locked, raw) = (Value::new(0).unwrap(), RawValue::new(0).unwrap());
    let mut children = Vec::new();

    for _ in 0..4 {
        let child = Process::start(add, (locked.clone(), raw.clone()));
        children.push(soon(child).await.unwrap());
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

#[tokio::test]
async fn raw_arrays_are_read_and_written_element_by_element() {
    let numbers = RawArray::from_slice(&[1, 2, 3, 4]).unwrap();
    let prefixes = RawArray::zeroed(4).unwrap();

    let child = soon(Process::start(sums, (numbers, prefixes.clone())));
    soon(child.await.unwrap().join()).await.unwrap();

    assert_eq!(prefixes.to_vec(), [1, 3, 6, 10]);
}

fn read(bytes: SharedBytes) -> Vec<u8> {
    bytes.to_vec()
}

#[tokio::test]
async fn shared_bytes_are_the_same_in_every_process() {
    for bytes in [Vec::new(), vec![7; 100_000]] {
        let shared = SharedBytes::new(&bytes).unwrap();

        let child = soon(Process::start(read, shared)).await.unwrap();

        assert_eq!(soon(child.join()).await.unwrap(), bytes);
    }
}
