//! The single tasks of a pool: one slot of a table each, and nothing on the heap beside it but a
//! long argument or result.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use super::dispatch::WorkerId;
use super::error::TaskError;
use crate::process::function::Function;

/// Names a task: its slot, and how often the slot was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    pub(crate) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub(crate) fn from_u64(key: u64) -> Self {
        Self {
            slot: key as u32,
            generation: (key >> 32) as u32,
        }
    }
}

/// A task that somebody may ask for.
#[derive(Debug)]
pub(crate) struct Task {
    /// What the user sees as its number.
    pub(crate) id: u64,
    pub(crate) function: Function,
    pub(crate) is_async: bool,
    /// Its handle is gone.
    pub(crate) abandoned: bool,
    /// Descriptors that the argument holds.
    pub(crate) fds: Vec<Arc<OwnedFd>>,
    /// The encoded argument, later the answer's body.
    pub(crate) data: Data,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) waker: Option<Waker>,
    /// The worker that holds it, and its number there.
    pub(crate) at: Option<(WorkerId, u64)>,
    /// How long it may run, in nanoseconds.
    pub(crate) timeout: Option<u64>,
}

/// What became of a task.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A worker has answered with a frame of this kind and descriptors.
    Answered(u8, Vec<OwnedFd>),
    Failed(Box<TaskError>),
}

/// Bytes, on the heap only if there are many.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Bytes),
}

/// So many bytes take no more room than a pointer to them would.
const SHORT: usize = 38;

impl Data {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }

    /// The bytes, if they need not be copied.
    pub(crate) fn shared(&self) -> Option<Bytes> {
        match self {
            Self::Short { .. } => None,
            Self::Long(bytes) => Some(bytes.clone()),
        }
    }
}

impl From<&[u8]> for Data {
    fn from(source: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..source.len()), u8::try_from(source.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(source);
                Self::Short { len, bytes }
            }
            _ => Self::Long(Bytes::copy_from_slice(source)),
        }
    }
}

impl From<Vec<u8>> for Data {
    fn from(source: Vec<u8>) -> Self {
        if source.len() <= SHORT {
            source.as_slice().into()
        } else {
            Self::Long(source.into())
        }
    }
}

/// All tasks that are held or not finished.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    slots: Vec<Slot>,
    /// The first free slot.
    free: Option<u32>,
    n_taken: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Taken(Task),
    Free { next: Option<u32> },
}

impl Tasks {
    /// A new task with its encoded argument.
    pub(crate) fn insert(
        &mut self,
        id: u64,
        function: Function,
        is_async: bool,
        (argument, fds): (Vec<u8>, Vec<Arc<OwnedFd>>),
    ) -> Key {
        let task = Task {
            id,
            function,
            is_async,
            abandoned: false,
            fds,
            data: argument.into(),
            outcome: None,
            waker: None,
            at: None,
            timeout: None,
        };
        self.n_taken += 1;
        let Some(slot) = self.free else {
            let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 tasks");
            self.slots.push(Slot {
                generation: 0,
                content: Content::Taken(task),
            });
            return Key {
                slot,
                generation: 0,
            };
        };
        let place = &mut self.slots[slot as usize];
        if let Content::Free { next } = place.content {
            self.free = next;
        }
        place.content = Content::Taken(task);
        Key {
            slot,
            generation: place.generation,
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Task> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        match &mut slot.content {
            Content::Taken(task) if slot.generation == key.generation => Some(task),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Task> {
        self.get_mut(key)?;
        let slot = &mut self.slots[key.slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let content = Content::Free { next: self.free };
        self.free = Some(key.slot);
        self.n_taken -= 1;
        let removed = std::mem::replace(&mut slot.content, content);
        if self.n_taken == 0 && self.slots.len() > KEPT {
            // A burst of tasks leaves no table behind. Generations start anew in it, which is no
            // harm: nobody holds a key.
            self.slots = Vec::new();
            self.free = None;
        }
        match removed {
            Content::Taken(task) => Some(task),
            Content::Free { .. } => None,
        }
    }

    /// Takes the wakers of all tasks.
    pub(crate) fn wakers(&mut self) -> impl Iterator<Item = Waker> {
        self.slots
            .iter_mut()
            .filter_map(|slot| match &mut slot.content {
                Content::Taken(task) => task.waker.take(),
                Content::Free { .. } => None,
            })
    }
}

/// A table of so many slots is kept when it is empty.
const KEPT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn function() -> Function {
        Function::from_bytes([0; Function::LEN])
    }

    #[test]
    fn a_queued_task_costs_at_most_256_bytes_beside_its_argument() {
        let queued = size_of::<Slot>() + size_of::<super::super::dispatch::Piece>();
        assert!(queued <= 256, "{queued} bytes");
    }

    #[test]
    fn an_old_key_finds_nothing_in_a_slot_that_is_used_again() {
        let mut tasks = Tasks::default();
        let old = tasks.insert(1, function(), false, (vec![1], vec![]));
        tasks.remove(old).unwrap();
        let new = tasks.insert(1, function(), false, (vec![2; 100], vec![]));

        assert!(tasks.get_mut(old).is_none());
        assert_eq!(tasks.get_mut(new).unwrap().data.as_slice(), [2; 100]);
        assert_eq!(Key::from_u64(new.to_u64()), new);
        assert_ne!(new, old);
    }
}
