//! Worker: one thread's loop over its connections.

#[cfg(feature = "io-uring")]
mod batch_read;
mod liveness;
mod read;
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

use crate::connections::{Closing, Connection, Connections, Flags, Liveness, State, WorkerCore};
use crate::control::{Arrival, Control, Phase};
use crate::drain::WorkerDrain;
use crate::handshake::{ClientSource, Handshake, HandshakeRequest, write_ready};
use crate::metrics::{CoderCells, HandshakeOutcome};
use crate::outbox::Outbox;
use crate::round::{HANDSHAKE_COST, Turn};
use crate::session::{Application, Closed, Context, Peer, Session, WorkerState};
use crate::transport::Transport;
use crate::waker::ConnectionWaker;

pub(crate) use supervise::{run, runtime};

/// Maximum new connections taken in one round.
const ARRIVALS_PER_ROUND: usize = 64;

/// Size of the read buffer that all connections of a worker share.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Maximum wait for more messages of a burst.
const MAX_COALESCE_DELAY: Duration = Duration::from_micros(500);

/// Slab slots whose deadlines one round checks.
const TICK_SLICE: usize = 4096;

/// Capacity of the gather buffer kept after a larger round.
const MAX_KEPT_GATHER_BYTES: usize = 256 * 1024;

/// Metric cells of a worker.
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
    worker_state: A::WorkerState,
    core: &'a mut WorkerCore<A::Session>,
    control: &'a Control,
    index: usize,
    cells: &'a mut WorkerCells,
    scratch: Vec<u8>,
    /// Read buffers of a batch; empty until the first batch.
    #[cfg(feature = "io-uring")]
    batch_buffers: Vec<u8>,
    started: Instant,
    sleep: Pin<Box<tokio::time::Sleep>>,
    next_tick: Instant,
    /// Last memory measurement that was acted on.
    shed_seen: u64,
    /// Slab position at which the deadline check continues; `None` between two checks.
    tick_position: Option<usize>,
    queued: i64,
    drain: Option<WorkerDrain>,
    /// Time before which no round begins, see [`coalesce_delay`].
    coalesce_until: Option<Instant>,
    stopped: bool,
}

impl<'a, A: Application> Worker<'a, A> {
    /// Creates a worker. Must be called on its thread, within its runtime.
    pub(crate) fn new(
        application: &'a A,
        index: usize,
        core: &'a mut WorkerCore<A::Session>,
        control: &'a Control,
        cells: &'a mut WorkerCells,
    ) -> Self {
        let now = Instant::now();
        Self {
            application,
            worker_state: application.worker_state(index),
            core,
            control,
            index,
            cells,
            scratch: vec![0; READ_BUFFER_BYTES],
            #[cfg(feature = "io-uring")]
            batch_buffers: Vec::new(),
            started: now,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            next_tick: now,
            shed_seen: 0,
            tick_position: None,
            queued: 0,
            drain: None,
            coalesce_until: None,
            stopped: false,
        }
    }

    /// Runs one round. Returns `Ready` only if the listener stops.
    pub(crate) fn poll_round(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if let Some(wait) = self.coalesce_until.take().and_then(|until| until.checked_duration_since(now)) {
            std::thread::sleep(wait);
            // Yield to the reactor, which collects events that arrived meanwhile.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.core.begin_round(now);
        let mut more = self.take_arrivals();
        if self.stopped {
            return Poll::Ready(());
        }
        self.poll_ready();

        // Frames published by own sessions are pending by now and leave in this round.
        let mut connections = Connections { core: self.core };
        more |= self.worker_state.poll(cx, &mut connections).is_ready();
        self.close_listed();
        self.tick();
        self.shed();
        self.write_dirty();
        let written = Instant::now();
        self.worker_state.on_written(written);
        self.cells.round.observe_duration(written.saturating_duration_since(self.core.now));

        self.cells.received.add(std::mem::take(&mut self.core.received));
        self.cells.sent.add(std::mem::take(&mut self.core.sent));
        let deferred = std::mem::take(&mut self.core.deferred);
        if deferred > 0 {
            self.cells.deferred.add(deferred);
        }
        self.cells.coders.take(&mut self.core.coders);
        self.core.metrics.tls(std::mem::take(&mut self.core.tls_scratch.ended));
        if self.core.gather.capacity() > MAX_KEPT_GATHER_BYTES {
            self.core.gather = Vec::new();
        }

        more |= self.tick_position.is_some() || !self.core.dirty.is_empty();
        // While the intake limit is used up, waiting connections are no reason to go on.
        let has_waiting = !self.core.run_queue.is_empty() || !self.core.backlog.is_empty();
        more |= has_waiting && !self.core.intake.is_used_up();
        if !more && self.core.is_in_burst() {
            self.coalesce_until =
                Some(written + coalesce_delay(written.saturating_duration_since(self.core.now)));
        }
        if more || !self.arm_wakeups(cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Arms the wake-ups. Returns `false` if there is work already.
    fn arm_wakeups(&mut self, cx: &mut task::Context<'_>) -> bool {
        let mut until = self.next_tick;
        if self.core.paused > 0 || self.core.intake.is_used_up() {
            until = until.min(self.core.now + Duration::from_millis(5));
        }
        if let Some(drain) = &mut self.drain
            && let Some(due) = drain.next_close(self.core.open)
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
            let waited = self.core.now.saturating_duration_since(arrival.since);
            self.core.metrics.accept_seconds.observe_duration(waited);
            self.register(arrival);
        }
        mailbox.notify_self(self.core.now);
        true
    }

    fn register(&mut self, Arrival { socket, peer, permit, refusal, since }: Arrival) {
        let client_source = if self.core.config.trusted_proxies.trusts(peer.ip()) {
            ClientSource::ProxyHeader
        } else {
            ClientSource::Peer
        };
        let transport =
            match Transport::new(socket, &self.core.config, client_source == ClientSource::ProxyHeader) {
                Ok(transport) => transport,
                Err(error) => {
                    self.core.metrics.handshake(HandshakeOutcome::Lost);
                    tracing::debug!(%error, "Socket registration failed");
                    return;
                }
            };
        // A refused connection may keep its permit only briefly.
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
            state: State::Handshake(Box::new(Handshake::new(peer, client_source, refusal, since))),
            decoder: frame::FrameDecoder::new(),
            outbox: Outbox::default(),
            deadline,
            flags: Flags::default(),
            permit,
        });
        self.core.arrived.push(key);
    }

    /// Returns the worker's clock in milliseconds. It wraps after 49 days; compare by difference.
    fn clock(&self) -> u32 {
        self.core.now.duration_since(self.started).as_millis() as u32
    }

    fn deadline(&self, after: Duration) -> u32 {
        deadline(self.clock(), after)
    }

    /// Returns the deadline of the next regular ping.
    fn next_ping(&self) -> u32 {
        let interval = self.core.config.ping_interval;
        self.deadline(if interval.is_zero() { Duration::from_secs(3600) } else { interval })
    }

    /// Processes bytes of a handshake.
    fn feed_handshake(&mut self, key: u32, bytes: &[u8], turn: &mut Turn) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        if handshake.client_source == ClientSource::ProxyHeader {
            return self.read_proxy_header(key, bytes, turn);
        }
        match handshake.feed(bytes, &core.config, &core.metrics) {
            None => {}
            Some(Err(refusal)) => self.refuse(key, &refusal),
            Some(Ok(HandshakeRequest::Probe)) => self.answer_probe(key),
            Some(Ok(HandshakeRequest::Upgrade(request, accept_key))) => {
                if let Some(drain) = &self.drain {
                    let refusal = Refusal::draining(drain.reconnect_delay(core.now));
                    return self.refuse(key, &refusal);
                }
                if handshake.client_source == ClientSource::RequestHeaders {
                    let told = handshake.resolve_client(
                        &request,
                        &core.config,
                        &mut connection.permit,
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
                handshake.decision = Some((accept_key, Box::pin(self.application.accept(request, peer))));
                self.poll_decision(key, turn);
            }
        }
    }

    /// Processes bytes of a PROXY protocol header, ahead of TLS and HTTP.
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
                core.metrics.handshake(HandshakeOutcome::ProxyFailed);
                self.remove(key);
            }
        }
    }

    /// Polls the application's decision on a handshake.
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
                self.core.metrics.handshake(HandshakeOutcome::Lost);
                return self.remove(key);
            }
        };
        let Some((accept_key, _)) = handshake.decision.take() else { return };
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
        self.core.metrics.handshake(HandshakeOutcome::Accepted);
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
            self.process_input(key, &mut rest, turn);
        }
        // Input that arrived during the decision is still in the kernel.
        self.core.run_queue.push(key);
    }

    /// Answers a load balancer's readiness probe.
    fn answer_probe(&mut self, key: u32) {
        let ready = catch_unwind(AssertUnwindSafe(|| self.application.is_ready())).unwrap_or(false);
        let refusal = match &self.drain {
            Some(drain) => Some(Refusal::draining(drain.reconnect_delay(self.core.now))),
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
            tracing::debug!(peer = %handshake.peer, status, code, why = %message, "Handshake refused");
        }
        self.core.metrics.handshake(HandshakeOutcome::Refused);
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
            outgoing: &mut core.coders.outgoing,
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

    fn close_after_session_panic(&mut self, key: u32) {
        self.core.metrics.session_panics.inc();
        tracing::error!("Session panicked; closing its connection with 1011");
        self.close(key, CloseReason::new(CloseCode::InternalError, "a fault inside the server"));
    }

    fn close_listed(&mut self) {
        while let Some((key, reason)) = self.core.to_close.pop() {
            self.close(key, reason);
        }
    }

    /// Starts closing a connection. Its session ends now. Queued frames, the session's last frames and
    /// the close frame are still sent.
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
            let said =
                catch_unwind(AssertUnwindSafe(|| session.on_server_close(&reason, retry_after, arena)))
                    .is_ok();
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
        self.record_progress(key);
        self.end_session(key, &Closed::ByServer(reason), wait);
    }

    /// Answers a client's close frame with its code (RFC 6455 section 5.5.1), behind queued frames.
    fn answer_close(&mut self, key: u32, code: Option<u16>) {
        if self.core.connections.get(key as usize).is_some_and(|connection| !connection.is_written()) {
            self.record_progress(key);
        }
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let start = self.core.arena.len();
        frame::write_close(self.core.arena.replies(), code, "");
        connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
        self.end_session(key, &Closed::ByPeer { code }, Closing::Flush);
    }

    /// Removes the session from its connection and calls its `on_close`, once.
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
        connection.flags.liveness = Liveness::Alive;
        let was_paused = std::mem::take(&mut connection.flags.paused);
        if was_paused {
            self.core.paused -= 1;
        }
        // The connection is read again, to its end.
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

    fn end_of_stream(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &connection.state {
            // The client ends its side early, but may still read the rest.
            State::Closing(_) if !connection.is_written() => {
                connection.state = State::Closing(Closing::Flush);
                self.core.mark_dirty(key);
            }
            // The client ends its side right after its last message: replies go out, then the
            // connection ends.
            State::Open(_) => {
                self.record_progress(key);
                self.end_session(key, &Closed::Lost, Closing::Flush);
            }
            _ => self.drop_lost(key),
        }
    }

    /// Ends a connection whose input is invalid TLS; a pending alert is sent.
    fn fail_tls(&mut self, key: u32) {
        let deadline = self.deadline(self.core.config.close_timeout);
        self.end_session(key, &Closed::Lost, Closing::Eof);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if matches!(connection.state, State::Handshake(_)) {
            self.core.metrics.handshake(HandshakeOutcome::TlsFailed);
        }
        // Queued frames can no longer be encrypted.
        connection.outbox = Outbox::default();
        connection.state = State::Closing(Closing::Eof);
        connection.deadline = deadline;
        self.core.mark_dirty(key);
        self.core.run_queue.push(key);
    }

    /// Removes a connection that broke, or ended without a close frame.
    fn drop_lost(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        connection.transport.close_notify();
        if matches!(connection.state, State::Handshake(_)) {
            self.core.metrics.handshake(HandshakeOutcome::Lost);
        }
        self.end_session(key, &Closed::Lost, Closing::Flush);
        self.remove(key);
    }

    fn remove(&mut self, key: u32) {
        // Lists may still hold the key; their readers check what they find.
        self.core.discard_unread(key);
        if let Some(connection) = self.core.connections.try_remove(key as usize) {
            self.core.coders.incoming.remove_history(key, connection.flags.deflate);
            if !self.core.progress.is_empty() {
                self.core.progress.remove(&key);
                if self.core.progress.is_empty() {
                    self.core.progress.shrink_to_fit();
                }
            }
        }
    }

    /// Writes each dirty connection once.
    fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.core.dirty);
        let mut individually = std::mem::take(&mut self.core.write_individually);
        let mut rest = &dirty[..];
        while !rest.is_empty() {
            let processed = self.core.begin_writing(rest, &mut individually);
            rest = &rest[processed..];
            for key in individually.drain(..) {
                self.write(key);
            }
        }
        self.core.write_individually = individually;
        dirty.clear();
        // `drop_lost` lists nothing new but what was removed; the order of the list does not matter.
        dirty.append(&mut self.core.dirty);
        self.core.dirty = dirty;
        if self.core.dirty.is_empty() {
            self.core.arena.clear();
        } else {
            self.write_dirty();
        }
    }

    /// Writes a connection's queue, and finishes a closing connection.
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
        if let State::Closing(wait) = connection.state
            && connection.is_written()
        {
            self.finish_closing_write(key, wait);
        }
    }

    /// Continues the close of a connection whose queue is written.
    fn finish_closing_write(&mut self, key: u32, wait: Closing) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match wait {
            Closing::CloseFrame => {}
            Closing::Flush => {
                connection.transport.close_notify();
                self.remove(key);
            }
            Closing::Eof => {
                if !std::mem::replace(&mut connection.flags.write_shutdown, true)
                    && connection.transport.shutdown_write().is_err()
                {
                    self.remove(key);
                }
            }
        }
    }

    /// Checks deadlines, a slice of the connections at a time, and closes connections due for the drain.
    fn tick(&mut self) {
        self.close_due_for_drain();
        let from = match self.tick_position {
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
                self.on_deadline(key as u32);
            }
            if open {
                self.with_session(key as u32, |session, cx| session.on_tick(cx));
            }
        }
        self.tick_position = (to < capacity).then_some(to);
        if self.tick_position.is_none() {
            self.cells.queue.set(self.queued);
            self.cells.io_uring.set(self.core.is_batching().into());
        }
    }

    fn close_due_for_drain(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        while drain.take_close_if_due(self.core.now, self.core.open) {
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

/// Returns the worker's clock plus `after`, at most half the range, so that differences keep their sign.
fn deadline(now: u32, after: Duration) -> u32 {
    now.wrapping_add(after.as_millis().min(i32::MAX as u128 / 2) as u32)
}

/// Returns the delay after a round of a burst that took `took`. Publishers answered at the end of a
/// round send their next messages close together. Without the delay, the first message would get a
/// round of its own, and the others would wait for it.
fn coalesce_delay(took: Duration) -> Duration {
    (took / 8).min(MAX_COALESCE_DELAY)
}

/// Returns 0.5 to 1 times `time`, different for neighbouring keys.
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
    fn the_coalesce_delay_is_a_small_part_of_a_round() {
        for micros in [0, 1, 80, 3999, 4000, 4001, 1_000_000] {
            let took = Duration::from_micros(micros);
            assert!(
                coalesce_delay(took) <= took / 8 && coalesce_delay(took) <= MAX_COALESCE_DELAY,
                "{micros} µs"
            );
        }
        assert_eq!(coalesce_delay(Duration::from_millis(2)), Duration::from_micros(250));
    }
}
