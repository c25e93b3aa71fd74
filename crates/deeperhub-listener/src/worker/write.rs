//! Phase that writes a connection's queue, and the writes at the end of a round.

use super::{Next, Worker, closing};
use crate::connection::Connection;
use crate::round::Buffers;
use crate::session::Application;

/// Writes a connection's queue. Continues the close of a closing connection once all is written.
pub(super) fn write<S>(connection: &mut Connection<S>, buffers: &mut Buffers) -> Next {
    if connection.flags.write_blocked {
        connection.outbox.detach(&buffers.arena);
        return Next::Continue;
    }
    match connection.flush(buffers) {
        Ok(()) => closing::advance(connection),
        Err(_) => Next::Lost,
    }
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
                    let next = write(connection, &mut self.ctx.round.buffers);
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
}
