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

use super::connection::{Connection, Stage};
use super::end::End;
use super::local::{Local, Window};
use super::plan::{Extent, Pace, Place, Role, Scenario};
use super::schedule::Schedule;
use super::tally::{Account, Tally, Times};
use super::timer::Timer;
use super::transport::Transport;

const MILLISECOND: u64 = 1_000_000;
/// The longest wait for events: so often is looked at what makes none.
const TICK: u64 = 20 * MILLISECOND;
/// Connections of a run that are being made at the same time; a listener's queue is seldom shorter.
const CONNECTING_AT_A_TIME: usize = 256;
/// How long deliveries are waited for after the last one came.
const PATIENCE: u64 = 3_000 * MILLISECOND;
/// What is waited after the last expected delivery, for those that nobody expects.
const AFTER_ALL: u64 = 50 * MILLISECOND;
/// How long the server may take to close.
const CLOSING: u64 = 2_000 * MILLISECOND;
/// How often a slow reader shows that it is there, and sees whether the server still is.
const PROBE: u64 = 250 * MILLISECOND;
/// Messages that one sender sends in one round.
const BURST: u32 = 64;
/// The receive buffer of a slow reader, in bytes: small, so that what it does not read is soon the server's matter.
const SLOW_BUFFER: usize = 4096;

const TIMER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// Where and how connections are made.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// A thread's loop.
#[derive(Debug)]
pub(super) struct Worker<'r> {
    local: Local<'r>,
    remote: Remote,
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
    newly_open: Vec<usize>,
}

impl<'r> Worker<'r> {
    pub(super) fn new(local: Local<'r>, remote: Remote) -> io::Result<Self> {
        let poll = Poll::new()?;
        local.shared.set_waker(local.thread, Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            timer: Timer::new(poll.registry(), TIMER)?,
            next_number: local.thread,
            local,
            remote,
            poll,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            senders: Vec::new(),
            opening: 0,
            ended: Vec::new(),
            next_probe: 0,
            next_overdue: 0,
            closing: 0,
            newly_open: Vec::new(),
        })
    }

    /// Goes through the run.
    ///
    /// # Errors
    ///
    /// The system's, of the poll; what goes wrong with connections is counted.
    pub(super) fn run(mut self) -> io::Result<Tally> {
        let scenario = self.local.plan.scenario;
        if scenario != Scenario::Churn {
            self.open_all()?;
        }
        self.local.shared.connected();
        let start = loop {
            match self.local.shared.start() {
                _ if self.local.shared.is_stopped() => return Ok(self.local.into_tally()),
                Some(start) => break start,
                None => self.pump(TICK)?,
            }
        };
        self.set_window(start);
        match scenario {
            Scenario::Idle => self.hold()?,
            Scenario::Churn => self.churn()?,
            _ => {
                self.send_all(start)?;
                self.drain()?;
            }
        }
        if scenario == Scenario::Slow {
            self.let_slow_readers_read()?;
        }
        self.settle_accounts();
        self.close_all()?;
        Ok(self.local.into_tally())
    }

    fn set_window(&mut self, start: u64) {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.local.window = match self.local.plan.extent {
            Extent::Messages(_) => Window { from: start, to: u64::MAX },
            Extent::Time { warmup, measured } => {
                let from = start.saturating_add(nanoseconds(warmup));
                Window { from, to: from.saturating_add(nanoseconds(measured)) }
            }
        };
        self.local.send_until = self.local.window.to;
    }

    /// Opens this thread's share of the connections and waits until each is ready or has failed.
    fn open_all(&mut self) -> io::Result<()> {
        let (plan, thread) = (self.local.plan, self.local.thread);
        let at_a_time = (CONNECTING_AT_A_TIME / plan.threads).max(1);
        // Publishers are dealt out by their number, so that each thread knows whose they are.
        let clients = plan.clients;
        let places = plan.places().enumerate().filter(|(at, _)| {
            let number = if *at < clients { *at } else { at - clients };
            number % plan.threads == thread
        });
        for (_, place) in places {
            while self.opening >= at_a_time {
                self.pump(TICK)?;
            }
            if self.local.shared.is_stopped() {
                return Ok(());
            }
            let slot = self.connections.len();
            self.connections.push(Connection::missing(place));
            self.open(slot, place);
            if matches!(place.role, Role::Echo | Role::Publisher) {
                self.senders.push(slot);
            }
            if slot.is_multiple_of(at_a_time) {
                self.pump(0)?;
            }
        }
        while self.opening > 0 && !self.local.shared.is_stopped() {
            self.pump(TICK)?;
        }
        Ok(())
    }

    /// Begins the connection of a slot.
    fn open(&mut self, slot: usize, place: Place) {
        let source = self.local.plan.source(self.next_number);
        self.next_number += self.local.plan.threads;
        let registry = self.poll.registry();
        let connection = connect(&self.remote, source, place.role).and_then(|mut transport| {
            registry.register(transport.socket(), Token(slot), Interest::READABLE | Interest::WRITABLE)?;
            Ok(Connection::new(place, transport, &mut self.local))
        });
        let Some(place_of_slot) = self.connections.get_mut(slot) else { return };
        self.opening += 1;
        match connection {
            Ok(connection) => *place_of_slot = connection,
            Err(error) => {
                *place_of_slot = Connection::missing(place);
                self.end(slot, &End::Connect(error));
            }
        }
    }

    /// Waits for events, at most so many nanoseconds, and does what they make possible.
    fn pump(&mut self, wait: u64) -> io::Result<()> {
        let timeout = match wait {
            0 => Duration::ZERO,
            TICK.. => Duration::from_nanos(TICK),
            exact => self.timer.wait_at_most(Duration::from_nanos(exact))?,
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
            let result = connection.on_event(event, &mut self.local);
            if before < Stage::Open && connection.stage == Stage::Open {
                self.opened(slot);
            }
            if let Err(end) = result {
                self.end(slot, &end);
            }
        }
        self.events = events;
        if self.opening > 0 {
            self.end_overdue();
        }
        if self.local.plan.slow_readers > 0 {
            self.probe_slow_readers();
        }
        self.local.end_round();
        Ok(())
    }

    /// Has slow readers show that they are there. One that the server has let go of learns it by the answer.
    fn probe_slow_readers(&mut self) {
        let now = self.local.shared.now();
        if now < self.next_probe {
            return;
        }
        self.next_probe = now + PROBE;
        for slot in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(slot).filter(|one| one.is_paused()) else {
                continue;
            };
            if let Err(end) = connection.probe(&mut self.local) {
                self.end(slot, &end);
            }
        }
    }

    fn opened(&mut self, slot: usize) {
        use std::sync::atomic::Ordering::Relaxed;

        let Some(connection) = self.connections.get(slot) else { return };
        self.opening -= 1;
        self.local.tally.opened += 1;
        self.local.tally.last_opened = self.local.shared.now();
        self.local.shared.opened.fetch_add(1, Relaxed);
        match connection.place.role {
            Role::Subscriber => self.local.shared.subscribed(connection.topic()),
            Role::Churner => self.newly_open.push(slot),
            _ => {}
        }
    }

    /// Counts the end of a connection and forgets it.
    fn end(&mut self, slot: usize, end: &End) {
        use std::sync::atomic::Ordering::Relaxed;

        let Some(connection) = self.connections.get_mut(slot) else { return };
        let (stage, role) = (connection.stage, connection.place.role);
        connection.forget();
        self.ended.push(slot);
        let tally = &mut self.local.tally;
        match stage {
            Stage::Gone => return,
            Stage::Closing => {
                self.closing -= 1;
                if self.local.window.contains(self.local.shared.now()) {
                    tally.cycles += 1;
                }
                return;
            }
            Stage::Open if role == Role::SlowReader => {
                // What is to be expected of it; it is no error.
                tally.slow_end(&end.kind());
                return;
            }
            Stage::Open => {
                tally.dropped += 1;
                if role == Role::Subscriber {
                    self.local.shared.unsubscribed(connection.topic());
                }
            }
            _ => {
                self.opening -= 1;
                tally.failed += 1;
                self.local.shared.failed.fetch_add(1, Relaxed);
            }
        }
        tally.error(&end.kind());
    }

    /// Ends connections that take too long to get ready.
    fn end_overdue(&mut self) {
        let now = self.local.shared.now();
        if now < self.next_overdue {
            return;
        }
        self.next_overdue = now + TICK;
        let limit = u64::try_from(self.local.plan.connect_timeout.as_nanos()).unwrap_or(u64::MAX);
        let overdue: Vec<_> = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| {
                connection.stage < Stage::Open && now.saturating_sub(connection.began) > limit
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in overdue {
            self.end(slot, &End::TimedOut);
        }
    }

    fn hold(&mut self) -> io::Result<()> {
        while self.local.shared.now() < self.local.window.to && !self.is_stopped() {
            self.pump(TICK)?;
        }
        self.local.shared.finished_sending();
        Ok(())
    }

    fn churn(&mut self) -> io::Result<()> {
        let (plan, thread) = (self.local.plan, self.local.thread);
        for place in plan.places().skip(thread).step_by(plan.threads) {
            let slot = self.connections.len();
            self.connections.push(Connection::missing(place));
            self.open(slot, place);
        }
        let mut measuring = false;
        while self.local.shared.now() < self.local.window.to && !self.is_stopped() {
            let failed = self.local.tally.failed;
            self.pump(TICK)?;
            if !measuring && self.local.window.contains(self.local.shared.now()) {
                measuring = true;
                self.local.tally.connect = Times::default();
            }
            for slot in std::mem::take(&mut self.newly_open) {
                self.close(slot);
            }
            for slot in std::mem::take(&mut self.ended) {
                if let Some(place) = self.connections.get(slot).map(|connection| connection.place) {
                    self.open(slot, place);
                }
            }
            if self.local.tally.failed > failed {
                if self.local.tally.opened == 0 && self.local.tally.failed > self.connections.len() as u64 {
                    break;
                }
                // What fails at once would fail again at once, millions of times.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.local.shared.finished_sending();
        Ok(())
    }

    /// Sends a close frame.
    fn close(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let before = connection.stage;
        let result = connection.close(&mut self.local);
        if before == Stage::Open && connection.stage == Stage::Closing {
            self.closing += 1;
        }
        if let Err(end) = result {
            self.end(slot, &end);
        }
    }

    /// Sends until the time or the messages are over.
    fn send_all(&mut self, start: u64) -> io::Result<()> {
        while self.local.shared.now() < start && !self.is_stopped() {
            self.pump(start.saturating_sub(self.local.shared.now()))?;
        }
        match self.local.plan.pace {
            Pace::Rate(rate) => self.send_at_rate(rate, start)?,
            Pace::InFlight(in_flight) if self.local.plan.scenario == Scenario::Echo => {
                self.send_echoes(in_flight)?;
            }
            Pace::InFlight(in_flight) => self.send_publishes(in_flight)?,
        }
        self.local.end_round();
        self.local.shared.finished_sending();
        Ok(())
    }

    /// Whether this thread has anything left to send.
    fn has_senders(&self) -> bool {
        let mut senders = self.senders.iter().filter_map(|slot| self.connections.get(*slot));
        senders.any(Connection::is_sender)
    }

    fn is_stopped(&self) -> bool {
        self.local.shared.is_stopped()
    }

    /// Echoes in a closed loop: after the first, each answer sends the next.
    fn send_echoes(&mut self, in_flight: u32) -> io::Result<()> {
        for slot in self.senders.clone() {
            self.send_from(slot, |connection, now, local| {
                (0..in_flight).for_each(|_| connection.write_echo(now, now, local));
            });
            // Answers may already be there; waiting for all to be asked would make the first seem slow.
            self.pump(0)?;
        }
        let mut next_look = 0;
        loop {
            let now = self.local.shared.now();
            if now >= self.local.send_until || self.is_stopped() {
                return Ok(());
            }
            if now >= next_look {
                if !self.has_senders() {
                    return Ok(());
                }
                next_look = now + TICK;
            }
            self.pump(TICK.min(self.local.send_until - now))?;
        }
    }

    /// Publishes in a closed loop: the next when deliveries of earlier ones are in.
    fn send_publishes(&mut self, in_flight: u32) -> io::Result<()> {
        let mut waits = vec![Wait::default(); self.senders.len()];
        loop {
            let now = self.local.shared.now();
            if now >= self.local.send_until || self.is_stopped() || !self.has_senders() {
                return Ok(());
            }
            let mut again = false;
            for at in 0..self.senders.len() {
                let (Some(slot), Some(wait)) = (self.senders.get(at), waits.get_mut(at)) else { continue };
                again |= self.publish_what_may_be(*slot, in_flight, now, wait);
            }
            self.local.end_round();
            let wait = if again { 0 } else { TICK.min(self.local.send_until - now) };
            self.pump(wait)?;
        }
    }

    /// Publishes as much as may be under way; whether there is more to publish at once.
    fn publish_what_may_be(&mut self, slot: usize, in_flight: u32, now: u64, wait: &mut Wait) -> bool {
        let Some(connection) = self.connections.get(slot).filter(|connection| connection.is_sender()) else {
            return false;
        };
        let (plan, shared) = (self.local.plan, self.local.shared);
        let publisher = connection.place.number;
        let done = wait.done(shared.done(publisher as usize), connection.expected, now);
        if wait.gave_up {
            self.local.tally.stalls += 1;
        }
        let mut goal = 0;
        let mut again = false;
        self.send_from(slot, |connection, now, local| {
            for _ in 0..BURST {
                let topic = plan.topic_of(plan.stream_of(publisher, connection.sent));
                let deliveries = shared.subscribers(topic);
                let may_be_under_way = u64::from(in_flight - 1) * deliveries;
                if connection.expected.saturating_sub(done) > may_be_under_way {
                    goal = connection.expected.saturating_sub(may_be_under_way);
                    return;
                }
                if !connection.is_sender() {
                    return;
                }
                connection.write_publish(now, now, local);
                if deliveries == 0 {
                    // Nobody is left who could set the pace.
                    return;
                }
            }
            again = true;
        });
        if goal > 0 {
            shared.set_goal(publisher as usize, goal.saturating_sub(wait.written_off));
            // Other threads may have brought the last of them while the goal was being set.
            again |= shared.done(publisher as usize) + wait.written_off >= goal;
        }
        again
    }

    /// Sends what is due when it is due.
    fn send_at_rate(&mut self, rate: u64, start: u64) -> io::Result<()> {
        let senders = self.local.plan.senders() as u64;
        let schedule =
            |connection: &Connection| Schedule::new(rate, u64::from(connection.place.number), senders);
        let mut due: BinaryHeap<Reverse<(u64, usize)>> = self
            .senders
            .iter()
            .filter_map(|slot| Some(Reverse((start + schedule(self.connections.get(*slot)?).due(0), *slot))))
            .collect();
        // Senders whose sockets take no more for the moment: their messages wait, and the wait counts.
        let mut blocked: Vec<usize> = Vec::new();
        let mut next_look = 0;
        loop {
            let now = self.local.shared.now();
            let over = now >= self.local.send_until;
            if self.is_stopped() || (now >= next_look && !self.has_senders()) {
                break;
            }
            next_look = if now >= next_look { now + TICK } else { next_look };
            let until = now.min(self.local.send_until.saturating_sub(1));
            while let Some(Reverse((time, slot))) = due.peek().copied()
                && time <= until
            {
                due.pop();
                let mut next = None;
                self.send_from(slot, |connection, now, local| {
                    let schedule = schedule(connection);
                    for _ in 0..BURST {
                        let time = start + schedule.due(connection.sent);
                        if time > until || !connection.is_sender() {
                            break;
                        }
                        match connection.place.role {
                            Role::Echo => connection.write_echo(time, now, local),
                            _ => connection.write_publish(time, now, local),
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
            self.local.end_round();
            if over {
                break;
            }
            let next = due.peek().map_or(u64::MAX, |Reverse((time, _))| *time).min(self.local.send_until);
            self.pump(next.saturating_sub(self.local.shared.now()).min(TICK))?;
            blocked.retain(|slot| match self.connections.get(*slot) {
                Some(connection) if connection.is_blocked() => true,
                Some(connection) if connection.is_sender() => {
                    due.push(Reverse((start + schedule(connection).due(connection.sent), *slot)));
                    false
                }
                _ => false,
            });
        }
        let time = self.local.send_until.min(self.local.shared.now()).saturating_sub(start);
        for connection in self.senders.iter().filter_map(|slot| self.connections.get(*slot)) {
            let due =
                schedule(connection).due_before(time).min(self.local.plan.quota(connection.place.number));
            self.local.tally.unsent += due.saturating_sub(connection.sent);
        }
        Ok(())
    }

    /// Lets a connection write, and sends it.
    fn send_from(&mut self, slot: usize, write: impl FnOnce(&mut Connection, u64, &mut Local<'r>)) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let now = self.local.shared.now();
        write(connection, now, &mut self.local);
        if let Err(end) = connection.send(&mut self.local) {
            self.end(slot, &end);
        }
    }

    /// Waits for what is still under way.
    fn drain(&mut self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Acquire;

        let shared = self.local.shared;
        let (mut delivered, mut since) = (0, shared.now());
        loop {
            self.pump(TICK)?;
            let (now, sending) = (shared.now(), shared.is_sending());
            let so_far = shared.delivered.load(Acquire);
            if shared.is_stopped() || (!sending && so_far >= shared.expected.load(Acquire)) {
                break;
            }
            if so_far != delivered || sending {
                (delivered, since) = (so_far, now);
            } else if now - since > PATIENCE {
                break;
            }
        }
        let end = shared.now() + AFTER_ALL;
        while shared.now() < end {
            self.pump(TICK)?;
        }
        Ok(())
    }

    /// Reads what slow readers left, to see how each of them ended.
    fn let_slow_readers_read(&mut self) -> io::Result<()> {
        for slot in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(slot).filter(|one| one.is_paused()) else {
                continue;
            };
            if let Err(end) = connection.resume(&mut self.local) {
                self.end(slot, &end);
            }
        }
        let mut seen = (0, 0);
        let mut until = self.local.shared.now() + PATIENCE / 3;
        while self.local.shared.now() < until && !self.is_stopped() {
            self.pump(TICK)?;
            let tally = &self.local.tally;
            let now = (tally.slow_received, tally.slow_ends.values().sum::<u64>());
            if now != seen {
                seen = now;
                until = self.local.shared.now() + PATIENCE / 3;
            }
        }
        Ok(())
    }

    /// Keeps the balances of receivers that stayed to the end.
    fn settle_accounts(&mut self) {
        if !self.local.plan.scenario.has_messages() {
            return;
        }
        let mut accounts = Vec::new();
        for connection in &self.connections {
            let role = connection.place.role;
            if connection.stage == Stage::Open && matches!(role, Role::Echo | Role::Subscriber) {
                let balances = self.local.accounts(connection.accounts(), connection.topic());
                accounts
                    .extend(balances.map(|(stream, ledger)| Account { stream, balance: ledger.balance() }));
            }
        }
        self.local.tally.accounts = accounts;
    }

    /// Closes what is open and waits a moment for the server's answers.
    fn close_all(&mut self) -> io::Result<()> {
        for slot in 0..self.connections.len() {
            self.close(slot);
            if slot % CONNECTING_AT_A_TIME == 0 {
                self.pump(0)?;
            }
        }
        let end = self.local.shared.now() + CLOSING;
        while self.closing > 0 && self.local.shared.now() < end {
            self.pump(TICK)?;
        }
        Ok(())
    }
}

/// What a publisher of a closed loop waits for.
#[derive(Debug, Clone, Default)]
struct Wait {
    /// Deliveries that came, when that last changed.
    done: u64,
    since: u64,
    /// Deliveries that it no longer waits for.
    written_off: u64,
    gave_up: bool,
}

impl Wait {
    /// Deliveries that came or are no longer waited for. When none has come for a while, that is all of them: what
    /// was lost must not stop the loop for ever.
    fn done(&mut self, done: u64, expected: u64, now: u64) -> u64 {
        self.gave_up = false;
        if done != self.done || self.since == 0 || done + self.written_off >= expected {
            (self.done, self.since) = (done, now);
        } else if now - self.since > PATIENCE {
            self.written_off = expected.saturating_sub(done);
            self.since = now;
            self.gave_up = true;
        }
        done + self.written_off
    }
}

fn connect(remote: &Remote, source: Option<SocketAddr>, role: Role) -> io::Result<Transport> {
    let session = match &remote.tls {
        None => None,
        Some((config, name)) => {
            let session = ClientConnection::new(Arc::clone(config), name.clone());
            Some(session.map_err(io::Error::other)?)
        }
    };
    let socket = Socket::new(Domain::for_address(remote.address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if role == Role::SlowReader {
        socket.set_recv_buffer_size(SLOW_BUFFER)?;
    }
    if let Some(source) = source {
        socket.bind(&source.into()).map_err(|error| match error.kind() {
            io::ErrorKind::AddrNotAvailable => {
                io::Error::other(format!("--source {} is no address of this machine", source.ip()))
            }
            _ => error,
        })?;
    }
    match socket.connect(&remote.address.into()) {
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
