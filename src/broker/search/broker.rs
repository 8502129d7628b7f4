//! What the broker does: one step of the request that it is in the middle of.

use crate::broker::barrier;
use crate::broker::gate;
use crate::broker::memory::{Memory, Rule, Ticket};
use crate::broker::park;
use crate::broker::turn::Turn;
use crate::broker::vigil;
use crate::broker::word;

use super::replay::Replay;
use super::{Machine, Message, World};

/// What the broker is in the middle of, and what its steps have found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    stage: Stage,
    log: Vec<u64>,
    /// Who is dead, and whether it held the lock.
    gone: Option<(u32, bool)>,
    /// The conditions whose notifications have to go on to those who wait by the broker.
    unheard: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Looks whether the dead client has the lock.
    Look(u32),
    Request(Message),
    /// Looks for a sleeper, as something may have been freed.
    Serve,
    /// Looks for a sleeper whom the dead one has left.
    TakeOut,
    /// Sweeps the vigils.
    Sweep,
    /// The next notification that goes on.
    Unheard,
}

impl World {
    /// Begins with a request.
    pub(super) fn begin(&mut self, message: Message) {
        let stage = match message {
            Message::Gate(gate::Request::Gone { client }) if self.sleeps => Stage::Look(client),
            message => Stage::Request(message),
        };
        self.pending = Some(Pending {
            stage,
            log: Vec::new(),
            gone: None,
            unheard: Vec::new(),
        });
    }

    pub(super) fn broker_step(&mut self, broken: Option<Rule>, fault: &mut Option<String>) {
        let Some(mut pending) = self.pending.take() else {
            return;
        };
        let (parks, vigils) = (self.park(), self.vigil());
        let (sleeps, marks_death) = (self.sleeps, self.marks_death());
        // Run on a copy: unless the request is finished, its effect on the state is not there yet.
        let mut machine = self.machine.clone();
        let mut replay = Replay {
            words: &mut self.words,
            slots: &mut self.slots,
            client: None,
            sweeps: matches!(
                pending.stage,
                Stage::Request(Message::Gate(gate::Request::Gone { .. }))
            ),
            unseen: false,
            died_with_lock: &mut self.died_with_lock,
            marks_death,
            turn: Turn::new(std::mem::take(&mut pending.log)),
            broken,
            fault,
        };
        let mut roused = Vec::new();
        let m = &mut replay;
        let next = match pending.stage {
            Stage::Look(client) => m.load(parks.permits.start).map(|lock| {
                pending.gone = Some((client, word::owner(lock) == client));
                Some(Stage::Request(Message::Gate(gate::Request::Gone {
                    client,
                })))
            }),
            Stage::Request(message) => match (&mut machine, message) {
                (Machine::Gate(gate), Message::Gate(request)) => gate
                    .on(request, self.now, m)
                    .map(|()| sleeps.then_some(Stage::Serve)),
                (Machine::Barrier(barrier), Message::Barrier(request)) => {
                    barrier.on(request, m).map(|()| None)
                }
                _ => Ok(None),
            },
            Stage::Serve => park::serve(m, &parks).map(|whom| {
                roused.extend(whom);
                let first = pending.gone.is_some() && pending.unheard.is_empty();
                Some(if first {
                    Stage::TakeOut
                } else {
                    Stage::Unheard
                })
            }),
            Stage::TakeOut => park::take_out(m, parks.sleeper).map(|whom| {
                roused.extend(whom);
                marks_death.then_some(Stage::Sweep)
            }),
            Stage::Sweep => {
                let (client, held) = pending.gone.unwrap_or_default();
                vigil::sweep(m, &vigils, client, held).map(|swept| {
                    roused.extend(swept.roused);
                    pending.unheard = swept.unheard;
                    pending.gone = None;
                    Some(Stage::Unheard)
                })
            }
            Stage::Unheard => Ok(pending.unheard.pop().map(|condition| {
                Stage::Request(Message::Gate(gate::Request::Notify { condition, n: 1 }))
            })),
        };
        let log = replay.turn.into_log();
        let Ok(next) = next else {
            self.pending = Some(Pending { log, ..pending });
            return;
        };
        self.machine = machine;
        // At the end of each stage: what they are woken for was done in it or before.
        for whom in roused {
            self.rouse(whom);
        }
        if let (Machine::Barrier(barrier), Stage::Request(Message::Barrier(request))) =
            (&self.machine, pending.stage)
            && barrier.tickets().any(|ticket| must_leave(request, *ticket))
        {
            fault.get_or_insert_with(|| format!("somebody waits on after {request:?}"));
        }
        match next {
            // That there is nothing more to do is no step.
            Some(Stage::Unheard) if pending.unheard.is_empty() => (),
            Some(stage) => {
                self.pending = Some(Pending {
                    stage,
                    log: Vec::new(),
                    ..pending
                });
            }
            None => (),
        }
    }
}

/// Whether a ticket may not be at a barrier any more when it has carried out this request.
fn must_leave(request: barrier::Request, ticket: Ticket) -> bool {
    match request {
        barrier::Request::Reset | barrier::Request::Abort => true,
        barrier::Request::Cancel(gone) => gone == ticket,
        barrier::Request::Gone { client } => client == ticket.client,
        _ => false,
    }
}
