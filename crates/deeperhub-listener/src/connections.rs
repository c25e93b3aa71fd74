//! A worker's connections, the state around them, and [`Connections`], which a worker state uses to
//! send to them and close them.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use deeperhub_protocol::deflate::Params;
use deeperhub_protocol::frame::{Frame, FrameDecoder, FrameLimits};
use deeperhub_protocol::{CloseCode, CloseReason};
use slab::Slab;

use crate::admission::ConnectionPermit;
use crate::arena::{Arena, Multicast};
#[cfg(feature = "io-uring")]
use crate::batch_write::{self, Batch};
use crate::config::{Config, Limits};
use crate::deflate::DeflateCodec;
use crate::handshake::Handshake;
use crate::intake_limit::IntakeLimit;
use crate::metrics::Metrics;
use crate::outbox::{NextWrite, Outbox};
use crate::round::{MESSAGE_COST, RoundBudget};
use crate::session::ConnectionKey;
use crate::transport::{TlsScratch, Transport};
use crate::waker::ReadyList;

/// Maximum connections that fan-outs mark dirty in one round, about 5 ms of writes. The other
/// receivers get their frames in later rounds, so that a large fan-out does not delay reads and
/// other topics.
const MAX_RECEIVERS_PER_ROUND: usize = 1024;

/// Capacity up to which the connection slab is not shrunk.
const MIN_SLAB_CAPACITY: usize = 1024;

/// Maximum deliveries (a frame queued for a connection) in one round, however few connections get
/// them.
const MAX_DELIVERIES_PER_ROUND: usize = 16 * MAX_RECEIVERS_PER_ROUND;

/// Budget for the deliveries of one round, in [byte cost](crate::round): eight times the default of
/// [`Limits::round_bytes`](crate::Limits::round_bytes). It limits rounds with long messages, or
/// with messages to compress.
const DELIVERY_COST_PER_ROUND: usize = 32 * 1024 * 1024;

/// Minimum receivers with which a round counts as part of a burst. With fewer, waiting for more
/// messages saves too little.
const MIN_BURST_RECEIVERS: usize = 64;

/// Lifecycle state of a connection.
pub(crate) enum State<S> {
    /// The request head is incomplete, or the application is deciding.
    Handshake(Box<Handshake<S>>),
    /// The handshake was accepted, and the session handles messages.
    Open(S),
    /// The session has ended. Queued bytes are written and input is discarded, until this event.
    Closing(ClosingUntil),
}

/// Event at which a closing connection is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClosingUntil {
    /// All bytes are written and the client's close frame has arrived. The server then ends the
    /// connection first (RFC 6455 section 7.1.1).
    CloseFrame,
    /// The client has ended the connection. The server shuts down its sending side once all bytes
    /// are written. Used if no close frame can be expected: after an HTTP response or invalid
    /// input, and when memory is short.
    Eof,
    /// All bytes are written.
    Flushed,
}

/// One connection in the worker's slab. It is small: an idle connection has no buffer and no
/// future.
pub(crate) struct Connection<S> {
    pub(crate) transport: Transport,
    pub(crate) waker: Waker,
    pub(crate) state: State<S>,
    pub(crate) decoder: FrameDecoder,
    pub(crate) outbox: Outbox,
    /// Time at which the handshake or the close times out, or the next liveness check is due. In
    /// milliseconds of the worker's clock, which wraps.
    pub(crate) deadline: u32,
    pub(crate) flags: Flags,
    /// Counts the connection against the limits until it is dropped.
    pub(crate) permit: ConnectionPermit,
}

/// Flags of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flags {
    /// `true` if the connection is in the worker's dirty list.
    pub(crate) dirty: bool,
    /// `true` if the socket is full. A wake-up for writability is then armed.
    pub(crate) write_blocked: bool,
    /// `true` if the session paused reading.
    pub(crate) paused: bool,
    /// `true` if the listener sent a ping that has no pong yet.
    pub(crate) awaiting_pong: bool,
    /// Result of the last liveness check.
    pub(crate) liveness: Liveness,
    /// `true` if the connection is in the worker's backlog.
    pub(crate) in_backlog: bool,
    /// `true` if bytes were read but not handled in the connection's last turn.
    pub(crate) has_unread: bool,
    /// `true` if the queue is over its limit. The connection is then listed for closing and gets no
    /// more frames.
    pub(crate) over_queue_limit: bool,
    /// `true` if the sending side was shut down.
    pub(crate) write_shutdown: bool,
    /// `true` if the last read was long. The next read is then not batched.
    pub(crate) reads_long: bool,
    /// Parameters of the negotiated compression.
    pub(crate) deflate: Option<Params>,
}

/// Result of the last liveness check of a peer. Any received byte is a sign of life. So are bytes
/// that the peer takes while more are queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// There was a sign of life since the last ping, or no ping was sent yet.
    #[default]
    Alive,
    /// A ping was sent, and no sign of life followed yet.
    PingSent,
    /// The pong timeout passed. The connection gets one more turn, to read input that may have
    /// arrived.
    FinalRead,
    /// The last turn found no input. The connection is closed next.
    Silent,
}

/// Bytes that were read from a connection but not handled in its turn.
#[derive(Debug)]
pub(crate) struct UnreadInput {
    pub(crate) bytes: Vec<u8>,
    /// Position at which the next turn continues.
    pub(crate) at: usize,
}

/// Send progress of a peer when it was last checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerProgress {
    /// Bytes that the peer's kernel has acknowledged.
    pub(crate) acknowledged: u64,
    /// `true` if bytes were queued or unacknowledged at that check.
    pub(crate) is_behind: bool,
    /// Number of times that the close timeout has started anew.
    pub(crate) extensions: u32,
}

impl<S> Connection<S> {
    /// Returns `true` if the kernel has taken all queued bytes.
    pub(crate) fn is_written(&self) -> bool {
        self.outbox.is_empty() && self.transport.is_flushed()
    }

    /// Writes like [`flush`](Self::flush), but tries the socket even if the reactor has not
    /// reported it writable yet.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection is broken.
    pub(crate) fn flush_now(
        &mut self,
        arena: &Arena,
        gather: &mut Vec<u8>,
        tls_scratch: &mut TlsScratch,
        sent: &mut u64,
    ) -> std::io::Result<()> {
        self.transport.set_bypass_readiness(true);
        let result = self.flush(arena, gather, tls_scratch, sent);
        self.transport.set_bypass_readiness(false);
        result
    }

    /// Writes the queue until it is empty or the socket is full. Frames that the socket did not
    /// take are copied out of the arena.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection is broken.
    pub(crate) fn flush(
        &mut self,
        arena: &Arena,
        gather: &mut Vec<u8>,
        tls_scratch: &mut TlsScratch,
        sent: &mut u64,
    ) -> std::io::Result<()> {
        let mut cx = std::task::Context::from_waker(&self.waker);
        loop {
            let result = match self.outbox.next_write(arena.bytes(), gather) {
                NextWrite::Nothing if self.transport.is_flushed() => {
                    self.flags.write_blocked = false;
                    return Ok(());
                }
                NextWrite::Nothing => self.transport.flush().map(|()| 0),
                NextWrite::Slice(bytes) => self.transport.write(bytes, tls_scratch),
                NextWrite::Slices(slices, count) => {
                    self.transport.write_vectored(&slices[..count], tls_scratch)
                }
            };
            match result {
                // Write again even after a short write: readiness is edge-triggered, so only
                // `WouldBlock` proves that the socket is full. Also, one vectored write may cover
                // only a part of the queue.
                Ok(written) => {
                    *sent += written as u64;
                    self.outbox.advance(written);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    match self.transport.arm_write(&mut cx) {
                        std::task::Poll::Ready(ready) => ready?,
                        std::task::Poll::Pending => {
                            self.flags.write_blocked = true;
                            self.outbox.detach(arena);
                            return Ok(());
                        }
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// State of a worker that survives a panic: all but the loop ([`Worker`](crate::worker::Worker))
/// and the application's worker state.
pub(crate) struct WorkerCore<S> {
    /// Settings that are fixed at the start. The current limits are in `limits`.
    pub(crate) config: Arc<Config>,
    shared_limits: Cache<Arc<ArcSwap<Limits>>, Arc<Limits>>,
    /// The limits as of the start of this round.
    pub(crate) limits: Arc<Limits>,
    /// The part of `limits` that concerns frames.
    pub(crate) frame_limits: FrameLimits,
    pub(crate) metrics: Metrics,
    pub(crate) connections: Slab<Connection<S>>,
    /// Connections whose sockets became ready since the last round.
    pub(crate) ready: Arc<ReadyList>,
    /// Connections to poll in this round or the next.
    pub(crate) run_queue: Vec<u32>,
    /// New connections of this round.
    pub(crate) arrived: Vec<u32>,
    /// Connections whose turn ended with input left, in the order of their next turns.
    pub(crate) backlog: Vec<u32>,
    /// Bytes that were read but not handled yet: at most those of one read for each connection.
    pub(crate) unread: HashMap<u32, UnreadInput>,
    /// Send progress of peers at their last check. Only peers that were pinged or are closing have
    /// an entry.
    pub(crate) progress: HashMap<u32, PeerProgress>,
    /// Budget of this round for client input.
    pub(crate) round: RoundBudget,
    /// Limit of client input while memory is short.
    pub(crate) intake: IntakeLimit,
    /// Connections to write at the end of the round: their queues have new bytes, or their sockets
    /// became writable. Called the dirty list.
    pub(crate) dirty: Vec<u32>,
    /// Connections of a write step that are not written in a batch. The list is empty between steps
    /// and kept for its capacity.
    pub(crate) write_individually: Vec<u32>,
    /// Connections to close once [`WorkerState::poll`](crate::WorkerState::poll) has returned.
    pub(crate) to_close: Vec<(u32, CloseReason)>,
    /// Buffer of the bytes that connections send in this round.
    pub(crate) arena: Arena,
    pub(crate) codec: DeflateCodec,
    /// Buffer that short queues are copied into for a plain write.
    pub(crate) gather: Vec<u8>,
    /// Buffer and counts of all TLS connections.
    pub(crate) tls_scratch: TlsScratch,
    /// Ring for batched reads and writes, if io_uring is used.
    #[cfg(feature = "io-uring")]
    pub(crate) batch: Option<Batch>,
    /// Start of the current round.
    pub(crate) now: Instant,
    /// Connections that fan-outs may still mark dirty in this round.
    pub(crate) receivers_left: usize,
    /// Deliveries left in this round.
    pub(crate) deliveries_left: usize,
    /// Delivery cost left in this round.
    pub(crate) delivery_cost_left: usize,
    /// Open sessions.
    pub(crate) open: usize,
    /// Connections whose session paused reading.
    pub(crate) paused: usize,
    /// Bytes sent since the last metrics update.
    pub(crate) sent: u64,
    /// Bytes received since the last metrics update.
    pub(crate) received: u64,
    /// Turns since the last metrics update that ended with bytes read but not handled.
    pub(crate) deferred: u64,
}

impl<S> WorkerCore<S> {
    pub(crate) fn new(
        config: Arc<Config>,
        shared_limits: Arc<ArcSwap<Limits>>,
        metrics: Metrics,
        now: Instant,
    ) -> Self {
        let mut shared_limits = Cache::new(shared_limits);
        let limits = Arc::clone(shared_limits.load());
        Self {
            codec: DeflateCodec::new(&config.compression),
            frame_limits: limits.frames(),
            shared_limits,
            metrics,
            connections: Slab::new(),
            ready: Arc::default(),
            run_queue: Vec::new(),
            arrived: Vec::new(),
            backlog: Vec::new(),
            unread: HashMap::new(),
            progress: HashMap::new(),
            round: RoundBudget::new(limits.round_bytes, limits.round_time, now),
            intake: IntakeLimit::new(config.memory.clone(), config.workers),
            dirty: Vec::new(),
            write_individually: Vec::new(),
            to_close: Vec::new(),
            arena: Arena::default(),
            gather: Vec::new(),
            tls_scratch: TlsScratch::default(),
            #[cfg(feature = "io-uring")]
            batch: None,
            now,
            receivers_left: MAX_RECEIVERS_PER_ROUND,
            deliveries_left: MAX_DELIVERIES_PER_ROUND,
            delivery_cost_left: DELIVERY_COST_PER_ROUND,
            open: 0,
            paused: 0,
            sent: 0,
            received: 0,
            deferred: 0,
            limits,
            config,
        }
    }

    /// Returns `true` if this round was part of a burst: many connections got frames, on average at
    /// least two each.
    pub(crate) fn is_in_burst(&self) -> bool {
        let receivers = MAX_RECEIVERS_PER_ROUND - self.receivers_left;
        let deliveries = MAX_DELIVERIES_PER_ROUND - self.deliveries_left;
        receivers >= MIN_BURST_RECEIVERS && deliveries >= 2 * receivers
    }

    /// Resets the budgets for a new round, and loads the current limits.
    pub(crate) fn begin_round(&mut self, now: Instant) {
        self.now = now;
        self.receivers_left = MAX_RECEIVERS_PER_ROUND;
        self.deliveries_left = MAX_DELIVERIES_PER_ROUND;
        self.delivery_cost_left = DELIVERY_COST_PER_ROUND;
        self.tls_scratch.handshake_steps = 0;
        let limits = self.shared_limits.load();
        if !Arc::ptr_eq(limits, &self.limits) {
            self.limits = Arc::clone(limits);
            self.frame_limits = limits.frames();
        }
        self.intake.begin_round(now);
        let max_cost = self.limits.round_bytes.min(self.intake.remaining());
        self.round = RoundBudget::new(max_cost, self.limits.round_time, now);
    }

    /// Deducts the cost of this round from the intake limit.
    pub(crate) fn charge_intake(&mut self) {
        self.intake.spend(self.round.spent());
    }

    /// Adds a connection to the end of the backlog, unless it is there already.
    pub(crate) fn defer(&mut self, key: u32) {
        if let Some(connection) = self.connections.get_mut(key as usize)
            && !std::mem::replace(&mut connection.flags.in_backlog, true)
        {
            self.backlog.push(key);
        }
    }

    /// Drops bytes that were read from a connection but not handled.
    pub(crate) fn discard_unread(&mut self, key: u32) {
        if let Some(connection) = self.connections.get_mut(key as usize)
            && std::mem::take(&mut connection.flags.has_unread)
        {
            self.unread.remove(&key);
            self.shrink_unread();
        }
    }

    /// Frees the memory of the map of unread bytes once it is empty.
    pub(crate) fn shrink_unread(&mut self) {
        if self.unread.is_empty() {
            self.unread.shrink_to_fit();
        }
    }

    /// Frees memory of the slab and the lists after many connections have closed. The slab keeps
    /// its slots up to the highest key in use.
    pub(crate) fn shrink_connections(&mut self) {
        if self.connections.capacity() > MIN_SLAB_CAPACITY
            && self.connections.len() < self.connections.capacity() / 4
        {
            self.connections.shrink_to_fit();
            for list in
                [&mut self.run_queue, &mut self.backlog, &mut self.dirty, &mut self.write_individually]
            {
                list.shrink_to(self.connections.capacity());
            }
        }
    }

    /// Returns `true` if connections are read and written in batches.
    pub(crate) fn is_batching(&self) -> bool {
        #[cfg(feature = "io-uring")]
        return self.batch.is_some();
        #[cfg(not(feature = "io-uring"))]
        false
    }

    /// Handles connections at the start of `dirty` and returns how many. Writes some of them in a
    /// batch, and adds those that the caller must write to `individually`.
    pub(crate) fn begin_writing(&mut self, dirty: &[u32], individually: &mut Vec<u32>) -> usize {
        #[cfg(feature = "io-uring")]
        if self.batch.is_some() && dirty.len() >= batch_write::MIN_BATCH {
            return self.write_batch(dirty, individually);
        }
        for &key in dirty {
            if take_if_dirty(&mut self.connections, key).is_some() {
                individually.push(key);
            }
        }
        dirty.len()
    }

    /// Adds a connection to the dirty list, unless it is there already.
    pub(crate) fn mark_dirty(&mut self, key: u32) {
        if let Some(connection) = self.connections.get_mut(key as usize)
            && !connection.flags.dirty
        {
            connection.flags.dirty = true;
            self.dirty.push(key);
        }
    }
}

/// Returns the connection with a key of the dirty list, and clears its dirty flag. Returns `None`
/// if the flag is not set: a key that a new connection reuses may be in the list twice.
pub(crate) fn take_if_dirty<S>(
    connections: &mut Slab<Connection<S>>,
    key: u32,
) -> Option<&mut Connection<S>> {
    let connection = connections.get_mut(key as usize)?;
    std::mem::take(&mut connection.flags.dirty).then_some(connection)
}

/// Returns the connection if it is open and its queue is not over the limit.
#[inline(always)]
fn open_receiver<S>(connections: &mut Slab<Connection<S>>, key: ConnectionKey) -> Option<&mut Connection<S>> {
    let connection = connections.get_mut(key as usize)?;
    (matches!(connection.state, State::Open(_)) && !connection.flags.over_queue_limit).then_some(connection)
}

/// Operations of a [`WorkerState`](crate::WorkerState) on the worker's connections.
pub struct Connections<'a, S> {
    pub(crate) core: &'a mut WorkerCore<S>,
}

impl<S> Connections<'_, S> {
    /// Returns the time at which the worker's round began.
    pub fn now(&self) -> Instant {
        self.core.now
    }

    /// Returns how many more connections should get frames in this round. At 0,
    /// [`WorkerState::poll`](crate::WorkerState::poll) should return and continue in the next
    /// round.
    pub fn send_budget(&self) -> usize {
        let is_spent = self.core.deliveries_left == 0 || self.core.delivery_cost_left == 0;
        if is_spent { 0 } else { self.core.receivers_left }
    }

    /// Returns the number of open sessions of this worker.
    pub fn open(&self) -> usize {
        self.core.open
    }

    /// Queues a frame for a connection and returns the connection's session. Returns `None` if the
    /// connection is not open, or is about to be closed as a slow consumer.
    pub fn send(&mut self, key: ConnectionKey, frame: &Frame) -> Option<&mut S> {
        let core = &mut *self.core;
        let connection = open_receiver(&mut core.connections, key)?;
        connection.outbox.push(match connection.flags.deflate {
            None => frame,
            Some(params) => core.codec.compressor.shared(params, frame),
        });
        self.after_queueing(key, frame.len())
    }

    /// Queues a frame like [`send`](Self::send), for a frame with several receivers.
    pub fn send_multicast(&mut self, key: ConnectionKey, multicast: &Multicast) -> Option<&mut S> {
        let core = &mut *self.core;
        let connection = open_receiver(&mut core.connections, key)?;
        let frame = match connection.flags.deflate {
            None => multicast.frame(),
            Some(params) => core.codec.compressor.shared(params, multicast.frame()),
        };
        // While the socket is full, the shared frame is queued, not a copy.
        let arena_start = if connection.flags.write_blocked {
            None
        } else {
            core.arena.copy(frame, multicast.copy_slot(frame))
        };
        match arena_start {
            Some(start) => connection.outbox.push_arena(core.arena.bytes(), start..start + frame.len()),
            None => connection.outbox.push(frame),
        }
        let bytes = frame.len();
        self.after_queueing(key, bytes)
    }

    /// Charges `bytes` queued for a connection, marks it dirty, and lists it for closing if its
    /// queue is over the limit.
    #[inline(always)]
    fn after_queueing(&mut self, key: ConnectionKey, bytes: usize) -> Option<&mut S> {
        let core = &mut *self.core;
        let connection = core.connections.get_mut(key as usize)?;
        core.deliveries_left = core.deliveries_left.saturating_sub(1);
        let mut cost = MESSAGE_COST + bytes;
        if connection.flags.deflate.is_some() {
            cost += core.codec.compressor.take_cost();
        }
        core.delivery_cost_left = core.delivery_cost_left.saturating_sub(cost);
        if !connection.flags.dirty {
            connection.flags.dirty = true;
            core.dirty.push(key);
            core.receivers_left = core.receivers_left.saturating_sub(1);
        }
        if connection.outbox.len() > core.limits.max_queue_bytes {
            // Even a fast peer passes the limit if it gets many frames in one round, so try the
            // socket first. The write at the end of the round reports an error again.
            let _ =
                connection.flush_now(&core.arena, &mut core.gather, &mut core.tls_scratch, &mut core.sent);
            if connection.outbox.len() > core.limits.max_queue_bytes {
                connection.flags.over_queue_limit = true;
                core.to_close.push((key, slow_consumer_reason()));
                return None;
            }
        }
        match &mut connection.state {
            State::Open(session) => Some(session),
            _ => None,
        }
    }

    /// Returns the session of an open connection.
    pub fn session(&mut self, key: ConnectionKey) -> Option<&mut S> {
        match self.core.connections.get_mut(key as usize) {
            Some(Connection { state: State::Open(session), .. }) => Some(session),
            _ => None,
        }
    }

    /// Returns the lowest key of an open connection that is not below `from`. Calls with increasing
    /// keys iterate over all connections, possibly over several rounds.
    pub fn next_open(&self, from: ConnectionKey) -> Option<ConnectionKey> {
        (from as usize..self.core.connections.capacity().min(u32::MAX as usize))
            .find(|&key| {
                matches!(self.core.connections.get(key), Some(Connection { state: State::Open(_), .. }))
            })
            .map(|key| key as ConnectionKey)
    }

    /// Closes a connection once [`WorkerState::poll`](crate::WorkerState::poll) has returned.
    /// Frames that are queued by then are still sent.
    pub fn close(&mut self, key: ConnectionKey, reason: CloseReason) {
        self.core.to_close.push((key, reason));
    }

    /// Resumes reading after [`Context::pause_reading`](crate::Context::pause_reading).
    pub fn resume_reading(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.core.connections.get_mut(key as usize)
            && connection.flags.paused
        {
            connection.flags.paused = false;
            self.core.paused -= 1;
            self.core.run_queue.push(key);
        }
    }
}

impl<S> std::fmt::Debug for Connections<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("open", &self.core.open).finish_non_exhaustive()
    }
}

/// Returns the close reason of a slow consumer (1013).
pub(crate) fn slow_consumer_reason() -> CloseReason {
    CloseReason::new(CloseCode::SlowConsumer, "too slow: the queue passed its limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle connection should cost at most 1 KiB in total, including the reactor's state, the
    /// session's subscriptions and allocator overhead. Before raising a number here, move rarely
    /// used data into a `Box` or a map of the worker.
    #[test]
    fn a_connection_stays_small() {
        let connection = size_of::<Connection<[u64; 0]>>();
        assert!(connection <= 168, "a connection without its session has {connection} bytes");
        let outbox = size_of::<Outbox>();
        assert!(outbox <= 40, "an outbox has {outbox} bytes");
        let transport = size_of::<Transport>();
        assert!(transport <= 48, "a transport has {transport} bytes");
        assert_eq!(size_of::<FrameDecoder>(), 8);
    }
}
