//! [`Connections`], which a worker state uses to send to connections and close them.

use std::time::Instant;

use deeperhub_protocol::CloseReason;
use deeperhub_protocol::frame::Frame;

use crate::arena::Multicast;
use crate::connection::{Connection, InputHolds, State};
use crate::round::{Buffers, Round};
use crate::session::ConnectionKey;
use crate::shared::ListenerShared;
use crate::table::ConnectionTable;
use crate::worker::{Next, slow_consumer_reason};

/// Divisor of `max_queue_bytes` for the part of a queue that
/// [`Connections::try_send_multicast`] fills. The rest stays free for replies, which cannot wait.
const TRY_SEND_DIVISOR: usize = 2;

/// Error of [`Connections::try_send_multicast`]: the connection's peer reads too slowly, and half
/// of its queue is in use. Nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than half of the connection's queue is in use; send again once it has drained")]
pub struct QueueFull;

/// Operations of a [`WorkerState`](crate::WorkerState) on the worker's connections.
pub struct Connections<'a, S> {
    pub(crate) shared: &'a ListenerShared,
    pub(crate) round: &'a mut Round,
    pub(crate) table: &'a mut ConnectionTable<S>,
}

impl<S> Connections<'_, S> {
    /// Returns the time at which the worker's round began.
    pub fn now(&self) -> Instant {
        self.round.clock.now()
    }

    /// Returns how many more connections should get frames in this round. At 0,
    /// [`WorkerState::poll`](crate::WorkerState::poll) should return and continue in the next
    /// round.
    pub fn send_budget(&self) -> usize {
        self.round.deliveries.remaining()
    }

    /// Returns the number of open sessions of this worker.
    pub fn open(&self) -> usize {
        self.table.open
    }

    /// Queues a frame for a connection and returns the connection's session. Returns `None` if the
    /// connection is not open, or is about to be closed as a slow consumer.
    pub fn send(&mut self, key: ConnectionKey, frame: &Frame) -> Option<&mut S> {
        let connection = open_receiver(self.table, key)?;
        connection.outbox.push(match connection.flags.deflate {
            None => frame,
            Some(params) => self.round.codec.compressor.shared(params, frame),
        });
        after_queueing(connection, key, 1, frame.len(), self.round, self.shared)
    }

    /// Queues a frame like [`send`](Self::send), for a frame with several receivers.
    pub fn send_multicast(&mut self, key: ConnectionKey, multicast: &Multicast) -> Option<&mut S> {
        let connection = open_receiver(self.table, key)?;
        queue_multicast(connection, key, multicast, self.round, self.shared)
    }

    /// Queues a frame like [`send_multicast`](Self::send_multicast), but uses only half of the
    /// queue of a connection whose socket is full. A connection is closed as a slow consumer only
    /// if the frame alone is over the limit of the queue.
    ///
    /// # Errors
    ///
    /// Returns [`QueueFull`], and queues nothing, in these cases:
    ///
    /// - The socket is full, and the queue with this frame would be over half of its limit.
    /// - The queue alone is over half of its limit, or would be over its limit with this frame,
    ///   even after a write to the socket.
    ///
    /// The length of the frame before compression counts.
    /// [`notify_when_drained`](Self::notify_when_drained) tells when to send again.
    pub fn try_send_multicast(
        &mut self,
        key: ConnectionKey,
        multicast: &Multicast,
    ) -> Result<Option<&mut S>, QueueFull> {
        let Some(connection) = open_receiver(self.table, key) else { return Ok(None) };
        let (frame_len, max_len) = (multicast.frame().len(), self.shared.limits.max_queue_bytes);
        if connection.outbox.len() + frame_len > max_len / TRY_SEND_DIVISOR {
            make_room(connection, frame_len, max_len, &mut self.round.buffers)?;
        }
        Ok(queue_multicast(connection, key, multicast, self.round, self.shared))
    }

    /// Queues `count` frames in one piece for a connection without
    /// [compression](Self::is_compressed), and returns the connection's session. `frames` are the
    /// bytes of complete, uncompressed frames (see [`frame`](crate::frame)); they are copied.
    ///
    /// Returns `None` under the same conditions as [`send`](Self::send). To avoid closing a
    /// connection as a slow consumer, compare [`queued_bytes`](Self::queued_bytes) with
    /// [`max_queue_bytes`](Self::max_queue_bytes) first.
    pub fn send_encoded(&mut self, key: ConnectionKey, frames: &[u8], count: usize) -> Option<&mut S> {
        let connection = open_receiver(self.table, key)?;
        debug_assert!(connection.flags.deflate.is_none(), "the connection uses compression");
        if connection.flags.write_blocked {
            // The arena is emptied at the end of the round, before the socket takes the frames.
            if !frames.is_empty() {
                connection.outbox.push(&Frame::from_encoded(frames));
            }
        } else {
            let arena = &mut self.round.buffers.arena;
            let start = arena.len();
            arena.replies().extend_from_slice(frames);
            connection.outbox.push_arena(arena.bytes(), start..arena.len());
        }
        after_queueing(connection, key, count, frames.len(), self.round, self.shared)
    }

    /// Returns `true` if a connection is open and its client negotiated compression.
    pub fn is_compressed(&self, key: ConnectionKey) -> bool {
        open_connection(self.table, key).is_some_and(|connection| connection.flags.deflate.is_some())
    }

    /// Returns the bytes in the queue of an open connection, including those that TLS holds until
    /// the socket takes them. Returns `None` if the connection is not open, or is about to be
    /// closed as a slow consumer.
    pub fn queued_bytes(&self, key: ConnectionKey) -> Option<usize> {
        let connection = open_connection(self.table, key)?;
        (!connection.flags.over_queue_limit).then(|| connection.queued_bytes())
    }

    /// Returns the limit of a connection's queue in this round
    /// ([`Limits::max_queue_bytes`](crate::Limits::max_queue_bytes)).
    pub fn max_queue_bytes(&self) -> usize {
        self.shared.limits.max_queue_bytes
    }

    /// Requests one call of [`WorkerState::on_drained`](crate::WorkerState::on_drained) for an open
    /// connection. The call comes at the end of a round after whose writes at most a quarter of
    /// [`max_queue_bytes`](Self::max_queue_bytes) is [queued](Self::queued_bytes). This round is
    /// the first that may be the one. Further requests before the call have no effect.
    pub fn notify_when_drained(&mut self, key: ConnectionKey) {
        if let Some(connection) = open_receiver(self.table, key) {
            connection.flags.wants_drain = true;
            // The queue may be short enough already, with no other reason for a write.
            self.round.lists.mark_dirty(key, &mut connection.flags);
        }
    }

    /// Returns the session of an open connection.
    pub fn session(&mut self, key: ConnectionKey) -> Option<&mut S> {
        match self.table.get_mut(key) {
            Some(Connection { state: State::Open(session), .. }) => Some(session),
            _ => None,
        }
    }

    /// Returns the lowest key of an open connection that is not below `from`. Calls with increasing
    /// keys iterate over all connections, possibly over several rounds.
    pub fn next_open(&self, from: ConnectionKey) -> Option<ConnectionKey> {
        self.table.next_open(from)
    }

    /// Closes a connection once [`WorkerState::poll`](crate::WorkerState::poll) has returned.
    /// Frames that are queued by then are still sent.
    pub fn close(&mut self, key: ConnectionKey, reason: CloseReason) {
        self.round.lists.verdicts.push((key, Next::close(reason)));
    }

    /// Resumes reading after [`Context::pause_reading`](crate::Context::pause_reading).
    /// A connection that is also parked is read once it is [unparked](Self::unpark).
    pub fn resume_reading(&mut self, key: ConnectionKey) {
        if self.release(key, InputHolds::PAUSED) {
            self.table.paused -= 1;
        }
    }

    /// Continues a connection that its session [parked](crate::Context::park). In the next round,
    /// the input that was read already is handled, and then more is read. Returns `true` if the
    /// connection was parked.
    ///
    /// Frames that were queued before this call are sent before the replies to that input.
    pub fn unpark(&mut self, key: ConnectionKey) -> bool {
        self.release(key, InputHolds::PARKED)
    }

    /// Ends one reason for which a connection's input is not handled. Gives the connection a turn
    /// if there is no other. Returns `true` if the reason was there.
    fn release(&mut self, key: ConnectionKey, hold: InputHolds) -> bool {
        let Some(connection) = self.table.get_mut(key) else { return false };
        let holds = &mut connection.flags.holds;
        let was_held = holds.remove(hold);
        if was_held && holds.is_empty() {
            self.round.lists.run_queue.push(key);
        }
        was_held
    }
}

/// Returns the connection if it is open.
fn open_connection<S>(table: &ConnectionTable<S>, key: ConnectionKey) -> Option<&Connection<S>> {
    table.get(key).filter(|connection| matches!(connection.state, State::Open(_)))
}

/// Returns the connection if it is open and its queue is not over the limit.
#[inline(always)]
fn open_receiver<S>(table: &mut ConnectionTable<S>, key: ConnectionKey) -> Option<&mut Connection<S>> {
    let connection = table.get_mut(key)?;
    (matches!(connection.state, State::Open(_)) && !connection.flags.over_queue_limit).then_some(connection)
}

/// Makes room in a queue for a frame with which the queue would be over half of its limit
/// `max_len`. Writes to the socket unless it is known to be full.
///
/// # Errors
///
/// Returns an error if there is not enough room; see [`Connections::try_send_multicast`].
#[cold]
fn make_room<S>(
    connection: &mut Connection<S>,
    frame_len: usize,
    max_len: usize,
    buffers: &mut Buffers,
) -> Result<(), QueueFull> {
    if connection.flags.write_blocked {
        return Err(QueueFull);
    }
    let has_room = |len: usize| len <= max_len / TRY_SEND_DIVISOR && len.saturating_add(frame_len) <= max_len;
    if has_room(connection.outbox.len()) {
        return Ok(());
    }
    // The write at the end of the round reports an error again.
    let _ = connection.flush_now(buffers);
    // An empty queue takes any frame, as there will never be more room for it.
    let len = connection.outbox.len();
    if len == 0 || has_room(len) { Ok(()) } else { Err(QueueFull) }
}

/// Queues a frame with several receivers for one of them.
#[inline(always)]
fn queue_multicast<'a, S>(
    connection: &'a mut Connection<S>,
    key: ConnectionKey,
    multicast: &Multicast,
    round: &mut Round,
    shared: &ListenerShared,
) -> Option<&'a mut S> {
    let frame = match connection.flags.deflate {
        None => multicast.frame(),
        Some(params) => round.codec.compressor.shared(params, multicast.frame()),
    };
    let arena = &mut round.buffers.arena;
    // While the socket is full, the shared frame is queued, not a copy.
    let arena_start =
        if connection.flags.write_blocked { None } else { arena.copy(frame, multicast.copy_slot(frame)) };
    match arena_start {
        Some(start) => connection.outbox.push_arena(arena.bytes(), start..start + frame.len()),
        None => connection.outbox.push(frame),
    }
    after_queueing(connection, key, 1, frame.len(), round, shared)
}

/// Charges `count` frames of `bytes` in total that were queued for a connection. Marks the
/// connection dirty, and lists it for closing if its queue is over the limit.
#[inline(always)]
fn after_queueing<'a, S>(
    connection: &'a mut Connection<S>,
    key: ConnectionKey,
    count: usize,
    bytes: usize,
    round: &mut Round,
    shared: &ListenerShared,
) -> Option<&'a mut S> {
    let compression_cost = match connection.flags.deflate {
        Some(_) => round.codec.compressor.take_cost(),
        None => 0,
    };
    round.deliveries.charge(count, bytes, compression_cost);
    if round.lists.mark_dirty(key, &mut connection.flags) {
        round.deliveries.charge_receiver();
    }
    if connection.outbox.len() > shared.limits.max_queue_bytes {
        // Even a fast peer passes the limit if it gets many frames in one round, so try the socket
        // first. The write at the end of the round reports an error again.
        let _ = connection.flush_now(&mut round.buffers);
        if connection.outbox.len() > shared.limits.max_queue_bytes {
            connection.flags.over_queue_limit = true;
            round.lists.verdicts.push((key, Next::close(slow_consumer_reason())));
            return None;
        }
    }
    match &mut connection.state {
        State::Open(session) => Some(session),
        _ => None,
    }
}

impl<S> std::fmt::Debug for Connections<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("open", &self.table.open).finish_non_exhaustive()
    }
}
