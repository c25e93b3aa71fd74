//! Deliveries of topics with history for which a connection's queue had no room.

use std::collections::HashSet;
use std::time::Instant;

use ahash::RandomState;
use deeperhub_history::{Cursor, Delivery as DeliveryPolicy};
use deeperhub_listener::{ConnectionKey, Multicast, QueueFull};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{Subscription, Topic};

use super::excluded;
use crate::delivery::{Delivery, Sequenced};
use crate::planted::planted;
use crate::replay::Replays;
use crate::stream_counts::StreamCounts;
use crate::streams::HubShard;

/// Connections that live deliveries are sent to: those of a worker, or a model of them.
pub(crate) trait Receivers {
    /// State of an open connection.
    type Session;

    /// Returns `true` if a connection is open.
    fn is_open(&mut self, key: ConnectionKey) -> bool;

    /// Queues a frame; see [`Connections::send_multicast`](deeperhub_listener::Connections::send_multicast).
    fn send_multicast(&mut self, key: ConnectionKey, multicast: &Multicast) -> Option<&mut Self::Session>;

    /// Queues a frame if there is room; see
    /// [`Connections::try_send_multicast`](deeperhub_listener::Connections::try_send_multicast).
    fn try_send_multicast(
        &mut self,
        key: ConnectionKey,
        multicast: &Multicast,
    ) -> Result<Option<&mut Self::Session>, QueueFull>;

    /// Queues and counts a frame. Returns `false` if the connection is closed.
    fn send(&mut self, key: ConnectionKey, frame: &Frame) -> bool;
}

/// Deliveries that were refused since the last [`Refusals::settle`].
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    refused: Vec<Refused>,
    /// Connections and hashes of topics of `refused`. Their further
    /// deliveries are refused as well, so that none overtakes another.
    subscriptions: HashSet<(ConnectionKey, u64), RandomState>,
}

#[derive(Debug)]
struct Refused {
    key: ConnectionKey,
    sequenced: Sequenced,
    frame: Frame,
}

/// Counts of [`Refusals::settle`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Subscriptions that were suspended.
    pub(crate) suspended: u64,
    /// Frames that were queued after all.
    pub(crate) sent: StreamCounts,
}

impl Refusals {
    /// Sends a delivery to a connection. Does nothing if a replay sends the message, and keeps the
    /// delivery if the queue has no room. Returns the connection's session if it was sent.
    #[inline]
    pub(crate) fn deliver<'r, R: Receivers>(
        &mut self,
        key: ConnectionKey,
        delivery: &Delivery,
        replays: &Replays,
        receivers: &'r mut R,
    ) -> Option<&'r mut R::Session> {
        match &delivery.sequenced {
            None => receivers.send_multicast(key, &delivery.frame),
            Some(sequenced) if replays.withholds(key, sequenced) => None,
            Some(sequenced) => self.send_or_keep(key, (&delivery.frame, sequenced), receivers),
        }
    }

    /// Sends the publisher of a delivery the position in its place, if the publisher is excluded and
    /// needs it. Returns the publisher's session if it was sent.
    #[cold]
    pub(crate) fn deliver_position<'r, R: Receivers>(
        &mut self,
        publisher: ConnectionKey,
        delivery: &Delivery,
        replays: &Replays,
        receivers: &'r mut R,
    ) -> Option<&'r mut R::Session> {
        let sequenced = delivery.sequenced.as_ref()?;
        if replays.withholds(publisher, sequenced) {
            return None;
        }
        let frame = Multicast::new(excluded::position_frame(delivery)?);
        self.send_or_keep(publisher, (&frame, sequenced), receivers)
    }

    /// Sends a delivery of a topic with history, or keeps it.
    #[inline]
    fn send_or_keep<'r, R: Receivers>(
        &mut self,
        key: ConnectionKey,
        (frame, sequenced): (&Multicast, &Sequenced),
        receivers: &'r mut R,
    ) -> Option<&'r mut R::Session> {
        // Two topics with the same hash are only refused together.
        let subscription = |hasher: &RandomState| (key, hasher.hash_one(&*sequenced.topic));
        let follows_refused = !self.refused.is_empty()
            && self.subscriptions.contains(&subscription(self.subscriptions.hasher()));
        if !follows_refused || planted!(RefusalOvertaken) {
            if !sequenced.may_suspend {
                return receivers.send_multicast(key, frame);
            }
            match receivers.try_send_multicast(key, frame) {
                Ok(session) => return session,
                Err(QueueFull) => {
                    let subscription = subscription(self.subscriptions.hasher());
                    self.subscriptions.insert(subscription);
                }
            }
        }
        let frame = frame.frame().clone();
        self.refused.push(Refused { key, sequenced: sequenced.clone(), frame });
        None
    }

    /// Suspends the subscriptions whose deliveries were refused. They continue from the stream when
    /// the queue has drained.
    ///
    /// A client that also gets the topic by a pattern cannot be suspended. Its deliveries are queued
    /// after all, and it is closed if they exceed its queue.
    #[inline]
    pub(crate) fn settle(
        &mut self,
        (shard, replays): (&mut HubShard, &mut Replays),
        now: Instant,
        receivers: &mut impl Receivers,
    ) -> Settled {
        if self.refused.is_empty() {
            return Settled::default();
        }
        self.settle_all((shard, replays), now, receivers)
    }

    #[cold]
    fn settle_all(
        &mut self,
        (shard, replays): (&mut HubShard, &mut Replays),
        now: Instant,
        receivers: &mut impl Receivers,
    ) -> Settled {
        let mut settled = Settled::default();
        let Self { refused, subscriptions } = self;
        for Refused { key, sequenced, frame } in refused.drain(..) {
            let Sequenced { topic, mut before, content, .. } = sequenced;
            if planted!(CursorTooFar) {
                before = Cursor::new(before.epoch(), before.offset() + 1);
            }
            if !receivers.is_open(key) {
                continue;
            }
            if replays.cursor(key, &topic).is_some() {
                continue;
            }
            let Ok(parsed) = Topic::parse(&*topic) else { continue };
            let is_only_match = shard.count_matches(key, &parsed) == 1
                && shard.is_subscribed(key, &Subscription::Topic(parsed.borrow()));
            if is_only_match {
                shard.suspend(key, &parsed);
                settled.suspended += 1;
                replays.begin(key, topic, before, DeliveryPolicy::Lossless, now);
            } else if receivers.send(key, &frame) {
                settled.sent.count(content);
            }
        }
        subscriptions.clear();
        refused.shrink_to(1024);
        subscriptions.shrink_to(1024);
        settled
    }
}
