//! Phase that writes a connection's queue, and the writes at the end of a round.

use super::{Next, Worker, closing};
use crate::config::Limits;
use crate::connection::Connection;
use crate::round::Buffers;
use crate::session::{Application, WorkerState};

/// Divisor of `max_queue_bytes` for the length at which a queue has drained. Peers that read slowly
/// then still have bytes to read while more are queued, and each refill is long enough to pay for
/// its round.
pub(super) const DRAINED_DIVISOR: usize = 4;

/// Writes a connection's queue. Continues the close of a closing connection once all is written.
/// Reports an open connection whose queue has drained, if the worker state waits for that.
pub(super) fn write<S>(connection: &mut Connection<S>, limits: &Limits, buffers: &mut Buffers) -> Next {
    let next = if connection.flags.write_blocked {
        connection.outbox.detach(&buffers.arena);
        Next::Continue
    } else if connection.flush(buffers).is_ok() {
        closing::advance(connection)
    } else {
        return Next::Lost;
    };
    if connection.flags.wants_drain && connection.queued_bytes() <= limits.max_queue_bytes / DRAINED_DIVISOR {
        connection.flags.wants_drain = false;
        return Next::Drained;
    }
    next
}

/// Returns a verdict to write a connection again if its last write was blocked. Called when its
/// socket may be writable.
#[inline]
pub(super) fn unblock<S>(connection: &mut Connection<S>) -> Option<Next> {
    std::mem::take(&mut connection.flags.write_blocked).then_some(Next::Write)
}

impl<A: Application> Worker<'_, A> {
    /// Writes the queues of all dirty connections, and empties the arena.
    pub(super) fn write_dirty(&mut self) {
        // A failed write ends a session, whose connection is marked dirty before it is removed.
        while !self.ctx.round.lists.dirty.is_empty() {
            let lists = &mut self.ctx.round.lists;
            let mut dirty = std::mem::take(&mut lists.dirty);
            let mut individually = std::mem::take(&mut lists.write_individually);
            let mut remaining = &dirty[..];
            while !remaining.is_empty() {
                let handled = self.ctx.round.begin_writing(self.table, remaining, &mut individually);
                remaining = &remaining[handled..];
                for key in individually.drain(..) {
                    let Some(connection) = self.table.get_mut(key) else { continue };
                    let next = write(connection, &self.ctx.shared.limits, &mut self.ctx.round.buffers);
                    self.apply(key, next);
                }
            }
            let lists = &mut self.ctx.round.lists;
            lists.write_individually = individually;
            dirty.clear();
            dirty.append(&mut lists.dirty);
            lists.dirty = dirty;
        }
        self.ctx.round.buffers.arena.clear();
    }

    /// Tells the worker state which queues have drained. Returns `true` if there were any: the next
    /// round then follows at once, in which the worker state can fill them again.
    pub(super) fn report_drained(&mut self) -> bool {
        let drained = &mut self.ctx.round.lists.drained;
        let has_drained = !drained.is_empty();
        for key in drained.drain(..) {
            self.ctx.worker_state.on_drained(key);
        }
        has_drained
    }
}
