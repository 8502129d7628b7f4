//! What the broker does for a queue: after a death, and on patrol.
//!
//! A dead process' steps are over, so what its words say is final. A slot that it was filling is free
//! again, unless it had linked it. A slot that it was reading, or had a lease of, goes back to the
//! queue. Of what it had got nobody will hear any more, so it counts as done with.

use super::steps;
use super::wait::{self, Bells};
use super::words::{self, BLOCKS, For, Kind, MOST, PATROLS, SEATS_MAX, State};
use crate::broker::memory::Rule;

/// Repairs what `client` left behind, which is dead or has no handle any more. The keys of
/// descriptors that nobody wants any more are put into `keys`.
pub(crate) fn sweep<M: Bells>(
    memory: &mut M,
    client: u32,
    keys: &mut Vec<u64>,
) -> Result<(), M::Stop> {
    steps::settle(memory)?;
    let mut freed = Vec::new();
    for slot in 0..steps::n_slots(memory)? {
        let state = State::of(memory.load(words::state(slot))?);
        if state.client != client {
            continue;
        }
        match state.kind {
            Kind::Writing | Kind::Leaving => freed.push((slot, state)),
            Kind::Reading | Kind::Leased if !memory.breaks(Rule::QueueDeathReturns) => {
                let returned = State::word(Kind::Returned, 0, state.position);
                memory.store(words::state(slot), returned)?;
            }
            _ => (),
        }
    }
    if !freed.is_empty() && !memory.breaks(Rule::QueueDeathFrees) {
        free(memory, &freed, keys)?;
    }
    // Also if nothing was put back: it may have died before it counted.
    steps::count_return(memory)?;
    if steps::is_unread(memory)? {
        steps::throw_away(memory, 0)?;
    }
    stand_up(memory, client)?;
    if !memory.breaks(Rule::QueueDeathServes) {
        for what in [For::Item, For::Room, For::Done] {
            wait::serve(memory, what, 0)?;
        }
    }
    Ok(())
}

fn free<M: Bells>(
    memory: &mut M,
    freed: &[(usize, State)],
    keys: &mut Vec<u64>,
) -> Result<(), M::Stop> {
    // Not by the chains, which may have been left half done.
    for block in 0..memory.load(BLOCKS)?.min(MOST as u64) as usize {
        let owner = words::block_owner(memory.load(words::block(block))?);
        if owner.is_some_and(|owner| freed.iter().any(|(slot, _)| *slot == owner)) {
            memory.store(words::block(block), 0)?;
        }
    }
    for &(slot, state) in freed {
        keys.push(memory.load(words::key(slot))?);
        memory.store(words::chain(slot), 0)?;
        let next = match state.kind {
            Kind::Leaving => State::word(Kind::Done, 0, state.position),
            _ => State::word(Kind::Free, 0, 0),
        };
        memory.store(words::state(slot), next)?;
    }
    Ok(())
}

/// Makes the seats of a client nobody's.
fn stand_up<M: Bells>(memory: &mut M, client: u32) -> Result<(), M::Stop> {
    let n_seats = memory.load(words::SEATS)?.min(SEATS_MAX as u64) as usize;
    for seat in 0..n_seats {
        if memory.load(words::owner(seat))? != u64::from(client) {
            continue;
        }
        for what in [For::Item, For::Room, For::Done] {
            wait::end(memory, seat, what)?;
        }
        memory.store(words::acting(seat), 0)?;
        // First: whoever joins is looked for afterwards.
        memory.store_first(words::owed(seat), 0)?;
        memory.store(words::owner(seat), 0)?;
    }
    Ok(())
}

/// Looks after sleepers that somebody who is stopped should have woken, or was woken for. True if it is
/// worth looking again.
pub(crate) fn patrol<M: Bells>(memory: &mut M) -> Result<bool, M::Stop> {
    // First: who asked before needs not ask again until we begin.
    let n_patrols = memory.load(PATROLS)?;
    memory.store_first(PATROLS, n_patrols.wrapping_add(1))?;
    if memory.breaks(Rule::QueuePatrols) {
        return Ok(false);
    }
    let mut again = false;
    for what in [For::Item, For::Room, For::Done] {
        again |= wait::patrol(memory, what)?;
    }
    Ok(again)
}
