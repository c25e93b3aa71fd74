//! Sends messages in a closed or an open loop.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use super::{DELIVERY_TIMEOUT_NANOS, MAX_POLL_WAIT_NANOS, Worker};
use crate::connection::Connection;
use crate::scenario::{LoadModel, Role, Scenario};
use crate::schedule::Schedule;
use crate::thread_state::ThreadState;

/// Maximum number of messages that a sender writes before the other senders get a turn.
const MAX_MESSAGES_PER_TURN: u32 = 64;

impl<'r> Worker<'r> {
    /// Sends until the measured time is over or all messages are sent.
    pub(super) fn send_all(&mut self, start: u64) -> io::Result<()> {
        while self.state.shared.now() < start && !self.is_stopped() {
            self.poll_once(start.saturating_sub(self.state.shared.now()))?;
        }
        match self.state.plan.load {
            LoadModel::OpenLoop(rate) => self.send_in_open_loop(rate, start)?,
            LoadModel::ClosedLoop(in_flight) if self.state.plan.scenario == Scenario::Echo => {
                self.send_echoes_in_closed_loop(in_flight)?;
            }
            LoadModel::ClosedLoop(in_flight) => self.publish_in_closed_loop(in_flight)?,
        }
        self.state.flush_counts();
        self.state.shared.finished_sending();
        Ok(())
    }

    /// Returns `true` if this thread has messages left to send.
    fn has_senders(&self) -> bool {
        let mut senders = self.senders.iter().filter_map(|slot| self.connections.get(*slot));
        senders.any(Connection::is_sender)
    }

    /// Sends echoes in a closed loop: each answer triggers the next message.
    fn send_echoes_in_closed_loop(&mut self, in_flight: u32) -> io::Result<()> {
        for slot in self.senders.clone() {
            self.send_from(slot, |connection, now, state| {
                (0..in_flight).for_each(|_| connection.write_echo(now, now, state));
            });
            // Early answers are read at once, so that their latency does not include the start of
            // the other senders.
            self.poll_once(0)?;
        }
        let mut next_check = 0;
        loop {
            let now = self.state.shared.now();
            if now >= self.state.send_until || self.is_stopped() {
                return Ok(());
            }
            if now >= next_check {
                if !self.has_senders() {
                    return Ok(());
                }
                next_check = now + MAX_POLL_WAIT_NANOS;
            }
            self.poll_once(MAX_POLL_WAIT_NANOS.min(self.state.send_until - now))?;
        }
    }

    /// Publishes in a closed loop: a publisher sends its next message when deliveries of earlier
    /// ones have arrived.
    fn publish_in_closed_loop(&mut self, in_flight: u32) -> io::Result<()> {
        let mut waits = vec![DeliveryWait::default(); self.senders.len()];
        loop {
            let now = self.state.shared.now();
            if now >= self.state.send_until || self.is_stopped() || !self.has_senders() {
                return Ok(());
            }
            let mut has_more = false;
            for at in 0..self.senders.len() {
                let (Some(slot), Some(wait)) = (self.senders.get(at), waits.get_mut(at)) else { continue };
                has_more |= self.publish_up_to_limit(*slot, in_flight, now, wait);
            }
            self.state.flush_counts();
            let wait = if has_more { 0 } else { MAX_POLL_WAIT_NANOS.min(self.state.send_until - now) };
            self.poll_once(wait)?;
        }
    }

    /// Publishes until `in_flight` messages are in flight. Returns `true` if the publisher can
    /// publish more without waiting.
    fn publish_up_to_limit(
        &mut self,
        slot: usize,
        in_flight: u32,
        now: u64,
        wait: &mut DeliveryWait,
    ) -> bool {
        let Some(connection) = self.connections.get(slot).filter(|connection| connection.is_sender()) else {
            return false;
        };
        let (plan, shared) = (self.state.plan, self.state.shared);
        let publisher = connection.spec.number;
        let done = wait.update(shared.delivered_of(publisher as usize), connection.expected, now);
        if wait.timed_out {
            self.state.counters.stalls += 1;
        }
        let mut goal = 0;
        let mut has_more = false;
        self.send_from(slot, |connection, now, state| {
            for _ in 0..MAX_MESSAGES_PER_TURN {
                let topic = plan.topic_of(plan.stream_of(publisher, connection.sent));
                let deliveries = shared.subscribers(topic);
                let max_outstanding = u64::from(in_flight - 1) * deliveries;
                if connection.expected.saturating_sub(done) > max_outstanding {
                    goal = connection.expected.saturating_sub(max_outstanding);
                    return;
                }
                if !connection.is_sender() {
                    return;
                }
                connection.write_publish(now, now, state);
                if deliveries == 0 {
                    // Without subscribers, there are no deliveries to wait for. The return lets the
                    // loop poll in between.
                    return;
                }
            }
            has_more = true;
        });
        if goal > 0 {
            shared.set_goal(publisher as usize, goal.saturating_sub(wait.abandoned));
            // Another thread may have added the last delivery before the goal was set.
            has_more |= shared.delivered_of(publisher as usize) + wait.abandoned >= goal;
        }
        has_more
    }

    /// Sends messages at fixed times.
    fn send_in_open_loop(&mut self, rate: u64, start: u64) -> io::Result<()> {
        let senders = self.state.plan.senders() as u64;
        let schedule =
            |connection: &Connection| Schedule::new(rate, u64::from(connection.spec.number), senders);
        let mut due: BinaryHeap<Reverse<(u64, usize)>> = self
            .senders
            .iter()
            .filter_map(|slot| Some(Reverse((start + schedule(self.connections.get(*slot)?).due(0), *slot))))
            .collect();
        // Senders whose sockets are full. Their messages are sent late, and latency includes the
        // delay.
        let mut blocked: Vec<usize> = Vec::new();
        let mut next_check = 0;
        loop {
            let now = self.state.shared.now();
            let is_over = now >= self.state.send_until;
            if self.is_stopped() || (now >= next_check && !self.has_senders()) {
                break;
            }
            next_check = if now >= next_check { now + MAX_POLL_WAIT_NANOS } else { next_check };
            let until = now.min(self.state.send_until.saturating_sub(1));
            while let Some(Reverse((time, slot))) = due.peek().copied()
                && time <= until
            {
                due.pop();
                let mut next = None;
                self.send_from(slot, |connection, now, state| {
                    let schedule = schedule(connection);
                    for _ in 0..MAX_MESSAGES_PER_TURN {
                        let time = start + schedule.due(connection.sent);
                        if time > until || !connection.is_sender() {
                            break;
                        }
                        match connection.spec.role {
                            Role::Echo => connection.write_echo(time, now, state),
                            _ => connection.write_publish(time, now, state),
                        }
                    }
                    next = connection.is_sender().then(|| start + schedule.due(connection.sent));
                });
                match (next, self.connections.get(slot)) {
                    (Some(_), Some(connection)) if connection.is_blocked() => blocked.push(slot),
                    (Some(next), _) => due.push(Reverse((next, slot))),
                    (None, _) => {}
                }
            }
            self.state.flush_counts();
            if is_over {
                break;
            }
            let next = due.peek().map_or(u64::MAX, |Reverse((time, _))| *time).min(self.state.send_until);
            self.poll_once(next.saturating_sub(self.state.shared.now()).min(MAX_POLL_WAIT_NANOS))?;
            blocked.retain(|slot| match self.connections.get(*slot) {
                Some(connection) if connection.is_blocked() => true,
                Some(connection) if connection.is_sender() => {
                    due.push(Reverse((start + schedule(connection).due(connection.sent), *slot)));
                    false
                }
                _ => false,
            });
        }
        let time = self.state.send_until.min(self.state.shared.now()).saturating_sub(start);
        for connection in self.senders.iter().filter_map(|slot| self.connections.get(*slot)) {
            let due = schedule(connection)
                .due_before(time)
                .min(self.state.plan.max_messages(connection.spec.number));
            self.state.counters.unsent += due.saturating_sub(connection.sent);
        }
        Ok(())
    }

    /// Calls `write`, which appends messages of a connection to the output, and sends them.
    pub(super) fn send_from(
        &mut self,
        slot: usize,
        write: impl FnOnce(&mut Connection, u64, &mut ThreadState<'r>),
    ) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let now = self.state.shared.now();
        write(connection, now, &mut self.state);
        if let Err(reason) = connection.send(&mut self.state) {
            self.disconnect(slot, &reason);
        }
    }
}

/// The wait of a closed-loop publisher for deliveries.
#[derive(Debug, Clone, Default)]
struct DeliveryWait {
    /// Deliveries so far.
    delivered: u64,
    /// Start of the wait: the time of the last update at which a delivery arrived, no delivery was
    /// missing, or the wait timed out.
    since: u64,
    /// Missing deliveries that the publisher no longer waits for.
    abandoned: u64,
    /// `true` if the last update abandoned deliveries.
    timed_out: bool,
}

impl DeliveryWait {
    /// Returns the number of deliveries that arrived or were abandoned. If none arrives within
    /// [`DELIVERY_TIMEOUT_NANOS`], abandons all missing ones, because lost messages must not stop
    /// the loop.
    fn update(&mut self, delivered: u64, expected: u64, now: u64) -> u64 {
        self.timed_out = false;
        if delivered != self.delivered || self.since == 0 || delivered + self.abandoned >= expected {
            (self.delivered, self.since) = (delivered, now);
        } else if now - self.since > DELIVERY_TIMEOUT_NANOS {
            self.abandoned = expected.saturating_sub(delivered);
            self.since = now;
            self.timed_out = true;
        }
        delivered + self.abandoned
    }
}
