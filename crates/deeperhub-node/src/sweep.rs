//! Actions on many connections, executed in slices so that other work continues in between.

use std::sync::Arc;

use deeperhub_listener::{ConnectionKey, Connections, Multicast};
use deeperhub_protocol::Subscription;
use tokio::sync::oneshot;

use crate::hub::Hub;
use crate::session::Session;

/// Connections that a sweep visits per round.
pub(crate) const SWEEP_STEPS_PER_ROUND: usize = 1024;

/// Action on each connection.
#[derive(Debug)]
pub(crate) enum Action {
    Send(Multicast),
    Disconnect,
    Unsubscribe(Subscription<'static>),
}

/// Action on many connections, in progress.
#[derive(Debug)]
pub(crate) struct Sweep {
    pub(crate) action: Action,
    targets: Targets,
    /// Connections with this serial or a later one opened after the request and are left out.
    serial_limit: u64,
    /// Number of connections on which the action had an effect.
    pub(crate) reached: u64,
    pub(crate) reply: oneshot::Sender<u64>,
}

#[derive(Debug)]
enum Targets {
    All { next: ConnectionKey },
    User { user: Arc<str>, keys: std::vec::IntoIter<ConnectionKey> },
}

impl Sweep {
    pub(crate) fn for_all(action: Action, serial_limit: u64, reply: oneshot::Sender<u64>) -> Self {
        Self { action, targets: Targets::All { next: 0 }, serial_limit, reached: 0, reply }
    }

    pub(crate) fn for_user(
        action: Action,
        user: &str,
        keys: Vec<ConnectionKey>,
        serial_limit: u64,
        reply: oneshot::Sender<u64>,
    ) -> Self {
        let targets = Targets::User { user: user.into(), keys: keys.into_iter() };
        Self { action, targets, serial_limit, reached: 0, reply }
    }

    /// Returns the next connection to visit.
    pub(crate) fn next_key(&mut self, connections: &Connections<'_, Session>) -> Option<ConnectionKey> {
        match &mut self.targets {
            Targets::All { next } => {
                let key = connections.next_open(*next)?;
                // A worker has fewer connections than there are keys.
                *next = key.saturating_add(1);
                Some(key)
            }
            Targets::User { keys, .. } => keys.next(),
        }
    }

    /// Returns `true` if a connection belongs to the sweep.
    pub(crate) fn includes(&self, session: &Session, hub: &Hub) -> bool {
        session.connection_id.serial < self.serial_limit
            && match &self.targets {
                // A broadcast leaves out clients that have yet to bring a required token.
                Targets::All { .. } => session.is_admitted(hub),
                // The key may belong to another user's connection by now.
                Targets::User { user, .. } => session.user() == Some(user),
            }
    }
}
