//! Deadlines of connections, and signs of life.

use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::Worker;
use crate::connections::{Progress, Sign, State};
use crate::handshake::Proxied;
use crate::metrics::{HandshakeLimit, Outcome};
use crate::session::Application;

/// Maximum times that a closing connection that keeps reading gets its close timeout again.
const MAX_EXTENSIONS: u32 = 20;

/// Maximum bytes of a ping on the wire, encryption included.
const PING_BYTES: u64 = 64;

impl<A: Application> Worker<'_, A> {
    pub(super) fn deadline_passed(&mut self, key: u32) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match &connection.state {
            State::Handshake(handshake) => {
                let is_silent = handshake.head.is_empty() || handshake.proxied == Proxied::Header;
                self.core.metrics.handshakes_limited.inc(HandshakeLimit::Time as usize);
                if is_silent && handshake.deciding.is_none() {
                    self.core.metrics.handshake(Outcome::TimedOut);
                    self.remove(key);
                } else {
                    self.refuse(key, &Refusal::bad_handshake("the handshake took too long"));
                }
            }
            State::Closing(_) => self.closing_took_its_time(key),
            State::Open(_) => self.ask_for_life(key),
        }
    }

    /// Pings an open connection, or closes one that gave no sign of life since its ping.
    fn ask_for_life(&mut self, key: u32) {
        let timeout = self.deadline(self.core.config.pong_timeout);
        let soon = self.deadline(self.core.config.tick());
        let next = self.next_ping();
        let is_off = self.core.config.ping_interval.is_zero();
        let has_come_on = self.has_come_on(key);
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        match connection.flags.sign {
            Sign::Seen if is_off => connection.deadline = next,
            Sign::Seen => {
                connection.deadline = timeout;
                connection.flags.sign = Sign::Awaited;
                connection.flags.awaiting_pong = true;
                let start = self.core.arena.len();
                frame::write_ping(self.core.arena.replies(), b"");
                connection.outbox.push_arena(self.core.arena.bytes(), start..self.core.arena.len());
                self.core.mark_dirty(key);
            }
            // A connection that is not read cannot give a sign; one that made progress has given
            // one.
            Sign::Awaited | Sign::LastLook | Sign::Missing if connection.flags.paused || has_come_on => {
                connection.flags.sign = Sign::Awaited;
                connection.deadline = timeout;
            }
            Sign::Awaited => {
                // Input that arrived while others had their turn was not looked at yet.
                connection.flags.sign = Sign::LastLook;
                connection.deadline = soon;
                self.core.turn.push(key);
            }
            // Its last turn has not come yet.
            Sign::LastLook => connection.deadline = soon,
            Sign::Missing => {
                self.close(key, CloseReason::new(CloseCode::PongTimeout, "no sign of life in time"));
            }
        }
    }

    /// Records a sign of life of an open connection.
    pub(super) fn gave_sign(&mut self, key: u32) {
        let next = self.next_ping();
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        if connection.flags.sign != Sign::Seen && matches!(connection.state, State::Open(_)) {
            connection.flags.sign = Sign::Seen;
            connection.deadline = next;
            self.core.progress.remove(&key);
        }
    }

    /// Returns `true` if the peer took bytes since the last call. A pong waits behind the data that
    /// the peer has yet to read, so a slow reader cannot answer in time. Acknowledgements by its
    /// kernel show that it lives. Those of a ping alone do not count, since a kernel acknowledges
    /// it for a program that hangs.
    fn has_come_on(&mut self, key: u32) -> bool {
        let Some(connection) = self.core.connections.get(key as usize) else { return false };
        let Ok(now) = connection.transport.progress() else { return false };
        let is_behind = now.is_outstanding || !connection.is_written();
        let progress = Progress { acknowledged: now.acknowledged, is_behind, extensions: 0 };
        let before = self.core.progress.insert(key, progress);
        before.is_some_and(|before| {
            let ping = if before.is_behind { 0 } else { PING_BYTES };
            now.acknowledged.saturating_sub(before.acknowledged) > ping
        })
    }

    /// Records the send progress of a connection that is about to be closed.
    pub(super) fn watch_progress(&mut self, key: u32) {
        self.core.progress.remove(&key);
        self.has_come_on(key);
    }

    /// Drops a closing connection that read nothing meanwhile, or whose kernel has everything. A
    /// peer that keeps reading gets the time again, so that the close frame reaches it, too.
    fn closing_took_its_time(&mut self, key: u32) {
        let deadline = self.deadline(self.core.config.close_timeout);
        let before = self.core.progress.get(&key).copied();
        let has_come_on = self.has_come_on(key);
        let extensions = before.map_or(0, |before| before.extensions) + 1;
        let is_behind = self.core.progress.get_mut(&key).is_some_and(|progress| {
            progress.extensions = extensions;
            progress.is_behind
        });
        if !has_come_on || !is_behind || extensions > MAX_EXTENSIONS {
            return self.remove(key);
        }
        if let Some(connection) = self.core.connections.get_mut(key as usize) {
            connection.deadline = deadline;
        }
    }
}
