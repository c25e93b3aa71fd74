//! Delivery by sample: at each tick of a topic, its subscribers get the newest message.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use deeperhub_history::{Delivery, Step};
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::{ClientId, Topic};

use super::step::Item;
use super::{Outlet, Phase, Replays};
use crate::streams::{Remains, StreamRouter, Streams};

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
            SampledTopic { every, next_tick: now, is_pending: false, subscribers: HashSet::default() }
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
    fn list_due(&mut self, now: Instant) {
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
    fn take_pending(&mut self) -> Option<(Arc<str>, Vec<ConnectionKey>)> {
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
}

impl Replays {
    /// Sends the newest messages of the topics whose tick is due. Returns `true` if the round's
    /// budget ended before.
    pub(super) fn tick(
        &mut self,
        (streams, router): (&Streams, &StreamRouter),
        now: Instant,
        outlet: &mut impl Outlet,
    ) -> bool {
        self.samples.list_due(now);
        while outlet.has_budget() {
            let Some((topic, keys)) = self.samples.take_pending() else { return false };
            self.send_samples(&topic, &keys, (streams, router), now, outlet);
        }
        !self.samples.pending.is_empty()
    }

    /// Sends the newest message of a topic to some of its subscribers.
    fn send_samples(
        &mut self,
        topic: &Arc<str>,
        keys: &[ConnectionKey],
        (streams, router): (&Streams, &StreamRouter),
        now: Instant,
        outlet: &mut impl Outlet,
    ) {
        let max_queued = outlet.max_queue_bytes() / 2;
        // A subscriber whose queue is long gets a later sample.
        let receiver = |&key: &ConnectionKey| {
            let has_room = outlet.queued_bytes(key).is_some_and(|queued| queued <= max_queued);
            has_room.then(|| outlet.client_id(key)).flatten().map(|client_id| (key, client_id))
        };
        let receivers: Vec<(ConnectionKey, ClientId)> = keys.iter().filter_map(receiver).collect();
        let Ok(parsed) = Topic::parse(&**topic) else { return };
        let seconds = streams.clock.seconds(now);
        let mut remains = Remains::default();
        let connections = &mut self.connections;
        let collected = router.update_kept(&parsed, |_, kept, stripe| {
            let (stream, delivery) = stripe.current(kept, seconds, &mut remains)?;
            let mut items: Vec<(ConnectionKey, Item)> = Vec::new();
            for (key, client_id) in &receivers {
                let is_sampled =
                    |replay: &&mut super::Replay| *replay.topic == **topic && replay.phase == Phase::Sampled;
                let connection = connections.get_mut(key);
                let Some(replay) =
                    connection.and_then(|connection| connection.replays.iter_mut().find(is_sampled))
                else {
                    continue;
                };
                replay.newest = stream.newest();
                while let Some(step) =
                    replay.cursor.advance_where(stream, delivery, |frame| frame.is_for(client_id))
                {
                    match step {
                        Step::Message { prev, message, .. } => {
                            items.push((*key, Item::Message { frame: message.clone(), prev }));
                            break;
                        }
                        Step::Gap(gap) => items.push((*key, Item::Gap(gap))),
                        Step::Close => break,
                    }
                }
            }
            Some((items, delivery))
        });
        streams.finish(router, remains, seconds);
        let has_changed = !matches!(collected, Some((_, Delivery::Sample { .. })));
        for (key, item) in collected.into_iter().flat_map(|(items, _)| items) {
            self.items.push(item);
            self.send_items(key, topic, streams.clock.unix_ms(now), outlet);
        }
        if has_changed {
            // Another rule matches the topic now, or none. An ordinary step makes the subscriptions
            // live.
            for key in keys {
                self.replay_instead(*key, topic);
            }
        }
    }

    /// Turns a sampled subscription into one that replays.
    fn replay_instead(&mut self, key: ConnectionKey, topic: &Arc<str>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let replay = connection.replays.iter_mut().find(|replay| replay.topic == *topic);
        let Some(replay) = replay.filter(|replay| replay.phase == Phase::Sampled) else { return };
        replay.phase = Phase::Replaying;
        self.behind += 1;
        self.samples.remove(key, topic);
        self.continue_soon(key);
    }
}
