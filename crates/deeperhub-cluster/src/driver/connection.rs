//! One connection to the broker, from its start to its end.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::backlog::MAX_KEPT_CAPACITY;
use super::batch::send_and_confirm;
use super::{BROKER_TIMEOUT, ConnectionEnd, DriverState, JoinOutcome, MessageHandler};
use crate::announcement;
use crate::batch::Destination;
use crate::broker::{ClusterState, Shared};
use crate::envelope::{Envelope, Message, Received};
use crate::link::{Link, LinkError, Receiver, Sender, Subscriber};
use crate::metrics::Dropped;
use crate::peers::{PEER_EXPIRY, RulesDifference};
use crate::queue::{Lane, MAX_BATCH_BYTES};

/// Time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Time that a joining node waits for an objection by another node with the same name.
const NAME_CLAIM_DELAY: Duration = Duration::from_millis(500);

/// Maximum time that a reconnected node waits for heartbeats of the nodes that it knew. Longer than
/// the maximum backoff of their attempts to reconnect.
const PEER_RETURN_TIMEOUT: Duration = Duration::from_secs(3);

/// Timeout of each of the last two sends before a stop: the rest of the queue, and the goodbye.
/// Limits the delay of the stop.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum time between two reads. Also at one read in this time, a broker is read fast enough.
const MAX_READ_PAUSE: Duration = Duration::from_millis(5);

/// Maximum number of batches read from a connection after it has ended. Limits the delay of the
/// reconnect.
const MAX_FINAL_READS: usize = 1024;

/// One connection to the broker.
pub(super) struct Connection<'l, I> {
    pub(super) driver: &'l DriverState<I>,
    /// Notified when all subscriptions are confirmed.
    pub(super) subscribed: Notify,
    /// Notified when another node has this node's name.
    pub(super) name_taken: Notify,
    /// Time at which the node last received one of its own messages.
    pub(super) last_echo: Cell<Instant>,
}

impl<I: MessageHandler> Connection<'_, I> {
    /// Runs all tasks of the connection until one of them ends it, and returns the reason.
    pub(super) async fn run(&self, link: Link) -> ConnectionEnd {
        let Link { mut sender, mut subscriber, mut receiver, mut reader, echoes_own } = link;
        let end = tokio::select! {
            end = self.send_batches(&mut sender, echoes_own) => end,
            end = self.update_subscriptions(&mut subscriber) => end,
            end = self.receive(&mut receiver) => end,
            end = self.serve_store_requests(&mut reader) => end,
            end = self.join_and_heartbeat(echoes_own) => end,
            () = self.name_taken.notified() => ConnectionEnd::NameTaken,
            () = self.driver.wait_for_flush() => ConnectionEnd::Stopped,
        };
        self.driver.unconfirmed.requeue();
        self.drain_receiver(&mut receiver);
        if matches!(end, ConnectionEnd::Stopped) {
            self.say_goodbye(&mut sender).await;
        }
        end
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.driver.shared
    }

    /// Leaves the cluster: sends the rest of the queue and [`Message::Bye`].
    async fn say_goodbye(&self, sender: &mut Sender) {
        let shared = self.shared();
        // In this state, a publish fails instead of queueing a message that would not be sent.
        shared.set_state(ClusterState::Stopped);
        if shared.stop_request().is_some_and(|stop| stop.deadline > Instant::now()) {
            let _ = timeout(GOODBYE_TIMEOUT, self.send_rest(sender)).await;
        }
        shared.queue.clear_control();
        shared.send_control(Destination::All, Message::Bye);
        let batch = shared.queue.take(Lane::Control, MAX_BATCH_BYTES);
        let _ = timeout(GOODBYE_TIMEOUT, send_and_confirm(sender, &batch, false, shared)).await;
    }

    /// Keeps the subscriptions at the broker up to date.
    async fn update_subscriptions(&self, subscriber: &mut Subscriber) -> ConnectionEnd {
        let interests = &self.shared().interests;
        loop {
            let requested = interests.requested();
            let changes = interests.take(Instant::now());
            if changes.subscribe.is_empty() && changes.unsubscribe.is_empty() {
                if changes.has_more {
                    tokio::task::yield_now().await;
                    continue;
                }
                self.subscribed.notify_one();
                self.confirm_interest(requested);
                let next_due = interests.next_due();
                tokio::select! {
                    () = interests.changed.notified() => {}
                    () = sleep_until(next_due.unwrap_or_else(Instant::now).into()), if next_due.is_some() => {}
                }
                continue;
            }
            let send_changes = async {
                // Subscriptions are added first, because a new pattern may replace removed names.
                if !changes.subscribe.is_empty() {
                    subscriber.subscribe(&changes.subscribe).await?;
                }
                subscriber.unsubscribe(&changes.unsubscribe).await
            };
            match timeout(BROKER_TIMEOUT, send_changes).await {
                Ok(Ok(())) if changes.has_more => {}
                Ok(Ok(())) => self.confirm_interest(requested),
                Ok(Err(error)) => return error.into(),
                Err(_) => return LinkError::new("the broker did not answer in time").into(),
            }
        }
    }

    /// Receives envelopes until an error. Waits only a moment for the node to process them, because a
    /// broker closes connections that read too slowly.
    async fn receive(&self, receiver: &mut Receiver) -> ConnectionEnd {
        let mut batch = Vec::new();
        loop {
            if let Err(error) = receiver.next(&mut batch).await {
                return error.into();
            }
            let now = Instant::now();
            batch.drain(..).for_each(|envelope| self.dispatch(envelope, now));
            if batch.capacity() > MAX_KEPT_CAPACITY {
                batch = Vec::new();
            }
            if self.driver.backlog.is_short() {
                tokio::task::yield_now().await;
            } else {
                // The read bytes are still in the CPU's cache.
                let _ = timeout(MAX_READ_PAUSE, self.driver.backlog.wait_until_short()).await;
            }
        }
    }

    /// Reads envelopes that arrived before the connection ended.
    fn drain_receiver(&self, receiver: &mut Receiver) {
        let (mut batch, now) = (Vec::new(), Instant::now());
        for _ in 0..MAX_FINAL_READS {
            let is_open = matches!(receiver.next(&mut batch).now_or_never(), Some(Ok(())));
            batch.drain(..).for_each(|envelope| self.dispatch(envelope, now));
            if !is_open {
                return;
            }
        }
    }

    /// Drops duplicates and handles messages between drivers at once. Puts all other messages into
    /// the backlog.
    pub(super) fn dispatch(&self, bytes: Bytes, now: Instant) {
        let shared = self.shared();
        let received = match Received::check(bytes) {
            Ok(received) => received,
            Err(error) => return self.driver.on_invalid(error),
        };
        let (node, incarnation) = (received.node(), received.incarnation());
        let is_own = incarnation == shared.incarnation && node == shared.node.as_bytes();
        if is_own {
            self.last_echo.set(now);
            if received.is_probe() {
                self.driver.backlog.push(shared, received);
                return;
            }
        }
        if received.is_from_store() {
            if !is_own {
                shared.metrics.received.inc();
            }
            if !self.driver.backlog.push(shared, received) {
                shared.metrics.dropped(Dropped::SlowNode, 1);
            }
            return;
        }
        if is_own {
            return;
        }
        if !self.driver.dedup.borrow_mut().is_new(node, incarnation, received.sequence()) {
            shared.metrics.duplicates.inc();
            return;
        }
        shared.metrics.received.inc();
        if received.is_control() {
            match received.parse() {
                Ok(envelope) => self.on_control(&envelope, now),
                Err(error) => self.driver.on_invalid(error),
            }
        } else if !self.driver.backlog.push(shared, received) {
            shared.metrics.dropped(Dropped::SlowNode, 1);
        }
    }

    /// Handles a message between drivers.
    fn on_control(&self, envelope: &Envelope<'_>, now: Instant) {
        let shared = self.shared();
        let origin = envelope.origin;
        match envelope.message {
            Message::Hello { joined, wants_answer, connections, version } => {
                if origin.node == shared.node {
                    return self.on_name_conflict(origin.incarnation, joined);
                }
                if shared.peers.record_hello(origin.node, origin.incarnation, version, connections, now) {
                    info!(node = origin.node, version, "Discovered a cluster node");
                }
                self.compare_rules(origin.node, version);
                if wants_answer {
                    self.send_hello(Destination::Node(origin.node.into()), false);
                }
            }
            Message::NameTaken { incarnation }
                if origin.node == shared.node && incarnation == shared.incarnation =>
            {
                self.name_taken.notify_one();
            }
            Message::Bye if shared.peers.remove(origin.node, origin.incarnation) => {
                info!(node = origin.node, "Cluster node left");
            }
            Message::Answer { request, text } => shared.requests.complete(request, text),
            _ => {}
        }
    }

    /// Handles a greeting from this node's name with another incarnation. If only one of both nodes
    /// has joined, that node keeps the name. Otherwise the earlier incarnation keeps it.
    ///
    /// The greeting alone is no reason for this node to leave, because its sender may have ended
    /// since. This node leaves only if the sender answers with [`Message::NameTaken`].
    fn on_name_conflict(&self, incarnation: u64, joined: bool) {
        let shared = self.shared();
        let must_other_leave = match (self.driver.joined.get(), joined) {
            (true, false) => true,
            (false, true) => false,
            _ => shared.incarnation < incarnation,
        };
        if must_other_leave {
            warn!(node = shared.node, "Another node started with this node's name");
            shared.send_control(Destination::All, Message::NameTaken { incarnation });
        } else {
            self.send_hello(Destination::All, true);
        }
    }

    fn send_hello(&self, to: Destination, wants_answer: bool) {
        let shared = self.shared();
        let version = announcement::write(shared.version, shared.history_rules.load(Ordering::Relaxed));
        let hello = Message::Hello {
            joined: self.driver.joined.get(),
            wants_answer,
            connections: self.driver.handler.connections(),
            version: &version,
        };
        shared.send_control(to, hello);
    }

    /// Logs once that a node has other rules for history, or cannot keep any.
    fn compare_rules(&self, node: &str, version: &str) {
        let shared = self.shared();
        match shared.peers.compare_rules(node, shared.history_rules.load(Ordering::Relaxed)) {
            None => {}
            Some(RulesDifference::Unsupported) => {
                warn!(node, version, "Version of a cluster node keeps no history");
            }
            Some(RulesDifference::Other) => {
                warn!(node, version, "Cluster node has other rules for history");
            }
        }
    }

    /// Joins the cluster, and then sends a heartbeat every second.
    async fn join_and_heartbeat(&self, echoes_own: bool) -> ConnectionEnd {
        let shared = self.shared();
        self.subscribed.notified().await;
        self.send_hello(Destination::All, true);
        if self.driver.joined.get() {
            let _ = timeout(PEER_RETURN_TIMEOUT, async {
                while !shared.peers.all_returned() {
                    sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        } else {
            sleep(NAME_CLAIM_DELAY).await;
            self.driver.joined.set(true);
        }
        self.on_joined();
        loop {
            self.send_hello(Destination::All, false);
            sleep(HEARTBEAT_INTERVAL).await;
            let now = Instant::now();
            for node in shared.peers.expire(now) {
                warn!(node, "Heartbeats of a cluster node timed out");
            }
            if echoes_own && now.saturating_duration_since(self.last_echo.get()) > PEER_EXPIRY {
                return LinkError::new("the broker no longer echoes the node's messages").into();
            }
        }
    }

    fn on_joined(&self) {
        let shared = self.shared();
        shared.set_state(ClusterState::Up);
        let nodes = shared.peers.len() + 1;
        match self.driver.disconnected_at.get() {
            Some(disconnected_at) => {
                info!(outage = ?disconnected_at.elapsed(), nodes, "Reconnected to the broker")
            }
            None => info!(broker = %shared.config.url, node = shared.node, nodes, "Joined the cluster"),
        }
        let _ = self.driver.join_outcome.send(JoinOutcome::Joined);
    }
}
