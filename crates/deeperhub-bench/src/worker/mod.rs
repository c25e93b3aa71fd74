//! One thread of the load generator: an event loop over its connections.

mod connector;
mod load;
mod recover;
mod shutdown;

use std::io;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

pub(crate) use connector::Endpoint;

use crate::connection::{Connection, Stage};
use crate::counters::{Counters, DurationHistogram};
use crate::disconnect_reason::DisconnectReason;
use crate::scenario::{Role, Scenario};
use crate::thread_state::ThreadState;
use crate::timer::Timer;

const NANOS_PER_MILLISECOND: u64 = 1_000_000;
/// Longest wait for events. Conditions without an event are checked at this interval.
const MAX_POLL_WAIT_NANOS: u64 = 20 * NANOS_PER_MILLISECOND;
/// Maximum number of connections of the run that open at the same time. Few listeners have a
/// shorter backlog.
const MAX_CONCURRENT_CONNECTS: usize = 256;
/// Longest wait for the next delivery. A lost message must not block the run.
const DELIVERY_TIMEOUT_NANOS: u64 = 3_000 * NANOS_PER_MILLISECOND;
/// Interval at which slow readers send a pong to find out whether they are still connected.
const SLOW_READER_PROBE_NANOS: u64 = 250 * NANOS_PER_MILLISECOND;

const TIMER_TOKEN: Token = Token(usize::MAX);
const WAKER_TOKEN: Token = Token(usize::MAX - 1);

/// An event loop over connections. Connections are identified by their slot, an index into
/// `connections`.
#[derive(Debug)]
pub(crate) struct Worker<'r> {
    state: ThreadState<'r>,
    endpoint: Endpoint,
    poll: Poll,
    events: Events,
    timer: Timer,
    connections: Vec<Connection>,
    /// Slots of connections that send messages.
    senders: Vec<usize>,
    /// Number of connections that have neither opened nor failed.
    opening: usize,
    /// Slots whose connections ended since `churn` last took them.
    ended: Vec<usize>,
    /// Number of the next connection of this thread. It selects the source address.
    next_number: usize,
    /// Time of the next probe of slow readers.
    next_probe: u64,
    /// Time of the next check for connections that did not open in time.
    next_timeout_check: u64,
    /// Number of connections that wait for the server's close frame.
    closing: usize,
    /// Slots whose connections opened since `churn` last took them.
    newly_opened: Vec<usize>,
}

impl<'r> Worker<'r> {
    pub(crate) fn new(state: ThreadState<'r>, endpoint: Endpoint) -> io::Result<Self> {
        let poll = Poll::new()?;
        state.shared.set_waker(state.thread, Waker::new(poll.registry(), WAKER_TOKEN)?);
        Ok(Self {
            timer: Timer::new(poll.registry(), TIMER_TOKEN)?,
            next_number: state.thread,
            state,
            endpoint,
            poll,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            senders: Vec::new(),
            opening: 0,
            ended: Vec::new(),
            next_probe: 0,
            next_timeout_check: 0,
            closing: 0,
            newly_opened: Vec::new(),
        })
    }

    /// Executes the plan and returns the counters.
    ///
    /// # Errors
    ///
    /// If the poll fails. Errors of connections are counted.
    pub(crate) fn run(mut self) -> io::Result<Counters> {
        let scenario = self.state.plan.scenario;
        if scenario != Scenario::Churn {
            self.open_all()?;
        }
        self.state.shared.connected();
        let start = loop {
            match self.state.shared.start() {
                _ if self.state.shared.is_stopped() => return Ok(self.state.into_counters()),
                Some(start) => break start,
                None => self.poll_once(MAX_POLL_WAIT_NANOS)?,
            }
        };
        self.state.window = self.state.plan.measurement_window(start);
        self.state.send_until = self.state.window.to;
        match scenario {
            Scenario::Idle => self.hold_connections()?,
            Scenario::Churn => self.churn()?,
            Scenario::Recover => {
                self.recover(start)?;
                self.drain()?;
            }
            _ => {
                self.send_all(start)?;
                self.drain()?;
            }
        }
        if scenario == Scenario::Slow {
            self.resume_slow_readers()?;
        }
        self.collect_receiver_streams();
        self.close_all()?;
        Ok(self.state.into_counters())
    }

    /// Waits for events, at most `wait` nanoseconds, and processes them.
    fn poll_once(&mut self, wait: u64) -> io::Result<()> {
        let timeout = match wait {
            0 => Duration::ZERO,
            MAX_POLL_WAIT_NANOS.. => Duration::from_nanos(MAX_POLL_WAIT_NANOS),
            exact => self.timer.arm(Duration::from_nanos(exact))?,
        };
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let slot = event.token().0;
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            let previous_stage = connection.stage;
            let result = connection.on_event(event, &mut self.state);
            if previous_stage < Stage::Open && connection.stage == Stage::Open {
                self.opened(slot);
            }
            if let Err(reason) = result {
                self.disconnect(slot, &reason);
            }
        }
        self.events = events;
        if self.opening > 0 {
            self.time_out_connections();
        }
        if self.state.plan.slow_readers > 0 {
            self.probe_slow_readers();
        }
        self.state.flush_counts();
        Ok(())
    }

    /// Sends a pong from each slow reader. If the server has closed the connection, the server's
    /// system responds with a reset.
    fn probe_slow_readers(&mut self) {
        let now = self.state.shared.now();
        if now < self.next_probe {
            return;
        }
        self.next_probe = now + SLOW_READER_PROBE_NANOS;
        for slot in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(slot).filter(|one| one.is_paused()) else {
                continue;
            };
            if let Err(reason) = connection.probe(&mut self.state) {
                self.disconnect(slot, &reason);
            }
        }
    }

    /// Counts the end of a connection and releases its resources.
    fn disconnect(&mut self, slot: usize, reason: &DisconnectReason) {
        use std::sync::atomic::Ordering::Relaxed;

        let Some(connection) = self.connections.get_mut(slot) else { return };
        let (stage, role) = (connection.stage, connection.spec.role);
        connection.release();
        self.ended.push(slot);
        let counters = &mut self.state.counters;
        match stage {
            Stage::Closed => return,
            Stage::Closing => {
                self.closing -= 1;
                if self.state.window.contains(self.state.shared.now()) {
                    counters.cycles += 1;
                }
                return;
            }
            Stage::Open if role == Role::SlowReader => {
                // The scenario expects that the server disconnects slow readers, so this is no
                // error.
                counters.count_slow_disconnect(&reason.kind());
                return;
            }
            Stage::Open => {
                counters.dropped += 1;
                match role {
                    Role::Subscriber => self.state.shared.unsubscribed(connection.topic()),
                    Role::Returner => {
                        let topics = self.state.plan.topics_from(connection.topic());
                        topics.for_each(|topic| self.state.shared.unsubscribed(topic));
                        counters.recovery.ended += u64::from(connection.awaits_replay());
                    }
                    _ => {}
                }
            }
            _ => {
                self.opening -= 1;
                counters.failed += 1;
                self.state.shared.failed.fetch_add(1, Relaxed);
            }
        }
        counters.count_error(&reason.kind());
    }

    /// Keeps connections open until the measured time is over.
    fn hold_connections(&mut self) -> io::Result<()> {
        while self.state.shared.now() < self.state.window.to && !self.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        self.state.shared.finished_sending();
        Ok(())
    }

    /// Opens and closes connections until the measured time is over.
    fn churn(&mut self) -> io::Result<()> {
        let (plan, thread) = (self.state.plan, self.state.thread);
        for spec in plan.connection_specs().skip(thread).step_by(plan.threads) {
            let slot = self.connections.len();
            self.connections.push(Connection::placeholder(spec));
            self.open(slot, spec, None);
        }
        let mut measuring = false;
        while self.state.shared.now() < self.state.window.to && !self.is_stopped() {
            let failed = self.state.counters.failed;
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
            if !measuring && self.state.window.contains(self.state.shared.now()) {
                measuring = true;
                self.state.counters.connect = DurationHistogram::default();
            }
            for slot in std::mem::take(&mut self.newly_opened) {
                self.close(slot);
            }
            for slot in std::mem::take(&mut self.ended) {
                if let Some(spec) = self.connections.get(slot).map(|connection| connection.spec) {
                    self.open(slot, spec, None);
                }
            }
            if self.state.counters.failed > failed {
                if self.state.counters.opened == 0
                    && self.state.counters.failed > self.connections.len() as u64
                {
                    break;
                }
                // Limits CPU use: retries would fail at once.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.state.shared.finished_sending();
        Ok(())
    }

    /// Sends a close frame on an open connection.
    fn close(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let previous_stage = connection.stage;
        let result = connection.close(&mut self.state);
        if previous_stage == Stage::Open && connection.stage == Stage::Closing {
            self.closing += 1;
        }
        if let Err(reason) = result {
            self.disconnect(slot, &reason);
        }
    }

    fn is_stopped(&self) -> bool {
        self.state.shared.is_stopped()
    }
}
