//! The loop of one worker thread over its connections.
//!
//! Each pass of the loop is a *round* ([`Worker::poll_round`]). A round takes new connections and
//! gives ready connections a *turn*, in which their input is read and handled. It then polls the
//! application's worker state, checks deadlines, and writes the bytes queued for connections.

#[cfg(feature = "io-uring")]
mod batch_read;
mod liveness;
mod read;
mod shed;
mod supervise;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::{self, Refusal};
use deeperhub_protocol::{CloseCode, CloseReason};

use crate::connections::{ClosingUntil, Connection, Connections, Flags, Liveness, State, WorkerCore};
use crate::control::{Arrival, Control, Phase};
use crate::drain::WorkerDrain;
use crate::handshake::{ClientSource, Handshake, HandshakeRequest, write_ready};
use crate::metrics::{HandshakeOutcome, ProbeAnswer, WorkerMetrics};
use crate::outbox::Outbox;
use crate::round::{HANDSHAKE_COST, Turn};
use crate::session::{Application, Closed, Context, Peer, Session, WorkerState};
use crate::transport::Transport;
use crate::waker::ConnectionWaker;

pub(crate) use supervise::{run, runtime};

use supervise::internal_error_reason;

/// Maximum new connections taken in one round. A flood of new connections thus cannot delay the
/// open ones.
const ARRIVALS_PER_ROUND: usize = 64;

/// Size of the read buffer that all connections of a worker share.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Upper bound of [`coalesce_delay`].
const MAX_COALESCE_DELAY: Duration = Duration::from_micros(500);

/// Maximum slab slots whose deadlines one round checks, so that a check of many connections does
/// not delay their messages.
const TICK_SLOTS_PER_ROUND: usize = 4096;

/// Maximum capacity that the gather buffer keeps between rounds. A larger buffer is freed.
const MAX_KEPT_GATHER_BYTES: usize = 256 * 1024;

/// Maximum time that a refused connection has for its handshake. Only few refused connections are
/// answered at one time, so each one must end soon.
const MAX_REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval between liveness checks of a connection if pings are off.
const CHECK_INTERVAL_WITHOUT_PINGS: Duration = Duration::from_secs(3600);

/// Maximum interval between rounds while input must wait: sessions paused reading, or the intake
/// limit is used up.
const BLOCKED_INPUT_INTERVAL: Duration = Duration::from_millis(5);

/// State of a worker's loop.
pub(crate) struct Worker<'a, A: Application> {
    application: &'a A,
    worker_state: A::WorkerState,
    core: &'a mut WorkerCore<A::Session>,
    control: &'a Control,
    index: usize,
    cells: &'a mut WorkerMetrics,
    /// Read buffer that all connections share.
    read_buffer: Vec<u8>,
    /// Read buffers of one batch, one for each of its connections. Empty until the first batch.
    #[cfg(feature = "io-uring")]
    batch_buffers: Vec<u8>,
    /// Time at which the worker's [`clock`](Self::clock) was zero.
    started: Instant,
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// Time at which the next check of all deadlines begins.
    next_tick: Instant,
    /// Number of the last memory measurement that this worker acted on.
    last_shed_measurement: u64,
    /// Slab position at which the check of deadlines continues; `None` between two checks.
    tick_position: Option<usize>,
    /// Bytes queued for the connections that the current check of deadlines has visited.
    queued_bytes: i64,
    drain: Option<WorkerDrain>,
    /// Earliest start of the next round after a burst; see [`coalesce_delay`].
    coalesce_until: Option<Instant>,
    stopped: bool,
}

impl<'a, A: Application> Worker<'a, A> {
    /// Creates a worker. Must be called on the worker's thread, within its runtime.
    pub(crate) fn new(
        application: &'a A,
        index: usize,
        core: &'a mut WorkerCore<A::Session>,
        control: &'a Control,
        cells: &'a mut WorkerMetrics,
    ) -> Self {
        let now = Instant::now();
        Self {
            application,
            worker_state: application.worker_state(index),
            core,
            control,
            index,
            cells,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            #[cfg(feature = "io-uring")]
            batch_buffers: Vec::new(),
            started: now,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            next_tick: now,
            last_shed_measurement: 0,
            tick_position: None,
            queued_bytes: 0,
            drain: None,
            coalesce_until: None,
            stopped: false,
        }
    }

    /// Runs one round. Returns `Ready` once the listener is stopping.
    pub(crate) fn poll_round(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if let Some(wait) = self.coalesce_until.take().and_then(|until| until.checked_duration_since(now)) {
            std::thread::sleep(wait);
            // Yield to the reactor, so that it collects the events that arrived meanwhile.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.core.begin_round(now);
        let mut has_more_work = self.take_arrivals();
        if self.stopped {
            return Poll::Ready(());
        }
        self.poll_ready();

        // Poll after the turns, so that frames published in them are delivered in this round.
        let mut connections = Connections { core: self.core };
        has_more_work |= self.worker_state.poll(cx, &mut connections).is_ready();
        self.close_listed();
        self.tick();
        self.shed();
        self.write_dirty();
        let written_at = Instant::now();
        self.worker_state.on_written(written_at);
        let duration = written_at.saturating_duration_since(self.core.now);
        self.cells.round_seconds.observe_duration(duration);

        self.cells.received_bytes.add(std::mem::take(&mut self.core.received));
        self.cells.sent_bytes.add(std::mem::take(&mut self.core.sent));
        let deferred = std::mem::take(&mut self.core.deferred);
        if deferred > 0 {
            self.cells.turns_deferred.add(deferred);
        }
        self.cells.add_compression(&mut self.core.codec);
        self.core.metrics.record_tls_handshakes(std::mem::take(&mut self.core.tls_scratch.ended));
        if self.core.gather.capacity() > MAX_KEPT_GATHER_BYTES {
            self.core.gather = Vec::new();
        }

        has_more_work |= self.tick_position.is_some() || !self.core.dirty.is_empty();
        // Connections with input cannot be read while the intake limit is used up.
        let has_input = !self.core.run_queue.is_empty() || !self.core.backlog.is_empty();
        has_more_work |= has_input && !self.core.intake.is_used_up();
        if !has_more_work && self.core.is_in_burst() {
            self.coalesce_until = Some(written_at + coalesce_delay(duration));
        }
        if has_more_work || !self.arm_wakeups(cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Arms the wake-ups for ready connections and for the next time-based work. Returns `false` if
    /// there is work to do now.
    fn arm_wakeups(&mut self, cx: &mut task::Context<'_>) -> bool {
        let mut next_work = self.next_tick;
        if self.core.paused > 0 || self.core.intake.is_used_up() {
            next_work = next_work.min(self.core.now + BLOCKED_INPUT_INTERVAL);
        }
        if let Some(drain) = &mut self.drain
            && let Some(next_close) = drain.next_close(self.core.open)
        {
            next_work = next_work.min(next_close);
        }
        self.sleep.as_mut().reset(next_work.into());
        self.sleep.as_mut().poll(cx).is_pending() && self.core.ready.sleep(cx.waker())
    }

    /// Reads the listener's phase and takes new connections, if the mailbox was notified since the
    /// last call. Returns `true` if more connections may be queued.
    fn take_arrivals(&mut self) -> bool {
        let mailbox = self.control.mailbox(self.index);
        if !mailbox.take_notification() {
            return false;
        }
        match self.control.phase() {
            Phase::Running => {}
            Phase::Draining(plan) => {
                if self.drain.as_ref().is_none_or(|drain| !drain.is_of(&plan)) {
                    self.drain = Some(WorkerDrain::new(plan));
                }
            }
            Phase::Stopping => {
                self.stopped = true;
                return false;
            }
        }
        for _ in 0..ARRIVALS_PER_ROUND {
            let Some(arrival) = mailbox.pop() else { return false };
            let waited = self.core.now.saturating_duration_since(arrival.accepted_at);
            self.core.metrics.accept_seconds.observe_duration(waited);
            self.register(arrival);
        }
        mailbox.notify_self(self.core.now);
        true
    }

    /// Adds a new connection, which begins with its handshake.
    fn register(&mut self, Arrival { socket, peer, permit, refusal, accepted_at }: Arrival) {
        let client_source = if self.core.config.trusted_proxies.trusts(peer.ip()) {
            ClientSource::ProxyHeader
        } else {
            ClientSource::Peer
        };
        let transport =
            match Transport::new(socket, &self.core.config, client_source == ClientSource::ProxyHeader) {
                Ok(transport) => transport,
                Err(error) => {
                    self.core.metrics.record_handshake(HandshakeOutcome::Lost);
                    tracing::debug!(%error, "Socket registration failed");
                    return;
                }
            };
        let timeout = match refusal {
            Some(_) => self.core.config.handshake_timeout.min(MAX_REFUSAL_TIMEOUT),
            None => self.core.config.handshake_timeout,
        };
        let deadline = self.deadline(timeout);
        let entry = self.core.connections.vacant_entry();
        let Ok(key) = u32::try_from(entry.key()) else { return };
        entry.insert(Connection {
            transport,
            waker: ConnectionWaker::waker(key, &self.core.ready),
            state: State::Handshake(Box::new(Handshake::new(peer, client_source, refusal, accepted_at))),
            decoder: frame::FrameDecoder::new(),
            outbox: Outbox::default(),
            deadline,
            flags: Flags::default(),
            permit,
        });
        self.core.arrived.push(key);
    }

    /// Returns the milliseconds since `started`, as of the start of the round. The value wraps
    /// after 49 days, so times are compared by their difference.
    fn clock(&self) -> u32 {
        self.core.now.duration_since(self.started).as_millis() as u32
    }

    /// Returns the clock's value after `delay`.
    fn deadline(&self, delay: Duration) -> u32 {
        deadline(self.clock(), delay)
    }

    /// Returns the deadline at which a connection is pinged next. If pings are off, reaching the
    /// deadline only sets a later one.
    fn next_ping(&self) -> u32 {
        let interval = self.core.config.ping_interval;
        self.deadline(if interval.is_zero() { CHECK_INTERVAL_WITHOUT_PINGS } else { interval })
    }

    /// Handles input of a connection in its handshake.
    fn feed_handshake(&mut self, key: u32, bytes: &[u8], turn: &mut Turn) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        if handshake.client_source == ClientSource::ProxyHeader {
            return self.read_proxy_header(key, bytes, turn);
        }
        match handshake.feed(bytes, &core.config, core.limits.head(), &core.metrics) {
            None => {}
            Some(Err(refusal)) => self.refuse(key, &refusal),
            Some(Ok(HandshakeRequest::Probe)) => self.answer_probe(key),
            Some(Ok(HandshakeRequest::Upgrade(request, accept_key))) => {
                if let Some(drain) = &self.drain {
                    let refusal = Refusal::draining(drain.reconnect_delay(core.now));
                    return self.refuse(key, &refusal);
                }
                if handshake.client_source == ClientSource::RequestHeaders {
                    let resolved = handshake.resolve_client(
                        &request,
                        &core.config,
                        &mut connection.permit,
                        &core.metrics,
                    );
                    if let Err(refusal) = resolved {
                        return self.refuse(key, &refusal);
                    }
                }
                let peer = Peer {
                    address: handshake.peer,
                    tls: connection.transport.is_tls(),
                    user: connection.transport.user(),
                    accepted_at: handshake.accepted_at,
                };
                handshake.decision = Some((accept_key, Box::pin(self.application.accept(request, peer))));
                self.poll_decision(key, turn);
            }
        }
    }

    /// Handles input that may be a PROXY protocol header, which comes before TLS and HTTP.
    fn read_proxy_header(&mut self, key: u32, bytes: &[u8], turn: &mut Turn) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        match handshake.read_proxy_header(bytes, &core.config, &mut connection.permit, &core.metrics) {
            Ok(None) => {}
            Ok(Some(rest)) => match connection.transport.end_preface(rest) {
                Some(rest) if rest.is_empty() => {}
                Some(rest) => self.feed_handshake(key, &rest, turn),
                None => core.run_queue.push(key),
            },
            Err(error) => {
                tracing::warn!(peer = %handshake.peer, %error, "Invalid PROXY protocol header");
                core.metrics.record_handshake(HandshakeOutcome::ProxyFailed);
                self.remove(key);
            }
        }
    }

    /// Polls the application's decision on a handshake, and opens the connection if it is accepted.
    fn poll_decision(&mut self, key: u32, turn: &mut Turn) {
        self.core.round.spend(turn, HANDSHAKE_COST);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        let Some((_, decision)) = &mut handshake.decision else { return };
        let mut cx = task::Context::from_waker(&connection.waker);
        let decision = catch_unwind(AssertUnwindSafe(|| decision.as_mut().poll(&mut cx)));
        let accepted = match decision {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(Ok(accepted))) => accepted,
            Ok(Poll::Ready(Err(refusal))) => return self.refuse(key, &refusal),
            Err(_) => {
                self.core.metrics.session_panics.inc();
                self.core.metrics.record_handshake(HandshakeOutcome::Lost);
                return self.remove(key);
            }
        };
        let Some((accept_key, _)) = handshake.decision.take() else { return };
        let (mut rest, accepted_at) = (std::mem::take(&mut handshake.head), handshake.accepted_at);
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
        self.core.metrics.record_handshake(HandshakeOutcome::Accepted);
        self.core.metrics.handshake_seconds.observe_duration(accepted_at.elapsed());
        // Clients that connected at the same time get their first pings at different times, in the
        // second half of the interval.
        let interval = self.core.config.ping_interval;
        let first_ping = interval.mul_f64(0.5 + f64::from(key % 64) / 128.0);
        let deadline = self.deadline(first_ping);
        if let Some(connection) = self.core.connections.get_mut(key as usize) {
            connection.deadline = deadline;
        }
        self.core.mark_dirty(key);
        self.with_session(key, |session, cx| session.on_open(cx));
        if !rest.is_empty() {
            self.process_input(key, &mut rest, turn);
        }
        // Input that arrived during the decision was not read yet.
        self.core.run_queue.push(key);
    }

    /// Answers a load balancer's readiness probe.
    fn answer_probe(&mut self, key: u32) {
        let is_ready = catch_unwind(AssertUnwindSafe(|| self.application.is_ready())).unwrap_or(false);
        let refusal = match &self.drain {
            Some(drain) => Some(Refusal::draining(drain.reconnect_delay(self.core.now))),
            None => (!is_ready).then(Refusal::not_ready),
        };
        self.core.metrics.probes.inc(if refusal.is_none() {
            ProbeAnswer::Ready
        } else {
            ProbeAnswer::Unready
        });
        self.answer_http(key, |out, is_head| match (&refusal, is_head) {
            (None, _) => write_ready(out, is_head),
            (Some(refusal), true) => refusal.write_head(out),
            (Some(refusal), false) => refusal.write(out),
        });
    }

    /// Answers a handshake with a refusal, and starts closing the connection.
    fn refuse(&mut self, key: u32, refusal: &Refusal) {
        if let Some(connection) = self.core.connections.get_mut(key as usize)
            && let State::Handshake(handshake) = &connection.state
        {
            let Refusal { status, code, message, .. } = refusal;
            tracing::debug!(peer = %handshake.peer, status, code, why = %message, "Handshake refused");
        }
        self.core.metrics.record_handshake(HandshakeOutcome::Refused);
        self.answer_http(key, |out, is_head| {
            // A response to HEAD has no body (RFC 9110 section 9.3.2).
            if is_head { refusal.write_head(out) } else { refusal.write(out) }
        });
    }

    /// Queues the HTTP response to a request that does not become a WebSocket, and starts closing
    /// the connection. `write` appends the response; its second argument is `true` for a HEAD
    /// request.
    fn answer_http(&mut self, key: u32, write: impl FnOnce(&mut Vec<u8>, bool)) {
        let deadline = self.deadline(self.core.config.close_timeout);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let is_head = matches!(&connection.state, State::Handshake(handshake) if handshake.is_head);
        let start = self.core.arena.len();
        write(self.core.arena.replies(), is_head);
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        connection.state = State::Closing(ClosingUntil::Eof);
        connection.deadline = deadline;
        self.core.mark_dirty(key);
    }

    /// Runs `call` with the session of an open connection, for events other than its messages. Does
    /// nothing if the connection is not open.
    fn with_session(
        &mut self,
        key: u32,
        call: impl FnOnce(&mut A::Session, &mut Context<'_, A::WorkerState>),
    ) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let Connection { state: State::Open(session), outbox, flags, .. } = connection else { return };
        let (mut close, mut pause, mut charged) = (None, false, 0);
        let mut cx = Context {
            key,
            now: core.now,
            worker: &mut self.worker_state,
            outbox,
            arena: core.arena.replies(),
            compressor: &mut core.codec.compressor,
            deflate: flags.deflate,
            close: &mut close,
            pause: &mut pause,
            charged: &mut charged,
            direct_write: None,
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
            self.close_after_session_panic(key);
        } else if let Some(reason) = close {
            self.close(key, reason);
        }
    }

    /// Closes a connection whose session panicked.
    fn close_after_session_panic(&mut self, key: u32) {
        self.core.metrics.session_panics.inc();
        tracing::error!("Session panicked; closing its connection with 1011");
        self.close(key, internal_error_reason());
    }

    /// Closes the listed connections: those that the worker state closes, and slow consumers.
    fn close_listed(&mut self) {
        while let Some((key, reason)) = self.core.to_close.pop() {
            self.close(key, reason);
        }
    }

    /// Starts closing a connection and ends its session. Queued frames, the session's last frames
    /// and the close frame are still sent. A slow consumer's queued frames are dropped.
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
                retry_after = self.drain.as_ref().map(|drain| drain.take_reconnect_delay(self.core.now))
            }
            CloseCode::PolicyViolation => retry_after = Some(Duration::from_secs(10)),
            CloseCode::InternalError => retry_after = Some(spread(key, Duration::from_secs(1))),
            _ => {}
        }
        let start = self.core.arena.len();
        if code.sends_goodbye() {
            let arena = self.core.arena.replies();
            let result =
                catch_unwind(AssertUnwindSafe(|| session.on_server_close(&reason, retry_after, arena)));
            if result.is_err() {
                self.core.metrics.session_panics.inc();
                self.core.arena.truncate(start);
            }
        }
        frame::write_close(self.core.arena.replies(), Some(code.as_u16()), reason.text());
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        let until = match code {
            CloseCode::ProtocolError | CloseCode::InvalidUtf8 | CloseCode::MessageTooBig => ClosingUntil::Eof,
            _ => ClosingUntil::CloseFrame,
        };
        self.record_progress(key);
        self.end_session(key, &Closed::ByServer(reason), until);
    }

    /// Answers a client's close frame with the same code (RFC 6455 section 5.5.1), after the queued
    /// frames.
    fn answer_close(&mut self, key: u32, code: Option<u16>) {
        if self.core.connections.get(key as usize).is_some_and(|connection| !connection.is_written()) {
            self.record_progress(key);
        }
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let start = self.core.arena.len();
        frame::write_close(self.core.arena.replies(), code, "");
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        self.end_session(key, &Closed::ByPeer { code }, ClosingUntil::Flushed);
    }

    /// Removes the session from an open connection and calls its `on_close`. The connection is then
    /// closing. Does nothing if the connection is not open.
    fn end_session(&mut self, key: u32, closed: &Closed, until: ClosingUntil) {
        let deadline = self.deadline(self.core.config.close_timeout);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if !matches!(connection.state, State::Open(_)) {
            return;
        }
        let State::Open(mut session) = std::mem::replace(&mut connection.state, State::Closing(until)) else {
            return;
        };
        connection.deadline = deadline;
        connection.flags.awaiting_pong = false;
        connection.flags.liveness = Liveness::Alive;
        let was_paused = std::mem::take(&mut connection.flags.paused);
        if was_paused {
            self.core.paused -= 1;
        }
        // Resume reading if it had stopped: the session paused it, the queue was full, or a turn
        // was over. A closing connection is read to its end.
        if std::mem::take(&mut connection.flags.over_queue_limit) || was_paused || connection.flags.has_unread
        {
            self.core.run_queue.push(key);
        }
        self.core.open -= 1;
        self.core.mark_dirty(key);
        let worker_state = &mut self.worker_state;
        if catch_unwind(AssertUnwindSafe(|| session.on_close(key, closed, worker_state))).is_err() {
            self.core.metrics.session_panics.inc();
        }
    }

    /// Handles the end of a client's input.
    fn end_of_stream(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &connection.state {
            // The client shut down only its sending side, and can still read the queued bytes.
            State::Closing(_) if !connection.is_written() => {
                connection.state = State::Closing(ClosingUntil::Flushed);
                self.core.mark_dirty(key);
            }
            // The client shut down its sending side after its last message. The replies are still
            // sent, then the connection is removed.
            State::Open(_) => {
                self.record_progress(key);
                self.end_session(key, &Closed::Lost, ClosingUntil::Flushed);
            }
            _ => self.drop_lost(key),
        }
    }

    /// Starts closing a connection whose input is invalid TLS. A pending TLS alert is still sent.
    fn fail_tls(&mut self, key: u32) {
        let deadline = self.deadline(self.core.config.close_timeout);
        self.end_session(key, &Closed::Lost, ClosingUntil::Eof);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if matches!(connection.state, State::Handshake(_)) {
            self.core.metrics.record_handshake(HandshakeOutcome::TlsFailed);
        }
        // Queued frames can no longer be encrypted.
        connection.outbox = Outbox::default();
        connection.state = State::Closing(ClosingUntil::Eof);
        connection.deadline = deadline;
        self.core.mark_dirty(key);
        self.core.run_queue.push(key);
    }

    /// Removes a connection whose socket failed, or whose input ended with nothing left to send.
    fn drop_lost(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        connection.transport.close_notify();
        if matches!(connection.state, State::Handshake(_)) {
            self.core.metrics.record_handshake(HandshakeOutcome::Lost);
        }
        self.end_session(key, &Closed::Lost, ClosingUntil::Flushed);
        self.remove(key);
    }

    /// Removes a connection and everything that the worker holds for it.
    fn remove(&mut self, key: u32) {
        // The key may still be in lists. Their readers check whether the connection exists.
        self.core.discard_unread(key);
        if let Some(connection) = self.core.connections.try_remove(key as usize) {
            self.core.codec.decompressor.remove_history(key, connection.flags.deflate);
            if !self.core.progress.is_empty() {
                self.core.progress.remove(&key);
                if self.core.progress.is_empty() {
                    self.core.progress.shrink_to_fit();
                }
            }
        }
    }

    /// Writes the queues of all dirty connections, and empties the arena.
    fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.core.dirty);
        let mut individually = std::mem::take(&mut self.core.write_individually);
        let mut remaining = &dirty[..];
        while !remaining.is_empty() {
            let handled = self.core.begin_writing(remaining, &mut individually);
            remaining = &remaining[handled..];
            for key in individually.drain(..) {
                self.write(key);
            }
        }
        self.core.write_individually = individually;
        dirty.clear();
        // A failed write calls `drop_lost`, which marks its connection dirty before removing it.
        dirty.append(&mut self.core.dirty);
        self.core.dirty = dirty;
        if self.core.dirty.is_empty() {
            self.core.arena.clear();
        } else {
            self.write_dirty();
        }
    }

    /// Writes a connection's queue. Continues the close of a closing connection once all is
    /// written.
    fn write(&mut self, key: u32) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        if connection.flags.write_blocked {
            connection.outbox.detach(&core.arena);
            return;
        }
        if connection.flush(&core.arena, &mut core.gather, &mut core.tls_scratch, &mut core.sent).is_err() {
            return self.drop_lost(key);
        }
        if let State::Closing(until) = connection.state
            && connection.is_written()
        {
            self.continue_close(key, until);
        }
    }

    /// Continues the close of a connection whose bytes are all written.
    fn continue_close(&mut self, key: u32, until: ClosingUntil) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match until {
            ClosingUntil::CloseFrame => {}
            ClosingUntil::Flushed => {
                connection.transport.close_notify();
                self.remove(key);
            }
            ClosingUntil::Eof => {
                if !std::mem::replace(&mut connection.flags.write_shutdown, true)
                    && connection.transport.shutdown_write().is_err()
                {
                    self.remove(key);
                }
            }
        }
    }

    /// Closes connections that are due in a drain. Checks the deadlines of some connections and
    /// calls their sessions' `on_tick`; a check of all connections may take several rounds.
    fn tick(&mut self) {
        self.close_due_for_drain();
        let from = match self.tick_position {
            Some(from) => from,
            None if self.core.now >= self.next_tick => {
                self.core.arena.shrink();
                self.core.shrink_connections();
                self.next_tick = self.core.now + self.core.config.tick();
                self.queued_bytes = 0;
                0
            }
            None => return,
        };
        let capacity = self.core.connections.capacity();
        let to = (from + TICK_SLOTS_PER_ROUND).min(capacity);
        let now = self.clock();
        for key in from..to {
            let Some(connection) = self.core.connections.get(key) else { continue };
            self.queued_bytes += connection.outbox.len() as i64;
            let is_due = now.wrapping_sub(connection.deadline) as i32 >= 0;
            let is_open = matches!(connection.state, State::Open(_));
            if is_due {
                self.on_deadline(key as u32);
            }
            if is_open {
                self.with_session(key as u32, |session, cx| session.on_tick(cx));
            }
        }
        self.tick_position = (to < capacity).then_some(to);
        if self.tick_position.is_none() {
            self.cells.queue_bytes.set(self.queued_bytes);
            self.cells.io_uring_workers.set(self.core.is_batching().into());
        }
    }

    /// Closes as many connections as are due by now in the drain's schedule.
    fn close_due_for_drain(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        while drain.take_close_if_due(self.core.now, self.core.open) {
            let connections = Connections { core: self.core };
            let Some(key) = connections.next_open(drain.cursor).or_else(|| connections.next_open(0)) else {
                break;
            };
            drain.cursor = key.wrapping_add(1);
            // `close` reads the reconnect delay from the drain.
            self.drain = Some(drain);
            self.close(key, CloseReason::new(CloseCode::GoingAway, "the server shuts down"));
            let Some(current) = self.drain.take() else { return };
            drain = current;
        }
        self.drain = Some(drain);
    }
}

/// Returns `now` plus `delay`, both on the worker's clock. The delay is capped at 12 days, a
/// quarter of the clock's range, so that the sign of a difference tells which time is later.
fn deadline(now: u32, delay: Duration) -> u32 {
    now.wrapping_add(delay.as_millis().min(i32::MAX as u128 / 2) as u32)
}

/// Returns the delay between a round of a burst and the next round, given the round's duration.
///
/// Publishers that get their answers at the end of a round send their next messages close together.
/// Without the delay, the first message would get a round of its own, and the others would wait for
/// that round.
fn coalesce_delay(duration: Duration) -> Duration {
    (duration / 8).min(MAX_COALESCE_DELAY)
}

/// Returns 0.5 to 1 times `time`, different for neighbouring keys. Clients that lose their
/// connections together thus do not reconnect together.
fn spread(key: u32, time: Duration) -> Duration {
    time.mul_f64(0.5 + f64::from(key.wrapping_mul(2_654_435_769) >> 16) / 131_072.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coalesce_delay_is_at_most_an_eighth_of_the_round() {
        for micros in [0, 1, 80, 3999, 4000, 4001, 1_000_000] {
            let duration = Duration::from_micros(micros);
            let delay = coalesce_delay(duration);
            assert!(delay <= duration / 8 && delay <= MAX_COALESCE_DELAY, "{micros} µs");
        }
        assert_eq!(coalesce_delay(Duration::from_millis(2)), Duration::from_micros(250));
    }
}
