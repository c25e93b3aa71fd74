//! In which order a worker opens its envelopes, so that a large fan-out holds up only what must come after it.

use crate::inbox::{Envelope, Finished, Lists};
use crate::shard::{Flow, Key, Tables};
use ahash::RandomState;
use std::collections::{HashSet, VecDeque};

/// Subscribers from which a fan-out is large: it is done in parts, between which others go on.
const LARGE: usize = if cfg!(test) { 3 } else { 512 };

/// Large fan-outs at the same time. The next ones wait with what must come after them.
const MAX_RUNNING: usize = if cfg!(test) { 2 } else { 16 };

/// Messages that one fan-out carries to each subscriber at once.
const MAX_BATCH: usize = if cfg!(test) { 3 } else { 64 };

/// Most subscriptions of a client that are searched again at each of its matches. Clients with more
/// are remembered instead, so that the cost of a message grows linearly with a client's
/// subscriptions, not quadratically.
const FEW_SUBSCRIPTIONS: usize = if cfg!(test) { 2 } else { 8 };

/// The envelopes that a worker has taken and not finished.
#[derive(Debug)]
pub(crate) struct Fanouts<M> {
    /// Not looked at yet, the oldest first.
    pub(crate) queue: VecDeque<Envelope<M>>,
    /// Looked at: they are of a topic or a source whose older messages are under way, or held.
    held: VecDeque<Envelope<M>>,
    held_topics: HashSet<u64, RandomState>,
    held_sources: HashSet<u64, RandomState>,
    pub(crate) running: VecDeque<Running<M>>,
    /// The queue has had its turn.
    is_runnings_turn: bool,
    pub(crate) finished: Finished,
}

/// A fan-out under way.
#[derive(Debug)]
pub(crate) struct Running<M> {
    /// Messages of one topic, for the same lists. Each subscriber is given all of them at a time: one write, and one
    /// look at what belongs to it.
    batch: Vec<Envelope<M>>,
    /// Which of the envelopes' lists it is at, and which subscriber of it comes next.
    list: usize,
    index: u32,
    /// Somebody may have been given the batch: no more can join.
    has_begun: bool,
    /// Clients that already got the messages, where their subscriptions do not show it. They have
    /// more than [`FEW_SUBSCRIPTIONS`], or have left the list through which they got them. Without
    /// this, a client on two lists would get the messages twice.
    given: HashSet<Key, RandomState>,
}

impl<M> Running<M> {
    fn new(envelope: Envelope<M>) -> Self {
        let seeds = RandomState::with_seeds(1, 2, 3, 4);
        Self {
            batch: vec![envelope],
            list: 0,
            index: 0,
            has_begun: false,
            given: HashSet::with_hasher(seeds),
        }
    }

    fn lists(&self) -> &[u32] {
        self.batch.first().map_or(&[], |envelope| envelope.lists.as_slice())
    }

    fn is_before(&self, topic: u64, source: Option<u64>) -> bool {
        self.batch
            .iter()
            .any(|envelope| envelope.topic == topic || (source.is_some() && envelope.source == source))
    }

    fn can_take(&self, envelope: &Envelope<M>) -> bool {
        !self.has_begun
            && self.batch.len() < MAX_BATCH
            && self
                .batch
                .first()
                .is_some_and(|first| first.topic == envelope.topic && first.lists == envelope.lists)
    }

    /// Who subscribed later than this is not concerned.
    fn last_number(&self) -> u64 {
        self.batch.last().map_or(0, |envelope| envelope.number)
    }

    /// The position of the next subscriber, if it is in this list.
    pub(crate) fn position(&self, list: u32) -> Option<u32> {
        (self.lists().get(self.list) == Some(&list)).then_some(self.index)
    }

    /// The subscriber at `index` of a list has left it.
    pub(crate) fn subscriber_left(&mut self, list: u32, index: u32, key: Key, since: u64) {
        // Lists are in ascending order.
        let Ok(at) = self.lists().binary_search(&list) else { return };
        let is_done = at < self.list || (at == self.list && index < self.index);
        if is_done && self.lists().len() > 1 && since < self.last_number() {
            self.given.insert(key);
        }
        if at == self.list && index < self.index {
            self.index -= 1;
        }
    }

    /// Goes on until it is told to pause, or through.
    fn go_on(&mut self, tables: &Tables, deliver: &mut impl FnMut(Key, &M) -> Flow) -> Flow {
        let lists = match self.batch.first() {
            Some(envelope) => envelope.lists.as_slice(),
            None => return Flow::Continue,
        };
        self.has_begun = true;
        let last_number = self.last_number();
        let first_number = self.batch.first().map_or(0, |envelope| envelope.number);
        while let Some(&list) = lists.get(self.list) {
            let subscribers = tables.subscribers(list);
            while let Some(subscriber) = subscribers.get(self.index as usize) {
                self.index += 1;
                let (key, mut since) = (subscriber.client, subscriber.since);
                if since >= last_number {
                    continue;
                }
                if lists.len() > 1 {
                    let done = lists.get(..self.list).unwrap_or_default();
                    let is_remembered = if tables.subscription_count(key) > FEW_SUBSCRIPTIONS {
                        !self.given.insert(key)
                    } else {
                        self.given.contains(&key)
                    };
                    if is_remembered || tables.stands_in(key, done, last_number) {
                        continue;
                    }
                    // It is given all messages here, in order, also those that only its other lists entitle it to.
                    if since >= first_number {
                        since = tables.since(key, lists).unwrap_or(since);
                    }
                }
                let mut flow = Flow::Continue;
                for envelope in self.batch.iter().filter(|envelope| since < envelope.number) {
                    if deliver(key, &envelope.message) == Flow::Pause {
                        flow = Flow::Pause;
                    }
                }
                // Not in the midst of a client's messages: it may be gone when this goes on.
                if flow == Flow::Pause {
                    return flow;
                }
            }
            self.list += 1;
            self.index = 0;
        }
        Flow::Continue
    }
}

impl<M> Fanouts<M> {
    pub(crate) fn new() -> Self {
        // Numbers from a counter and hashes with random seeds: nothing here that a client could aim at.
        let seeds = RandomState::with_seeds(5, 6, 7, 8);
        Self {
            queue: VecDeque::new(),
            held: VecDeque::new(),
            held_topics: HashSet::with_hasher(seeds.clone()),
            held_sources: HashSet::with_hasher(seeds),
            running: VecDeque::new(),
            is_runnings_turn: false,
            finished: Finished::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.held.is_empty()
    }

    /// Whether no envelope up to this number is left.
    pub(crate) fn has_finished(&self, number: u64) -> bool {
        let batches = self.running.iter().flat_map(|running| &running.batch);
        self.queue.iter().chain(&self.held).chain(batches).all(|envelope| envelope.number > number)
    }

    /// Delivers until everything is done or it is told to pause. Whatever was paused, the small and new ones and the
    /// large ones under way take turns.
    pub(crate) fn deliver(&mut self, tables: &Tables, deliver: &mut impl FnMut(Key, &M) -> Flow) -> Flow {
        if std::mem::take(&mut self.is_runnings_turn) && self.run_one(tables, deliver) == Flow::Pause {
            return Flow::Pause;
        }
        loop {
            if self.open_new(tables, deliver) == Flow::Pause {
                self.is_runnings_turn = true;
                return Flow::Pause;
            }
            while self.queue.is_empty() && !self.running.is_empty() {
                if self.run_one(tables, deliver) == Flow::Pause {
                    return Flow::Pause;
                }
            }
            if self.queue.is_empty() {
                return Flow::Continue;
            }
        }
    }

    /// Goes on with the fan-out that has waited longest.
    fn run_one(&mut self, tables: &Tables, deliver: &mut impl FnMut(Key, &M) -> Flow) -> Flow {
        let Some(mut running) = self.running.pop_front() else { return Flow::Continue };
        let flow = running.go_on(tables, deliver);
        if flow == Flow::Pause {
            self.running.push_back(running);
            return flow;
        }
        for envelope in &running.batch {
            self.finished.count(envelope.bytes);
        }
        // What waited for it is looked at again, before what is newer.
        self.held_topics.clear();
        self.held_sources.clear();
        while let Some(envelope) = self.held.pop_back() {
            self.queue.push_front(envelope);
        }
        flow
    }

    fn open_new(&mut self, tables: &Tables, deliver: &mut impl FnMut(Key, &M) -> Flow) -> Flow {
        while let Some(envelope) = self.queue.pop_front() {
            if !self.running.is_empty() && self.must_wait(&envelope) {
                self.join_or_hold(envelope);
                continue;
            }
            let subscribers: usize =
                envelope.lists.as_slice().iter().map(|list| tables.subscribers(*list).len()).sum();
            if subscribers > LARGE {
                if self.running.len() < MAX_RUNNING {
                    self.running.push_back(Running::new(envelope));
                } else {
                    self.hold(envelope);
                }
                continue;
            }
            if let Lists::One(list) = envelope.lists {
                // The most usual case by far, without anything to remember.
                let mut flow = Flow::Continue;
                let subscribers = tables.subscribers(list);
                for (index, subscriber) in subscribers.iter().enumerate() {
                    if subscriber.since < envelope.number {
                        flow = deliver(subscriber.client, &envelope.message);
                    }
                    if flow == Flow::Pause {
                        let mut running = Running::new(envelope);
                        (running.has_begun, running.index) = (true, index as u32 + 1);
                        self.running.push_back(running);
                        return flow;
                    }
                }
                self.finished.count(envelope.bytes);
                continue;
            }
            let mut running = Running::new(envelope);
            let flow = running.go_on(tables, deliver);
            if flow == Flow::Pause {
                self.running.push_back(running);
                return flow;
            }
            running.batch.iter().for_each(|envelope| self.finished.count(envelope.bytes));
        }
        Flow::Continue
    }

    fn must_wait(&self, envelope: &Envelope<M>) -> bool {
        self.is_behind_held(envelope)
            || self.running.iter().any(|running| running.is_before(envelope.topic, envelope.source))
    }

    fn is_behind_held(&self, envelope: &Envelope<M>) -> bool {
        !self.held.is_empty()
            && (self.held_topics.contains(&envelope.topic)
                || envelope.source.is_some_and(|source| self.held_sources.contains(&source)))
    }

    /// Into the batch that it would wait for, where that has not begun and nothing else stands between.
    fn join_or_hold(&mut self, envelope: Envelope<M>) {
        if !self.is_behind_held(&envelope)
            && let Some(index) = self.running.iter().position(|running| running.can_take(&envelope))
            && self
                .running
                .iter()
                .enumerate()
                .all(|(other, running)| other == index || !running.is_before(envelope.topic, envelope.source))
            && let Some(running) = self.running.get_mut(index)
        {
            running.batch.push(envelope);
        } else {
            self.hold(envelope);
        }
    }

    fn hold(&mut self, envelope: Envelope<M>) {
        self.held_topics.insert(envelope.topic);
        self.held_sources.extend(envelope.source);
        self.held.push_back(envelope);
    }
}
