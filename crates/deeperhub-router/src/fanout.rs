//! Delivery order of a worker's envelopes.
//!
//! A fan-out is the delivery of one envelope to all its subscribers on this worker. It can also be
//! the delivery of a batch of envelopes with the same topic and lists. While a fan-out pauses,
//! others continue. A large fan-out thus delays only the messages that must follow it.

use crate::inbox::{Envelope, FinishedCount, ListIds};
use crate::shard::{DeliveryFlow, SubscriberKey, SubscriptionTables};
use ahash::RandomState;
use std::collections::{HashSet, VecDeque};

/// Maximum subscribers of a small fan-out. Larger fan-outs start after the queued small ones, so
/// that small fan-outs are not delayed.
const MAX_SMALL_FANOUT_SUBSCRIBERS: usize = if cfg!(test) { 3 } else { 512 };

/// Number of running fan-outs at which another large one is deferred, with all messages that must
/// follow it. Bounds the time that each envelope's order check takes.
const MAX_RUNNING_FANOUTS: usize = if cfg!(test) { 2 } else { 16 };

/// Maximum messages in a batch, which bounds the time for which a batch of deliveries to one client
/// delays others.
const MAX_BATCH_MESSAGES: usize = if cfg!(test) { 3 } else { 64 };

/// Maximum subscriptions of a client for a search at each match. The search tells whether the
/// client already got the message. Clients with more subscriptions are stored in a set instead. The
/// cost of a message thus grows linearly with a client's subscriptions, not quadratically.
const MAX_SCANNED_SUBSCRIPTIONS: usize = if cfg!(test) { 2 } else { 8 };

/// The envelopes that a worker has taken from its inbox and not finished.
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
    /// `true` if the next call first continues a running fan-out, because the last call paused
    /// while it delivered from the queue.
    resume_running_first: bool,
    pub(crate) finished: FinishedCount,
}

/// A fan-out in progress.
#[derive(Debug)]
pub(crate) struct RunningFanout<M> {
    /// Messages of one topic for the same lists. Each subscriber gets all of them together, so they
    /// need one write and one search of its subscriptions.
    batch: Vec<Envelope<M>>,
    /// The next subscriber: an index into the envelopes' lists, and an index into that list.
    list_index: usize,
    subscriber_index: u32,
    /// `true` if deliveries have started, so that no message can be added to the batch.
    has_started: bool,
    /// Clients that already got the messages, if a search of their subscriptions does not show it.
    /// Such a client has more than [`MAX_SCANNED_SUBSCRIPTIONS`], or has left the list through
    /// which it got the messages. Without this set, a client on two lists would get them twice.
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

    /// Returns the sequence of the batch's last message. Clients that subscribed after it get no
    /// message of the batch.
    fn last_sequence(&self) -> u64 {
        self.batch.last().map_or(0, |envelope| envelope.sequence)
    }

    /// Returns the index of the next subscriber, if the fan-out is currently in this list.
    pub(crate) fn position(&self, list: u32) -> Option<u32> {
        (self.lists().get(self.list_index) == Some(&list)).then_some(self.subscriber_index)
    }

    /// Adjusts the fan-out after the subscriber at `index` has left a list.
    pub(crate) fn subscriber_left(&mut self, list: u32, index: u32, key: SubscriberKey, since: u64) {
        self.subscriber_suspended(list, index, key, since);
        if self.position(list).is_some_and(|next| index < next) {
            self.subscriber_index -= 1;
        }
    }

    /// Adjusts the fan-out after the subscriber at `index` of a list was suspended. `since` is from
    /// before that.
    pub(crate) fn subscriber_suspended(&mut self, list: u32, index: u32, key: SubscriberKey, since: u64) {
        // Lists are in ascending order.
        let Ok(list_index) = self.lists().binary_search(&list) else { return };
        let was_visited =
            list_index < self.list_index || (list_index == self.list_index && index < self.subscriber_index);
        if was_visited && self.lists().len() > 1 && since < self.last_sequence() {
            self.delivered_to.insert(key);
        }
    }

    /// Returns `true` if the fan-out will still deliver a message of its batch to a client.
    fn will_deliver(&self, envelope: &Envelope<M>, tables: &SubscriptionTables, key: SubscriberKey) -> bool {
        let visited = self.lists().get(..self.list_index).unwrap_or_default();
        if self.delivered_to.contains(&key) || tables.was_on_any(key, visited, self.last_sequence()) {
            return false;
        }
        let next = self.lists().get(self.list_index);
        let is_visited = |list: u32, index: u32| Some(&list) == next && index < self.subscriber_index;
        !tables.was_on_before(key, self.last_sequence(), is_visited)
            && tables.was_on_any(key, self.lists(), envelope.sequence)
    }

    /// Delivers to the remaining subscribers, until all have got the batch or `deliver` pauses.
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
                    let visited_lists = lists.get(..self.list_index).unwrap_or_default();
                    let is_in_set = if tables.subscription_count(key) > MAX_SCANNED_SUBSCRIPTIONS {
                        !self.delivered_to.insert(key)
                    } else {
                        self.delivered_to.contains(&key)
                    };
                    if is_in_set || tables.was_on_any(key, visited_lists, last_sequence) {
                        continue;
                    }
                    // The client gets all its messages of the batch here, in order. They include
                    // messages from before this subscription that match an older one.
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
                // Pause only between clients: this client may have left when the fan-out continues.
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

impl<M> Envelope<M> {
    /// Returns `true` if a client gets the envelope, and no delivery has started.
    pub(crate) fn is_for(&self, tables: &SubscriptionTables, key: SubscriberKey) -> bool {
        tables.was_on_any(key, self.lists.as_slice(), self.sequence)
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

    /// Calls `read` with the messages that will still be delivered to a client, the oldest of each
    /// topic first, until it returns a value.
    pub(crate) fn find_undelivered<R>(
        &self,
        tables: &SubscriptionTables,
        key: SubscriberKey,
        mut read: impl FnMut(&Envelope<M>) -> Option<R>,
    ) -> Option<R> {
        for running in &self.running {
            for envelope in
                running.batch.iter().filter(|envelope| running.will_deliver(envelope, tables, key))
            {
                if let Some(result) = read(envelope) {
                    return Some(result);
                }
            }
        }
        // Of one topic, deferred envelopes are older than queued ones.
        let waiting = self.deferred.iter().chain(&self.queue);
        waiting.filter(|envelope| envelope.is_for(tables, key)).find_map(read)
    }

    /// Returns `true` if all envelopes up to this sequence are finished.
    pub(crate) fn has_finished(&self, sequence: u64) -> bool {
        let batches = self.running.iter().flat_map(|running| &running.batch);
        self.queue.iter().chain(&self.deferred).chain(batches).all(|envelope| envelope.sequence > sequence)
    }

    /// Delivers until all envelopes are finished or `deliver` pauses. If calls pause, they
    /// alternately begin with the queue and with a running fan-out.
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

    /// Continues the running fan-out at the front, which has waited longest.
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
        // Move deferred envelopes back to the front of the queue, before newer ones.
        self.deferred_topics.clear();
        self.deferred_sources.clear();
        while let Some(envelope) = self.deferred.pop_back() {
            self.queue.push_front(envelope);
        }
        flow
    }

    /// Empties the queue unless `deliver` pauses: delivers small fan-outs, adds large ones to the
    /// running fan-outs, and defers or batches envelopes that must wait.
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
            if subscribers > MAX_SMALL_FANOUT_SUBSCRIBERS {
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

    /// Returns `true` if an envelope must follow a deferred envelope or a running fan-out.
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

    /// Adds an envelope to the batch of its topic, if that is possible and the envelope need not
    /// follow any other fan-out or deferred envelope. Otherwise defers the envelope.
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

    /// Defers an envelope until a running fan-out has finished.
    fn defer(&mut self, envelope: Envelope<M>) {
        self.deferred_topics.insert(envelope.topic);
        self.deferred_sources.extend(envelope.source);
        self.deferred.push_back(envelope);
    }
}
