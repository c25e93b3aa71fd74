//! Deadlines of connections, and signs of life.

use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::Worker;
use crate::connections::{Liveness, PeerProgress, State};
use crate::handshake::ClientSource;
use crate::metrics::{HandshakeLimit, HandshakeOutcome};
use crate::session::Application;

/// Maximum times that a closing connection that keeps reading gets its close timeout again.
const MAX_EXTENSIONS: u32 = 20;

/// Maximum bytes of a ping on the wire, encryption included.
const PING_BYTES: u64 = 64;

impl<A: Application> Worker<'_, A> {
    pub(super) fn on_deadline(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &connection.state {
            State::Handshake(handshake) => {
                let is_silent =
                    handshake.head.is_empty() || handshake.client_source == ClientSource::ProxyHeader;
                self.core.metrics.handshakes_limited.inc(HandshakeLimit::Time as usize);
                if is_silent && handshake.decision.is_none() {
                    self.core.metrics.handshake(HandshakeOutcome::TimedOut);
                    self.remove(key);
                } else {
                    self.refuse(key, &Refusal::bad_handshake("the handshake took too long"));
                }
            }
            State::Closing(_) => self.on_close_timeout(key),
            State::Open(_) => self.check_liveness(key),
        }
    }

    /// Pings an open connection, or closes one that gave no sign of life since its ping.
    fn check_liveness(&mut self, key: u32) {
        let timeout = self.deadline(self.core.config.pong_timeout);
        let soon = self.deadline(self.core.config.tick());
        let next = self.next_ping();
        let is_off = self.core.config.ping_interval.is_zero();
        let made_progress = self.made_progress(key);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match connection.flags.liveness {
            Liveness::Alive if is_off => connection.deadline = next,
            Liveness::Alive => {
                connection.deadline = timeout;
                connection.flags.liveness = Liveness::PingSent;
                connection.flags.awaiting_pong = true;
                let start = self.core.arena.len();
                frame::write_ping(self.core.arena.replies(), b"");
                connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
                self.core.mark_dirty(key);
            }
            // A connection that is not read cannot give a sign; one that made progress has given
            // one.
            Liveness::PingSent | Liveness::FinalRead | Liveness::Silent
                if connection.flags.paused || made_progress =>
            {
                connection.flags.liveness = Liveness::PingSent;
                connection.deadline = timeout;
            }
            Liveness::PingSent => {
                // Input that arrived while others had their turn was not looked at yet.
                connection.flags.liveness = Liveness::FinalRead;
                connection.deadline = soon;
                self.core.run_queue.push(key);
            }
            // Its last turn has not come yet.
            Liveness::FinalRead => connection.deadline = soon,
            Liveness::Silent => {
                self.close(key, CloseReason::new(CloseCode::PongTimeout, "no sign of life in time"));
            }
        }
    }

    /// Records a sign of life of an open connection.
    pub(super) fn record_sign_of_life(&mut self, key: u32) {
        let next = self.next_ping();
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if connection.flags.liveness != Liveness::Alive && matches!(connection.state, State::Open(_)) {
            connection.flags.liveness = Liveness::Alive;
            connection.deadline = next;
            self.core.progress.remove(&key);
        }
    }

    /// Returns `true` if the peer took bytes since the last call. A pong waits behind the data that
    /// the peer has yet to read, so a slow reader cannot answer in time. Acknowledgements by its
    /// kernel show that it lives. Those of a ping alone do not count, since a kernel acknowledges
    /// it for a program that hangs.
    fn made_progress(&mut self, key: u32) -> bool {
        let Some(connection) = self.core.connections.get(key as usize) else { return false };
        let Ok(now) = connection.transport.progress() else { return false };
        let is_behind = now.is_outstanding || !connection.is_written();
        let progress = PeerProgress { acknowledged: now.acknowledged, is_behind, extensions: 0 };
        let before = self.core.progress.insert(key, progress);
        before.is_some_and(|before| {
            let ping = if before.is_behind { 0 } else { PING_BYTES };
            now.acknowledged.saturating_sub(before.acknowledged) > ping
        })
    }

    /// Records the send progress of a connection that is about to be closed.
    pub(super) fn record_progress(&mut self, key: u32) {
        self.core.progress.remove(&key);
        self.made_progress(key);
    }

    /// Drops a closing connection that read nothing meanwhile, or whose kernel has everything. A
    /// peer that keeps reading gets the time again, so that the close frame reaches it, too.
    fn on_close_timeout(&mut self, key: u32) {
        let deadline = self.deadline(self.core.config.close_timeout);
        let before = self.core.progress.get(&key).copied();
        let made_progress = self.made_progress(key);
        let extensions = before.map_or(0, |before| before.extensions) + 1;
        let is_behind = self.core.progress.get_mut(&key).is_some_and(|progress| {
            progress.extensions = extensions;
            progress.is_behind
        });
        if !made_progress || !is_behind || extensions > MAX_EXTENSIONS {
            return self.remove(key);
        }
        if let Some(connection) = self.core.connections.get_mut(key as usize) {
            connection.deadline = deadline;
        }
    }
}
