//! Phase that writes a connection's queue.

use super::{Next, closing};
use crate::connection::Connection;
use crate::round::Buffers;

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
