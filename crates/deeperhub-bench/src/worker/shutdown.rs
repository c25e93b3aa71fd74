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
/// Maximum wait for more data to slow readers.
const SLOW_READ_TIMEOUT_NANOS: u64 = DELIVERY_TIMEOUT_NANOS / 3;
/// Maximum wait for the close frames of the server.
const CLOSE_TIMEOUT_NANOS: u64 = 2_000 * NANOS_PER_MILLISECOND;

impl Worker<'_> {
    /// Waits for the deliveries of all sent messages. Ends the wait if none arrives within
    /// [`DELIVERY_TIMEOUT_NANOS`].
    pub(super) fn drain(&mut self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Acquire;

        let shared = self.state.shared;
        let (mut last_delivered, mut last_progress) = (0, shared.now());
        loop {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
            let (now, is_sending) = (shared.now(), shared.is_sending());
            let delivered = shared.delivered.load(Acquire);
            if shared.is_stopped() || (!is_sending && delivered >= shared.expected.load(Acquire)) {
                break;
            }
            if delivered != last_delivered || is_sending {
                (last_delivered, last_progress) = (delivered, now);
            } else if now - last_progress > DELIVERY_TIMEOUT_NANOS {
                break;
            }
        }
        let end = shared.now() + LATE_DELIVERY_WAIT_NANOS;
        while shared.now() < end {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        Ok(())
    }

    /// Reads the unread bytes of slow readers, to find out how each of them was disconnected.
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

    /// Stores the summaries of the streams of each receiver that stayed connected.
    pub(super) fn collect_receiver_streams(&mut self) {
        if !self.state.plan.scenario.has_messages() {
            return;
        }
        let mut receiver_streams = Vec::new();
        for connection in &self.connections {
            let role = connection.spec.role;
            if connection.stage == Stage::Open && role == Role::Returner {
                receiver_streams.extend(self.state.recovery_summaries(connection.receiver()));
                continue;
            }
            if connection.stage == Stage::Open && matches!(role, Role::Echo | Role::Subscriber) {
                let summaries = self.state.trackers(connection.first_tracker(), connection.topic());
                receiver_streams.extend(summaries.map(|(stream, tracker)| ReceiverStream {
                    stream,
                    summary: tracker.summary(),
                    end: None,
                }));
            }
        }
        self.state.counters.receiver_streams = receiver_streams;
    }

    /// Closes all connections and waits for the server's close frames, at most
    /// [`CLOSE_TIMEOUT_NANOS`].
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
