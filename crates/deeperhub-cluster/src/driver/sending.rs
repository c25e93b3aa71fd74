//! Sends the node's messages over a connection.

use std::time::Instant;

use bytes::Bytes;
use tokio::time::sleep_until;

use super::batch::{Sending, send_and_confirm, within_timeout};
use super::connection::Connection;
use super::{BROKER_TIMEOUT, ConnectionEnd, MessageHandler};
use crate::batch::{Batch, Destination};
use crate::envelope::Received;
use crate::link::{LinkError, Sender, Sent};
use crate::queue::{Lane, MAX_BATCH_BYTES};

impl<I: MessageHandler> Connection<'_, I> {
    /// Sends all unconfirmed and queued messages, which were queued after the flush had seen an
    /// empty queue.
    pub(super) async fn send_rest(&self, sender: &mut Sender) {
        let (shared, unconfirmed) = (self.shared(), &self.driver.unconfirmed);
        loop {
            let (batch, is_resent) = unconfirmed.take(shared);
            if batch.is_empty() {
                return;
            }
            let sending = Sending::new(batch, Lane::Data, unconfirmed);
            match send_and_confirm(sender, &sending.batch, is_resent, shared).await {
                Ok(outcomes) => {
                    shared.queue.recycle(sending.finish());
                    self.driver.report(outcomes);
                }
                Err(_) => return,
            }
        }
    }

    /// Sends batches until an error. Several batches may be in flight. The broker confirms them in
    /// order, so that those of a lost connection can be sent again in order.
    pub(super) async fn send_batches(&self, sender: &mut Sender, echoes_own: bool) -> ConnectionEnd {
        let shared = self.shared();
        loop {
            match self.send_next(sender, echoes_own).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => return error.into(),
            }
            let Some((number, sent_at)) = self.driver.unconfirmed.oldest() else {
                shared.queue.changed.notified().await;
                continue;
            };
            let confirmed = tokio::select! {
                confirmed = sender.confirmed(number) => confirmed,
                () = shared.queue.changed.notified() => continue,
                () = sleep_until((sent_at + BROKER_TIMEOUT).into()) => {
                    Err(LinkError::new("the broker did not confirm messages in time"))
                }
            };
            if let Err(error) = confirmed {
                return error.into();
            }
            if let Some((batch, lane)) = self.driver.unconfirmed.confirm_oldest() {
                self.on_confirmed(batch, lane, echoes_own);
            }
        }
    }

    /// Sends the next batch. Returns `false` if there is none, or too much is in flight.
    async fn send_next(&self, sender: &mut Sender, echoes_own: bool) -> Result<bool, LinkError> {
        let (shared, unconfirmed) = (self.shared(), &self.driver.unconfirmed);
        let (mut lane, mut is_resent) = (Lane::Control, false);
        let mut batch = shared.queue.take(lane, MAX_BATCH_BYTES);
        if batch.is_empty() && self.driver.is_up() {
            lane = Lane::Data;
            (batch, is_resent) = unconfirmed.take(shared);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        let sent_at = Instant::now();
        // The guard keeps the batch also if this future is dropped.
        let sending = Sending::new(batch, lane, unconfirmed);
        match within_timeout(sender.send(&sending.batch, is_resent)).await? {
            Sent::Written(number) => unconfirmed.push(sending.finish(), lane, Some(number)),
            Sent::Confirmed(outcomes) => {
                let batch = sending.finish();
                self.driver.report(outcomes);
                if lane == Lane::Data {
                    unconfirmed.on_confirmed(batch.bytes(), sent_at);
                }
                self.on_confirmed(batch, lane, echoes_own);
            }
        }
        Ok(true)
    }

    fn on_confirmed(&self, batch: Batch, lane: Lane, echoes_own: bool) {
        let shared = self.shared();
        shared.metrics.sent.add(batch.len() as u64);
        if batch.has_envelopes_for_nodes() && lane == Lane::Data && !echoes_own {
            self.echo_probes(&batch);
        }
        shared.queue.recycle(batch);
        self.driver.confirmed.notify_one();
    }

    /// Puts the node's own probes of a confirmed batch into the backlog, as if the broker had
    /// echoed them.
    fn echo_probes(&self, batch: &Batch) {
        let shared = self.shared();
        for outbound in batch.iter() {
            if matches!(outbound.to, Destination::Node(node) if **node == *shared.node) {
                // If the backlog is full, the probe is lost, like a received message.
                if let Ok(probe) = Received::check(Bytes::copy_from_slice(outbound.envelope)) {
                    self.driver.backlog.push(shared, probe);
                }
            }
        }
    }
}
