//! Replay: kept messages for subscribers that are behind their topic's stream.
//!
//! A subscriber is behind because it asked for older messages, or because it read too slowly. Its
//! subscription is then suspended in the router, and its cursor moves through the stream as fast as
//! its socket takes the messages. At the newest message the subscription becomes live again. Both
//! happen under the lock of the topic, so no message is missing and none comes twice.

mod items;
mod outlet;
mod sample;
mod samples;
#[cfg(test)]
pub(crate) mod simulation;
mod step;
mod stored;
mod subscribe;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use ahash::RandomState;
use deeperhub_history::{Cursor, Delivery};
use deeperhub_listener::ConnectionKey;
use deeperhub_router::InboxPosition;

use crate::delivery::Sequenced;
use crate::planted::planted;
use crate::stream_counts::StreamCounts;
use crate::streams::{HubShard, StreamRouter, Streams};
use items::StepItems;
pub(crate) use outlet::Outlet;
use samples::Samples;
pub(crate) use subscribe::SubscribeStep;

/// Bytes of replayed messages that a worker sends per round. Live deliveries go first, so replays
/// delay each other and not them.
const BYTES_PER_ROUND: usize = 1024 * 1024;

/// Memory of one entry of a subscriber, for the memory budget.
const REPLAY_BYTES: usize =
    size_of::<Replay>() + 2 * size_of::<ConnectionKey>() + size_of::<ConnectionReplays>();

/// The subscribers of one worker that are behind.
#[derive(Debug)]
pub(crate) struct Replays {
    connections: HashMap<ConnectionKey, ConnectionReplays, RandomState>,
    /// Connections whose replays continue in the next step, in turn.
    ready: VecDeque<ConnectionKey>,
    samples: Samples,
    /// Subscriptions that became live or whose stream was removed, while messages from before can
    /// still be queued for patterns of the same client.
    lingering: Vec<(ConnectionKey, Arc<str>)>,
    items: StepItems,
    /// Frames that were sent since the counts were last taken.
    counts: StreamCounts,
    behind: usize,
    /// Number of reads from the store that were ever started.
    reads: u64,
}

/// The subscriptions of one connection that are behind.
#[derive(Debug, Default)]
struct ConnectionReplays {
    replays: Vec<Replay>,
    /// `true` if the connection is in [`Replays::ready`].
    is_queued: bool,
    /// `true` if the listener reports when the connection's queue has drained.
    is_waiting: bool,
}

/// One subscription that is or was behind.
#[derive(Debug)]
struct Replay {
    topic: Arc<str>,
    cursor: Cursor,
    phase: Phase,
    /// Offset before which the store has nothing, although it should.
    lost_before: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Messages are sent as fast as the socket takes them.
    Replaying,
    /// The next messages are being read from the store. The read has this number.
    Reading { read: u64, to: u64 },
    /// The newest message is sent at each tick.
    Sampled,
    /// The subscription is live. Messages up to the cursor that are still queued for the worker
    /// must not be delivered again.
    Resumed(InboxPosition),
    /// Rules have removed the stream, and the subscription is live. A gap has told that the rest of
    /// the stream is lost. Messages of the stream that are queued for the worker up to this position
    /// must not be delivered. They were published before so many rule changes.
    Detached { until: InboxPosition, rule_changes: u32 },
}

impl Replay {
    /// Returns `true` if the subscriber gets its messages by this replay.
    const fn is_behind(&self) -> bool {
        matches!(self.phase, Phase::Replaying | Phase::Reading { .. } | Phase::Sampled)
    }
}

impl Replays {
    pub(crate) fn new() -> Self {
        Self {
            // Fixed seeds are safe: clients cannot choose their keys.
            connections: HashMap::with_hasher(RandomState::with_seeds(5, 6, 7, 8)),
            ready: VecDeque::new(),
            samples: Samples::default(),
            lingering: Vec::new(),
            items: StepItems::default(),
            counts: StreamCounts::default(),
            behind: 0,
            reads: 0,
        }
    }

    /// Adds a suspended subscription, whose subscriber stands at `cursor`.
    pub(crate) fn begin(
        &mut self,
        key: ConnectionKey,
        topic: Arc<str>,
        cursor: Cursor,
        delivery: Delivery,
        now: Instant,
    ) {
        self.end(key, &topic);
        let phase = match delivery {
            Delivery::Sample { every } => {
                self.samples.add(key, &topic, every, now);
                Phase::Sampled
            }
            _ => Phase::Replaying,
        };
        let connection = self.connections.entry(key).or_default();
        connection.replays.push(Replay { topic, cursor, phase, lost_before: None });
        if phase == Phase::Replaying {
            self.behind += 1;
            self.continue_soon(key);
        }
    }

    /// Ends a replay, because its subscription has ended.
    pub(crate) fn end(&mut self, key: ConnectionKey, topic: &str) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let Some(index) = connection.replays.iter().position(|replay| *replay.topic == *topic) else {
            return;
        };
        let replay = connection.replays.swap_remove(index);
        if connection.replays.is_empty() {
            self.connections.remove(&key);
        }
        self.on_ended(key, &replay);
    }

    /// Ends all replays of a connection.
    pub(crate) fn remove(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.remove(&key) else { return };
        for replay in &connection.replays {
            self.on_ended(key, replay);
        }
    }

    fn on_ended(&mut self, key: ConnectionKey, replay: &Replay) {
        match replay.phase {
            Phase::Replaying | Phase::Reading { .. } => self.behind -= 1,
            Phase::Sampled => self.samples.remove(key, &replay.topic),
            Phase::Resumed(_) | Phase::Detached { .. } => {
                self.lingering.retain(|(other, topic)| *other != key || *topic != replay.topic);
            }
        }
    }

    /// Returns the place of a subscriber that is behind.
    pub(crate) fn cursor(&self, key: ConnectionKey, topic: &str) -> Option<Cursor> {
        let replay = self.find(key, topic)?;
        replay.is_behind().then_some(replay.cursor)
    }

    fn find(&self, key: ConnectionKey, topic: &str) -> Option<&Replay> {
        self.connections.get(&key)?.replays.iter().find(|replay| *replay.topic == *topic)
    }

    /// Returns `true` if a live delivery must not be sent, because a replay sends or has sent the
    /// same message. Only clients with overlapping subscriptions get such deliveries.
    #[inline]
    pub(crate) fn withholds(&self, key: ConnectionKey, sequenced: &Sequenced) -> bool {
        if self.connections.is_empty() {
            return false;
        }
        let Some(replay) = self.find(key, &sequenced.topic) else { return false };
        match replay.phase {
            Phase::Replaying | Phase::Reading { .. } | Phase::Sampled => !planted!(OverlapForgotten),
            Phase::Resumed(_) => !planted!(ResumedTwice) && sequenced.is_before(&replay.cursor),
            Phase::Detached { rule_changes, .. } => sequenced.rule_changes < rule_changes,
        }
    }

    /// Continues the replays of a connection whose queue has drained.
    pub(crate) fn on_drained(&mut self, key: ConnectionKey) {
        if planted!(DrainIgnored) {
            return;
        }
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.is_waiting = false;
        }
        self.continue_soon(key);
    }

    fn continue_soon(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.is_queued
            && !connection.is_waiting
        {
            connection.is_queued = true;
            self.ready.push_back(key);
        }
    }

    /// Lets a connection wait until its queue has drained.
    fn wait(&mut self, key: ConnectionKey, outlet: &mut impl Outlet) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.is_waiting
        {
            connection.is_waiting = true;
            if !planted!(DrainNotRequested) {
                outlet.notify_when_drained(key);
            }
        }
    }

    /// Returns the number of subscriptions that are behind. Sampled ones do not count.
    pub(crate) fn behind(&self) -> usize {
        self.behind
    }

    /// Returns the topics with the most subscriptions that are behind, at most `limit`, and the
    /// numbers of these subscriptions. Sampled ones do not count.
    pub(crate) fn topics_behind(&self, limit: usize) -> Vec<(Arc<str>, u64)> {
        let mut counts: HashMap<&Arc<str>, u64> = HashMap::new();
        let replays = self.connections.values().flat_map(|connection| &connection.replays);
        for replay in
            replays.filter(|replay| matches!(replay.phase, Phase::Replaying | Phase::Reading { .. }))
        {
            *counts.entry(&replay.topic).or_default() += 1;
        }
        let mut topics: Vec<_> =
            counts.into_iter().map(|(topic, count)| (Arc::clone(topic), count)).collect();
        topics.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        topics.truncate(limit);
        topics
    }

    /// Returns the topics of a connection's subscriptions that are behind, each with the offset of
    /// the last message that was sent.
    pub(crate) fn behind_of(&self, key: ConnectionKey) -> impl Iterator<Item = (&str, u64)> {
        let replays = self.connections.get(&key).into_iter().flat_map(|connection| &connection.replays);
        replays.filter(|replay| replay.is_behind()).map(|replay| (&*replay.topic, replay.cursor.offset()))
    }

    /// Returns the memory that is held for a connection.
    pub(crate) fn bytes(&self, key: ConnectionKey) -> usize {
        self.connections.get(&key).map_or(0, |connection| connection.replays.len() * REPLAY_BYTES)
    }

    /// Returns the counts since the last call.
    pub(crate) fn take_counts(&mut self) -> StreamCounts {
        std::mem::take(&mut self.counts)
    }

    /// Returns the time of the next tick, if there are sampled subscriptions.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        self.samples.next_tick()
    }

    /// Continues the replays and the ticks that are due. Returns `true` if more can be sent at once.
    pub(crate) fn run(
        &mut self,
        (streams, router, shard): (&Streams, &StreamRouter, &mut HubShard),
        now: Instant,
        outlet: &mut impl Outlet,
    ) -> bool {
        if self.connections.is_empty() {
            return false;
        }
        let has_samples = self.tick((streams, router), now, outlet);
        let mut budget = BYTES_PER_ROUND;
        while budget > 0
            && outlet.has_budget()
            && let Some(key) = self.ready.pop_front()
        {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.is_queued = false;
            }
            budget = budget.saturating_sub(self.step(key, (streams, router, shard), now, outlet));
        }
        self.end_lingering(shard);
        has_samples || !self.ready.is_empty()
    }
}
