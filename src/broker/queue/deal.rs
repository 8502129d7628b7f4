//! Putting and getting with all wake-ups: the steps of [`steps`] and [`wait`], put together.

use super::steps::{self, Got, Put};
use super::wait::{self, Bells};
use super::words::{For, LIMIT, OPTIONS, UNREAD};
use crate::broker::memory::Rule;
use crate::broker::slot::Wake;

/// Who deals: its number, and where it sits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dealer {
    pub(crate) me: u32,
    pub(crate) seat: usize,
}

/// Puts the slot that we filled, and wakes whoever should look.
#[inline]
pub(crate) fn put<M: Bells>(
    memory: &mut M,
    who: Dealer,
    slot: usize,
    near: usize,
) -> Result<Put, M::Stop> {
    wait::announced(memory, who.seat, &[For::Item], |memory| {
        if memory.breaks(Rule::QueueWakesAfterLink) {
            wait::wake_one(memory, For::Item, near)?;
            return steps::publish(memory, who.me, slot);
        }
        let put = steps::publish(memory, who.me, slot)?;
        if put == Put::Done {
            wait::wake_one(memory, For::Item, near)?;
        }
        Ok(put)
    })
}

/// Takes the first item, and wakes whoever should look. The end has come when nobody has an item in
/// hand either.
#[inline]
pub(crate) fn take<M: Bells>(memory: &mut M, who: Dealer, near: usize) -> Result<Got, M::Stop> {
    let got = match memory.load(LIMIT)? {
        0 => steps::take(memory, who.me)?,
        _ => wait::announced(memory, who.seat, &[For::Room], |memory| {
            let got = steps::take(memory, who.me)?;
            if let Got::Slot(_) = got {
                wait::serve_any(memory, For::Room, near)?;
            }
            Ok(got)
        })?,
    };
    if got == Got::Closed && steps::is_any_out(memory)? {
        // An item that somebody has may come back.
        return Ok(Got::Empty);
    }
    Ok(got)
}

/// Puts back the item whose slot we took.
pub(crate) fn put_back<M: Bells>(
    memory: &mut M,
    who: Dealer,
    slot: usize,
    near: usize,
) -> Result<(), M::Stop> {
    wait::announced(memory, who.seat, &[For::Item, For::Done], |memory| {
        steps::put_back(memory, slot)?;
        // It was counted by an exchange, so the broker sees the item or we see what it says.
        if steps::is_unread(memory)? {
            return throw_away(memory, who.me);
        }
        wait::serve_any(memory, For::Item, near)
    })
}

/// Nobody can get any more: lets nothing in, and drops what is left.
pub(crate) fn abandon<M: Bells>(memory: &mut M) -> Result<(), M::Stop> {
    memory.set_bits(OPTIONS, UNREAD)?;
    shut(memory)?;
    throw_away(memory, 0)
}

/// Drops what is left, and tells whoever joins.
pub(crate) fn throw_away<M: Bells>(memory: &mut M, me: u32) -> Result<(), M::Stop> {
    steps::throw_away(memory, me)?;
    wait::serve_any(memory, For::Done, 0)
}

/// We have got the item whose slot we took, and owe that it is done with. For `let_go` see
/// [`steps::discard`].
#[inline]
pub(crate) fn leave<M: Bells>(
    memory: &mut M,
    who: Dealer,
    slot: usize,
    let_go: impl FnOnce(),
) -> Result<(), M::Stop> {
    // At a closed queue this may be the end.
    wait::announced(memory, who.seat, &[For::Item], |memory| {
        steps::leave(memory, who.me, who.seat, slot, let_go)?;
        tell_the_last(memory)
    })
}

/// The item that we have leased is done with. For `let_go` see [`steps::discard`].
pub(crate) fn settle_lease<M: Bells>(
    memory: &mut M,
    who: Dealer,
    slot: usize,
    let_go: impl FnOnce(),
) -> Result<(), M::Stop> {
    wait::announced(memory, who.seat, &[For::Item, For::Done], |memory| {
        steps::discard(memory, who.me, slot, let_go)?;
        wait::serve_any(memory, For::Done, 0)?;
        tell_the_last(memory)
    })
}

/// An item that was got is done with. False if there is none.
pub(crate) fn done<M: Bells>(memory: &mut M, who: Dealer) -> Result<bool, M::Stop> {
    wait::announced(memory, who.seat, &[For::Done], |memory| {
        let was_one = steps::done(memory, who.seat)?;
        if was_one {
            wait::serve_any(memory, For::Done, 0)?;
        }
        Ok(was_one)
    })
}

/// Lets nothing in any more, and tells everybody.
pub(crate) fn close<M: Bells>(memory: &mut M, who: Dealer) -> Result<(), M::Stop> {
    wait::announced(memory, who.seat, &[For::Item, For::Room], shut)
}

/// The same for the broker.
pub(crate) fn shut<M: Bells>(memory: &mut M) -> Result<(), M::Stop> {
    steps::close(memory)?;
    wait::wake_all(memory, For::Item)?;
    wait::wake_all(memory, For::Room)
}

/// Says that we wait. True: whoever calls looks now whether it still has to.
pub(crate) fn begin_wait<M: Bells>(
    memory: &mut M,
    seat: usize,
    what: For,
    wake: Wake,
) -> Result<bool, M::Stop> {
    let looks = wait::begin(memory, seat, what, wake)?;
    if !memory.breaks(Rule::QueueWaiterAnnounces) {
        memory.ask_patrol()?;
    }
    Ok(looks)
}

/// Ends a wait, whatever came of it.
///
/// Somebody may have been about to wake us for one more thing, so another one is woken if there is
/// something. Until that is done our word says that we are on the way, so that the patrol looks after
/// it should we be stopped here.
pub(crate) fn end_wait<M: Bells>(memory: &mut M, seat: usize, what: For) -> Result<(), M::Stop> {
    wait::accept_no_more(memory, seat, what)?;
    if !memory.breaks(Rule::QueueWokenPassesOn) {
        wait::serve_any(memory, what, seat + 1)?;
    }
    wait::end(memory, seat, what)
}

/// Who waits at a closed queue for what might have come back may wait in vain now.
#[inline]
fn tell_the_last<M: Bells>(memory: &mut M) -> Result<(), M::Stop> {
    if wait::is_any(memory, For::Item)? && steps::is_closed(memory)? {
        wait::wake_all(memory, For::Item)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::broker::memory::Memory;
    use crate::broker::queue::arena::{Arena, WithBells};
    use crate::broker::queue::sweep;
    use crate::broker::queue::words::{self, Kind, State};

    #[test]
    fn an_item_whose_descriptors_are_let_go_is_never_put_back() {
        let arena = Arena::open(Arc::new(Arena::create().unwrap())).unwrap();
        let mut memory = WithBells {
            arena: &arena,
            ring: |_, _| Ok(true),
            ask: || Ok(()),
        };
        steps::create(&mut memory, 0, false).unwrap();
        let dealer = |me| Dealer { me, seat: 0 };
        let slot = steps::claim(&mut memory, 1, 0).unwrap().unwrap();
        memory.store(words::key(slot), 77).unwrap();
        memory.store(words::len(slot), 1 << 48).unwrap();
        put(&mut memory, dealer(1), slot, 0).unwrap();
        assert_eq!(take(&mut memory, dealer(2), 0).unwrap(), Got::Slot(slot));

        let mut keys = Vec::new();
        leave(&mut memory, dealer(2), slot, || {
            // Killed here.
            let ring = |_, _| Ok(true);
            let ask = || Ok(());
            let mut memory = WithBells {
                arena: &arena,
                ring,
                ask,
            };
            sweep::sweep(&mut memory, 2, &mut keys).unwrap();
            assert_eq!(take(&mut memory, dealer(3), 0).unwrap(), Got::Empty);
        })
        .unwrap();

        let state = State::of(memory.load(words::state(slot)).unwrap());
        assert_eq!((state.kind, keys), (Kind::Done, vec![77]));
    }
}
