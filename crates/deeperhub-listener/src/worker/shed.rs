//! Sheds connections when memory is short: closes those that hold the most bytes.

use std::time::Duration;

use deeperhub_protocol::handshake::Refusal;

use super::{Next, PhaseContext, Worker, spread};
use crate::connection::{Connection, State};
use crate::memory_budget::select_largest;
use crate::session::{Application, Session};
use crate::table::UnreadInput;

impl<A: Application> Worker<'_, A> {
    /// Sheds this worker's share of the bytes that the memory budget asks for.
    pub(super) fn shed(&mut self) {
        let Some(memory) = self.ctx.shared.config.memory.clone() else { return };
        let Some(bytes) = memory.take_shed_target(&mut self.last_shed_measurement) else { return };
        let share = bytes.div_ceil(self.ctx.shared.config.workers.max(1) as u64);
        let (table, ctx) = (&*self.table, &self.ctx);
        let sizes = table.slab.iter().map(|(key, connection)| {
            let key = key as u32;
            (key, held_bytes(connection, key, table.unread.get(&key), ctx))
        });
        let chosen: Vec<(u32, usize)> = select_largest(sizes.collect(), share).collect();
        if chosen.is_empty() {
            return;
        }
        memory.record_shed(chosen.iter().map(|&(_, size)| size as u64).sum());
        tracing::warn!(connections = chosen.len(), "Memory short; shedding the largest connections");
        for (key, _) in chosen {
            self.ctx.shared.metrics.memory_sheds.inc();
            if let Some(connection) = self.table.get_mut(key) {
                let next = shed(connection, key);
                self.apply(key, next);
            }
        }
    }
}

/// Returns the heap bytes that the worker holds because of a connection's peer. These are queued
/// frames, input that was not handled yet, and the bytes that the session reports.
pub(super) fn held_bytes<A: Application>(
    connection: &Connection<A::Session>,
    key: u32,
    unread: Option<&UnreadInput>,
    ctx: &PhaseContext<'_, A>,
) -> usize {
    let state_bytes = match &connection.state {
        State::Handshake(handshake) => handshake.head.capacity(),
        State::Open(session) => {
            session.held_bytes(key, &ctx.worker_state)
                + ctx.round.codec.decompressor.history_bytes(key, connection.flags.deflate)
        }
        State::Closing(_) => 0,
    };
    state_bytes
        + unread.map_or(0, |unread| unread.bytes.capacity())
        + connection.outbox.heap_bytes()
        + connection.decoder.buffered_bytes()
        + connection.transport.buffered_bytes()
}

/// Decides how a connection is shed, and frees the memory of its transport.
pub(super) fn shed<S>(connection: &mut Connection<S>, key: u32) -> Next {
    match connection.state {
        State::Open(_) => Next::Shed,
        // A client cannot be answered before the end of its TLS handshake.
        State::Handshake(_) if connection.transport.is_handshaking() => Next::Lost,
        State::Handshake(_) => {
            connection.transport.ignore_input();
            Next::refuse(Refusal::too_many_connections(spread(key, Duration::from_secs(2))))
        }
        State::Closing(_) => Next::Remove,
    }
}
