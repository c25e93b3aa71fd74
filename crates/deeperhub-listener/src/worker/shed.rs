//! Sheds the connections that hold the most when memory is short.

use deeperhub_protocol::frame::FrameDecoder;
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};
use std::time::Duration;

use super::{Worker, spread};
use crate::connections::{Closing, State};
use crate::memory_budget::select_largest;
use crate::session::{Application, Session};

impl<A: Application> Worker<'_, A> {
    /// Sheds the connections that hold the most, if the memory budget asks for it.
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
        tracing::warn!(connections = chosen.len(), "Memory short; shedding the largest connections");
        for (key, _) in chosen {
            self.core.metrics.memory_sheds.inc();
            self.shed_connection(key);
        }
    }

    /// Returns the heap bytes that a connection's peer causes: queued frames, incomplete input of all
    /// layers, and what its session reports.
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
                // Further input is discarded, so that nothing is kept for it.
                connection.decoder = FrameDecoder::new();
                connection.transport.ignore_input();
                connection.state = State::Closing(Closing::Eof);
                self.core.coders.incoming.remove_history(key, connection.flags.deflate);
                self.core.discard_unread(key);
            }
            // A client without a TLS session yet cannot be answered.
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
