//! What producers and consumers do to a queue's words.
//!
//! The items that wait are a linked list of slots, from [`HEAD`] to [`TAIL`], after Michael and Scott
//! (PODC 1996); a slot is what they call a node, and the one at the head is spent. The list is never
//! locked: whatever one process leaves half done the next one completes, so neither a killed nor a
//! stopped process is ever waited for.
//!
//! **Put.** *Claim* a slot that is nobody's (its state names us), fill it, then *link* it behind the
//! last one: this exchange is the moment at which the item is in the queue. Until then nobody sees
//! it, so a slow or stopped writer is passed over without anybody having to know; and a producer that
//! puts one item after the other links them in this order. Who links or finds a new last slot first
//! marks it FULL and then moves the tail: so all but the last are marked, and the sweep can tell
//! whether a dead writer had linked.
//!
//! **Get.** The first slot behind the head is *taken* by the exchange from FULL to READING with our
//! number; then whoever comes next moves the head. The item is copied, and the slot left. A reader
//! that gives up or dies meanwhile puts the slot back as it stands (RETURNED), where getters find it
//! by looking over all slots; this is rare. So an item is lost only with a process that has got it.
//!
//! **Limit.** Position of the tail less position of the head is the number of items. The head is read
//! before the exchange that links and only grows, so the limit is exact.
//!
//! **Reuse.** A slot that is DONE is nobody's as soon as the head has passed its position, which
//! everybody can see: there is no list of free slots that could be left in disorder. Slots are sought
//! from where the last search ended, blocks from the lowest that was freed lately, so that the same
//! few are used again and again while they are warm. Hints say where that is; if they should be wrong
//! all are looked at before more are taken into use, so the memory stays as small as what is used at
//! one time.
//!
//! **Caches.** Each producer would fetch the head from a consumer's processor, and each consumer the
//! tail from a producer's, with every item. Both only grow, so what a process saw last is enough where
//! a newer value could only say more: room that was there is still there, and what the head had
//! passed it has passed. Old values count only within a window, since positions come round again.
//!
//! **Close** is an exchange of the last link as well, so no item can get in after it.

use std::sync::atomic::Ordering::AcqRel;

use super::words::{
    self, BLOCK_FAR_HINT, BLOCK_HINT, BLOCKS, For, HEAD, Kind, LIMIT, MOST, RETURNS, RETURNS_SEEN,
    SLOT_HINT, SLOTS, State, TAIL,
};
use crate::broker::memory::{Memory, Rule};

/// How many slots are looked at before the hint is asked.
const LOOKS: usize = 64;
/// How far apart positions may be for one of them to be an old one.
const WINDOW: i64 = 1 << 16;

/// Nobody is overtaken so often in a row: the words make no sense, as somebody has scribbled over
/// them. Such a queue counts as closed and done.
const TRIES: u32 = 1 << 16;

/// How a put ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Put {
    /// The item is in the queue; so many more have room.
    Done,
    /// There is no room.
    Full,
    /// Nothing is put into the queue any more.
    Closed,
}

/// How a get ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Got {
    /// This slot is ours.
    Slot(usize),
    /// There is nothing.
    Empty,
    /// There is nothing, and nothing will come.
    Closed,
}

/// Makes zeroed memory an empty queue.
pub(crate) fn create<M: Memory>(memory: &mut M, limit: u64, leases: bool) -> Result<(), M::Stop> {
    memory.store(LIMIT, limit)?;
    memory.store(words::OPTIONS, leases.into())?;
    memory.store(SLOTS, words::AT_FIRST)?;
    memory.store(BLOCKS, words::AT_FIRST)?;
    // The first slot is spent from the beginning, at position 1.
    memory.store(words::state(0), State::word(Kind::Done, 0, 1))?;
    memory.store(words::next(0), words::end(1))?;
    memory.store(HEAD, words::link(1, 0))?;
    memory.store(TAIL, words::link(1, 0))
}

/// Makes a slot that is nobody's ours. `near` is where to look first. Nothing if there are too many.
#[inline]
pub(crate) fn claim<M: Memory>(
    memory: &mut M,
    me: u32,
    near: usize,
) -> Result<Option<usize>, M::Stop> {
    if let Some(slot) = claim_near(memory, me, near, LOOKS)? {
        return Ok(Some(slot));
    }
    claim_far(memory, me)
}

/// Looks at so many slots from `near` on.
#[inline]
fn claim_near<M: Memory>(
    memory: &mut M,
    me: u32,
    near: usize,
    n_looks: usize,
) -> Result<Option<usize>, M::Stop> {
    let n_slots = n_slots(memory)?;
    let limit = memory.load(LIMIT)?.cast_signed();
    let tail = memory.recall(TAIL)?.map(words::position);
    let mut head = None;
    let mut place = near;
    for _ in 0..n_looks.min(n_slots) {
        let slot = if place < n_slots { place } else { 0 };
        place = slot + 1;
        let word = memory.load(words::state(slot))?;
        let state = State::of(word);
        if state.kind == Kind::Done && !memory.breaks(Rule::QueueReusesPassedSlots) {
            // The head is never more than the limit behind the tail.
            let far = tail.map(|tail| words::distance(state.position, tail) - limit);
            if limit == 0 || far.is_none_or(|far| !(1..=WINDOW).contains(&far)) {
                let head = match head {
                    Some(head) => head,
                    None => *head.insert(words::position(memory.load(HEAD)?)),
                };
                if words::distance(state.position, head) <= 0 {
                    continue;
                }
            }
        }
        if matches!(state.kind, Kind::Free | Kind::Done)
            && memory
                .replace(
                    words::state(slot),
                    word,
                    State::word(Kind::Writing, me, 0),
                    AcqRel,
                )?
                .is_ok()
        {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

/// The same where all slots around are in use.
#[cold]
fn claim_far<M: Memory>(memory: &mut M, me: u32) -> Result<Option<usize>, M::Stop> {
    loop {
        let n = n_slots(memory)?;
        let hint = memory.load(SLOT_HINT)? as usize;
        for n_looks in [LOOKS, n] {
            if let Some(slot) = claim_near(memory, me, hint, n_looks)? {
                memory.store(SLOT_HINT, slot as u64 + 1)?;
                return Ok(Some(slot));
            }
        }
        if !grow(memory, SLOTS, n as u64, 0)? {
            return Ok(None);
        }
        memory.store(SLOT_HINT, n as u64)?;
    }
}

/// Takes more slots or blocks into use, at least as many as are needed. False if there are as many as
/// there can be.
fn grow<M: Memory>(memory: &mut M, word: usize, n: u64, needed: u64) -> Result<bool, M::Stop> {
    if n >= MOST as u64 {
        return Ok(false);
    }
    let more = (n / 4).clamp(words::AT_FIRST, 1 << 16).max(needed);
    // A failure means that somebody else has done it.
    let _ = memory.replace(word, n, (n + more).min(MOST as u64), AcqRel)?;
    Ok(true)
}

/// Makes so many blocks ours, as a chain of `slot`. False if there are too many in use; then what was
/// claimed is in the chain all the same.
///
/// The search begins where blocks were freed last, which caches know best. If none is free around there,
/// it goes on where the last such search has ended, so that nobody looks through a backlog that grows
/// for each item.
pub(crate) fn claim_blocks<M: Memory>(
    memory: &mut M,
    slot: usize,
    mut n: usize,
) -> Result<bool, M::Stop> {
    let mut last = None;
    let mut place = memory.load(BLOCK_HINT)? as usize;
    let n_near = n_blocks(memory)?;
    let mut n_vain = 0;
    while n > 0 && n_vain < LOOKS.min(n_near) {
        n_vain += 1;
        if claim_block(memory, slot, &mut last, &mut place, n_near)? {
            (n, n_vain) = (n - 1, 0);
        }
    }
    memory.store(BLOCK_HINT, place as u64)?;
    if n == 0 {
        return Ok(true);
    }
    place = memory.load(BLOCK_FAR_HINT)? as usize;
    let mut n_looks = 0;
    while n > 0 {
        let n_blocks = n_blocks(memory)?;
        if n_looks >= n_blocks {
            if !grow(memory, BLOCKS, n_blocks as u64, n as u64)? {
                return Ok(false);
            }
            (place, n_looks) = (n_blocks, 0);
            continue;
        }
        n_looks += 1;
        n -= usize::from(claim_block(memory, slot, &mut last, &mut place, n_blocks)?);
    }
    memory.store(BLOCK_FAR_HINT, place as u64)?;
    Ok(true)
}

fn n_blocks<M: Memory>(memory: &mut M) -> Result<usize, M::Stop> {
    Ok(memory.load(BLOCKS)?.min(MOST as u64) as usize)
}

/// Makes the block at `place`, which moves on, the next one in the chain of `slot` behind `last`. False if
/// it is in use.
fn claim_block<M: Memory>(
    memory: &mut M,
    slot: usize,
    last: &mut Option<usize>,
    place: &mut usize,
    n_blocks: usize,
) -> Result<bool, M::Stop> {
    let block = if *place < n_blocks { *place } else { 0 };
    *place = block + 1;
    let word = words::block(block);
    if memory.load(word)? != 0
        || memory
            .replace(word, 0, words::block_of(slot, 0), AcqRel)?
            .is_err()
    {
        return Ok(false);
    }
    match *last {
        None => memory.store(words::chain(slot), block as u64 + 1)?,
        Some(last) => {
            memory.store(words::block(last), words::block_of(slot, block as u64 + 1))?;
        }
    }
    *last = Some(block);
    Ok(true)
}

/// Gives the chain of a slot of ours back.
pub(crate) fn free_blocks<M: Memory>(memory: &mut M, slot: usize) -> Result<(), M::Stop> {
    let mut next = memory.load(words::chain(slot))?.checked_sub(1);
    let mut lowest = memory.load(BLOCK_HINT)?;
    let is_any = next.is_some();
    // Who scribbles over the memory can lead us astray, but not for ever: each step frees a block.
    while let Some(block) = next.filter(|block| *block < MOST as u64) {
        let word = memory.load(words::block(block as usize))?;
        if words::block_owner(word) != Some(slot) {
            break;
        }
        memory.store(words::block(block as usize), 0)?;
        lowest = lowest.min(block);
        next = words::block_next(word).map(|next| next as u64);
    }
    if is_any {
        memory.store(BLOCK_HINT, lowest)?;
    }
    memory.store(words::chain(slot), 0)
}

/// Puts the slot that we filled into the queue.
#[inline]
pub(crate) fn publish<M: Memory>(memory: &mut M, me: u32, slot: usize) -> Result<Put, M::Stop> {
    let put = memory.rounds(TRIES, |memory| try_to_link(memory, me, slot))?;
    Ok(put.unwrap_or(Put::Closed))
}

/// Nothing if it is worth trying again.
#[inline]
fn try_to_link<M: Memory>(memory: &mut M, me: u32, slot: usize) -> Result<Option<Put>, M::Stop> {
    let limit = memory.load(LIMIT)?;
    let tail = memory.load(TAIL)?;
    let last = words::slot(tail);
    let next = memory.load(words::next(last))?;
    if words::position(next) != words::position(tail) {
        // The tail has moved on, and this slot has been used again.
        return Ok(None);
    }
    if words::is_closed(next) {
        return Ok(Some(Put::Closed));
    }
    if !words::is_end(next) {
        advance_tail(memory, tail, words::slot(next))?;
        return Ok(None);
    }
    let has_room = |head| {
        let n = words::distance(words::position(head), words::position(tail));
        (0..limit.cast_signed().min(WINDOW)).contains(&n)
    };
    if limit != 0 && !memory.recall(HEAD)?.is_some_and(has_room) {
        let head = memory.load(HEAD)?;
        memory.remember(HEAD, head);
        let n = words::distance(words::position(head), words::position(tail));
        let slack = i64::from(memory.breaks(Rule::QueueLimitIsExact));
        if n >= limit.cast_signed() + slack {
            let completes = !memory.breaks(Rule::QueueFullMovesHead);
            if completes && head_is_behind(memory, head)? || memory.load(HEAD)? != head {
                return Ok(None);
            }
            return Ok(Some(Put::Full));
        }
    }
    memory.remember(TAIL, tail);
    let position = words::after(words::position(tail));
    memory.store(words::state(slot), State::word(Kind::Writing, me, position))?;
    memory.store(words::next(slot), words::end(position))?;
    let linked = words::link(words::position(tail), slot);
    if memory.breaks(Rule::QueueLinkIsOneStep) {
        memory.store(words::next(last), linked)?;
    } else if memory
        .replace(words::next(last), next, linked, AcqRel)?
        .is_err()
    {
        return Ok(None);
    }
    advance_tail(memory, tail, slot)?;
    Ok(Some(Put::Done))
}

/// Moves the head if the item behind it has been taken. True if it is worth looking again.
fn head_is_behind<M: Memory>(memory: &mut M, head: u64) -> Result<bool, M::Stop> {
    let next = memory.load(words::next(words::slot(head)))?;
    if words::position(next) != words::position(head) {
        return Ok(true);
    }
    if words::is_end(next) || words::is_closed(next) {
        return Ok(false);
    }
    let first = words::slot(next);
    let position = words::after(words::position(head));
    let state = State::of(memory.load(words::state(first))?);
    if matches!(state.kind, Kind::Full | Kind::Writing) && state.position == position {
        return Ok(false);
    }
    advance_head(memory, head, first)?;
    Ok(true)
}

/// Marks what was linked behind `tail`, then moves the tail there.
#[inline]
fn advance_tail<M: Memory>(memory: &mut M, tail: u64, slot: usize) -> Result<(), M::Stop> {
    let position = words::after(words::position(tail));
    if !memory.breaks(Rule::QueueMarksBeforeTail) {
        mark(memory, slot, position)?;
    }
    let _ = memory.replace(TAIL, tail, words::link(position, slot), AcqRel)?;
    if memory.breaks(Rule::QueueMarksBeforeTail) {
        mark(memory, slot, position)?;
    }
    Ok(())
}

#[inline]
fn mark<M: Memory>(memory: &mut M, slot: usize, position: u64) -> Result<(), M::Stop> {
    let word = memory.load(words::state(slot))?;
    let state = State::of(word);
    if state.kind == Kind::Writing && state.position == position {
        let full = State::word(Kind::Full, 0, position);
        let _ = memory.replace(words::state(slot), word, full, AcqRel)?;
    }
    Ok(())
}

/// Moves the head to `slot`, which was taken; never past the tail.
#[inline]
fn advance_head<M: Memory>(memory: &mut M, head: u64, slot: usize) -> Result<(), M::Stop> {
    let position = words::after(words::position(head));
    let next = words::link(position, slot);
    let is_behind = |tail| {
        let n = words::distance(words::position(head), words::position(tail));
        (1..=WINDOW).contains(&n)
    };
    if !memory.recall(TAIL)?.is_some_and(is_behind) {
        let tail = memory.load(TAIL)?;
        memory.remember(TAIL, tail);
        if tail == head {
            let _ = memory.replace(TAIL, head, next, AcqRel)?;
        }
    }
    let _ = memory.replace(HEAD, head, next, AcqRel)?;
    Ok(())
}

/// Takes the first item.
#[inline]
pub(crate) fn take<M: Memory>(memory: &mut M, me: u32) -> Result<Got, M::Stop> {
    if let Some(slot) = take_returned(memory, me)? {
        return Ok(Got::Slot(slot));
    }
    let got = memory.rounds(TRIES, |memory| try_to_take(memory, me))?;
    Ok(got.unwrap_or(Got::Closed))
}

/// Nothing if it is worth trying again.
#[inline]
fn try_to_take<M: Memory>(memory: &mut M, me: u32) -> Result<Option<Got>, M::Stop> {
    let head = memory.load(HEAD)?;
    let next = memory.load(words::next(words::slot(head)))?;
    if words::position(next) != words::position(head) {
        // The head has moved on, and this slot has been used again.
        return Ok(None);
    }
    if words::is_end(next) {
        return Ok(Some(Got::Empty));
    }
    if words::is_closed(next) {
        return Ok(Some(Got::Closed));
    }
    let first = words::slot(next);
    let position = words::after(words::position(head));
    let word = memory.load(words::state(first))?;
    let state = State::of(word);
    if state.position == position && state.kind == Kind::Writing {
        // Linked a moment ago, and its writer was stopped or killed right then.
        advance_tail(memory, head, first)?;
        return Ok(None);
    }
    let mut is_ours = false;
    if state.position == position && state.kind == Kind::Full {
        let mine = State::word(Kind::Reading, me, position);
        if memory.breaks(Rule::QueueTakeIsOneStep) {
            memory.store(words::state(first), mine)?;
        } else if memory
            .replace(words::state(first), word, mine, AcqRel)?
            .is_err()
        {
            return Ok(None);
        }
        is_ours = true;
    }
    advance_head(memory, head, first)?;
    Ok(is_ours.then_some(Got::Slot(first)))
}

/// Takes the oldest item that was put back.
#[inline]
fn take_returned<M: Memory>(memory: &mut M, me: u32) -> Result<Option<usize>, M::Stop> {
    let returns = memory.load(RETURNS)?;
    if returns == memory.load(RETURNS_SEEN)? {
        return Ok(None);
    }
    search_returned(memory, me, returns)
}

#[cold]
fn search_returned<M: Memory>(
    memory: &mut M,
    me: u32,
    returns: u64,
) -> Result<Option<usize>, M::Stop> {
    let seen = memory.load(RETURNS_SEEN)?;
    let found = memory.rounds(TRIES, |memory| {
        let Some((slot, word)) = oldest_returned(memory)? else {
            return Ok(Some(None));
        };
        let mine = State::word(Kind::Reading, me, State::of(word).position);
        let taken = memory.replace(words::state(slot), word, mine, AcqRel)?;
        Ok(taken.is_ok().then_some(Some(slot)))
    })?;
    if found != Some(None) {
        return Ok(found.flatten());
    }
    // What is put back from now on is counted afterwards.
    let _ = memory.replace(RETURNS_SEEN, seen, returns, AcqRel)?;
    Ok(None)
}

fn oldest_returned<M: Memory>(memory: &mut M) -> Result<Option<(usize, u64)>, M::Stop> {
    let mut oldest: Option<(usize, u64)> = None;
    for slot in 0..n_slots(memory)? {
        let word = memory.load(words::state(slot))?;
        let state = State::of(word);
        let is_older = oldest.is_none_or(|(_, other)| {
            words::distance(state.position, State::of(other).position) > 0
        });
        if state.kind == Kind::Returned && is_older {
            oldest = Some((slot, word));
        }
    }
    Ok(oldest)
}

/// Slots in use.
pub(crate) fn n_slots<M: Memory>(memory: &mut M) -> Result<usize, M::Stop> {
    Ok(memory.load(SLOTS)?.min(MOST as u64) as usize)
}

/// We have got the item whose slot we took: `seat` owes that it is done with. For `let_go` see
/// [`discard`].
#[inline]
pub(crate) fn leave<M: Memory>(
    memory: &mut M,
    me: u32,
    seat: usize,
    slot: usize,
    let_go: impl FnOnce(),
) -> Result<(), M::Stop> {
    let owes_first = !memory.breaks(Rule::QueueOwesBeforeLeaving);
    if owes_first {
        owe(memory, seat)?;
    }
    discard(memory, me, slot, let_go)?;
    if !owes_first {
        owe(memory, seat)?;
    }
    Ok(())
}

/// Gives up a slot of ours and the item in it. `let_go` gives up the descriptors that belong to it,
/// if there are any.
#[inline]
pub(crate) fn discard<M: Memory>(
    memory: &mut M,
    me: u32,
    slot: usize,
    let_go: impl FnOnce(),
) -> Result<(), M::Stop> {
    let position = State::of(memory.load(words::state(slot))?).position;
    let has_fds = words::n_fds(memory.load(words::len(slot))?) > 0;
    if has_fds || memory.load(words::chain(slot))? != 0 {
        // From here on the item cannot be put back, as it is no longer whole.
        memory.store(words::state(slot), State::word(Kind::Leaving, me, position))?;
        if has_fds {
            let_go();
        }
        free_blocks(memory, slot)?;
    }
    // First: whoever joins or waits at a closed queue is looked for afterwards.
    memory.store_first(words::state(slot), State::word(Kind::Done, 0, position))
}

/// Gives up a slot that we claimed and did not link.
pub(crate) fn unclaim<M: Memory>(memory: &mut M, slot: usize) -> Result<(), M::Stop> {
    free_blocks(memory, slot)?;
    memory.store(words::state(slot), State::word(Kind::Free, 0, 0))
}

/// Keeps the slot that we took until the item is done with.
pub(crate) fn lease<M: Memory>(memory: &mut M, me: u32, slot: usize) -> Result<(), M::Stop> {
    let position = State::of(memory.load(words::state(slot))?).position;
    memory.store(words::state(slot), State::word(Kind::Leased, me, position))
}

/// Puts the item back whose slot we took.
pub(crate) fn put_back<M: Memory>(memory: &mut M, slot: usize) -> Result<(), M::Stop> {
    let position = State::of(memory.load(words::state(slot))?).position;
    memory.store(words::state(slot), State::word(Kind::Returned, 0, position))?;
    if memory.breaks(Rule::QueueReturnIsCounted) {
        return Ok(());
    }
    count_return(memory)
}

/// Has getters look for items that were put back.
pub(crate) fn count_return<M: Memory>(memory: &mut M) -> Result<(), M::Stop> {
    add(memory, RETURNS, 1)
}

#[inline]
fn owe<M: Memory>(memory: &mut M, seat: usize) -> Result<(), M::Stop> {
    add(memory, words::owed(seat), 1)
}

#[inline]
pub(super) fn add<M: Memory>(memory: &mut M, word: usize, n: u64) -> Result<(), M::Stop> {
    let mut seen = memory.load(word)?;
    while let Err(now) = memory.replace(word, seen, seen.wrapping_add(n), AcqRel)? {
        seen = now;
    }
    Ok(())
}

/// An item that was got is done with. False if there is none.
pub(crate) fn done<M: Memory>(memory: &mut M, seat: usize) -> Result<bool, M::Stop> {
    let n_seats = memory.load(words::SEATS)?.min(words::SEATS_MAX as u64) as usize;
    for seat in std::iter::once(seat).chain(0..n_seats) {
        let mut owed = memory.load(words::owed(seat))?;
        while owed > 0 {
            match memory.replace(words::owed(seat), owed, owed - 1, AcqRel)? {
                Ok(_) => return Ok(true),
                Err(now) => owed = now,
            }
        }
    }
    Ok(false)
}

/// Whether nobody can get any more.
pub(crate) fn is_unread<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    Ok(memory.load(words::OPTIONS)? & words::UNREAD != 0)
}

/// Drops what is left in a queue that nobody puts into or gets from any more.
pub(crate) fn throw_away<M: Memory>(memory: &mut M, me: u32) -> Result<(), M::Stop> {
    settle(memory)?;
    let n_slots = n_slots(memory)?;
    for slot in 0..n_slots {
        let word = memory.load(words::state(slot))?;
        let state = State::of(word);
        if !matches!(state.kind, Kind::Full | Kind::Returned) {
            continue;
        }
        let mine = State::word(Kind::Reading, me, state.position);
        if memory
            .replace(words::state(slot), word, mine, AcqRel)?
            .is_ok()
        {
            // The broker has given up the descriptors.
            discard(memory, me, slot, || ())?;
        }
    }
    // The head passes them, one at a time.
    for _ in 0..n_slots {
        let head = memory.load(HEAD)?;
        if !head_is_behind(memory, head)? {
            break;
        }
    }
    Ok(())
}

/// Whether every item that was put has been got and reported as done. What nobody can report any
/// more counts as done.
pub(crate) fn is_done<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    let Some(tail) = settle(memory)? else {
        return Ok(true);
    };
    // Mostly there are items left, and not all slots have to be looked at.
    let head = memory.load(HEAD)?;
    if head != tail && !head_is_behind(memory, head)? {
        return Ok(false);
    }
    // An item goes from its slot to a seat, or back into the slot, and is always in one of them:
    // looked at in this order it is seen, and the same tail in the end tells that none came.
    if any_slot(memory, |state| {
        matches!(
            state.kind,
            Kind::Full | Kind::Reading | Kind::Leased | Kind::Returned
        )
    })? {
        return Ok(false);
    }
    let is_unread = is_unread(memory)?;
    let n_seats = memory.load(words::SEATS)?.min(words::SEATS_MAX as u64) as usize;
    for seat in 0..n_seats {
        if !is_unread && memory.load(words::owed(seat))? != 0 {
            return Ok(false);
        }
    }
    Ok(settle(memory)? == Some(tail))
}

/// Whether somebody has an item that may come back.
pub(crate) fn is_any_out<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    any_slot(memory, |state| {
        matches!(state.kind, Kind::Reading | Kind::Leased | Kind::Returned)
    })
}

fn any_slot<M: Memory>(memory: &mut M, is_it: impl Fn(State) -> bool) -> Result<bool, M::Stop> {
    for slot in 0..n_slots(memory)? {
        if is_it(State::of(memory.load(words::state(slot))?)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Completes what a put left half done; the tail. Nothing if the words make no sense.
pub(crate) fn settle<M: Memory>(memory: &mut M) -> Result<Option<u64>, M::Stop> {
    memory.rounds(TRIES, |memory| {
        let tail = memory.load(TAIL)?;
        let next = memory.load(words::next(words::slot(tail)))?;
        if words::position(next) != words::position(tail) {
            return Ok(None);
        }
        if words::is_end(next) || words::is_closed(next) {
            return Ok(Some(tail));
        }
        advance_tail(memory, tail, words::slot(next))?;
        Ok(None)
    })
}

/// How many items are in the queue.
pub(crate) fn count<M: Memory>(memory: &mut M) -> Result<usize, M::Stop> {
    let n = memory.rounds(TRIES, |memory| {
        let Some(tail) = settle(memory)? else {
            return Ok(Some(0));
        };
        let head = memory.load(HEAD)?;
        if head_is_behind(memory, head)? {
            return Ok(None);
        }
        let mut returned = 0;
        let returns = memory.load(RETURNS)?;
        if returns != memory.load(RETURNS_SEEN)? {
            for slot in 0..n_slots(memory)? {
                let state = State::of(memory.load(words::state(slot))?);
                returned += usize::from(state.kind == Kind::Returned);
            }
        }
        // Neither has moved, so both were there at one moment.
        let is_right = settle(memory)? == Some(tail)
            && memory.load(HEAD)? == head
            && !head_is_behind(memory, head)?
            && memory.load(RETURNS)? == returns;
        let n = words::distance(words::position(head), words::position(tail));
        Ok(is_right.then_some(n.max(0) as usize + returned))
    })?;
    Ok(n.unwrap_or(0))
}

/// Lets nothing in any more. False if that was so before.
pub(crate) fn close<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    let is_new = memory.rounds(TRIES, |memory| {
        let Some(tail) = settle(memory)? else {
            return Ok(Some(false));
        };
        let position = words::position(tail);
        let word = words::next(words::slot(tail));
        let next = memory.load(word)?;
        if words::position(next) == position && words::is_closed(next) {
            return Ok(Some(false));
        }
        if words::position(next) != position || !words::is_end(next) {
            return Ok(None);
        }
        let closed = memory.replace(word, next, words::closed(position), AcqRel)?;
        Ok(closed.is_ok().then_some(true))
    })?;
    Ok(is_new.unwrap_or(false))
}

/// Whether nothing gets in any more.
pub(crate) fn is_closed<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    let is_closed = memory.rounds(TRIES, |memory| {
        let Some(tail) = settle(memory)? else {
            return Ok(Some(true));
        };
        let next = memory.load(words::next(words::slot(tail)))?;
        let is_same = words::position(next) == words::position(tail);
        Ok(is_same.then_some(words::is_closed(next)))
    })?;
    Ok(is_closed.unwrap_or(true))
}

/// Whether an item could be got now, or the end be seen, so that somebody who waits for one should
/// look.
#[inline]
pub(crate) fn has_item<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    if memory.load(RETURNS)? != memory.load(RETURNS_SEEN)? {
        return Ok(true);
    }
    let head = memory.load(HEAD)?;
    let next = memory.load(words::next(words::slot(head)))?;
    if words::is_closed(next) && words::position(next) == words::position(head) {
        // What comes back is counted among the returns.
        return Ok(!is_any_out(memory)?);
    }
    Ok(words::position(next) != words::position(head) || !words::is_end(next))
}

/// Whether an item could be put now, so that somebody who waits for room should look.
#[inline]
pub(crate) fn has_room<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    let limit = memory.load(LIMIT)?;
    if limit == 0 {
        return Ok(true);
    }
    let tail = memory.load(TAIL)?;
    let head = memory.load(HEAD)?;
    let n = words::distance(words::position(head), words::position(tail));
    Ok(n < limit.cast_signed() || head_is_behind(memory, head)? || is_closed(memory)?)
}

/// Whether somebody who waits so should look.
#[inline]
pub(crate) fn is_there<M: Memory>(memory: &mut M, what: For) -> Result<bool, M::Stop> {
    match what {
        For::Item => has_item(memory),
        For::Room => has_room(memory),
        For::Done => is_done(memory),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::broker::queue::arena::Arena;

    #[test]
    fn a_queue_that_was_scribbled_over_counts_as_closed_and_done() {
        let arena = Arena::open(Arc::new(Arena::create().unwrap())).unwrap();
        let mut memory = &arena;
        create(&mut memory, 0, false).unwrap();
        let slot = claim(&mut memory, 1, 0).unwrap().unwrap();
        memory.store(TAIL, words::link(6, 0)).unwrap();

        assert_eq!(publish(&mut memory, 1, slot), Ok(Put::Closed));
        assert_eq!(settle(&mut memory), Ok(None));
        assert_eq!(is_closed(&mut memory), Ok(true));
        assert_eq!(is_done(&mut memory), Ok(true));
        assert_eq!(close(&mut memory), Ok(false));
        assert_eq!(count(&mut memory), Ok(0));
        memory.store(HEAD, words::link(6, 0)).unwrap();
        assert_eq!(take(&mut memory, 1), Ok(Got::Closed));
    }

    #[test]
    fn a_chain_that_leads_round_and_round_is_no_item() {
        let arena = Arena::open(Arc::new(Arena::create().unwrap())).unwrap();
        let mut memory = &arena;
        create(&mut memory, 0, false).unwrap();
        let slot = claim(&mut memory, 1, 0).unwrap().unwrap();
        assert_eq!(claim_blocks(&mut memory, slot, 1), Ok(true));
        let chain = memory.load(words::chain(slot)).unwrap();
        let round = words::block_of(slot, chain);
        memory
            .store(words::block(chain as usize - 1), round)
            .unwrap();

        assert_eq!(arena.read(slot, 1 << 44, &mut Vec::new()), Ok(false));
    }
}
