//! One thread's loop over its connections.

#[cfg(feature = "io-uring")]
mod reads;
mod shed;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_metrics::{CounterCell, GaugeCell, HistogramCell};
use deeperhub_protocol::frame::{self, Extended, FrameError, Incoming};
use deeperhub_protocol::handshake::{self, Refusal};
use deeperhub_protocol::{CloseCode, CloseReason};
use tokio::sync::mpsc;

use crate::connections::{Closing, Connection, Connections, Core, Flags, State, too_slow};
use crate::deflate::{self, Coders};
use crate::drain::{Drain, DrainPlan};
use crate::handshake::{Handshake, Proxied};
use crate::metrics::{CoderCells, HandshakeLimit, Outcome};
use crate::outbox::Outbox;
use crate::places::Place;
use crate::session::{Application, Closed, Context, Local, Message, Peer, Session, Wire};
use crate::transport::Transport;
use crate::waker::ConnectionWaker;

/// Sockets that one round reads from; the others' turn comes in the next.
const READS_PER_ROUND: usize = 256;

/// Reads of one socket in a row, so that a peer that sends without end does not hold up the others.
const READS_PER_TURN: usize = 4;

/// Steps of TLS handshakes that one round takes. One with an RSA certificate costs most of a millisecond, so a flood of
/// them holds up the others' messages by some milliseconds only.
const HANDSHAKES_PER_ROUND: usize = 8;

/// New connections of one round.
const ARRIVALS_PER_ROUND: usize = 64;

/// A connection whose own replies reach this size is written right after its read: large replies of many
/// connections would leave the cache before the end of the round.
const EARLY_WRITE: usize = 8 * 1024;

/// Bytes of the read buffer that all connections of a worker share.
const SCRATCH: usize = 64 * 1024;

/// What is more than this is read by a system call of its own the next time: a batch has as much room for each connection.
const LONG_READ: usize = 4096;

/// The longest wait for more messages of a burst.
const MAX_HOLD: Duration = Duration::from_micros(500);

/// Slots of the slab that one round looks at for deadlines.
const TICK_SLICE: usize = 4096;

/// What is kept of the buffers of a round that was larger.
const KEEP: usize = 256 * 1024;

/// What a worker is told.
pub(crate) enum ToWorker {
    /// A new socket; with a refusal when there is no place for it.
    Connection {
        socket: std::net::TcpStream,
        peer: std::net::SocketAddr,
        place: Place,
        refusal: Option<Refusal>,
        /// When it was accepted.
        since: Instant,
    },
    /// Close all connections, spread over the time.
    Drain(Arc<DrainPlan>),
    /// End the thread.
    Stop,
}

/// Numbers of this worker.
pub(crate) struct WorkerCells {
    pub(crate) received: CounterCell,
    pub(crate) sent: CounterCell,
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
    inbound: &'a mut mpsc::Receiver<ToWorker>,
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
        inbound: &'a mut mpsc::Receiver<ToWorker>,
        cells: &'a mut WorkerCells,
    ) -> Self {
        let now = Instant::now();
        Self {
            application,
            local: application.local(index),
            core,
            inbound,
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
        let mut more = self.take_arrivals(cx);
        if self.stopped {
            return Poll::Ready(());
        }
        self.core.ready.take(&mut self.core.turn);
        let count = self.core.turn.len().min(READS_PER_ROUND);
        let turn = std::mem::take(&mut self.core.turn);
        self.take_turns(&turn[..count]);
        self.put_back(turn, count);

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
        self.cells.coders.take(&mut self.core.coders);
        self.core.metrics.tls(std::mem::take(&mut self.core.records.ended));
        if self.core.gather.capacity() > KEEP {
            self.core.gather = Vec::new();
        }

        more |= !self.core.turn.is_empty() || self.tick_at.is_some() || !self.core.dirty.is_empty();
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
        if self.core.paused > 0 {
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

    /// Puts those whose turn did not come in front of those who asked meanwhile.
    fn put_back(&mut self, mut turn: Vec<u32>, done: usize) {
        turn.drain(..done);
        turn.append(&mut self.core.turn);
        self.core.turn = turn;
    }

    fn take_arrivals(&mut self, cx: &mut task::Context<'_>) -> bool {
        for _ in 0..ARRIVALS_PER_ROUND {
            match self.inbound.poll_recv(cx) {
                Poll::Pending => return false,
                Poll::Ready(Some(ToWorker::Connection { socket, peer, place, refusal, since })) => {
                    self.core
                        .metrics
                        .accept_seconds
                        .observe_duration(self.core.now.saturating_duration_since(since));
                    self.arrive(socket, peer, place, refusal, since);
                }
                Poll::Ready(Some(ToWorker::Drain(plan))) => self.drain = Some(Drain::new(plan)),
                Poll::Ready(Some(ToWorker::Stop) | None) => {
                    self.stopped = true;
                    return false;
                }
            }
        }
        true
    }

    fn arrive(
        &mut self,
        socket: std::net::TcpStream,
        peer: std::net::SocketAddr,
        place: Place,
        refusal: Option<Refusal>,
        since: Instant,
    ) {
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
        self.turn(key);
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

    /// Reads from each of these, in batches where that pays.
    fn take_turns(&mut self, keys: &[u32]) {
        #[cfg(feature = "io-uring")]
        if self.core.is_batching() {
            return self.take_turns_in_batches(keys);
        }
        for &key in keys {
            self.turn(key);
        }
    }

    /// Something may have happened at a connection: writes what was blocked, reads what is there.
    fn turn(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if connection.flags.write_blocked {
            connection.flags.write_blocked = false;
            self.core.mark_dirty(key);
        }
        self.read(key);
    }

    fn read(&mut self, key: u32) {
        for _ in 0..READS_PER_TURN {
            let core = &mut *self.core;
            let Some(connection) = core.connections.get_mut(key as usize) else { return };
            match &connection.state {
                State::Handshake(handshake) if handshake.deciding.is_some() => return self.decide(key),
                State::Open(_) if connection.flags.paused || connection.flags.too_slow => return,
                _ => {}
            }
            if connection.transport.is_shaking_hands() && core.records.handshake_steps >= HANDSHAKES_PER_ROUND
            {
                break;
            }
            let read = connection.transport.read(&mut self.scratch, &mut core.records);
            if !connection.transport.is_flushed() && !connection.flags.dirty {
                connection.flags.dirty = true;
                core.dirty.push(key);
            }
            let read = match read {
                Ok(0) => return self.end_of_stream(key),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.arm(key) {
                        continue;
                    }
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return self.spoke_no_tls(key),
                Err(_) => return self.lost(key),
            };
            core.received += read as u64;
            connection.flags.reads_long = read > LONG_READ;
            let drained = read < self.scratch.len() && connection.transport.drained();
            let mut scratch = std::mem::take(&mut self.scratch);
            self.received(key, &mut scratch[..read]);
            self.scratch = scratch;
            if drained && !self.arm(key) {
                return;
            }
        }
        self.core.turn.push(key);
    }

    /// Asks for a wake-up when there is more to read. True: there is now.
    fn arm(&mut self, key: u32) -> bool {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return false };
        let mut cx = task::Context::from_waker(&connection.waker);
        match connection.transport.arm_read(&mut cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                self.lost(key);
                false
            }
        }
    }

    /// Handles what was read.
    fn received(&mut self, key: u32, bytes: &mut [u8]) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &mut connection.state {
            State::Handshake(_) => self.shake_hands(key, bytes),
            State::Open(_) => self.decode(key, bytes),
            State::Closing(Closing::CloseFrame) => {
                let mut pos = 0;
                loop {
                    let (deflate, input) = (connection.flags.deflate, &mut *bytes);
                    match deflate::skip(deflate, &mut connection.decoder, &self.core.limits, input, &mut pos)
                    {
                        Ok(Some(Extended::Plain(Incoming::Close(_)))) => {
                            connection.state = State::Closing(Closing::Nothing);
                            break self.core.mark_dirty(key);
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => {
                            connection.state = State::Closing(Closing::Eof);
                            break self.core.mark_dirty(key);
                        }
                    }
                }
            }
            State::Closing(_) => {}
        }
    }

    /// Takes in what came of a handshake.
    fn shake_hands(&mut self, key: u32, bytes: &[u8]) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        if handshake.proxied == Proxied::Header {
            return self.preface(key, bytes);
        }
        match handshake.feed(bytes, &core.config, &core.metrics) {
            None => {}
            Some(Err(refusal)) => self.refuse(key, &refusal),
            Some(Ok((request, accept_key))) => {
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
                self.decide(key);
            }
        }
    }

    /// Takes in what comes before TLS and HTTP.
    fn preface(&mut self, key: u32, bytes: &[u8]) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &mut connection.state else { return };
        match handshake.preface(bytes, &core.config, &mut connection.place, &core.metrics) {
            Ok(None) => {}
            Ok(Some(rest)) => match connection.transport.end_preface(rest) {
                Some(rest) if rest.is_empty() => {}
                Some(rest) => self.shake_hands(key, &rest),
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
    fn decide(&mut self, key: u32) {
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
        connection.outbox.push_arena(start, self.core.arena.len());
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
            self.decode(key, &mut rest);
        }
        // What came while the application was deciding waits in the kernel.
        self.core.turn.push(key);
    }

    fn refuse(&mut self, key: u32, refusal: &Refusal) {
        self.core.metrics.handshake(Outcome::Refused);
        let deadline = self.deadline(self.core.config.close_timeout);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if let State::Handshake(handshake) = &connection.state {
            let Refusal { status, code, message, .. } = refusal;
            tracing::debug!(peer = %handshake.peer, status, code, why = %message, "A handshake was refused.");
        }
        let start = self.core.arena.len();
        match &connection.state {
            // RFC 9110 section 9.3.2.
            State::Handshake(handshake) if handshake.is_head => {
                refusal.write_head(self.core.arena.replies());
            }
            _ => refusal.write(self.core.arena.replies()),
        }
        connection.outbox.push_arena(start, self.core.arena.len());
        connection.state = State::Closing(Closing::Eof);
        connection.deadline = deadline;
        self.core.mark_dirty(key);
    }

    /// Decodes what came and gives it to the session.
    fn decode(&mut self, key: u32, input: &mut [u8]) {
        let next_ping = self.next_ping();
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let Connection { state: State::Open(session), decoder, outbox, flags, deadline, transport, .. } =
            connection
        else {
            return;
        };
        let mut close = None;
        let mut pause = false;
        let mut pos = 0;
        let arena_start = core.arena.len();
        let (local, now, arena, limits) = (&mut self.local, core.now, core.arena.replies(), &core.limits);
        let max_queue_bytes = core.config.max_queue_bytes;
        let (deflate, Coders { outgoing, incoming }) = (flags.deflate, &mut core.coders);
        let (records, sent) = (&mut core.records, &mut core.sent);
        let (end, is_direct) = (input.len(), !transport.is_tls());
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let next = match deflate {
                    None => decoder.next(limits, input, &mut pos),
                    Some(params) => incoming.next(key, params, decoder, limits, input, &mut pos),
                };
                let mut cx = Context {
                    key,
                    now,
                    local: &mut *local,
                    outbox: &mut *outbox,
                    arena: &mut *arena,
                    outgoing: &mut *outgoing,
                    deflate,
                    close: &mut close,
                    pause: &mut pause,
                    // Not while more of this client's messages stand here, whose replies leave together.
                    wire: (pos == end && is_direct && !flags.write_blocked).then_some(Wire {
                        transport: &mut *transport,
                        records: &mut *records,
                        sent: &mut *sent,
                    }),
                };
                let message = match next {
                    Ok(None) => return Decoded::All,
                    Ok(Some(Incoming::Text(text))) => Message::Text(text),
                    Ok(Some(Incoming::Binary(bytes))) => Message::Binary(bytes),
                    Ok(Some(Incoming::Ping(payload))) => {
                        if !session.admits_control(&mut cx) {
                            if close.is_some() {
                                return Decoded::All;
                            }
                            continue;
                        }
                        let start = arena.len();
                        frame::write_pong(arena, payload);
                        if flags.write_blocked {
                            // Only where deliveries wait is there something to overtake.
                            outbox.push_pong(frame::Frame::from_encoded(&arena[start..]));
                            arena.truncate(start);
                        } else {
                            outbox.push_arena(start, arena.len());
                        }
                        continue;
                    }
                    Ok(Some(Incoming::Pong(_))) => {
                        // One that answers our own ping costs nothing.
                        if std::mem::take(&mut flags.awaiting_pong) {
                            *deadline = next_ping;
                        } else {
                            session.admits_control(&mut cx);
                        }
                        if close.is_some() {
                            return Decoded::All;
                        }
                        continue;
                    }
                    Ok(Some(Incoming::Close(close))) => {
                        return Decoded::PeerClose(close.map(|(code, _)| code));
                    }
                    Err(error) => return Decoded::Fault(error),
                };
                session.on_message(message, &mut cx);
                if close.is_some() {
                    return Decoded::All;
                }
                if outbox.len() > max_queue_bytes {
                    return Decoded::Full;
                }
            }
        }));
        if pause && !flags.paused {
            flags.paused = true;
            core.paused += 1;
        }
        if outbox.len() >= EARLY_WRITE && !flags.write_blocked {
            if connection.flush(&core.arena, &mut core.gather, &mut core.records, &mut core.sent).is_err() {
                return self.lost(key);
            }
            // What the socket did not take was copied, so the next large reply gets the same memory, while it is
            // in the cache.
            core.arena.truncate(arena_start);
        }
        if !connection.outbox.is_empty() && !connection.flags.dirty {
            connection.flags.dirty = true;
            core.dirty.push(key);
        }
        if let Some(reason) = close {
            return self.close(key, reason);
        }
        match result {
            Ok(Decoded::All) => {}
            Ok(Decoded::Full) => {
                let full = self.core.connections.get(key as usize).map(|connection| connection.outbox.len());
                if full.is_some_and(|full| full > self.core.config.max_queue_bytes) {
                    self.close(key, too_slow());
                } else {
                    let (_, rest) = input.split_at_mut(pos);
                    self.decode(key, rest);
                }
            }
            Ok(Decoded::PeerClose(code)) => self.answer_close(key, code),
            Ok(Decoded::Fault(error)) => {
                self.core.metrics.too_big(&error);
                self.close(key, error.close_reason());
            }
            Err(_) => self.panicked(key),
        }
    }

    /// Calls the session of an open connection.
    fn with_session(&mut self, key: u32, call: impl FnOnce(&mut A::Session, &mut Context<'_, A::Local>)) {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        let Connection { state: State::Open(session), outbox, flags, .. } = connection else { return };
        let (mut close, mut pause) = (None, false);
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
            CloseCode::TooSlow => {
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
        if code.says_goodbye() {
            let arena = self.core.arena.replies();
            let said =
                catch_unwind(AssertUnwindSafe(|| session.on_farewell(&reason, retry_after, arena))).is_ok();
            if !said {
                self.core.metrics.session_panics.inc();
                self.core.arena.truncate(start);
            }
        }
        frame::write_close(self.core.arena.replies(), Some(code.as_u16()), reason.text());
        connection.outbox.push_arena(start, self.core.arena.len());
        let wait = match code {
            CloseCode::ProtocolError | CloseCode::InvalidUtf8 | CloseCode::MessageTooBig => Closing::Eof,
            _ => Closing::CloseFrame,
        };
        self.end_session(key, &Closed::ByServer(reason), wait);
    }

    /// The client closed: answers with its code (RFC 6455 section 5.5.1) behind what is queued.
    fn answer_close(&mut self, key: u32, code: Option<u16>) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let start = self.core.arena.len();
        frame::write_close(self.core.arena.replies(), code, "");
        connection.outbox.push_arena(start, self.core.arena.len());
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
        if std::mem::take(&mut connection.flags.paused) {
            // It reads again, to its end.
            self.core.paused -= 1;
            self.core.turn.push(key);
        }
        if std::mem::take(&mut connection.flags.too_slow) {
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
        if let Some(connection) = self.core.connections.try_remove(key as usize) {
            self.core.coders.incoming.forget(key, connection.flags.deflate);
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

    fn deadline_passed(&mut self, key: u32) {
        let timeout = self.deadline(self.core.config.pong_timeout);
        let next = self.next_ping();
        let is_off = self.core.config.ping_interval.is_zero();
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &connection.state {
            State::Handshake(handshake) => {
                let is_silent = handshake.head.is_empty() || handshake.proxied == Proxied::Header;
                if is_silent && handshake.deciding.is_none() {
                    self.core.metrics.handshakes_limited.inc(HandshakeLimit::Time as usize);
                    self.core.metrics.handshake(Outcome::TimedOut);
                    self.remove(key);
                } else {
                    self.core.metrics.handshakes_limited.inc(HandshakeLimit::Time as usize);
                    self.refuse(key, &Refusal::bad_handshake("the handshake took too long"));
                }
            }
            State::Closing(_) => self.remove(key),
            State::Open(_) if connection.flags.awaiting_pong => {
                self.close(key, CloseReason::new(CloseCode::PongTimeout, "no pong in time"));
            }
            State::Open(_) => {
                connection.deadline = if is_off { next } else { timeout };
                if is_off {
                    return;
                }
                connection.flags.awaiting_pong = true;
                let start = self.core.arena.len();
                frame::write_ping(self.core.arena.replies(), b"");
                connection.outbox.push_arena(start, self.core.arena.len());
                self.core.mark_dirty(key);
            }
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

/// How far the decoder came.
enum Decoded {
    All,
    /// The queue is over its limit; there may be more input.
    Full,
    PeerClose(Option<u16>),
    Fault(FrameError),
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

/// Keeps a worker going: one that dies is replaced, its connections are told where that can be.
pub(crate) fn run<A: Application>(
    application: &Arc<A>,
    index: usize,
    mut core: Core<A::Session>,
    mut inbound: mpsc::Receiver<ToWorker>,
    mut cells: WorkerCells,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    #[cfg(feature = "io-uring")]
    core.batch(index);
    runtime.block_on(tokio::task::unconstrained(async {
        loop {
            let life = catch_unwind_future(|| {
                let mut worker = Worker::new(&**application, index, &mut core, &mut inbound, &mut cells);
                move |cx: &mut task::Context<'_>| worker.poll_round(cx)
            });
            if life.await {
                return;
            }
            core.metrics.worker_restarts.inc();
            tracing::error!(
                worker = index,
                "A worker died and is replaced; its connections are closed with 1011."
            );
            bury(&mut core);
        }
    }));
    Ok(())
}

/// Makes a worker and polls it until it ends (true) or panics (false).
async fn catch_unwind_future<F, P>(make: F) -> bool
where
    F: FnOnce() -> P,
    P: FnMut(&mut task::Context<'_>) -> Poll<()>,
{
    let Ok(mut poll) = catch_unwind(AssertUnwindSafe(make)) else {
        // A worker that cannot even be made: not in a hot loop.
        tokio::time::sleep(Duration::from_millis(100)).await;
        return false;
    };
    std::future::poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(())) => Poll::Ready(true),
        Err(_) => Poll::Ready(false),
    })
    .await
}

/// Tells the connections of a dead worker that it was not their fault, where a frame can still be written whole.
fn bury<S>(core: &mut Core<S>) {
    let mut close = Vec::new();
    frame::write_close(&mut close, Some(CloseCode::InternalError.as_u16()), "a fault inside the server");
    for mut connection in core.connections.drain() {
        if matches!(connection.state, State::Open(_)) && !connection.flags.write_blocked {
            let _ = connection.transport.write(&close, &mut core.records);
            let _ = connection.transport.shutdown_write();
        }
    }
    core.turn.clear();
    core.dirty.clear();
    core.to_close.clear();
    core.arena.clear();
    core.coders = Coders::new(&core.config.compression);
    core.open = 0;
    core.paused = 0;
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
