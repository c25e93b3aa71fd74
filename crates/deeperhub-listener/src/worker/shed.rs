//! What a worker gives up when the memory of the process is short.

use deeperhub_protocol::frame::FrameDecoder;
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};
use std::time::Duration;

use super::{Worker, spread};
use crate::connections::{Closing, State};
use crate::memory_budget::select_largest;
use crate::session::{Application, Session};

impl<A: Application> Worker<'_, A> {
    /// Gives up the connections that hold the most where the memory budget says so.
    pub(super) fn shed(&mut self) {
        let Some(memory) = self.core.config.memory.clone() else { return };
        let Some(bytes) = memory.take_shed_target(&mut self.shed_seen) else { return };
        let share = bytes.div_ceil(self.core.config.workers.max(1) as u64);
        let sizes = self.core.connections.iter().map(|(key, _)| (key as u32, self.held_bytes(key as u32)));
        let chosen: Vec<(u32, usize)> = select_largest(sizes.collect(), share).collect();
        if chosen.is_empty() {
            return;
        }
        memory.record_shed(chosen.iter().map(|&(_, size)| size as u64).sum());
        tracing::warn!(
            connections = chosen.len(),
            "Memory is short: the connections that hold the most are closed."
        );
        for (key, _) in chosen {
            self.core.metrics.memory_sheds.inc();
            self.shed_connection(key);
        }
    }

    /// Heap bytes that a connection holds because of what its peer did or did not do: what waits to be sent, what came
    /// and is not complete, here, in TLS and in the handshake, and what its session keeps.
    fn held_bytes(&self, key: u32) -> usize {
        let Some(connection) = self.core.connections.get(key as usize) else { return 0 };
        let of_state = match &connection.state {
            State::Handshake(handshake) => handshake.head.capacity(),
            State::Open(session) => {
                session.held_bytes(key, &self.worker_state)
                    + self.core.coders.incoming.history_bytes(key, connection.flags.deflate)
            }
            State::Closing(_) => 0,
        };
        of_state
            + self.core.unread.get(&key).map_or(0, |unread| unread.bytes.capacity())
            + connection.outbox.heap_bytes()
            + connection.decoder.buffered_bytes()
            + connection.transport.buffered_bytes()
    }

    fn shed_connection(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get(key as usize) else { return };
        match connection.state {
            State::Open(_) => {
                self.close(key, CloseReason::new(CloseCode::SlowConsumer, "too slow: memory is short"));
                let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
                // What it still sends is not looked at, so that nothing has to be kept for it.
                connection.decoder = FrameDecoder::new();
                connection.transport.ignore_input();
                connection.state = State::Closing(Closing::Eof);
                self.core.coders.incoming.remove_history(key, connection.flags.deflate);
                self.core.discard_unread(key);
            }
            // One whose TLS is not there yet cannot be told.
            State::Handshake(_) if !connection.transport.is_handshaking() => {
                self.refuse(key, &Refusal::too_many_connections(spread(key, Duration::from_secs(2))));
                if let Some(connection) = self.core.connections.get_mut(key as usize) {
                    connection.transport.ignore_input();
                }
            }
            State::Handshake(_) => self.drop_lost(key),
            State::Closing(_) => self.remove(key),
        }
    }
}
