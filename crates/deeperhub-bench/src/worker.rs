//! One thread of the bench: a loop over its connections.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Protocol, Socket, Type};

use crate::connection::{Connection, Stage};
use crate::counters::{Counters, DurationHistogram, ReceiverStream};
use crate::disconnect_reason::DisconnectReason;
use crate::plan::{ConnectionSpec, LoadModel, Role, Scenario, StopCondition};
use crate::schedule::Schedule;
use crate::thread_state::{MeasurementWindow, ThreadState};
use crate::timer::Timer;
use crate::transport::Transport;

const NANOS_PER_MILLISECOND: u64 = 1_000_000;
/// The longest wait for events: so often is looked at what makes none.
const MAX_POLL_WAIT_NANOS: u64 = 20 * NANOS_PER_MILLISECOND;
/// Connections of a run that are being made at the same time; a listener's queue is seldom shorter.
const MAX_CONCURRENT_CONNECTS: usize = 256;
/// How long deliveries are waited for after the last one came.
const DELIVERY_TIMEOUT_NANOS: u64 = 3_000 * NANOS_PER_MILLISECOND;
/// What is waited after the last expected delivery, for those that nobody expects.
const LATE_DELIVERY_WAIT_NANOS: u64 = 50 * NANOS_PER_MILLISECOND;
/// How long the server may take to close.
const CLOSE_TIMEOUT_NANOS: u64 = 2_000 * NANOS_PER_MILLISECOND;
/// How often a slow reader shows that it is there, and sees whether the server still is.
const SLOW_READER_PROBE_NANOS: u64 = 250 * NANOS_PER_MILLISECOND;
/// Messages that one sender sends in one round.
const MAX_MESSAGES_PER_TURN: u32 = 64;
/// The receive buffer of a slow reader, in bytes: small, so that what it does not read is soon the server's matter.
const SLOW_READER_RECEIVE_BUFFER_BYTES: usize = 4096;

const TIMER_TOKEN: Token = Token(usize::MAX);
const WAKER_TOKEN: Token = Token(usize::MAX - 1);

/// Where and how connections are made.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// A thread's loop.
#[derive(Debug)]
pub(crate) struct Worker<'r> {
    state: ThreadState<'r>,
    endpoint: Endpoint,
    poll: Poll,
    events: Events,
    timer: Timer,
    connections: Vec<Connection>,
    /// Those of them that send.
    senders: Vec<usize>,
    /// Connections that are neither ready nor failed.
    opening: usize,
    /// Slots whose connections ended since `churn` last looked.
    ended: Vec<usize>,
    /// Number of the next connection of this thread, for the choice of its source.
    next_number: usize,
    /// When slow readers show next that they are there.
    next_probe: u64,
    /// When is looked next for connections that take too long.
    next_overdue: u64,
    /// Connections that wait for the server's close frame.
    closing: usize,
    /// Connections that got ready since `churn` last looked.
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
            next_overdue: 0,
            closing: 0,
            newly_opened: Vec::new(),
        })
    }

    /// Goes through the run.
    ///
    /// # Errors
    ///
    /// The system's, of the poll; what goes wrong with connections is counted.
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
        self.set_window(start);
        match scenario {
            Scenario::Idle => self.hold_connections()?,
            Scenario::Churn => self.churn()?,
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

    fn set_window(&mut self, start: u64) {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.state.window = match self.state.plan.stop {
            StopCondition::Messages(_) => MeasurementWindow { from: start, to: u64::MAX },
            StopCondition::Time { warmup, measured } => {
                let from = start.saturating_add(nanoseconds(warmup));
                MeasurementWindow { from, to: from.saturating_add(nanoseconds(measured)) }
            }
        };
        self.state.send_until = self.state.window.to;
    }

    /// Opens this thread's share of the connections and waits until each is ready or has failed.
    fn open_all(&mut self) -> io::Result<()> {
        let (plan, thread) = (self.state.plan, self.state.thread);
        let at_a_time = (MAX_CONCURRENT_CONNECTS / plan.threads).max(1);
        // Publishers are dealt out by their number, so that each thread knows whose they are.
        let clients = plan.clients;
        let specs = plan.connection_specs().enumerate().filter(|(at, _)| {
            let number = if *at < clients { *at } else { at - clients };
            number % plan.threads == thread
        });
        for (_, spec) in specs {
            while self.opening >= at_a_time {
                self.poll_once(MAX_POLL_WAIT_NANOS)?;
            }
            if self.state.shared.is_stopped() {
                return Ok(());
            }
            let slot = self.connections.len();
            self.connections.push(Connection::placeholder(spec));
            self.open(slot, spec);
            if matches!(spec.role, Role::Echo | Role::Publisher) {
                self.senders.push(slot);
            }
            if slot.is_multiple_of(at_a_time) {
                self.poll_once(0)?;
            }
        }
        while self.opening > 0 && !self.state.shared.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        Ok(())
    }

    /// Begins the connection of a slot.
    fn open(&mut self, slot: usize, spec: ConnectionSpec) {
        let source = self.state.plan.source(self.next_number);
        self.next_number += self.state.plan.threads;
        let registry = self.poll.registry();
        let connection = connect(&self.endpoint, source, spec.role).and_then(|mut transport| {
            registry.register(transport.socket(), Token(slot), Interest::READABLE | Interest::WRITABLE)?;
            Ok(Connection::new(spec, transport, &mut self.state))
        });
        let Some(entry) = self.connections.get_mut(slot) else { return };
        self.opening += 1;
        match connection {
            Ok(connection) => *entry = connection,
            Err(error) => {
                *entry = Connection::placeholder(spec);
                self.disconnect(slot, &DisconnectReason::ConnectFailed(error));
            }
        }
    }

    /// Waits for events, at most so many nanoseconds, and does what they make possible.
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
            let before = connection.stage;
            let result = connection.on_event(event, &mut self.state);
            if before < Stage::Open && connection.stage == Stage::Open {
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

    /// Has slow readers show that they are there. One that the server has let go of learns it by the answer.
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

    fn opened(&mut self, slot: usize) {
        use std::sync::atomic::Ordering::Relaxed;

        let Some(connection) = self.connections.get(slot) else { return };
        self.opening -= 1;
        self.state.counters.opened += 1;
        self.state.counters.last_opened = self.state.shared.now();
        self.state.shared.opened.fetch_add(1, Relaxed);
        match connection.spec.role {
            Role::Subscriber => self.state.shared.subscribed(connection.topic()),
            Role::Churner => self.newly_opened.push(slot),
            _ => {}
        }
    }

    /// Counts the end of a connection and server_no_context_takeover it.
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
                // What is to be expected of it; it is no error.
                counters.count_slow_disconnect(&reason.kind());
                return;
            }
            Stage::Open => {
                counters.dropped += 1;
                if role == Role::Subscriber {
                    self.state.shared.unsubscribed(connection.topic());
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

    /// Ends connections that take too long to get ready.
    fn time_out_connections(&mut self) {
        let now = self.state.shared.now();
        if now < self.next_overdue {
            return;
        }
        self.next_overdue = now + MAX_POLL_WAIT_NANOS;
        let limit = u64::try_from(self.state.plan.connect_timeout.as_nanos()).unwrap_or(u64::MAX);
        let overdue: Vec<_> = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| {
                connection.stage < Stage::Open && now.saturating_sub(connection.connect_started) > limit
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in overdue {
            self.disconnect(slot, &DisconnectReason::OpenTimedOut);
        }
    }

    fn hold_connections(&mut self) -> io::Result<()> {
        while self.state.shared.now() < self.state.window.to && !self.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        self.state.shared.finished_sending();
        Ok(())
    }

    fn churn(&mut self) -> io::Result<()> {
        let (plan, thread) = (self.state.plan, self.state.thread);
        for spec in plan.connection_specs().skip(thread).step_by(plan.threads) {
            let slot = self.connections.len();
            self.connections.push(Connection::placeholder(spec));
            self.open(slot, spec);
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
                    self.open(slot, spec);
                }
            }
            if self.state.counters.failed > failed {
                if self.state.counters.opened == 0
                    && self.state.counters.failed > self.connections.len() as u64
                {
                    break;
                }
                // What fails at once would fail again at once, millions of times.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.state.shared.finished_sending();
        Ok(())
    }

    /// Sends a close frame.
    fn close(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let before = connection.stage;
        let result = connection.close(&mut self.state);
        if before == Stage::Open && connection.stage == Stage::Closing {
            self.closing += 1;
        }
        if let Err(reason) = result {
            self.disconnect(slot, &reason);
        }
    }

    /// Sends until the time or the messages are over.
    fn send_all(&mut self, start: u64) -> io::Result<()> {
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

    fn is_stopped(&self) -> bool {
        self.state.shared.is_stopped()
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

    /// Waits for what is still under way.
    fn drain(&mut self) -> io::Result<()> {
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

    /// Reads what slow readers left, to see how each of them ended.
    fn resume_slow_readers(&mut self) -> io::Result<()> {
        for slot in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(slot).filter(|one| one.is_paused()) else {
                continue;
            };
            if let Err(reason) = connection.resume(&mut self.state) {
                self.disconnect(slot, &reason);
            }
        }
        let mut seen = (0, 0);
        let mut until = self.state.shared.now() + DELIVERY_TIMEOUT_NANOS / 3;
        while self.state.shared.now() < until && !self.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
            let counters = &self.state.counters;
            let now = (counters.slow_received, counters.slow_disconnects.values().sum::<u64>());
            if now != seen {
                seen = now;
                until = self.state.shared.now() + DELIVERY_TIMEOUT_NANOS / 3;
            }
        }
        Ok(())
    }

    /// Keeps the summaries of receivers that stayed to the end.
    fn collect_receiver_streams(&mut self) {
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

    /// Closes what is open and waits a moment for the server's answers.
    fn close_all(&mut self) -> io::Result<()> {
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

fn connect(endpoint: &Endpoint, source: Option<SocketAddr>, role: Role) -> io::Result<Transport> {
    let session = match &endpoint.tls {
        None => None,
        Some((config, name)) => {
            let session = ClientConnection::new(Arc::clone(config), name.clone());
            Some(session.map_err(io::Error::other)?)
        }
    };
    let socket = Socket::new(Domain::for_address(endpoint.address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if role == Role::SlowReader {
        socket.set_recv_buffer_size(SLOW_READER_RECEIVE_BUFFER_BYTES)?;
    }
    if let Some(source) = source {
        socket.bind(&source.into()).map_err(|error| match error.kind() {
            io::ErrorKind::AddrNotAvailable => {
                io::Error::other(format!("--source {} is no address of this machine", source.ip()))
            }
            _ => error,
        })?;
    }
    match socket.connect(&endpoint.address.into()) {
        Ok(()) => {}
        Err(error) if is_in_progress(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(Transport::new(mio::net::TcpStream::from_std(socket.into()), session))
}

fn is_in_progress(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}
