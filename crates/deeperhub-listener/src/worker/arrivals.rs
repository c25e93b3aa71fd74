//! Takes the new connections of a worker.

use std::time::Duration;

use deeperhub_protocol::frame::FrameDecoder;

use super::{Worker, WorkerDrain};
use crate::admission::ConnectionPermit;
use crate::connection::{Connection, Flags, State};
use crate::control::{Arrival, Phase};
use crate::handshake::{ClientSource, Handshake};
use crate::metrics::HandshakeOutcome;
use crate::outbox::Outbox;
use crate::session::Application;
use crate::transport::Transport;
use crate::waker::ConnectionWaker;

/// Maximum new connections taken in one round. A flood of new connections thus cannot delay the
/// open ones.
const ARRIVALS_PER_ROUND: usize = 64;

/// Maximum time that a refused connection has for its handshake. Only few refused connections are
/// answered at one time, so each one must end soon.
const MAX_REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

impl<A: Application> Worker<'_, A> {
    /// Reads the listener's phase and takes new connections, if the mailbox was notified since the
    /// last call. Returns `true` if more connections may be queued, and `None` if the listener is
    /// stopping.
    pub(super) fn take_arrivals(&mut self) -> Option<bool> {
        let mailbox = self.control.mailbox(self.index);
        if !mailbox.take_notification() {
            return Some(false);
        }
        match self.control.phase() {
            Phase::Running => {}
            Phase::Draining(plan) => {
                if self.ctx.drain.as_ref().is_none_or(|drain| !drain.is_of(&plan)) {
                    self.ctx.drain = Some(WorkerDrain::new(plan));
                }
            }
            Phase::Stopping => return None,
        }
        let now = self.ctx.round.clock.now();
        for _ in 0..ARRIVALS_PER_ROUND {
            let Some(arrival) = mailbox.pop() else { return Some(false) };
            let waited = now.saturating_duration_since(arrival.accepted_at);
            self.ctx.shared.metrics.accept_seconds.observe_duration(waited);
            self.register(arrival);
        }
        mailbox.notify_self(now);
        Some(true)
    }

    /// Registers the socket of a new connection.
    fn register(&mut self, Arrival { socket, peer, permit, refusal, accepted_at }: Arrival) {
        let config = &self.ctx.shared.config;
        let client_source = if config.trusted_proxies.trusts(peer.ip()) {
            ClientSource::ProxyHeader
        } else {
            ClientSource::Peer
        };
        match Transport::new(socket, config, client_source == ClientSource::ProxyHeader) {
            Ok(transport) => {
                self.add(transport, permit, Handshake::new(peer, client_source, refusal, accepted_at));
            }
            Err(error) => {
                self.ctx.shared.metrics.record_handshake(HandshakeOutcome::Lost);
                tracing::debug!(%error, "Socket registration failed");
            }
        }
    }

    /// Adds a new connection, which begins with its handshake.
    pub(super) fn add(
        &mut self,
        transport: Transport,
        permit: ConnectionPermit,
        handshake: Handshake<A::Session>,
    ) {
        let mut timeout = self.ctx.shared.config.handshake_timeout;
        if handshake.refusal.is_some() {
            timeout = timeout.min(MAX_REFUSAL_TIMEOUT);
        }
        let entry = self.table.slab.vacant_entry();
        let Ok(key) = u32::try_from(entry.key()) else { return };
        entry.insert(Connection {
            transport,
            waker: ConnectionWaker::waker(key, &self.ctx.shared.ready),
            state: State::Handshake(Box::new(handshake)),
            decoder: FrameDecoder::new(),
            outbox: Outbox::default(),
            deadline: self.ctx.round.clock.deadline(timeout),
            flags: Flags::default(),
            permit,
        });
        self.ctx.round.lists.arrived.push(key);
    }
}
