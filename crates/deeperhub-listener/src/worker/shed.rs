//! Sheds connections when memory is short: closes those that hold the most bytes.

use deeperhub_protocol::frame::FrameDecoder;
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};
use std::time::Duration;

use super::{Worker, spread};
use crate::connections::{ClosingUntil, State};
use crate::memory_budget::select_largest;
use crate::session::{Application, Session};

impl<A: Application> Worker<'_, A> {
    /// Sheds this worker's share of the bytes that the memory budget asks for.
    pub(super) fn shed(&mut self) {
        let Some(memory) = self.core.config.memory.clone() else { return };
        let Some(bytes) = memory.take_shed_target(&mut self.last_shed_measurement) else { return };
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

    /// Returns the heap bytes that the worker holds because of a connection's peer. These are
    /// queued frames, input that was not handled yet, and the bytes that the session reports.
    fn held_bytes(&self, key: u32) -> usize {
        let Some(connection) = self.core.connections.get(key as usize) else { return 0 };
        let state_bytes = match &connection.state {
            State::Handshake(handshake) => handshake.head.capacity(),
            State::Open(session) => {
                session.held_bytes(key, &self.worker_state)
                    + self.core.codec.decompressor.history_bytes(key, connection.flags.deflate)
            }
            State::Closing(_) => 0,
        };
        state_bytes
            + self.core.unread.get(&key).map_or(0, |unread| unread.bytes.capacity())
            + connection.outbox.heap_bytes()
            + connection.decoder.buffered_bytes()
            + connection.transport.buffered_bytes()
    }

    /// Closes or removes a connection and frees its input.
    fn shed_connection(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get(key as usize) else { return };
        match connection.state {
            State::Open(_) => {
                self.close(key, CloseReason::new(CloseCode::SlowConsumer, "too slow: memory is short"));
                let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
                // Discard further input, so that it takes no memory.
                connection.decoder = FrameDecoder::new();
                connection.transport.ignore_input();
                connection.state = State::Closing(ClosingUntil::Eof);
                self.core.codec.decompressor.remove_history(key, connection.flags.deflate);
                self.core.discard_unread(key);
            }
            // A client cannot be answered before the end of its TLS handshake.
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
