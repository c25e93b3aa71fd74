//! Ends a run: waits for deliveries, evaluates receivers, closes connections.

use std::io;

use super::{
    DELIVERY_TIMEOUT_NANOS, MAX_CONCURRENT_CONNECTS, MAX_POLL_WAIT_NANOS, NANOS_PER_MILLISECOND, Worker,
};
use crate::connection::Stage;
use crate::counters::ReceiverStream;
use crate::scenario::Role;

/// Wait after the last expected delivery for duplicates and misdelivered messages.
const LATE_DELIVERY_WAIT_NANOS: u64 = 50 * NANOS_PER_MILLISECOND;
/// Longest wait for more data of slow readers.
const SLOW_READ_TIMEOUT_NANOS: u64 = DELIVERY_TIMEOUT_NANOS / 3;
/// Longest wait for the close frames of the server.
const CLOSE_TIMEOUT_NANOS: u64 = 2_000 * NANOS_PER_MILLISECOND;

impl Worker<'_> {
    /// Waits for messages in flight.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Acquire;

        let shared = self.state.shared;
        let (mut delivered, mut since) = (0, shared.now());
        loop {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
            let (now, sending) = (shared.now(), shared.is_sending());
            let so_far = shared.delivered.load(Acquire);
            if shared.is_stopped() || (!sending && so_far >= shared.expected.load(Acquire)) {
                break;
            }
            if so_far != delivered || sending {
                (delivered, since) = (so_far, now);
            } else if now - since > DELIVERY_TIMEOUT_NANOS {
                break;
            }
        }
        let end = shared.now() + LATE_DELIVERY_WAIT_NANOS;
        while shared.now() < end {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        Ok(())
    }

    /// Reads what slow readers left unread, to find out how each of them was disconnected.
    pub(super) fn resume_slow_readers(&mut self) -> io::Result<()> {
        for slot in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(slot).filter(|one| one.is_paused()) else {
                continue;
            };
            if let Err(reason) = connection.resume(&mut self.state) {
                self.disconnect(slot, &reason);
            }
        }
        let mut progress = (0, 0);
        let mut until = self.state.shared.now() + SLOW_READ_TIMEOUT_NANOS;
        while self.state.shared.now() < until && !self.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
            let counters = &self.state.counters;
            let now = (counters.slow_received, counters.slow_disconnects.values().sum::<u64>());
            if now != progress {
                progress = now;
                until = self.state.shared.now() + SLOW_READ_TIMEOUT_NANOS;
            }
        }
        Ok(())
    }

    /// Stores what each receiver that stayed connected got of each of its streams.
    pub(super) fn collect_receiver_streams(&mut self) {
        if !self.state.plan.scenario.has_messages() {
            return;
        }
        let mut receiver_streams = Vec::new();
        for connection in &self.connections {
            let role = connection.spec.role;
            if connection.stage == Stage::Open && matches!(role, Role::Echo | Role::Subscriber) {
                let summaries = self.state.trackers(connection.first_tracker(), connection.topic());
                receiver_streams.extend(
                    summaries.map(|(stream, tracker)| ReceiverStream { stream, summary: tracker.summary() }),
                );
            }
        }
        self.state.counters.receiver_streams = receiver_streams;
    }

    /// Closes all connections and waits a moment for the server's close frames.
    pub(super) fn close_all(&mut self) -> io::Result<()> {
        for slot in 0..self.connections.len() {
            self.close(slot);
            if slot % MAX_CONCURRENT_CONNECTS == 0 {
                self.poll_once(0)?;
            }
        }
        let end = self.state.shared.now() + CLOSE_TIMEOUT_NANOS;
        while self.closing > 0 && self.state.shared.now() < end {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        Ok(())
    }
}
