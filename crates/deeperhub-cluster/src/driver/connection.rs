//! One connection to the broker while it holds.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::backlog::KEPT_BATCH;
use super::batch::{Kept, next_batch, send_in_time, split_off};
use super::{DEADLINE, End, Inbound, Life, Start};
use crate::broker::{Shared, State};
use crate::envelope::{Envelope, Header, Message};
use crate::link::{Link, LinkError, Receiver, Sender, Subscriber};
use crate::metrics::Dropped;
use crate::peers::EXPIRY;
use crate::queue::{BATCH_BYTES, Destination, Lane, Outbound};

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a node that joins waits for another of its name to object.
const OBJECTION: Duration = Duration::from_millis(500);

/// How long a node that comes back waits for the others to come back too: their own attempts are not further apart.
const COMPANY: Duration = Duration::from_secs(3);

/// Time limit of each send on leaving: the rest of the queue, then the goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// Most batches read from a connection after it has ended.
const MAX_RESTS: usize = 1024;

/// One connection while it holds.
pub(super) struct Connection<'l, I> {
    pub(super) life: &'l Life<I>,
    /// Told when the broker has been told all that is wanted.
    pub(super) followed: Notify,
    /// Told when another node has this one's name.
    pub(super) taken: Notify,
    /// When the node's own messages came back last.
    pub(super) echoed: Cell<Instant>,
}

impl<I: Inbound> Connection<'_, I> {
    pub(super) async fn run(&self, link: Link) -> End {
        let Link { mut sender, mut subscriber, mut receiver, echoes } = link;
        let end = tokio::select! {
            end = self.send(&mut sender, echoes) => end,
            end = self.follow(&mut subscriber) => end,
            end = self.read(&mut receiver) => end,
            end = self.take_part(echoes) => end,
            () = self.taken.notified() => End::Taken,
            () = self.life.flushed() => End::Stopped,
        };
        self.read_rest(&mut receiver);
        if matches!(end, End::Stopped) {
            self.say_goodbye(&mut sender).await;
        }
        end
    }

    fn shared(&self) -> &Shared {
        &self.life.shared
    }

    /// Sends the rest of the queue and a goodbye.
    async fn say_goodbye(&self, sender: &mut Sender) {
        let shared = self.shared();
        // From here on, publishers learn that other nodes do not get their messages.
        shared.set_state(State::Stopped);
        if shared.stop_wanted().is_some_and(|stop| stop.deadline > Instant::now()) {
            let _ = timeout(GOODBYE, self.send_rest(sender)).await;
        }
        shared.queue.clear_control();
        shared.control(Destination::All, Message::Bye);
        let mut batch = Vec::new();
        shared.queue.take(Lane::Control, BATCH_BYTES, &mut batch);
        let _ = timeout(GOODBYE, sender.send(&batch)).await;
    }

    /// Sends messages that were queued while the last batch of the flush was confirmed.
    async fn send_rest(&self, sender: &mut Sender) {
        let shared = self.shared();
        loop {
            let mut batch = std::mem::take(&mut *self.life.unconfirmed.borrow_mut());
            if batch.is_empty() {
                shared.queue.take(Lane::Data, BATCH_BYTES, &mut batch);
            }
            if batch.is_empty() {
                return;
            }
            self.life.under_way.set(batch.len());
            let kept = Kept { batch: &mut batch, life: self.life };
            if send_in_time(sender, kept.batch, shared).await.is_err() {
                return;
            }
            kept.batch.clear();
        }
    }

    /// Sends batches, one after the other: the next goes when the broker has confirmed the last, so that after a loss
    /// the order is known.
    async fn send(&self, sender: &mut Sender, echoes: bool) -> End {
        let shared = self.shared();
        loop {
            let mut batch = Vec::new();
            shared.queue.take(Lane::Control, BATCH_BYTES, &mut batch);
            if !batch.is_empty()
                && let Err(error) = send_in_time(sender, &batch, shared).await
            {
                return error.into();
            }
            if !self.life.is_up() {
                shared.queue.changed.notified().await;
                continue;
            }
            let max_bytes = self.life.batch_bytes.get();
            let mut batch = std::mem::take(&mut *self.life.unconfirmed.borrow_mut());
            if batch.is_empty() {
                shared.queue.take(Lane::Data, max_bytes, &mut batch);
            } else {
                *self.life.unconfirmed.borrow_mut() = split_off(&mut batch, max_bytes);
            }
            if batch.is_empty() {
                shared.queue.changed.notified().await;
                continue;
            }
            let began = Instant::now();
            // Also when this future is dropped: it must not be lost.
            self.life.under_way.set(batch.len());
            let kept = Kept { batch: &mut batch, life: self.life };
            if let Err(error) = send_in_time(sender, kept.batch, shared).await {
                return error.into();
            }
            if !echoes {
                self.probes_are_back(kept.batch);
            }
            kept.batch.clear();
            drop(kept);
            self.life.confirmed.notify_one();
            self.life.batch_bytes.set(next_batch(max_bytes, began.elapsed()));
        }
    }

    /// What goes to the node itself, of a batch that the broker has confirmed, goes on as if it had been brought.
    fn probes_are_back(&self, batch: &[Outbound]) {
        let shared = self.shared();
        for outbound in batch {
            if matches!(&outbound.to, Destination::Node(node) if **node == *shared.node) {
                // Without room it counts as lost, as what the broker brings does.
                self.life.backlog.push(shared, outbound.envelope.clone());
            }
        }
    }

    /// Tells the broker what the node's subscribers want.
    async fn follow(&self, subscriber: &mut Subscriber) -> End {
        let interests = &self.shared().interests;
        loop {
            let changes = interests.take(Instant::now());
            if changes.follow.is_empty() && changes.leave.is_empty() {
                if changes.is_more {
                    tokio::task::yield_now().await;
                    continue;
                }
                self.followed.notify_one();
                let due = interests.due();
                tokio::select! {
                    () = interests.changed.notified() => {}
                    () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                }
                continue;
            }
            let tell = async {
                // Follow first: a followed name may replace names that are left.
                if !changes.follow.is_empty() {
                    subscriber.follow(&changes.follow).await?;
                }
                subscriber.leave(&changes.leave).await
            };
            match timeout(DEADLINE, tell).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return LinkError::new("it does not answer").into(),
            }
        }
    }

    /// Reads what the broker brings, always at once: a broker that has to wait drops the connection.
    async fn read(&self, receiver: &mut Receiver) -> End {
        let mut batch = Vec::new();
        loop {
            if let Err(error) = receiver.next(&mut batch).await {
                return error.into();
            }
            let now = Instant::now();
            batch.drain(..).for_each(|envelope| self.take_in(envelope, now));
            if batch.capacity() > KEPT_BATCH {
                batch = Vec::new();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Reads envelopes that arrived before the connection ended.
    fn read_rest(&self, receiver: &mut Receiver) {
        let (mut batch, now) = (Vec::new(), Instant::now());
        for _ in 0..MAX_RESTS {
            let is_open = matches!(receiver.next(&mut batch).now_or_never(), Some(Ok(())));
            batch.drain(..).for_each(|envelope| self.take_in(envelope, now));
            if !is_open {
                return;
            }
        }
    }

    /// Handles messages between drivers and drops duplicates at once; only the rest waits for the
    /// node's workers.
    pub(super) fn take_in(&self, bytes: Bytes, now: Instant) {
        let shared = self.shared();
        let header = match Header::parse(&bytes) {
            Ok(header) => header,
            Err(error) => return self.life.invalid(error),
        };
        let origin = header.origin;
        if origin.node == shared.node && origin.incarnation == shared.incarnation {
            self.echoed.set(now);
            if header.is_probe() {
                self.life.backlog.push(shared, bytes);
            }
            return;
        }
        if !self.life.seen.borrow_mut().is_new(origin.node, origin.incarnation, header.sequence) {
            shared.metrics.duplicates.inc();
            return;
        }
        shared.metrics.received.inc();
        if header.is_of_driver() {
            match Envelope::parse(&bytes) {
                Ok(envelope) => self.on_driver(&envelope, now),
                Err(error) => self.life.invalid(error),
            }
        } else if !self.life.backlog.push(shared, bytes) {
            shared.metrics.dropped(Dropped::SlowNode, 1);
        }
    }

    fn on_driver(&self, envelope: &Envelope<'_>, now: Instant) {
        let shared = self.shared();
        let origin = envelope.origin;
        match envelope.message {
            Message::Hello { joined, wants_answer, connections, version } => {
                if origin.node == shared.node {
                    return self.on_namesake(origin.incarnation, joined);
                }
                if shared.peers.heard(origin.node, origin.incarnation, version, connections, now) {
                    info!(node = origin.node, version, "Another node of the cluster is there.");
                }
                if wants_answer {
                    shared.control(Destination::Node(origin.node.into()), self.hello(false));
                }
            }
            Message::Taken { incarnation }
                if origin.node == shared.node && incarnation == shared.incarnation =>
            {
                self.taken.notify_one();
            }
            Message::Bye if shared.peers.left(origin.node, origin.incarnation) => {
                info!(node = origin.node, "A node has left the cluster.");
            }
            Message::Answer { request, text } => shared.answered(request, text),
            _ => {}
        }
    }

    /// Another node has this one's name. That it lives must be seen from an answer to this node: the message may be
    /// one of a node that has crashed, or of this one's former life.
    fn on_namesake(&self, incarnation: u64, joined: bool) {
        let shared = self.shared();
        let it_goes = match (self.life.joined.get(), joined) {
            (true, false) => true,
            (false, true) => false,
            _ => shared.incarnation < incarnation,
        };
        if it_goes {
            warn!(node = shared.node, "Another node was started with this one's name; it is told to end.");
            shared.control(Destination::All, Message::Taken { incarnation });
        } else {
            shared.control(Destination::All, self.hello(true));
        }
    }

    fn hello(&self, wants_answer: bool) -> Message<'static> {
        Message::Hello {
            joined: self.life.joined.get(),
            wants_answer,
            connections: self.life.inbound.connections(),
            version: self.shared().version,
        }
    }

    /// Joins, then shows all second that it is there.
    async fn take_part(&self, echoes: bool) -> End {
        let shared = self.shared();
        self.followed.notified().await;
        shared.control(Destination::All, self.hello(true));
        if self.life.joined.get() {
            let _ = timeout(COMPANY, async {
                while !shared.peers.all_back() {
                    sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        } else {
            sleep(OBJECTION).await;
            self.life.joined.set(true);
        }
        self.came_up();
        loop {
            shared.control(Destination::All, self.hello(false));
            sleep(HEARTBEAT).await;
            let now = Instant::now();
            for node in shared.peers.expire(now) {
                warn!(node, "A node of the cluster is silent; it counts as gone.");
            }
            if echoes && now.saturating_duration_since(self.echoed.get()) > EXPIRY {
                return LinkError::new("it does not bring the node's own messages back").into();
            }
        }
    }

    fn came_up(&self) {
        let shared = self.shared();
        shared.set_state(State::Up);
        let nodes = shared.peers.len() + 1;
        match self.life.lost_at.get() {
            Some(lost_at) => {
                info!(outage = ?lost_at.elapsed(), nodes, "The cluster's broker is reached again.")
            }
            None => info!(broker = %shared.config.url, node = shared.node, nodes, "Joined the cluster."),
        }
        let _ = self.life.started.send(Start::Joined);
    }
}
