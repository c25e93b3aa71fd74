//! Delivery order of a worker's envelopes. A large fan-out delays only the messages that must
//! follow it.

use crate::inbox::{Envelope, FinishedCount, ListIds};
use crate::shard::{DeliveryFlow, SubscriberKey, SubscriptionTables};
use ahash::RandomState;
use std::collections::{HashSet, VecDeque};

/// Most subscribers of a small fan-out. Larger ones are delivered in parts, with other fan-outs
/// between them.
const LARGE_FANOUT_SUBSCRIBERS: usize = if cfg!(test) { 3 } else { 512 };

/// Large fan-outs in progress at the same time. Further ones are deferred, with all messages that
/// must follow them.
const MAX_RUNNING_FANOUTS: usize = if cfg!(test) { 2 } else { 16 };

/// Messages that one fan-out delivers together to each subscriber.
const MAX_BATCH_MESSAGES: usize = if cfg!(test) { 3 } else { 64 };

/// Most subscriptions of a client that are searched for duplicates at each of its matches. Clients
/// with more are remembered in a set. The cost of a message thus grows linearly with a client's
/// subscriptions, not quadratically.
const MAX_SCANNED_SUBSCRIPTIONS: usize = if cfg!(test) { 2 } else { 8 };

/// The envelopes that a worker has taken and not finished.
#[derive(Debug)]
pub(crate) struct Fanouts<M> {
    /// New envelopes, the oldest first.
    pub(crate) queue: VecDeque<Envelope<M>>,
    /// Envelopes that must follow older messages of their topic or source, or that wait for a
    /// running fan-out to finish.
    deferred: VecDeque<Envelope<M>>,
    deferred_topics: HashSet<u64, RandomState>,
    deferred_sources: HashSet<u64, RandomState>,
    pub(crate) running: VecDeque<RunningFanout<M>>,
    /// The next call continues a running fan-out first, because the last one delivered from the
    /// queue.
    resume_running_first: bool,
    pub(crate) finished: FinishedCount,
}

/// A fan-out in progress.
#[derive(Debug)]
pub(crate) struct RunningFanout<M> {
    /// Messages of one topic for the same lists. Each subscriber gets all of them together, which
    /// takes one write and one search of its subscriptions.
    batch: Vec<Envelope<M>>,
    /// The next subscriber: an index into the envelopes' lists, and an index into that list.
    list_index: usize,
    subscriber_index: u32,
    /// A subscriber may have got the batch, so no message can be added.
    has_started: bool,
    /// Clients that already got the messages, if their subscriptions do not show it. They have more
    /// than [`MAX_SCANNED_SUBSCRIPTIONS`], or have left the list through which they got the
    /// messages. Without this set, a client on two lists would get the messages twice.
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

    /// Returns `true` if messages of this topic or source must follow this fan-out.
    fn precedes(&self, topic: u64, source: Option<u64>) -> bool {
        self.batch
            .iter()
            .any(|envelope| envelope.topic == topic || (source.is_some() && envelope.source == source))
    }

    /// Returns `true` if the envelope can be delivered together with this batch.
    fn can_batch(&self, envelope: &Envelope<M>) -> bool {
        !self.has_started
            && self.batch.len() < MAX_BATCH_MESSAGES
            && self
                .batch
                .first()
                .is_some_and(|first| first.topic == envelope.topic && first.lists == envelope.lists)
    }

    /// Returns the sequence of the batch's last message. It does not reach clients that subscribed
    /// later.
    fn last_sequence(&self) -> u64 {
        self.batch.last().map_or(0, |envelope| envelope.sequence)
    }

    /// Returns the index of the next subscriber if the fan-out is in this list.
    pub(crate) fn position(&self, list: u32) -> Option<u32> {
        (self.lists().get(self.list_index) == Some(&list)).then_some(self.subscriber_index)
    }

    /// Adjusts the fan-out after the subscriber at `index` has left a list.
    pub(crate) fn subscriber_left(&mut self, list: u32, index: u32, key: SubscriberKey, since: u64) {
        // Lists are in ascending order.
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

    /// Delivers to the remaining subscribers, until all are done or `deliver` pauses.
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
                    // The client gets all its messages of the batch here, in order. That includes
                    // those for which only its other lists match.
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
                // Pause only between clients: this one may be gone when the fan-out continues.
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
        // Fixed seeds are safe: the keys are numbers from a counter and hashes with random seeds,
        // which no client can choose.
        let seeds = RandomState::with_seeds(5, 6, 7, 8);
        Self {
            queue: VecDeque::new(),
            deferred: VecDeque::new(),
            deferred_topics: HashSet::with_hasher(seeds.clone()),
            deferred_sources: HashSet::with_hasher(seeds),
            running: VecDeque::new(),
            resume_running_first: false,
            finished: FinishedCount::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.deferred.is_empty()
    }

    /// Returns `true` if no envelope up to this sequence is left.
    pub(crate) fn has_finished(&self, sequence: u64) -> bool {
        let batches = self.running.iter().flat_map(|running| &running.batch);
        self.queue.iter().chain(&self.deferred).chain(batches).all(|envelope| envelope.sequence > sequence)
    }

    /// Delivers until all is done or `deliver` pauses. After a pause, new envelopes and running
    /// fan-outs take turns.
    pub(crate) fn deliver(
        &mut self,
        tables: &SubscriptionTables,
        deliver: &mut impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> DeliveryFlow {
        if std::mem::take(&mut self.resume_running_first)
            && self.run_oldest(tables, deliver) == DeliveryFlow::Pause
        {
            return DeliveryFlow::Pause;
        }
        loop {
            if self.deliver_queued(tables, deliver) == DeliveryFlow::Pause {
                self.resume_running_first = true;
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

    /// Continues the running fan-out that has waited longest.
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
        // Deferred envelopes go back to the front of the queue, before newer ones.
        self.deferred_topics.clear();
        self.deferred_sources.clear();
        while let Some(envelope) = self.deferred.pop_back() {
            self.queue.push_front(envelope);
        }
        flow
    }

    /// Delivers small fan-outs from the queue, starts large ones and defers those that must wait.
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
                // The most frequent case: one list needs no check for duplicates.
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

    /// Returns `true` if an older envelope of the same topic or source is deferred.
    fn follows_deferred(&self, envelope: &Envelope<M>) -> bool {
        !self.deferred.is_empty()
            && (self.deferred_topics.contains(&envelope.topic)
                || envelope.source.is_some_and(|source| self.deferred_sources.contains(&source)))
    }

    /// Adds the envelope to the batch that it would follow, if the batch has not started and no
    /// other message must come between. Otherwise defers it.
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

    /// Keeps an envelope until a running fan-out has finished.
    fn defer(&mut self, envelope: Envelope<M>) {
        self.deferred_topics.insert(envelope.topic);
        self.deferred_sources.extend(envelope.source);
        self.deferred.push_back(envelope);
    }
}
