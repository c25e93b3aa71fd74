//! In which order a worker opens its envelopes, so that a large fan-out holds up only what must come after it.

use crate::inbox::{Envelope, FinishedCount, ListIds};
use crate::shard::{DeliveryFlow, SubscriberKey, SubscriptionTables};
use ahash::RandomState;
use std::collections::{HashSet, VecDeque};

/// Subscribers from which a fan-out is large: it is done in parts, between which others go on.
const LARGE_FANOUT_SUBSCRIBERS: usize = if cfg!(test) { 3 } else { 512 };

/// Large fan-outs at the same time. The next ones wait with what must come after them.
const MAX_RUNNING_FANOUTS: usize = if cfg!(test) { 2 } else { 16 };

/// Messages that one fan-out carries to each subscriber at once.
const MAX_BATCH_MESSAGES: usize = if cfg!(test) { 3 } else { 64 };

/// Most subscriptions of a client that are searched again at each of its matches. Clients with more
/// are remembered instead, so that the cost of a message grows linearly with a client's
/// subscriptions, not quadratically.
const MAX_SCANNED_SUBSCRIPTIONS: usize = if cfg!(test) { 2 } else { 8 };

/// The envelopes that a worker has taken and not finished.
#[derive(Debug)]
pub(crate) struct Fanouts<M> {
    /// Not looked at yet, the oldest first.
    pub(crate) queue: VecDeque<Envelope<M>>,
    /// Looked at: they are of a topic or a source whose older messages are under way, or held.
    deferred: VecDeque<Envelope<M>>,
    deferred_topics: HashSet<u64, RandomState>,
    deferred_sources: HashSet<u64, RandomState>,
    pub(crate) running: VecDeque<RunningFanout<M>>,
    /// The queue has had its turn.
    run_large_first: bool,
    pub(crate) finished: FinishedCount,
}

/// A fan-out under way.
#[derive(Debug)]
pub(crate) struct RunningFanout<M> {
    /// Messages of one topic, for the same lists. Each subscriber is given all of them at a time: one write, and one
    /// look at what belongs to it.
    batch: Vec<Envelope<M>>,
    /// Which of the envelopes' lists it is at, and which subscriber of it comes next.
    list_index: usize,
    subscriber_index: u32,
    /// Somebody may have been given the batch: no more can join.
    has_started: bool,
    /// Clients that already got the messages, where their subscriptions do not show it. They have
    /// more than [`MAX_SCANNED_SUBSCRIPTIONS`], or have left the list through which they got them. Without
    /// this, a client on two lists would get the messages twice.
    delivered_to: HashSet<SubscriberKey, RandomState>,
}

impl<M> RunningFanout<M> {
    fn new(envelope: Envelope<M>) -> Self {
        let seeds = RandomState::with_seeds(1, 2, 3, 4);
        Self {
            batch: vec![envelope],
            list_index: 0,
            subscriber_index: 0,
            has_started: false,
            delivered_to: HashSet::with_hasher(seeds),
        }
    }

    fn lists(&self) -> &[u32] {
        self.batch.first().map_or(&[], |envelope| envelope.lists.as_slice())
    }

    fn precedes(&self, topic: u64, source: Option<u64>) -> bool {
        self.batch
            .iter()
            .any(|envelope| envelope.topic == topic || (source.is_some() && envelope.source == source))
    }

    fn can_batch(&self, envelope: &Envelope<M>) -> bool {
        !self.has_started
            && self.batch.len() < MAX_BATCH_MESSAGES
            && self
                .batch
                .first()
                .is_some_and(|first| first.topic == envelope.topic && first.lists == envelope.lists)
    }

    /// Who subscribed later than this is not concerned.
    fn last_sequence(&self) -> u64 {
        self.batch.last().map_or(0, |envelope| envelope.sequence)
    }

    /// The position of the next subscriber, if it is in this list.
    pub(crate) fn position(&self, list: u32) -> Option<u32> {
        (self.lists().get(self.list_index) == Some(&list)).then_some(self.subscriber_index)
    }

    /// The subscriber at `index` of a list has left it.
    pub(crate) fn subscriber_left(&mut self, list: u32, index: u32, key: SubscriberKey, since: u64) {
        // ListIds are in ascending order.
        let Ok(list_index) = self.lists().binary_search(&list) else { return };
        let is_delivered =
            list_index < self.list_index || (list_index == self.list_index && index < self.subscriber_index);
        if is_delivered && self.lists().len() > 1 && since < self.last_sequence() {
            self.delivered_to.insert(key);
        }
        if list_index == self.list_index && index < self.subscriber_index {
            self.subscriber_index -= 1;
        }
    }

    /// Goes on until it is told to pause, or through.
    fn run(
        &mut self,
        tables: &SubscriptionTables,
        deliver: &mut impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> DeliveryFlow {
        let lists = match self.batch.first() {
            Some(envelope) => envelope.lists.as_slice(),
            None => return DeliveryFlow::Continue,
        };
        self.has_started = true;
        let last_sequence = self.last_sequence();
        let first_sequence = self.batch.first().map_or(0, |envelope| envelope.sequence);
        while let Some(&list) = lists.get(self.list_index) {
            let subscribers = tables.subscribers(list);
            while let Some(subscriber) = subscribers.get(self.subscriber_index as usize) {
                self.subscriber_index += 1;
                let (key, mut since) = (subscriber.key, subscriber.since);
                if since >= last_sequence {
                    continue;
                }
                if lists.len() > 1 {
                    let done = lists.get(..self.list_index).unwrap_or_default();
                    let is_remembered = if tables.subscription_count(key) > MAX_SCANNED_SUBSCRIPTIONS {
                        !self.delivered_to.insert(key)
                    } else {
                        self.delivered_to.contains(&key)
                    };
                    if is_remembered || tables.was_on_any(key, done, last_sequence) {
                        continue;
                    }
                    // It is given all messages here, in order, also those that only its other lists entitle it to.
                    if since >= first_sequence {
                        since = tables.since(key, lists).unwrap_or(since);
                    }
                }
                let mut flow = DeliveryFlow::Continue;
                for envelope in self.batch.iter().filter(|envelope| since < envelope.sequence) {
                    if deliver(key, &envelope.message) == DeliveryFlow::Pause {
                        flow = DeliveryFlow::Pause;
                    }
                }
                // Not in the midst of a client's messages: it may be gone when this goes on.
                if flow == DeliveryFlow::Pause {
                    return flow;
                }
            }
            self.list_index += 1;
            self.subscriber_index = 0;
        }
        DeliveryFlow::Continue
    }
}

impl<M> Fanouts<M> {
    pub(crate) fn new() -> Self {
        // Numbers from a counter and hashes with random seeds: nothing here that a client could aim at.
        let seeds = RandomState::with_seeds(5, 6, 7, 8);
        Self {
            queue: VecDeque::new(),
            deferred: VecDeque::new(),
            deferred_topics: HashSet::with_hasher(seeds.clone()),
            deferred_sources: HashSet::with_hasher(seeds),
            running: VecDeque::new(),
            run_large_first: false,
            finished: FinishedCount::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.deferred.is_empty()
    }

    /// Whether no envelope up to this number is left.
    pub(crate) fn has_finished(&self, sequence: u64) -> bool {
        let batches = self.running.iter().flat_map(|running| &running.batch);
        self.queue.iter().chain(&self.deferred).chain(batches).all(|envelope| envelope.sequence > sequence)
    }

    /// Delivers until everything is done or it is told to pause. Whatever was paused, the small and new ones and the
    /// large ones under way take turns.
    pub(crate) fn deliver(
        &mut self,
        tables: &SubscriptionTables,
        deliver: &mut impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> DeliveryFlow {
        if std::mem::take(&mut self.run_large_first)
            && self.run_oldest(tables, deliver) == DeliveryFlow::Pause
        {
            return DeliveryFlow::Pause;
        }
        loop {
            if self.deliver_queued(tables, deliver) == DeliveryFlow::Pause {
                self.run_large_first = true;
                return DeliveryFlow::Pause;
            }
            while self.queue.is_empty() && !self.running.is_empty() {
                if self.run_oldest(tables, deliver) == DeliveryFlow::Pause {
                    return DeliveryFlow::Pause;
                }
            }
            if self.queue.is_empty() {
                return DeliveryFlow::Continue;
            }
        }
    }

    /// Goes on with the fan-out that has waited longest.
    fn run_oldest(
        &mut self,
        tables: &SubscriptionTables,
        deliver: &mut impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> DeliveryFlow {
        let Some(mut running) = self.running.pop_front() else { return DeliveryFlow::Continue };
        let flow = running.run(tables, deliver);
        if flow == DeliveryFlow::Pause {
            self.running.push_back(running);
            return flow;
        }
        for envelope in &running.batch {
            self.finished.count(envelope.bytes);
        }
        // What waited for it is looked at again, before what is newer.
        self.deferred_topics.clear();
        self.deferred_sources.clear();
        while let Some(envelope) = self.deferred.pop_back() {
            self.queue.push_front(envelope);
        }
        flow
    }

    fn deliver_queued(
        &mut self,
        tables: &SubscriptionTables,
        deliver: &mut impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> DeliveryFlow {
        while let Some(envelope) = self.queue.pop_front() {
            if !self.running.is_empty() && self.must_wait(&envelope) {
                self.batch_or_defer(envelope);
                continue;
            }
            let subscribers: usize =
                envelope.lists.as_slice().iter().map(|list| tables.subscribers(*list).len()).sum();
            if subscribers > LARGE_FANOUT_SUBSCRIBERS {
                if self.running.len() < MAX_RUNNING_FANOUTS {
                    self.running.push_back(RunningFanout::new(envelope));
                } else {
                    self.defer(envelope);
                }
                continue;
            }
            if let ListIds::One(list) = envelope.lists {
                // The most usual case by far, without anything to remember.
                let mut flow = DeliveryFlow::Continue;
                let subscribers = tables.subscribers(list);
                for (index, subscriber) in subscribers.iter().enumerate() {
                    if subscriber.since < envelope.sequence {
                        flow = deliver(subscriber.key, &envelope.message);
                    }
                    if flow == DeliveryFlow::Pause {
                        let mut running = RunningFanout::new(envelope);
                        (running.has_started, running.subscriber_index) = (true, index as u32 + 1);
                        self.running.push_back(running);
                        return flow;
                    }
                }
                self.finished.count(envelope.bytes);
                continue;
            }
            let mut running = RunningFanout::new(envelope);
            let flow = running.run(tables, deliver);
            if flow == DeliveryFlow::Pause {
                self.running.push_back(running);
                return flow;
            }
            running.batch.iter().for_each(|envelope| self.finished.count(envelope.bytes));
        }
        DeliveryFlow::Continue
    }

    fn must_wait(&self, envelope: &Envelope<M>) -> bool {
        self.follows_deferred(envelope)
            || self.running.iter().any(|running| running.precedes(envelope.topic, envelope.source))
    }

    fn follows_deferred(&self, envelope: &Envelope<M>) -> bool {
        !self.deferred.is_empty()
            && (self.deferred_topics.contains(&envelope.topic)
                || envelope.source.is_some_and(|source| self.deferred_sources.contains(&source)))
    }

    /// Into the batch that it would wait for, where that has not begun and nothing else stands between.
    fn batch_or_defer(&mut self, envelope: Envelope<M>) {
        if !self.follows_deferred(&envelope)
            && let Some(index) = self.running.iter().position(|running| running.can_batch(&envelope))
            && self
                .running
                .iter()
                .enumerate()
                .all(|(other, running)| other == index || !running.precedes(envelope.topic, envelope.source))
            && let Some(running) = self.running.get_mut(index)
        {
            running.batch.push(envelope);
        } else {
            self.defer(envelope);
        }
    }

    fn defer(&mut self, envelope: Envelope<M>) {
        self.deferred_topics.insert(envelope.topic);
        self.deferred_sources.extend(envelope.source);
        self.deferred.push_back(envelope);
    }
}
