//! The scenario `recover`: clients are cut, miss messages, and return in a storm.

use std::io;

use super::{DELIVERY_TIMEOUT_NANOS, MAX_POLL_WAIT_NANOS, NANOS_PER_MILLISECOND, Worker};
use crate::plan::{MeasurementWindow, RecoverPlan};
use crate::scenario::{LoadModel, Role, StopCondition};
use crate::schedule::Schedule;

/// Maximum number of messages that a publisher writes before other events are processed.
const MAX_MESSAGES_PER_TURN: u64 = 64;
/// Maximum wait for the server to process the messages that the clients miss.
const SYNCHRONIZE_TIMEOUT_NANOS: u64 = 60_000 * NANOS_PER_MILLISECOND;
/// Maximum number of clients of the run that return at the same time. Clients of a storm come when
/// they are due, and do not wait for the answers of others.
const MAX_CONCURRENT_RETURNS: usize = 16_384;
/// Time without a delivery after which earlier messages do not disturb the returns.
const QUIET_NANOS: u64 = 50 * NANOS_PER_MILLISECOND;

/// The messages of this thread's publishers at a fixed rate.
#[derive(Debug)]
struct PublishSchedule {
    start: u64,
    /// Rate of all publishers together, or `None` if they send nothing.
    rate: Option<u64>,
    /// Messages of each publisher since the start.
    sent: Vec<u64>,
}

impl Worker<'_> {
    /// Publishes, cuts the clients, publishes what they miss, and lets them return. All threads are
    /// in the same phase.
    pub(super) fn recover(&mut self, start: u64) -> io::Result<()> {
        let plan = self.state.plan;
        let (Some(recover), StopCondition::AllReturned { warmup }) = (&plan.recover, plan.stop) else {
            return Ok(());
        };
        let cut_at = start.saturating_add(u64::try_from(warmup.as_nanos()).unwrap_or(u64::MAX));
        let mut schedule = self.publish_schedule(start);
        while self.state.shared.now() < cut_at && !self.is_stopped() {
            let next = self.publish_due(&mut schedule).min(cut_at);
            self.poll_once(next.saturating_sub(self.state.shared.now()).min(MAX_POLL_WAIT_NANOS))?;
        }
        self.wait_for_all_threads()?;
        let cut = self.cut_clients();
        self.wait_for_all_threads()?;
        self.publish_missed(recover.missed)?;
        self.wait_for_all_threads()?;
        self.wait_for_quiet()?;
        self.wait_for_all_threads()?;
        self.bring_back(recover, &cut)?;
        self.state.flush_counts();
        self.state.shared.finished_sending();
        Ok(())
    }

    /// Waits until all threads have called this method.
    fn wait_for_all_threads(&mut self) -> io::Result<()> {
        let all = self.state.shared.arrive();
        while !self.state.shared.has_arrived(all) && !self.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        Ok(())
    }

    /// Cuts the clients of this thread that will return, and returns their slots.
    fn cut_clients(&mut self) -> Vec<usize> {
        let mut cut = Vec::new();
        for (slot, connection) in self.connections.iter_mut().enumerate() {
            if connection.spec.role == Role::Returner {
                connection.cut();
                cut.push(slot);
            }
        }
        cut
    }

    /// Publishes `missed` messages to each topic as fast as the server takes them, and waits until
    /// the server has processed them.
    fn publish_missed(&mut self, missed: u64) -> io::Result<()> {
        let plan = self.state.plan;
        let goals: Vec<_> = self
            .senders
            .iter()
            .filter_map(|slot| {
                let connection = self.connections.get(*slot)?;
                Some((*slot, connection.sent + missed * plan.streams_of_publisher(connection.spec.number)))
            })
            .collect();
        let mut has_more = true;
        while has_more && !self.is_stopped() {
            has_more = false;
            for &(slot, goal) in &goals {
                self.send_from(slot, |connection, now, state| {
                    for _ in 0..MAX_MESSAGES_PER_TURN {
                        if connection.sent < goal && connection.is_sender() && !connection.is_blocked() {
                            connection.write_publish(now, now, state);
                        }
                    }
                    has_more |= connection.sent < goal && connection.is_sender();
                });
            }
            self.state.flush_counts();
            self.poll_once(0)?;
        }
        for slot in self.senders.clone() {
            self.send_from(slot, |connection, _, state| {
                connection.is_synchronized = false;
                let key = state.keys.next_key();
                state.encoder.write_synchronization(&mut state.output, key);
            });
        }
        let until = self.state.shared.now() + SYNCHRONIZE_TIMEOUT_NANOS;
        let awaits_reply = |worker: &Self| {
            let mut senders = worker.senders.iter().filter_map(|slot| worker.connections.get(*slot));
            senders.any(|connection| connection.is_sender() && !connection.is_synchronized)
        };
        while awaits_reply(self) && self.state.shared.now() < until && !self.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        Ok(())
    }

    /// Waits until no deliveries arrive, at most [`DELIVERY_TIMEOUT_NANOS`].
    fn wait_for_quiet(&mut self) -> io::Result<()> {
        let shared = self.state.shared;
        let until = shared.now() + DELIVERY_TIMEOUT_NANOS;
        let (mut delivered, mut quiet_since) = (self.state.counters.delivered, shared.now());
        while shared.now() < until && !self.is_stopped() && shared.now() - quiet_since < QUIET_NANOS {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
            if self.state.counters.delivered != delivered {
                (delivered, quiet_since) = (self.state.counters.delivered, shared.now());
            }
        }
        Ok(())
    }

    /// Lets the clients return, each at its time, until those of all threads are live. Publishers go
    /// on meanwhile.
    fn bring_back(&mut self, recover: &RecoverPlan, cut: &[usize]) -> io::Result<()> {
        let shared = self.state.shared;
        let start = shared.returns_start();
        self.state.window = MeasurementWindow { from: start, to: u64::MAX };
        let max_opening = (MAX_CONCURRENT_RETURNS / self.state.plan.threads).max(1);
        let mut schedule = self.publish_schedule(start);
        let mut waiting = cut.iter().copied().peekable();
        let mut progress = (0, 0);
        let mut progress_at = start;
        // The number of arrivals of all threads, once this thread's clients are live.
        let mut all_threads = None;
        while !self.is_stopped() && all_threads.is_none_or(|all| !shared.has_arrived(all)) {
            let now = shared.now();
            let due = |worker: &Self, slot: usize| {
                let number = worker.connections.get(slot).map_or(0, |connection| connection.spec.number);
                start + Schedule::new(recover.rate, 0, 1).due(number.into())
            };
            let mut next_return = u64::MAX;
            while let Some(slot) = waiting.peek().copied() {
                next_return = due(self, slot);
                if next_return > now || self.opening >= max_opening {
                    break;
                }
                waiting.next();
                let Some(connection) = self.connections.get(slot) else { continue };
                let (spec, returning) = (connection.spec, connection.return_at(next_return));
                self.open(slot, spec, Some(returning));
                progress_at = now;
                next_return = u64::MAX;
            }
            if self.opening >= max_opening {
                // An event tells when another client can be opened.
                next_return = u64::MAX;
            }
            let counters = &self.state.counters.recovery;
            let is_complete = counters.live + counters.ended >= cut.len() as u64;
            let latest = (counters.returned + counters.live, counters.replayed);
            if latest != progress {
                (progress, progress_at) = (latest, now);
            }
            let is_stuck = now.saturating_sub(progress_at) > DELIVERY_TIMEOUT_NANOS;
            if all_threads.is_none() && waiting.peek().is_none() && (is_complete || is_stuck) {
                all_threads = Some(shared.arrive());
            }
            let next = self.publish_due(&mut schedule).min(next_return);
            self.poll_once(next.saturating_sub(shared.now()).min(MAX_POLL_WAIT_NANOS))?;
        }
        self.state.window.to = shared.returns_end();
        Ok(())
    }

    /// Returns the messages of this thread's publishers from `start` on.
    fn publish_schedule(&self, start: u64) -> PublishSchedule {
        let rate = match self.state.plan.load {
            LoadModel::OpenLoop(rate) if rate > 0 => Some(rate),
            _ => None,
        };
        PublishSchedule { start, rate, sent: vec![0; self.senders.len()] }
    }

    /// Publishes the messages that are due, and returns the time of the next one.
    fn publish_due(&mut self, schedule: &mut PublishSchedule) -> u64 {
        let Some(rate) = schedule.rate else { return u64::MAX };
        let (now, senders) = (self.state.shared.now(), self.state.plan.senders() as u64);
        let mut next = u64::MAX;
        for at in 0..self.senders.len() {
            let (Some(slot), Some(sent)) = (self.senders.get(at).copied(), schedule.sent.get_mut(at)) else {
                continue;
            };
            let start = schedule.start;
            self.send_from(slot, |connection, _, state| {
                let times = Schedule::new(rate, u64::from(connection.spec.number), senders);
                for _ in 0..MAX_MESSAGES_PER_TURN {
                    let time = start + times.due(*sent);
                    if time > now || !connection.is_sender() || connection.is_blocked() {
                        break;
                    }
                    connection.write_publish(time, now, state);
                    *sent += 1;
                }
                if connection.is_sender() && !connection.is_blocked() {
                    next = next.min(start + times.due(*sent));
                }
            });
        }
        self.state.flush_counts();
        next
    }
}
