//! The sampled topics of a worker, with their subscribers and ticks.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use deeperhub_listener::ConnectionKey;

/// Subscribers that are moved under one lock.
const SUBSCRIBERS_PER_LOCK: usize = 256;

/// The sampled topics of one worker.
#[derive(Debug, Default)]
pub(super) struct Samples {
    topics: HashMap<Arc<str>, SampledTopic, RandomState>,
    /// The next tick of each topic.
    ticks: BTreeSet<(Instant, Arc<str>)>,
    /// Subscribers that still get the newest message of their topic's last tick.
    pending: VecDeque<(Arc<str>, Vec<ConnectionKey>)>,
}

#[derive(Debug)]
struct SampledTopic {
    every: Duration,
    next_tick: Instant,
    /// `true` if the topic is in [`Samples::pending`].
    is_pending: bool,
    subscribers: HashSet<ConnectionKey, RandomState>,
}

impl Samples {
    /// Adds a subscriber. The first tick of a topic is at once.
    pub(super) fn add(&mut self, key: ConnectionKey, topic: &Arc<str>, every: Duration, now: Instant) {
        let sampled = self.topics.entry(Arc::clone(topic)).or_insert_with(|| {
            self.ticks.insert((now, Arc::clone(topic)));
            // Fixed seeds are safe: clients cannot choose their keys.
            let subscribers = HashSet::with_hasher(RandomState::with_seeds(5, 6, 7, 8));
            SampledTopic { every, next_tick: now, is_pending: false, subscribers }
        });
        sampled.every = every;
        sampled.subscribers.insert(key);
    }

    pub(super) fn remove(&mut self, key: ConnectionKey, topic: &Arc<str>) {
        let Some(sampled) = self.topics.get_mut(topic) else { return };
        sampled.subscribers.remove(&key);
        if sampled.subscribers.is_empty() {
            self.ticks.remove(&(sampled.next_tick, Arc::clone(topic)));
            self.topics.remove(topic);
        }
    }

    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.ticks.first().map(|(tick, _)| *tick)
    }

    /// Lists the subscribers of the topics whose tick is due, and sets their next ticks. Topics that
    /// are still listed for their last tick miss this one.
    pub(super) fn list_due(&mut self, now: Instant) {
        while let Some((_, topic)) = self.ticks.first().filter(|(tick, _)| *tick <= now).cloned() {
            self.ticks.pop_first();
            let Some(sampled) = self.topics.get_mut(&topic) else { continue };
            // A late tick does not make the following one early.
            sampled.next_tick = now + sampled.every;
            self.ticks.insert((sampled.next_tick, Arc::clone(&topic)));
            if !sampled.is_pending {
                sampled.is_pending = true;
                self.pending.push_back((topic, sampled.subscribers.iter().copied().collect()));
            }
        }
    }

    /// Takes some of the listed subscribers of one topic.
    pub(super) fn take_pending(&mut self) -> Option<(Arc<str>, Vec<ConnectionKey>)> {
        let (topic, keys) = self.pending.front_mut()?;
        let taken = keys.split_off(keys.len().saturating_sub(SUBSCRIBERS_PER_LOCK));
        let (topic, is_done) = (Arc::clone(topic), keys.is_empty());
        if is_done {
            self.pending.pop_front();
            if let Some(sampled) = self.topics.get_mut(&topic) {
                sampled.is_pending = false;
            }
        }
        Some((topic, taken))
    }

    /// Returns `true` if subscribers are listed.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}
