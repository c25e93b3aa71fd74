//! Sweeps: a sweep executes one action on many connections of a worker. It runs in slices, so that
//! the worker continues its other work in between.

use std::sync::Arc;

use deeperhub_listener::{ConnectionKey, Connections, Multicast};
use deeperhub_protocol::Subscription;
use tokio::sync::oneshot;

use crate::hub::Hub;
use crate::session::Session;

/// Maximum connections that a sweep visits per round. Bounds the time for which it delays other
/// work.
pub(crate) const SWEEP_STEPS_PER_ROUND: usize = 1024;

/// Action on each connection of a sweep.
#[derive(Debug)]
pub(crate) enum Action {
    Send(Multicast),
    Disconnect,
    Unsubscribe(Subscription<'static>),
}

/// Sweep in progress.
#[derive(Debug)]
pub(crate) struct Sweep {
    pub(crate) action: Action,
    targets: Targets,
    /// First serial that is left out. Connections with this or a later serial opened after the
    /// request.
    serial_limit: u64,
    /// Number of connections on which the action had an effect.
    pub(crate) reached: u64,
    pub(crate) reply: oneshot::Sender<u64>,
}

/// Connections that a sweep visits.
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

    /// Returns `true` if the action applies to a visited connection.
    pub(crate) fn includes(&self, session: &Session, hub: &Hub) -> bool {
        session.connection_id.serial < self.serial_limit
            && match &self.targets {
                // A broadcast leaves out clients without a required token.
                Targets::All { .. } => session.is_admitted(hub),
                // The key may now belong to a connection of another user.
                Targets::User { user, .. } => session.user() == Some(user),
            }
    }
}
