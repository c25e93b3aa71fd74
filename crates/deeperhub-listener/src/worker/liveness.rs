//! Deadlines of connections: handshake timeouts, pings, signs of life, close timeouts.

use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::Worker;
use crate::connections::{Liveness, PeerProgress, State};
use crate::handshake::ClientSource;
use crate::metrics::{HandshakeLimit, HandshakeOutcome};
use crate::session::Application;

/// Maximum number of times that the close timeout starts anew for a peer that keeps reading.
/// Without a maximum, a peer that reads a byte at a time could hold its connection forever.
const MAX_CLOSE_EXTENSIONS: u32 = 20;

/// Maximum bytes of a ping on the wire, TLS overhead included.
const PING_BYTES: u64 = 64;

impl<A: Application> Worker<'_, A> {
    /// Handles a connection whose deadline has passed.
    pub(super) fn on_deadline(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &connection.state {
            State::Handshake(handshake) => {
                let is_silent =
                    handshake.head.is_empty() || handshake.client_source == ClientSource::ProxyHeader;
                self.core.metrics.handshakes_limited.inc(HandshakeLimit::Time);
                if is_silent && handshake.decision.is_none() {
                    self.core.metrics.record_handshake(HandshakeOutcome::TimedOut);
                    self.remove(key);
                } else {
                    self.refuse(key, &Refusal::bad_handshake("the handshake took too long"));
                }
            }
            State::Closing(_) => self.on_close_timeout(key),
            State::Open(_) => self.check_liveness(key),
        }
    }

    /// Pings an open connection, or closes it if there was no sign of life since the last ping.
    fn check_liveness(&mut self, key: u32) {
        let pong_deadline = self.deadline(self.core.config.pong_timeout);
        let next_tick = self.deadline(self.core.config.tick());
        let next_ping = self.next_ping();
        let sends_pings = !self.core.config.ping_interval.is_zero();
        let made_progress = self.made_progress(key);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match connection.flags.liveness {
            Liveness::Alive if !sends_pings => connection.deadline = next_ping,
            Liveness::Alive => {
                connection.deadline = pong_deadline;
                connection.flags.liveness = Liveness::PingSent;
                connection.flags.awaiting_pong = true;
                let start = self.core.arena.len();
                frame::write_ping(self.core.arena.replies(), b"");
                connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
                self.core.mark_dirty(key);
            }
            // While the session pauses reading, no sign of life can be read. Send progress is a
            // sign of life.
            Liveness::PingSent | Liveness::FinalRead | Liveness::Silent
                if connection.flags.paused || made_progress =>
            {
                connection.flags.liveness = Liveness::PingSent;
                connection.deadline = pong_deadline;
            }
            Liveness::PingSent => {
                // Input may have arrived that was not read yet.
                connection.flags.liveness = Liveness::FinalRead;
                connection.deadline = next_tick;
                self.core.run_queue.push(key);
            }
            // The connection has not had its last turn yet.
            Liveness::FinalRead => connection.deadline = next_tick,
            Liveness::Silent => {
                self.close(key, CloseReason::new(CloseCode::PongTimeout, "no sign of life in time"));
            }
        }
    }

    /// Records a sign of life of an open connection.
    pub(super) fn record_sign_of_life(&mut self, key: u32) {
        let next_ping = self.next_ping();
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if connection.flags.liveness != Liveness::Alive && matches!(connection.state, State::Open(_)) {
            connection.flags.liveness = Liveness::Alive;
            connection.deadline = next_ping;
            self.core.progress.remove(&key);
        }
    }

    /// Returns `true` if the peer took bytes since the last call, and records its send progress.
    ///
    /// A slow reader reads a ping only after the data sent before it, so its pong may be late. The
    /// acknowledgements of its kernel show that it still reads. An acknowledgement of the ping
    /// alone does not count: a kernel acknowledges a ping even if the program hangs.
    fn made_progress(&mut self, key: u32) -> bool {
        let Some(connection) = self.core.connections.get(key as usize) else { return false };
        let Ok(sent) = connection.transport.progress() else { return false };
        let is_behind = sent.is_outstanding || !connection.is_written();
        let progress = PeerProgress { acknowledged: sent.acknowledged, is_behind, extensions: 0 };
        let previous = self.core.progress.insert(key, progress);
        previous.is_some_and(|previous| {
            let ping_bytes = if previous.is_behind { 0 } else { PING_BYTES };
            sent.acknowledged.saturating_sub(previous.acknowledged) > ping_bytes
        })
    }

    /// Records the send progress of a connection that starts closing. The next close timeout
    /// compares with it.
    pub(super) fn record_progress(&mut self, key: u32) {
        self.core.progress.remove(&key);
        self.made_progress(key);
    }

    /// Removes a closing connection at its close timeout. If the peer took bytes since the last
    /// timeout and more are waiting, the timeout starts anew, so that the close frame reaches it.
    fn on_close_timeout(&mut self, key: u32) {
        let deadline = self.deadline(self.core.config.close_timeout);
        let previous = self.core.progress.get(&key).copied();
        let made_progress = self.made_progress(key);
        let extensions = previous.map_or(0, |previous| previous.extensions) + 1;
        let is_behind = self.core.progress.get_mut(&key).is_some_and(|progress| {
            progress.extensions = extensions;
            progress.is_behind
        });
        if !made_progress || !is_behind || extensions > MAX_CLOSE_EXTENSIONS {
            return self.remove(key);
        }
        if let Some(connection) = self.core.connections.get_mut(key as usize) {
            connection.deadline = deadline;
        }
    }
}
