//! Who kills when this process is gone: the list of its process groups, which the guardian sees.
//!
//! `PR_SET_PDEATHSIG` ends a child but not its subprocesses, and a watcher thread dies with its
//! process. So a helper process notices the end of this process and kills what is on the list. The
//! list lies in memory that both see: to keep it costs one store, and the helper sleeps meanwhile.
//! A helper that dies loses nothing; the one that takes its place finds the list as it is.
//!
//! A group is on the list before anybody else can make use of its number and until its leader is
//! about to be reaped, so no number on it can be another process' group. Word 0 of the list is how
//! many places have ever been used; each place is a word: nothing, or a group with its complement,
//! so that a stray store of the application does not name somebody else's group.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sys::memfd::Region;

/// Places in a list. Pages of it that nobody touches take no memory.
const PLACES: u32 = 1 << 20;

const WORD: usize = size_of::<u64>();

/// The list, in the process whose groups are on it and in its helper.
#[derive(Debug)]
pub(crate) struct List(Region);

impl List {
    const LEN: NonZeroUsize = NonZeroUsize::new(WORD * (PLACES as usize + 1)).expect("not zero");

    fn create() -> io::Result<(Self, OwnedFd)> {
        let (region, file) = Region::create(c"process-groups", Self::LEN)?;
        Ok((Self(region), file))
    }

    /// The list of the process that has sent `file`. Children of this process do not have it.
    pub(crate) fn open(file: impl AsFd) -> io::Result<Self> {
        let region = Region::map(file, Self::LEN)?;
        region.keep_from_children()?;
        Ok(Self(region))
    }

    /// Puts a group into a place that is reserved for it.
    pub(crate) fn enter(&self, place: u32, group: u32) {
        if let Some(word) = self.word(place) {
            word.store(u64::from(group) | u64::from(!group) << 32, Release);
        }
    }

    /// The groups on the list. None is the one of the kernel's threads, or everybody's.
    pub(crate) fn groups(&self) -> impl Iterator<Item = u32> {
        let used = self.0.word64(0).load(Acquire);
        let used = u32::try_from(used).unwrap_or(PLACES).min(PLACES);
        (0..used).filter_map(|place| self.group(place))
    }

    fn group(&self, place: u32) -> Option<u32> {
        let word = self.word(place)?.load(Acquire);
        let group = word as u32;
        let is_whole = (word >> 32) as u32 == !group;
        (is_whole && group > 1).then_some(group)
    }

    fn word(&self, place: u32) -> Option<&AtomicU64> {
        (place < PLACES).then(|| self.0.word64(WORD * (place as usize + 1)))
    }
}

/// The groups of this process' children.
#[derive(Debug)]
pub(crate) struct Guardian {
    list: List,
    /// For the helper.
    file: OwnedFd,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// Places that were used and are free again.
    free: Vec<u32>,
    /// How many have ever been used.
    used: u32,
}

impl Guardian {
    pub(super) fn new() -> io::Result<Self> {
        let (list, file) = List::create()?;
        Ok(Self {
            list,
            file,
            places: Mutex::default(),
        })
    }

    /// The list, for a helper.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A place for the group of a child to come.
    pub(crate) fn reserve(&'static self) -> io::Result<Entry> {
        let mut places = self.places();
        let place = match places.free.pop() {
            Some(place) => place,
            None if places.used < PLACES => {
                places.used += 1;
                self.list.0.word64(0).store(u64::from(places.used), Release);
                places.used - 1
            }
            None => return Err(io::ErrorKind::QuotaExceeded.into()),
        };
        Ok(Entry {
            guardian: self,
            place,
        })
    }

    /// Whether there is anything to guard.
    pub(crate) fn has_groups(&self) -> bool {
        let places = self.places();
        places.free.len() < places.used as usize
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place on the list, which is free again once this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    guardian: &'static Guardian,
    place: u32,
}

impl Entry {
    /// The place's number, for a helper that makes the child.
    pub(crate) fn place(&self) -> u32 {
        self.place
    }

    /// The group in the place, if it has one.
    pub(super) fn group(&self) -> Option<u32> {
        self.guardian.list.group(self.place)
    }

    /// Puts the group into its place.
    pub(crate) fn enter(&self, group: u32) {
        self.guardian.list.enter(self.place, group);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let is_ours = super::running().is_some_and(|it| std::ptr::eq(&it.guardian, self.guardian));
        if !is_ours {
            // A forked child has inherited it; the list is its parent's.
            return;
        }
        if let Some(word) = self.guardian.list.word(self.place) {
            word.store(0, Relaxed);
        }
        self.guardian.places().free.push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_sees_the_groups_that_have_entered_and_not_gone() {
        let guardian = &super::super::get().unwrap().guardian;
        let helper = List::open(guardian.file()).unwrap();
        let sees = |group| helper.groups().any(|it| it == group);

        let (first, second) = (guardian.reserve().unwrap(), guardian.reserve().unwrap());
        first.enter(4_000_001);
        helper.enter(second.place(), 4_000_002);

        assert!(sees(4_000_001) && sees(4_000_002));
        drop(first);
        assert!(!sees(4_000_001) && sees(4_000_002));
    }

    #[test]
    fn a_place_holds_nobodys_group_before_one_has_entered_or_after_a_stray_store() {
        let (list, file) = List::create().unwrap();
        list.0.word64(0).store(4, Relaxed);
        list.enter(0, 0);
        list.enter(1, 1);
        list.word(2).unwrap().store(4_000_003, Relaxed);

        assert_eq!(List::open(file).unwrap().groups().count(), 0);
    }
}
