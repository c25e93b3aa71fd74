//! One thread's loop over its connections.

mod intake;
mod liveness;
#[cfg(feature = "io-uring")]
mod reads;
mod shed;
mod supervise;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_metrics::{CounterCell, GaugeCell, HistogramCell};
use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::{self, Refusal};
use deeperhub_protocol::{CloseCode, CloseReason};

use crate::connections::{Closing, Connection, Connections, Core, Flags, Sign, State};
use crate::control::{Arrival, Control, Phase};
use crate::drain::Drain;
use crate::handshake::{Asked, Handshake, Proxied, write_ready};
use crate::metrics::{CoderCells, Outcome};
use crate::outbox::Outbox;
use crate::round::{HANDSHAKE_COST, Turn};
use crate::session::{Application, Closed, Context, Local, Peer, Session};
use crate::transport::Transport;
use crate::waker::ConnectionWaker;

pub(crate) use supervise::{run, runtime};

/// New connections of one round.
const ARRIVALS_PER_ROUND: usize = 64;

/// Bytes of the read buffer that all connections of a worker share.
const SCRATCH: usize = 64 * 1024;

/// The longest wait for more messages of a burst.
const MAX_HOLD: Duration = Duration::from_micros(500);

/// Slots of the slab that one round looks at for deadlines.
const TICK_SLICE: usize = 4096;

/// What is kept of the buffers of a round that was larger.
const KEEP: usize = 256 * 1024;

/// Numbers of this worker.
pub(crate) struct WorkerCells {
    pub(crate) received: CounterCell,
    pub(crate) sent: CounterCell,
    /// Turns that ended with bytes read but not handled.
    pub(crate) deferred: CounterCell,
    pub(crate) queue: GaugeCell,
    /// Whether it writes in batches.
    pub(crate) io_uring: GaugeCell,
    pub(crate) coders: CoderCells,
    /// Time of each round.
    pub(crate) round: HistogramCell,
}

pub(crate) struct Worker<'a, A: Application> {
    application: &'a A,
    local: A::Local,
    core: &'a mut Core<A::Session>,
    control: &'a Control,
    index: usize,
    cells: &'a mut WorkerCells,
    scratch: Vec<u8>,
    /// Room for the reads of a batch; empty until there is one.
    #[cfg(feature = "io-uring")]
    slots: Vec<u8>,
    started: Instant,
    sleep: Pin<Box<tokio::time::Sleep>>,
    next_tick: Instant,
    /// The last measurement of memory that was acted upon.
    shed_seen: u64,
    /// Where the look at deadlines goes on; `None` between two of them.
    tick_at: Option<usize>,
    queued: i64,
    drain: Option<Drain>,
    /// Not to begin a round before: see [`hold`].
    hold_until: Option<Instant>,
    stopped: bool,
}

impl<'a, A: Application> Worker<'a, A> {
    /// Must be called on the worker's thread, within its runtime.
    pub(crate) fn new(
        application: &'a A,
        index: usize,
        core: &'a mut Core<A::Session>,
        control: &'a Control,
        cells: &'a mut WorkerCells,
    ) -> Self {
        let now = Instant::now();
        Self {
            application,
            local: application.local(index),
            core,
            control,
            index,
            cells,
            scratch: vec![0; SCRATCH],
            #[cfg(feature = "io-uring")]
            slots: Vec::new(),
            started: now,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            next_tick: now,
            shed_seen: 0,
            tick_at: None,
            queued: 0,
            drain: None,
            hold_until: None,
            stopped: false,
        }
    }

    /// One round. `Ready` only when the worker was told to stop.
    pub(crate) fn poll_round(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if let Some(wait) = self.hold_until.take().and_then(|until| until.checked_duration_since(now)) {
            std::thread::sleep(wait);
            // By way of the reactor, which has what came meanwhile.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.core.begin_round(now);
        let mut more = self.take_arrivals();
        if self.stopped {
            return Poll::Ready(());
        }
        self.poll_ready();

        // Own sessions' publishes are in the inbox by now, so that they leave in this round.
        let mut connections = Connections { core: self.core };
        more |= self.local.poll(cx, &mut connections).is_ready();
        self.close_listed();
        self.tick();
        self.shed();
        self.write_dirty();
        let written = Instant::now();
        self.local.written(written);
        self.cells.round.observe_duration(written.saturating_duration_since(self.core.now));

        self.cells.received.add(std::mem::take(&mut self.core.received));
        self.cells.sent.add(std::mem::take(&mut self.core.sent));
        let deferred = std::mem::take(&mut self.core.deferred);
        if deferred > 0 {
            self.cells.deferred.add(deferred);
        }
        self.cells.coders.take(&mut self.core.coders);
        self.core.metrics.tls(std::mem::take(&mut self.core.records.ended));
        if self.core.gather.capacity() > KEEP {
            self.core.gather = Vec::new();
        }

        more |= self.tick_at.is_some() || !self.core.dirty.is_empty();
        // While the intake limit is used up, waiting connections are no reason to go on.
        let has_waiting = !self.core.turn.is_empty() || !self.core.backlog.is_empty();
        more |= has_waiting && !self.core.intake.is_used_up();
        if !more && self.core.is_in_burst() {
            self.hold_until = Some(written + hold(written.saturating_duration_since(self.core.now)));
        }
        if more || !self.fall_asleep(cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Arms the wake-ups. False: there is something to do already.
    fn fall_asleep(&mut self, cx: &mut task::Context<'_>) -> bool {
        let mut until = self.next_tick;
        if self.core.paused > 0 || self.core.intake.is_used_up() {
            until = until.min(self.core.now + Duration::from_millis(5));
        }
        if let Some(drain) = &mut self.drain
            && let Some(due) = drain.due(self.core.open)
        {
            until = until.min(due);
        }
        self.sleep.as_mut().reset(until.into());
        self.sleep.as_mut().poll_unpin_pending(cx) && self.core.ready.sleep(cx.waker())
    }

    /// Reads the listener's phase and takes new connections, if the mailbox was notified. Returns
    /// `true` if more may be queued.
    fn take_arrivals(&mut self) -> bool {
        let mailbox = self.control.mailbox(self.index);
        if !mailbox.take_notification() {
            return false;
        }
        match self.control.phase() {
            Phase::Running => {}
            Phase::Draining(plan) => {
                if self.drain.as_ref().is_none_or(|drain| !drain.is_of(&plan)) {
                    self.drain = Some(Drain::new(plan));
                }
            }
            Phase::Stopping => {
                self.stopped = true;
                return false;
            }
        }
        for _ in 0..ARRIVALS_PER_ROUND {
            let Some(arrival) = mailbox.pop() else { return false };
            let waited = self.core.now.saturating_duration_since(arrival.since);
            self.core.metrics.accept_seconds.observe_duration(waited);
            self.arrive(arrival);
        }
        mailbox.look_again(self.core.now);
        true
    }

    fn arrive(&mut self, Arrival { socket, peer, place, refusal, since }: Arrival) {
        let proxied =
            if self.core.config.trusted_proxies.trusts(peer.ip()) { Proxied::Header } else { Proxied::No };
        let transport = match Transport::new(socket, &self.core.config, proxied == Proxied::Header) {
            Ok(transport) => transport,
            Err(error) => {
                self.core.metrics.handshake(Outcome::Lost);
                tracing::debug!(%error, "A socket could not be registered.");
                return;
            }
        };
        // One that is refused anyway may keep a place of its own only shortly.
        let timeout = match refusal {
            Some(_) => self.core.config.handshake_timeout.min(Duration::from_secs(2)),
            None => self.core.config.handshake_timeout,
        };
        let deadline = self.deadline(timeout);
        let entry = self.core.connections.vacant_entry();
        let Ok(key) = u32::try_from(entry.key()) else { return };
        entry.insert(Connection {
            transport,
            waker: ConnectionWaker::waker(key, &self.core.ready),
            state: State::Handshake(Box::new(Handshake::new(peer, proxied, refusal, since))),
            decoder: frame::FrameDecoder::new(),
            outbox: Outbox::default(),
            deadline,
            flags: Flags::default(),
            place,
        });
        self.core.arrived.push(key);
    }

    /// Milliseconds of the worker's clock. Wraps after 49 days; deadlines are compared by their difference.
    fn clock(&self) -> u32 {
        self.core.now.duration_since(self.started).as_millis() as u32
    }

    fn deadline(&self, after: Duration) -> u32 {
        deadline(self.clock(), after)
    }

    /// When an open connection is to be pinged that needs none before.
    fn next_ping(&self) -> u32 {
        let interval = self.core.config.ping_interval;
        self.deadline(if interval.is_zero() { Duration::from_secs(3600) } else { interval })
    }

    /// Takes in what came of a handshake.
    fn shake_hands(&mut self, key: u32, bytes: &[u8], turn: &mut Turn) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        if handshake.proxied == Proxied::Header {
            return self.preface(key, bytes, turn);
        }
        match handshake.feed(bytes, &core.config, &core.metrics) {
            None => {}
            Some(Err(refusal)) => self.refuse(key, &refusal),
            Some(Ok(Asked::Probe)) => self.answer_probe(key),
            Some(Ok(Asked::Upgrade(request, accept_key))) => {
                if let Some(drain) = &self.drain {
                    let refusal = Refusal::draining(drain.slot(core.now));
                    return self.refuse(key, &refusal);
                }
                if handshake.proxied == Proxied::Request {
                    let told = handshake.hear_of_client(
                        &request,
                        &core.config,
                        &mut connection.place,
                        &core.metrics,
                    );
                    if let Err(refusal) = told {
                        return self.refuse(key, &refusal);
                    }
                }
                let peer = Peer {
                    address: handshake.peer,
                    tls: connection.transport.is_tls(),
                    user: connection.transport.user(),
                    since: handshake.since,
                };
                handshake.deciding = Some((accept_key, Box::pin(self.application.accept(request, peer))));
                self.decide(key, turn);
            }
        }
    }

    /// Takes in what comes before TLS and HTTP.
    fn preface(&mut self, key: u32, bytes: &[u8], turn: &mut Turn) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        match handshake.preface(bytes, &core.config, &mut connection.place, &core.metrics) {
            Ok(None) => {}
            Ok(Some(rest)) => match connection.transport.end_preface(rest) {
                Some(rest) if rest.is_empty() => {}
                Some(rest) => self.shake_hands(key, &rest, turn),
                None => core.turn.push(key),
            },
            Err(error) => {
                tracing::warn!(peer = %handshake.peer, %error, "Invalid PROXY protocol header");
                core.metrics.handshake(Outcome::ProxyFailed);
                self.remove(key);
            }
        }
    }

    /// Asks the application about a handshake.
    fn decide(&mut self, key: u32, turn: &mut Turn) {
        self.core.round.spend(turn, HANDSHAKE_COST);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        let Some((_, deciding)) = &mut handshake.deciding else { return };
        let mut cx = task::Context::from_waker(&connection.waker);
        let decision = catch_unwind(AssertUnwindSafe(|| deciding.as_mut().poll(&mut cx)));
        let accepted = match decision {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(Ok(accepted))) => accepted,
            Ok(Poll::Ready(Err(refusal))) => return self.refuse(key, &refusal),
            Err(_) => {
                self.core.metrics.session_panics.inc();
                self.core.metrics.handshake(Outcome::Lost);
                return self.remove(key);
            }
        };
        let Some((accept_key, _)) = handshake.deciding.take() else { return };
        let (mut rest, since) = (std::mem::take(&mut handshake.head), handshake.since);
        let start = self.core.arena.len();
        connection.flags.deflate = handshake.deflate;
        let extensions = handshake.deflate.map(|params| params.header_value());
        handshake::write_accept(
            self.core.arena.replies(),
            &accept_key,
            accepted.subprotocol.as_deref(),
            extensions.as_deref(),
        );
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        connection.state = State::Open(accepted.session);
        self.core.open += 1;
        self.core.metrics.handshake(Outcome::Accepted);
        self.core.metrics.handshake_seconds.observe_duration(since.elapsed());
        // The first pings of clients that came together are spread over the interval.
        let interval = self.core.config.ping_interval;
        let first = interval.mul_f64(0.5 + f64::from(key % 64) / 128.0);
        let deadline = self.deadline(first);
        if let Some(connection) = self.core.connections.get_mut(key as usize) {
            connection.deadline = deadline;
        }
        self.core.mark_dirty(key);
        self.with_session(key, |session, cx| session.on_open(cx));
        if !rest.is_empty() {
            self.handle(key, &mut rest, turn);
        }
        // What came while the application was deciding waits in the kernel.
        self.core.turn.push(key);
    }

    /// Answers a load balancer's readiness probe.
    fn answer_probe(&mut self, key: u32) {
        let ready = catch_unwind(AssertUnwindSafe(|| self.application.is_ready())).unwrap_or(false);
        let refusal = match &self.drain {
            Some(drain) => Some(Refusal::draining(drain.slot(self.core.now))),
            None => (!ready).then(Refusal::not_ready),
        };
        self.core.metrics.probes.inc(usize::from(refusal.is_none()));
        self.answer_http(key, |out, is_head| match (&refusal, is_head) {
            (None, _) => write_ready(out, is_head),
            (Some(refusal), true) => refusal.write_head(out),
            (Some(refusal), false) => refusal.write(out),
        });
    }

    fn refuse(&mut self, key: u32, refusal: &Refusal) {
        if let Some(connection) = self.core.connections.get_mut(key as usize)
            && let State::Handshake(handshake) = &connection.state
        {
            let Refusal { status, code, message, .. } = refusal;
            tracing::debug!(peer = %handshake.peer, status, code, why = %message, "A handshake was refused.");
        }
        self.core.metrics.handshake(Outcome::Refused);
        self.answer_http(key, |out, is_head| match is_head {
            // RFC 9110 section 9.3.2.
            true => refusal.write_head(out),
            false => refusal.write(out),
        });
    }

    /// Writes the HTTP response to a request that does not become a WebSocket. `write` is told
    /// whether the method is HEAD.
    fn answer_http(&mut self, key: u32, write: impl FnOnce(&mut Vec<u8>, bool)) {
        let deadline = self.deadline(self.core.config.close_timeout);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let is_head = matches!(&connection.state, State::Handshake(handshake) if handshake.is_head);
        let start = self.core.arena.len();
        write(self.core.arena.replies(), is_head);
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        connection.state = State::Closing(Closing::Eof);
        connection.deadline = deadline;
        self.core.mark_dirty(key);
    }

    /// Calls the session of an open connection.
    fn with_session(&mut self, key: u32, call: impl FnOnce(&mut A::Session, &mut Context<'_, A::Local>)) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let Connection { state: State::Open(session), outbox, flags, .. } = connection else { return };
        let (mut close, mut pause, mut charged) = (None, false, 0);
        let mut cx = Context {
            key,
            now: core.now,
            local: &mut self.local,
            outbox,
            arena: core.arena.replies(),
            outgoing: &mut core.coders.outgoing,
            deflate: flags.deflate,
            close: &mut close,
            pause: &mut pause,
            charged: &mut charged,
            wire: None,
        };
        let result = catch_unwind(AssertUnwindSafe(|| call(session, &mut cx)));
        if pause && !flags.paused {
            flags.paused = true;
            core.paused += 1;
        }
        if !connection.outbox.is_empty() {
            core.mark_dirty(key);
        }
        if result.is_err() {
            self.panicked(key);
        } else if let Some(reason) = close {
            self.close(key, reason);
        }
    }

    fn panicked(&mut self, key: u32) {
        self.core.metrics.session_panics.inc();
        tracing::error!("A session panicked; its connection is closed with 1011.");
        self.close(key, CloseReason::new(CloseCode::InternalError, "a fault inside the server"));
    }

    fn close_listed(&mut self) {
        while let Some((key, reason)) = self.core.to_close.pop() {
            self.close(key, reason);
        }
    }

    /// Begins to close a connection: the session ends now, what is queued, goodbye and the close frame go out.
    fn close(&mut self, key: u32, reason: CloseReason) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let State::Open(session) = &mut connection.state else { return };
        let code = reason.code();
        let mut retry_after = None;
        match code {
            CloseCode::SlowConsumer => {
                self.core.metrics.slow_consumers.inc();
                connection.outbox.clear();
                retry_after = Some(spread(key, Duration::from_secs(2)));
            }
            CloseCode::PongTimeout => self.core.metrics.pong_timeouts.inc(),
            CloseCode::GoingAway => {
                retry_after = self.drain.as_ref().map(|drain| drain.take_slot(self.core.now))
            }
            CloseCode::PolicyViolation => retry_after = Some(Duration::from_secs(10)),
            CloseCode::InternalError => retry_after = Some(spread(key, Duration::from_secs(1))),
            _ => {}
        }
        let start = self.core.arena.len();
        if code.sends_goodbye() {
            let arena = self.core.arena.replies();
            let said =
                catch_unwind(AssertUnwindSafe(|| session.on_farewell(&reason, retry_after, arena))).is_ok();
            if !said {
                self.core.metrics.session_panics.inc();
                self.core.arena.truncate(start);
            }
        }
        frame::write_close(self.core.arena.replies(), Some(code.as_u16()), reason.text());
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        let wait = match code {
            CloseCode::ProtocolError | CloseCode::InvalidUtf8 | CloseCode::MessageTooBig => Closing::Eof,
            _ => Closing::CloseFrame,
        };
        self.watch_progress(key);
        self.end_session(key, &Closed::ByServer(reason), wait);
    }

    /// The client closed: answers with its code (RFC 6455 section 5.5.1) behind what is queued.
    fn answer_close(&mut self, key: u32, code: Option<u16>) {
        if self.core.connections.get(key as usize).is_some_and(|connection| !connection.is_written()) {
            self.watch_progress(key);
        }
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let start = self.core.arena.len();
        frame::write_close(self.core.arena.replies(), code, "");
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        self.end_session(key, &Closed::ByPeer { code }, Closing::Nothing);
    }

    /// Takes the session out of its connection and tells it, once.
    fn end_session(&mut self, key: u32, closed: &Closed, wait: Closing) {
        let deadline = self.deadline(self.core.config.close_timeout);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if !matches!(connection.state, State::Open(_)) {
            return;
        }
        let State::Open(mut session) = std::mem::replace(&mut connection.state, State::Closing(wait)) else {
            return;
        };
        connection.deadline = deadline;
        connection.flags.awaiting_pong = false;
        connection.flags.sign = Sign::Seen;
        let was_paused = std::mem::take(&mut connection.flags.paused);
        if was_paused {
            self.core.paused -= 1;
        }
        // The connection is read again, to its end.
        if std::mem::take(&mut connection.flags.too_slow) || was_paused || connection.flags.has_unread {
            self.core.turn.push(key);
        }
        self.core.open -= 1;
        self.core.mark_dirty(key);
        let local = &mut self.local;
        if catch_unwind(AssertUnwindSafe(|| session.on_close(key, closed, local))).is_err() {
            self.core.metrics.session_panics.inc();
        }
    }

    fn end_of_stream(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &connection.state {
            // The client ends its side early, but may still read the rest.
            State::Closing(_) if !connection.is_written() => {
                connection.state = State::Closing(Closing::Nothing);
                self.core.mark_dirty(key);
            }
            // The client ends its side right after its last message: replies go out, then the
            // connection ends.
            State::Open(_) => {
                self.watch_progress(key);
                self.end_session(key, &Closed::Lost, Closing::Nothing);
            }
            _ => self.lost(key),
        }
    }

    /// What came is no TLS, or not of the other side: says so, and ends the connection.
    fn spoke_no_tls(&mut self, key: u32) {
        let deadline = self.deadline(self.core.config.close_timeout);
        self.end_session(key, &Closed::Lost, Closing::Eof);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if matches!(connection.state, State::Handshake(_)) {
            self.core.metrics.handshake(Outcome::TlsFailed);
        }
        // Nothing of it can be encrypted any more.
        connection.outbox = Outbox::default();
        connection.state = State::Closing(Closing::Eof);
        connection.deadline = deadline;
        self.core.mark_dirty(key);
        self.core.turn.push(key);
    }

    /// The connection is gone without a close frame, or broken.
    fn lost(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        connection.transport.say_goodbye();
        if matches!(connection.state, State::Handshake(_)) {
            self.core.metrics.handshake(Outcome::Lost);
        }
        self.end_session(key, &Closed::Lost, Closing::Nothing);
        self.remove(key);
    }

    fn remove(&mut self, key: u32) {
        // The lists may still hold the key: all that look at them check what they find.
        self.core.forget_unread(key);
        if let Some(connection) = self.core.connections.try_remove(key as usize) {
            self.core.coders.incoming.forget(key, connection.flags.deflate);
            if !self.core.progress.is_empty() {
                self.core.progress.remove(&key);
                if self.core.progress.is_empty() {
                    self.core.progress.shrink_to_fit();
                }
            }
        }
    }

    /// One write for each connection that got something in this round.
    fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.core.dirty);
        let mut due = std::mem::take(&mut self.core.due);
        let mut rest = &dirty[..];
        while !rest.is_empty() {
            let looked_at = self.core.begin_writing(rest, &mut due);
            rest = &rest[looked_at..];
            for key in due.drain(..) {
                self.write(key);
            }
        }
        self.core.due = due;
        dirty.clear();
        // `lost` lists nothing new but what was removed; the order of the list does not matter.
        dirty.append(&mut self.core.dirty);
        self.core.dirty = dirty;
        if self.core.dirty.is_empty() {
            self.core.arena.clear();
        } else {
            self.write_dirty();
        }
    }

    /// Writes what waits for a connection, and ends it if that was all that it was there for.
    fn write(&mut self, key: u32) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        if connection.flags.write_blocked {
            connection.outbox.detach(&core.arena);
            return;
        }
        if connection.flush(&core.arena, &mut core.gather, &mut core.records, &mut core.sent).is_err() {
            return self.lost(key);
        }
        if let State::Closing(wait) = connection.state
            && connection.is_written()
        {
            self.written_to_the_end(key, wait);
        }
    }

    /// All that a closing connection had to say is with the kernel.
    fn written_to_the_end(&mut self, key: u32, wait: Closing) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match wait {
            Closing::CloseFrame => {}
            Closing::Nothing => {
                connection.transport.say_goodbye();
                self.remove(key);
            }
            Closing::Eof => {
                if !std::mem::replace(&mut connection.flags.shut, true)
                    && connection.transport.shutdown_write().is_err()
                {
                    self.remove(key);
                }
            }
        }
    }

    /// Looks at deadlines, a slice of the connections at a time, and closes whose slot of the drain has come.
    fn tick(&mut self) {
        self.drain_due();
        let from = match self.tick_at {
            Some(from) => from,
            None if self.core.now >= self.next_tick => {
                self.core.arena.shrink();
                self.core.shrink_connections();
                self.next_tick = self.core.now + self.core.config.tick();
                self.queued = 0;
                0
            }
            None => return,
        };
        let capacity = self.core.connections.capacity();
        let to = (from + TICK_SLICE).min(capacity);
        let now = self.clock();
        for key in from..to {
            let Some(connection) = self.core.connections.get(key) else { continue };
            self.queued += connection.outbox.len() as i64;
            let due = now.wrapping_sub(connection.deadline) as i32 >= 0;
            let open = matches!(connection.state, State::Open(_));
            if due {
                self.deadline_passed(key as u32);
            }
            if open {
                self.with_session(key as u32, |session, cx| session.on_tick(cx));
            }
        }
        self.tick_at = (to < capacity).then_some(to);
        if self.tick_at.is_none() {
            self.cells.queue.set(self.queued);
            self.cells.io_uring.set(self.core.is_batching().into());
        }
    }

    fn drain_due(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        while drain.take_due(self.core.now, self.core.open) {
            let connections = Connections { core: self.core };
            let Some(key) = connections.next_open(drain.cursor).or_else(|| connections.next_open(0)) else {
                break;
            };
            drain.cursor = key.wrapping_add(1);
            self.drain = Some(drain);
            self.close(key, CloseReason::new(CloseCode::GoingAway, "the server shuts down"));
            let Some(rest) = self.drain.take() else { return };
            drain = rest;
        }
        self.drain = Some(drain);
    }
}

/// The time of a worker's clock after a while; half the range at most, so that differences keep their sign.
fn deadline(now: u32, after: Duration) -> u32 {
    now.wrapping_add(after.as_millis().min(i32::MAX as u128 / 2) as u32)
}

/// How long to wait after a round of a burst that took `took`, so that those who publish to the same connections share
/// writes: each is answered by the end of the last round, so their next messages come one close behind the other, and
/// the first must not have a round of its own, for which all the others would wait.
fn hold(took: Duration) -> Duration {
    (took / 8).min(MAX_HOLD)
}

/// A part of `time` that differs between neighbours.
fn spread(key: u32, time: Duration) -> Duration {
    time.mul_f64(0.5 + f64::from(key.wrapping_mul(2_654_435_769) >> 16) / 131_072.0)
}

trait PollPending {
    fn poll_unpin_pending(self, cx: &mut task::Context<'_>) -> bool;
}

impl PollPending for Pin<&mut tokio::time::Sleep> {
    fn poll_unpin_pending(self, cx: &mut task::Context<'_>) -> bool {
        std::future::Future::poll(self, cx).is_pending()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_a_burst_waits_for_a_small_part_of_a_round() {
        for micros in [0, 1, 80, 3999, 4000, 4001, 1_000_000] {
            let took = Duration::from_micros(micros);
            assert!(hold(took) <= took / 8 && hold(took) <= MAX_HOLD, "{micros} µs");
        }
        assert_eq!(hold(Duration::from_millis(2)), Duration::from_micros(250));
    }
}
