//! Sending of messages.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use super::{DELIVERY_TIMEOUT_NANOS, MAX_POLL_WAIT_NANOS, Worker};
use crate::connection::Connection;
use crate::scenario::{LoadModel, Role, Scenario};
use crate::schedule::Schedule;
use crate::thread_state::ThreadState;

/// Messages that one sender sends in one round.
const MAX_MESSAGES_PER_TURN: u32 = 64;

impl<'r> Worker<'r> {
    /// Sends until the time or the messages are over.
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

    /// Whether this thread has anything left to send.
    fn has_senders(&self) -> bool {
        let mut senders = self.senders.iter().filter_map(|slot| self.connections.get(*slot));
        senders.any(Connection::is_sender)
    }

    /// Echoes in a closed loop: after the first, each answer sends the next.
    fn send_echoes_in_closed_loop(&mut self, in_flight: u32) -> io::Result<()> {
        for slot in self.senders.clone() {
            self.send_from(slot, |connection, now, state| {
                (0..in_flight).for_each(|_| connection.write_echo(now, now, state));
            });
            // Answers may already be there; waiting for all to be asked would make the first seem slow.
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

    /// Publishes in a closed loop: the next when deliveries of earlier ones are in.
    fn publish_in_closed_loop(&mut self, in_flight: u32) -> io::Result<()> {
        let mut waits = vec![DeliveryWait::default(); self.senders.len()];
        loop {
            let now = self.state.shared.now();
            if now >= self.state.send_until || self.is_stopped() || !self.has_senders() {
                return Ok(());
            }
            let mut again = false;
            for at in 0..self.senders.len() {
                let (Some(slot), Some(wait)) = (self.senders.get(at), waits.get_mut(at)) else { continue };
                again |= self.publish_up_to_limit(*slot, in_flight, now, wait);
            }
            self.state.flush_counts();
            let wait = if again { 0 } else { MAX_POLL_WAIT_NANOS.min(self.state.send_until - now) };
            self.poll_once(wait)?;
        }
    }

    /// Publishes as much as may be under way; whether there is more to publish at once.
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
        let done = wait.done(shared.done(publisher as usize), connection.expected, now);
        if wait.timed_out {
            self.state.counters.stalls += 1;
        }
        let mut goal = 0;
        let mut again = false;
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
                    // Nobody is left who could set the pace.
                    return;
                }
            }
            again = true;
        });
        if goal > 0 {
            shared.set_goal(publisher as usize, goal.saturating_sub(wait.abandoned));
            // Other threads may have brought the last of them while the goal was being set.
            again |= shared.done(publisher as usize) + wait.abandoned >= goal;
        }
        again
    }

    /// Sends what is due when it is due.
    fn send_in_open_loop(&mut self, rate: u64, start: u64) -> io::Result<()> {
        let senders = self.state.plan.senders() as u64;
        let schedule =
            |connection: &Connection| Schedule::new(rate, u64::from(connection.spec.number), senders);
        let mut due: BinaryHeap<Reverse<(u64, usize)>> = self
            .senders
            .iter()
            .filter_map(|slot| Some(Reverse((start + schedule(self.connections.get(*slot)?).due(0), *slot))))
            .collect();
        // Senders whose sockets take no more for the moment: their messages wait, and the wait counts.
        let mut blocked: Vec<usize> = Vec::new();
        let mut next_check = 0;
        loop {
            let now = self.state.shared.now();
            let over = now >= self.state.send_until;
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
            if over {
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

    /// Lets a connection write, and sends it.
    fn send_from(&mut self, slot: usize, write: impl FnOnce(&mut Connection, u64, &mut ThreadState<'r>)) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let now = self.state.shared.now();
        write(connection, now, &mut self.state);
        if let Err(reason) = connection.send(&mut self.state) {
            self.disconnect(slot, &reason);
        }
    }
}

/// What a publisher of a closed loop waits for.
#[derive(Debug, Clone, Default)]
struct DeliveryWait {
    /// Deliveries that came, when that last changed.
    done: u64,
    since: u64,
    /// Deliveries that it no longer waits for.
    abandoned: u64,
    timed_out: bool,
}

impl DeliveryWait {
    /// Deliveries that came or are no longer waited for. When none has come for a while, that is all of them: what
    /// was lost must not stop the loop for ever.
    fn done(&mut self, done: u64, expected: u64, now: u64) -> u64 {
        self.timed_out = false;
        if done != self.done || self.since == 0 || done + self.abandoned >= expected {
            (self.done, self.since) = (done, now);
        } else if now - self.since > DELIVERY_TIMEOUT_NANOS {
            self.abandoned = expected.saturating_sub(done);
            self.since = now;
            self.timed_out = true;
        }
        done + self.abandoned
    }
}
