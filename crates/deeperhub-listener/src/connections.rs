//! [`Connections`], which a worker state uses to send to connections and close them.

use std::time::Instant;

use deeperhub_protocol::CloseReason;
use deeperhub_protocol::frame::Frame;

use crate::arena::Multicast;
use crate::connection::{Connection, State};
use crate::round::Round;
use crate::session::ConnectionKey;
use crate::shared::ListenerShared;
use crate::table::ConnectionTable;
use crate::worker::{Next, slow_consumer_reason};

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
        after_queueing(connection, key, frame.len(), self.round, self.shared)
    }

    /// Queues a frame like [`send`](Self::send), for a frame with several receivers.
    pub fn send_multicast(&mut self, key: ConnectionKey, multicast: &Multicast) -> Option<&mut S> {
        let connection = open_receiver(self.table, key)?;
        let frame = match connection.flags.deflate {
            None => multicast.frame(),
            Some(params) => self.round.codec.compressor.shared(params, multicast.frame()),
        };
        let arena = &mut self.round.buffers.arena;
        // While the socket is full, the shared frame is queued, not a copy.
        let arena_start =
            if connection.flags.write_blocked { None } else { arena.copy(frame, multicast.copy_slot(frame)) };
        match arena_start {
            Some(start) => connection.outbox.push_arena(arena.bytes(), start..start + frame.len()),
            None => connection.outbox.push(frame),
        }
        after_queueing(connection, key, frame.len(), self.round, self.shared)
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
    pub fn resume_reading(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.table.slab.get_mut(key as usize)
            && connection.flags.paused
        {
            connection.flags.paused = false;
            self.table.paused -= 1;
            self.round.lists.run_queue.push(key);
        }
    }
}

/// Returns the connection if it is open and its queue is not over the limit.
#[inline(always)]
fn open_receiver<S>(table: &mut ConnectionTable<S>, key: ConnectionKey) -> Option<&mut Connection<S>> {
    let connection = table.get_mut(key)?;
    (matches!(connection.state, State::Open(_)) && !connection.flags.over_queue_limit).then_some(connection)
}

/// Charges `bytes` queued for a connection, marks it dirty, and lists it for closing if its queue
/// is over the limit.
#[inline(always)]
fn after_queueing<'a, S>(
    connection: &'a mut Connection<S>,
    key: ConnectionKey,
    bytes: usize,
    round: &mut Round,
    shared: &ListenerShared,
) -> Option<&'a mut S> {
    let compression_cost = match connection.flags.deflate {
        Some(_) => round.codec.compressor.take_cost(),
        None => 0,
    };
    round.deliveries.charge(bytes, compression_cost);
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
