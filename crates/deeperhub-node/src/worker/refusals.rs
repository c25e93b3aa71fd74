//! Deliveries of topics with history for which a connection's queue had no room.

use std::collections::HashSet;
use std::sync::Arc;

use ahash::RandomState;
use deeperhub_history::Delivery as DeliveryPolicy;
use deeperhub_listener::{ConnectionKey, Connections, QueueFull};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{Subscription, Topic};

use super::NodeWorker;
use crate::hub::Delivery;
use crate::metrics::SentType;
use crate::session::Session;
use crate::streams::Sequenced;

/// Deliveries that were refused since the last [`NodeWorker::settle_refusals`].
#[derive(Debug, Default)]
pub(super) struct Refusals {
    refused: Vec<Refused>,
    /// Connections and topics (by the address of the router's name) of `refused`. Their further
    /// deliveries are refused as well, so that none overtakes another.
    subscriptions: HashSet<(ConnectionKey, usize), RandomState>,
}

#[derive(Debug)]
struct Refused {
    key: ConnectionKey,
    sequenced: Sequenced,
    frame: Frame,
}

impl Refusals {
    /// Sends a delivery of a topic with history, or keeps it. Returns the connection's session if
    /// it was sent.
    pub(super) fn send_or_keep<'s>(
        &mut self,
        key: ConnectionKey,
        (delivery, sequenced): (&Delivery, &Sequenced),
        connections: &'s mut Connections<'_, Session>,
    ) -> Option<&'s mut Session> {
        if !sequenced.may_suspend {
            return connections.send_multicast(key, &delivery.frame);
        }
        let subscription = (key, Arc::as_ptr(&sequenced.topic).addr());
        if self.refused.is_empty() || !self.subscriptions.contains(&subscription) {
            match connections.try_send_multicast(key, &delivery.frame) {
                Ok(session) => return session,
                Err(QueueFull) => {
                    self.subscriptions.insert(subscription);
                }
            }
        }
        let frame = delivery.frame.frame().clone();
        self.refused.push(Refused { key, sequenced: sequenced.clone(), frame });
        None
    }
}

impl NodeWorker {
    /// Suspends the subscriptions whose deliveries were refused. They continue from the stream when
    /// the queue has drained.
    ///
    /// A client that also gets the topic by a pattern cannot be suspended. Its deliveries are queued
    /// after all, and it is closed if they exceed its queue.
    pub(super) fn settle_refusals(&mut self, connections: &mut Connections<'_, Session>) {
        if self.refusals.refused.is_empty() {
            return;
        }
        let Refusals { mut refused, mut subscriptions } = std::mem::take(&mut self.refusals);
        let now = connections.now();
        for Refused { key, sequenced, frame } in refused.drain(..) {
            let Sequenced { topic, before, .. } = sequenced;
            if connections.session(key).is_none() || self.replays.cursor(key, &topic).is_some() {
                continue;
            }
            let Ok(parsed) = Topic::parse(&*topic) else { continue };
            let is_only_match = self.shard.count_matches(key, &parsed) == 1
                && self.shard.is_subscribed(key, &Subscription::Topic(parsed.borrow()));
            if is_only_match {
                self.shard.suspend(key, &parsed);
                self.metrics.suspensions.inc();
                self.replays.begin(key, topic, before, DeliveryPolicy::Lossless, now);
            } else if let Some(session) = connections.send(key, &frame) {
                session.sent += 1;
                self.metrics.count_sent(SentType::Message, 1);
            }
        }
        subscriptions.clear();
        refused.shrink_to(1024);
        subscriptions.shrink_to(1024);
        self.refusals = Refusals { refused, subscriptions };
    }
}
