//! Every order of events up to a depth, and long random ones, against simulated workers.

use super::*;

/// What one simulated worker does: it starts what it was sent in order, unless it was recalled.
#[derive(Clone, Debug, Default)]
struct Sim {
    up: bool,
    stopping: bool,
    killed: bool,
    /// What it was sent: number and item.
    inbox: VecDeque<(u64, usize)>,
    running: Vec<(u64, usize)>,
    started: u64,
    void_until: u64,
}

#[derive(Clone, Debug, Default)]
struct Item {
    submitted: bool,
    /// Its own key for single tasks, else its place in stream 1.
    single: bool,
    runs: u32,
    ended: Option<Result<(), Verdict>>,
    /// A worker died while it ran.
    hit: bool,
    cancelled: bool,
    /// Where the parent sent it.
    at: Option<(WorkerId, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Submit(usize),
    SubmitStream,
    Up(WorkerId),
    Begin(WorkerId),
    Finish(WorkerId, usize),
    Die(WorkerId),
    Exit(WorkerId),
    Cancel(usize),
    DropStream,
    Close,
    Terminate,
    Tick,
}

#[derive(Clone)]
struct World {
    dispatch: Dispatch,
    rules: Rules,
    sims: Vec<Option<Sim>>,
    items: Vec<Item>,
    /// Items from here on belong to the stream.
    n_singles: usize,
    stream_dropped: bool,
    closed: bool,
    terminated: bool,
    deaths: u32,
    now: u64,
    log: Vec<Event>,
}

const STREAM: u64 = 1;

impl World {
    fn new(rules: Rules, n_singles: usize, n_streamed: usize) -> Self {
        let mut dispatch = Dispatch::new(rules, 2);
        let class = dispatch.new_class();
        // Short items, so that several are under way in one worker.
        dispatch.measured(class, 1, 1000);
        dispatch.open_stream(STREAM, 0);
        let single = |single| Item {
            single,
            ..Item::default()
        };
        let mut world = Self {
            dispatch,
            rules,
            sims: Vec::new(),
            items: (0..n_singles + n_streamed)
                .map(|idx| single(idx < n_singles))
                .collect(),
            n_singles,
            stream_dropped: n_streamed == 0,
            closed: false,
            terminated: false,
            deaths: 0,
            now: 0,
            log: Vec::new(),
        };
        let ids = [(); 2].map(|()| world.dispatch.reserve());
        for id in ids {
            world.sims.push(Some(Sim {
                up: true,
                ..Sim::default()
            }));
            let mut out = Vec::new();
            world.dispatch.up(id, 0, &mut out);
            world.carry_out(out);
        }
        if n_streamed == 0 {
            world.dispatch.close_stream(STREAM, 0, &mut Vec::new());
        }
        world
    }

    fn items_of(&self, piece: Piece) -> impl Iterator<Item = usize> + use<> {
        let base = if piece.source == Source::Single {
            0
        } else {
            self.n_singles
        };
        let first = base + usize::try_from(piece.first).unwrap();
        first..first + piece.len as usize
    }

    fn end(&mut self, item: usize, how: Result<(), Verdict>) {
        let (terminated, broken) = (self.terminated, self.dispatch.is_broken());
        let state = &mut self.items[item];
        if !state.single && self.stream_dropped {
            return;
        }
        assert!(
            state.submitted,
            "item {item} ended before it began: {:?}",
            self.log
        );
        assert_eq!(state.ended, None, "item {item} ended twice: {:?}", self.log);
        match how {
            Ok(()) => {}
            Err(Verdict::Died(_)) => assert!(state.hit, "innocent {item}: {:?}", self.log),
            Err(Verdict::Cancelled) => assert!(state.cancelled || terminated, "{:?}", self.log),
            Err(Verdict::TimedOut) => assert!(self.rules.task_timeout.is_some(), "{:?}", self.log),
            Err(Verdict::GaveUp) => assert!(broken, "{:?}", self.log),
        }
        state.ended = Some(how);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            let mut out = Vec::new();
            match action {
                Action::Send {
                    worker,
                    piece,
                    first_seq,
                } => {
                    assert!(
                        self.sims[worker]
                            .as_ref()
                            .is_some_and(|sim| sim.up && !sim.stopping)
                    );
                    for (seq, item) in (first_seq..).zip(self.items_of(piece)) {
                        self.items[item].at = Some((worker, seq));
                        self.sims[worker]
                            .as_mut()
                            .unwrap()
                            .inbox
                            .push_back((seq, item));
                    }
                }
                Action::Fail { piece, why } => {
                    self.items_of(piece)
                        .for_each(|item| self.end(item, Err(why)));
                }
                Action::Recall(worker) => {
                    let started = self.sims[worker].as_mut().map(|sim| {
                        sim.void_until = self.dispatch.n_sent(worker);
                        sim.started
                    });
                    self.forget_inbox(worker);
                    if let Some(started) = started {
                        self.dispatch.recalled(worker, started, self.now, &mut out);
                    }
                }
                Action::Interrupt { .. } => {}
                Action::Requeued(key) => {
                    assert_eq!(self.items[usize::try_from(key).unwrap()].ended, None);
                }
                Action::Stop(worker) => {
                    let sim = self.sims[worker].as_mut().unwrap();
                    assert!(
                        sim.running.is_empty(),
                        "stopped while it runs: {:?}",
                        self.log
                    );
                    sim.stopping = true;
                }
                Action::Kill(worker) => self.sims[worker].as_mut().unwrap().killed = true,
                Action::Start(worker) => {
                    self.sims
                        .resize_with(self.sims.len().max(worker + 1), || None);
                    assert!(self.sims[worker].is_none(), "two workers in one place");
                    self.sims[worker] = Some(Sim::default());
                }
            }
            // What follows from an action comes before what was decided after it.
            for action in out.into_iter().rev() {
                queue.push_front(action);
            }
        }
    }

    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let open = !self.closed && !self.terminated && !self.dispatch.is_broken();
        if let Some(item) = (0..self.n_singles).find(|&item| !self.items[item].submitted)
            && open
        {
            events.push(Event::Submit(item));
        }
        let streamed = self.items.get(self.n_singles);
        if streamed.is_some_and(|item| !item.submitted) && self.dispatch.takes_stream(STREAM) {
            events.push(Event::SubmitStream);
        }
        for (id, sim) in self.sims.iter().enumerate() {
            let Some(sim) = sim else { continue };
            if sim.killed || sim.stopping {
                events.push(Event::Exit(id));
            }
            if sim.killed {
                continue;
            }
            if !sim.up {
                events.push(Event::Up(id));
            } else if !sim.stopping {
                if (sim.running.len() as u64) < u64::from(self.rules.slots) && !sim.inbox.is_empty()
                {
                    events.push(Event::Begin(id));
                }
                events.extend((0..sim.running.len()).map(|idx| Event::Finish(id, idx)));
            }
            if self.deaths < 3 {
                events.push(Event::Die(id));
            }
        }
        for (idx, item) in self.items.iter().enumerate() {
            if item.single && item.submitted && item.ended.is_none() && !item.cancelled {
                events.push(Event::Cancel(idx));
            }
        }
        if !self.stream_dropped && streamed.is_some_and(|item| item.submitted) {
            events.push(Event::DropStream);
        }
        if open {
            events.push(Event::Close);
        }
        if !self.terminated {
            events.push(Event::Terminate);
        }
        if self.dispatch.next_tick().is_some() {
            events.push(Event::Tick);
        }
        events
    }

    fn on(&mut self, event: Event) {
        self.log.push(event);
        let (now, mut out) = (self.now, Vec::new());
        match event {
            Event::Submit(item) => {
                self.items[item].submitted = true;
                let piece = Piece::new(Source::Single, item as u64, 1, 0);
                self.dispatch.submit(piece, now, &mut out);
            }
            Event::SubmitStream => {
                let len = self.items.len() - self.n_singles;
                self.items[self.n_singles..]
                    .iter_mut()
                    .for_each(|item| item.submitted = true);
                let piece = Piece::new(Source::Stream(STREAM), 0, u32::try_from(len).unwrap(), 0);
                self.dispatch.submit(piece, now, &mut out);
            }
            Event::Up(id) => {
                self.sims[id].as_mut().unwrap().up = true;
                self.dispatch.up(id, now, &mut out);
            }
            Event::Begin(id) => {
                let sim = self.sims[id].as_mut().unwrap();
                let (seq, item) = sim.inbox.pop_front().unwrap();
                assert_eq!(sim.started, seq);
                sim.started += 1;
                if seq >= sim.void_until {
                    sim.running.push((seq, item));
                    let state = &mut self.items[item];
                    state.runs += 1;
                    assert!(
                        state.runs <= 1 + self.rules.retries,
                        "ran again: {:?}",
                        self.log
                    );
                }
            }
            Event::Finish(id, idx) => {
                let (seq, item) = self.sims[id].as_mut().unwrap().running.remove(idx);
                let known = self.dispatch.expects(id, seq);
                if self.terminated {
                    assert_eq!(known, None);
                } else {
                    let piece = known.expect("a result of a running item is expected");
                    assert_eq!(self.items_of(piece).next(), Some(item));
                    self.end(item, Ok(()));
                    self.dispatch.finished(id, seq, 1, now);
                    self.dispatch.refill(id, now, &mut out);
                }
            }
            Event::Die(id) | Event::Exit(id) => {
                self.deaths += u32::from(matches!(event, Event::Die(_)));
                self.forget_inbox(id);
                let sim = self.sims[id].take().unwrap();
                for (_, item) in &sim.running {
                    self.items[*item].hit = true;
                }
                self.dispatch.died(id, sim.started, now, &mut out);
            }
            Event::Cancel(item) => {
                self.items[item].cancelled = true;
                match self.items[item].at {
                    Some((id, seq)) if self.holds(id, seq, item) => {
                        self.dispatch.stop_item(id, seq, false, now, &mut out);
                    }
                    _ => {
                        self.end(item, Err(Verdict::Cancelled));
                        self.dispatch.cancel_queued(item as u64, now, &mut out);
                    }
                }
            }
            Event::DropStream => {
                self.stream_dropped = true;
                self.dispatch.close_stream(STREAM, now, &mut out);
            }
            Event::Close => {
                self.closed = true;
                self.dispatch.close(now, &mut out);
            }
            Event::Terminate => {
                self.terminated = true;
                self.dispatch.terminate(&mut out);
            }
            Event::Tick => {
                self.now = self.now.max(self.dispatch.next_tick().unwrap());
                self.dispatch.tick(self.now, &mut out);
            }
        }
        self.carry_out(out);
        self.check();
    }

    fn forget_inbox(&mut self, worker: WorkerId) {
        let Some(sim) = &self.sims[worker] else {
            return;
        };
        for &(seq, item) in &sim.inbox {
            let at = &mut self.items[item].at;
            *at = at.filter(|place| *place != (worker, seq));
        }
    }

    fn holds(&self, id: WorkerId, seq: u64, item: usize) -> bool {
        let Some(sim) = &self.sims[id] else {
            return false;
        };
        sim.running.contains(&(seq, item))
            || (sim.inbox.contains(&(seq, item)) && seq >= sim.void_until)
    }

    /// What is true at all times.
    fn check(&self) {
        let serving = self.dispatch.n_serving();
        assert!(serving <= 2, "{serving} workers serve: {:?}", self.log);
    }

    /// Lets everything run to its end.
    fn run_out(mut self) {
        for round in 0.. {
            assert!(
                round < 500,
                "it never ends: {:?}\n{:#?}",
                self.log,
                self.dispatch
            );
            let calm = |event: &Event| {
                matches!(
                    event,
                    Event::Up(_) | Event::Begin(_) | Event::Finish(..) | Event::Exit(_)
                )
            };
            let events = self.events();
            let next = events.iter().copied().find(calm);
            let Some(event) = next.or_else(|| events.contains(&Event::Tick).then_some(Event::Tick))
            else {
                break;
            };
            self.on(event);
        }
        for (idx, item) in self.items.iter().enumerate() {
            let forgotten = !item.single && self.stream_dropped;
            if item.submitted && !forgotten {
                assert!(item.ended.is_some(), "item {idx} hangs: {:?}", self.log);
            }
            // Tasks that share a worker share its death, even one that a cancelled neighbour caused.
            let alone = self.rules.slots == 1 && self.rules.task_timeout.is_none();
            if self.deaths == 0 && alone && !item.cancelled && !self.terminated && !forgotten {
                assert!(matches!(item.ended, None | Some(Ok(()))), "{:?}", self.log);
            }
        }
        if self.closed || self.terminated {
            assert!(
                self.dispatch.is_over(),
                "workers stay: {:?}\n{:#?}",
                self.log,
                self.dispatch
            );
        } else if !self.dispatch.is_broken() {
            assert_eq!(self.dispatch.n_serving(), 2, "{:?}", self.log);
        }
    }
}

fn rules() -> Rules {
    Rules {
        slots: 1,
        retries: 0,
        tasks_per_worker: u64::MAX,
        task_timeout: None,
    }
}

fn explore(world: &World, depth: u32, n: &mut u64) {
    *n += 1;
    if depth == 0 {
        world.clone().run_out();
        return;
    }
    for event in world.events() {
        let mut next = world.clone();
        next.on(event);
        explore(&next, depth - 1, n);
    }
}

fn wander(world: &World, seed: u64, n_walks: u64) {
    let mut state = seed;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for _ in 0..n_walks {
        let mut world = world.clone();
        for _ in 0..random(60) {
            let events = world.events();
            if events.is_empty() {
                break;
            }
            let event = events[random(events.len())];
            // Ends are rare, or no walk gets far.
            if matches!(event, Event::Terminate | Event::Close | Event::DropStream) && random(8) > 0
            {
                continue;
            }
            world.on(event);
        }
        world.run_out();
    }
}

#[test]
fn every_order_of_events_resolves_each_task_once_and_spares_the_innocent() {
    let mut n = 0;
    explore(&World::new(rules(), 3, 0), 5, &mut n);
    explore(&World::new(rules(), 1, 3), 5, &mut n);
    assert!(n > 10_000, "only {n} states were seen");
}

#[test]
fn every_order_of_events_holds_with_two_tasks_at_once() {
    let mut n = 0;
    let rules = Rules {
        slots: 2,
        ..rules()
    };
    explore(&World::new(rules, 2, 2), 5, &mut n);
}

#[test]
fn long_random_histories_resolve_each_task_once_and_spare_the_innocent() {
    let plain = rules();
    let variants = [
        plain,
        Rules { slots: 2, ..plain },
        Rules {
            retries: 1,
            ..plain
        },
        Rules {
            tasks_per_worker: 2,
            ..plain
        },
        Rules {
            task_timeout: Some(1_000_000),
            ..plain
        },
    ];
    for (seed, rules) in (1..).zip(variants) {
        wander(&World::new(rules, 4, 5), seed, 2000);
    }
}
