//! Admits accepted connections, or refuses them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::LimitMode;

use super::Acceptor;
use crate::admission::{AdmissionError, ConnectionPermit};
use crate::control::{Arrival, Phase};

impl Acceptor {
    /// Gives an accepted connection its permit, and a refusal if [`admit`](Self::admit) refuses it.
    /// Returns `None` if the connection must be dropped, because too many others are being refused.
    pub(super) fn admit_arrival(&self, socket: std::net::TcpStream, peer: SocketAddr) -> Option<Arrival> {
        // A socket for both families reports an IPv4 address as an IPv6 one.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // The address of a client behind a proxy is not known yet.
        let address = (!self.trusted_proxies.trusts(peer.ip())).then(|| peer.ip());
        let (permit, refusal) = match self.admit(address) {
            Ok(permit) => (Ok(permit), None),
            Err(refusal) => (self.refusal_admission.try_admit(None), Some(refusal)),
        };
        let Ok(permit) = permit else {
            self.metrics.accept_drops.inc();
            return None;
        };
        Some(Arrival { socket, peer, permit, refusal, accepted_at: Instant::now() })
    }

    /// Returns a permit for a new connection, or the refusal if the connection is over a limit or
    /// the listener is draining or stopping. A refusal tells the client when to reconnect.
    fn admit(&self, address: Option<IpAddr>) -> Result<ConnectionPermit, Refusal> {
        let now = Instant::now();
        let delay = || self.reconnect_pacer.next_delay(now, Duration::ZERO);
        match self.control.phase() {
            Phase::Running => {}
            Phase::Draining(plan) => {
                let delay = self.reconnect_pacer.next_delay(now, plan.until_first_reconnect(now));
                return Err(Refusal::draining(delay));
            }
            Phase::Stopping => return Err(Refusal::draining(delay())),
        }
        if self.memory.as_ref().is_some_and(|memory| !memory.has_room()) {
            self.metrics.memory_refusals.inc();
            return Err(Refusal::too_many_connections(delay()));
        }
        let refuse = |error: AdmissionError| {
            self.metrics.record_limited(error);
            error.refusal(delay)
        };
        match self.admission.try_admit(address) {
            // In observe mode, the connection is counted as limited, and admitted without being
            // charged to its address.
            Err(error) if error.is_per_address() && self.limit_mode == LimitMode::Observe => {
                self.metrics.record_limited(error);
                self.admission.try_admit(None).map_err(refuse)
            }
            result => result.map_err(refuse),
        }
    }
}
