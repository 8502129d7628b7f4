//! Shared memory between processes, by both safe start methods.

mod suite;

use std::os::fd::OwnedFd;

use serde::de::value::{self, SeqDeserializer};
use serde::de::{Error, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::pipe;
use tokio_multiprocess::shared::{RawArray, Value};

use crate::process::suite::By;
use crate::soon;

by_both_safe_ways! {
    what_a_child_writes_is_there_for_its_parent
    additions_of_four_processes_are_all_there
    raw_arrays_are_read_and_written_element_by_element
    shared_bytes_are_the_same_in_every_process
    a_guard_tells_of_a_death_though_the_value_was_used_without_one_before
}

/// A value that is received as if it were a raw array.
struct Disguised {
    value: Option<Value<u64>>,
    is_refused: bool,
}

impl Serialize for Disguised {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Disguised {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Parts = ((u32, u32, Option<u32>), usize, usize, usize);
        let ((file, door, _), ..) = Option::<Parts>::deserialize(deserializer)?
            .ok_or_else(|| D::Error::custom("no value"))?;
        let fields = [u64::from(file), 4096 / 8, 8, 8];
        let fields = SeqDeserializer::<_, value::Error>::new(fields.into_iter());
        let is_refused = RawArray::<u64>::deserialize(fields).is_err();
        let door: value::U32Deserializer<value::Error> = door.into_deserializer();
        Fd::<OwnedFd>::deserialize(door).map_err(D::Error::custom)?;
        Ok(Self {
            value: None,
            is_refused,
        })
    }
}

#[tokio::test]
async fn memory_with_a_lock_is_refused_as_memory_without_one() {
    let (sender, receiver) = pipe::one_way::<Disguised>().unwrap();

    let value = Some(Value::new(0).unwrap());
    let sent = Disguised {
        value,
        is_refused: false,
    };
    soon(sender.send(sent)).await.unwrap();

    assert!(soon(receiver.recv()).await.unwrap().is_refused);
}
