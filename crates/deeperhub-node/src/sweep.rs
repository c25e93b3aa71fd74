//! Sweeps: a sweep executes one action on many connections of a worker. It runs in slices, so that
//! the worker continues its other work in between.

use std::sync::Arc;

use deeperhub_listener::{ConnectionKey, Connections};
use tokio::sync::oneshot;

use crate::hub::Hub;
use crate::operation::{Action, Reached, WorkerAction};
use crate::session::Session;

/// Maximum connections that a sweep visits per round. Bounds the time for which it delays other
/// work.
pub(crate) const SWEEP_STEPS_PER_ROUND: usize = 1024;

/// Sweep in progress.
#[derive(Debug)]
pub(crate) struct Sweep {
    pub(crate) action: WorkerAction,
    pub(crate) targets: SweepTargets,
    /// First serial that is left out. Connections with this or a later serial opened after the
    /// request.
    pub(crate) serial_limit: u64,
    /// Number of connections on which the action had an effect.
    pub(crate) reached: u64,
    pub(crate) reply: oneshot::Sender<Reached>,
}

/// Connections that a sweep visits.
#[derive(Debug)]
pub(crate) enum SweepTargets {
    All { next: ConnectionKey },
    User { user: Arc<str>, keys: std::vec::IntoIter<ConnectionKey> },
}

impl SweepTargets {
    /// Returns targets that include all connections.
    pub(crate) const fn all() -> Self {
        Self::All { next: 0 }
    }

    /// Returns targets that include those of `keys` that belong to `user`.
    pub(crate) fn user(user: &str, keys: Vec<ConnectionKey>) -> Self {
        Self::User { user: user.into(), keys: keys.into_iter() }
    }

    /// Returns the next connection to visit.
    pub(crate) fn next_key(&mut self, connections: &Connections<'_, Session>) -> Option<ConnectionKey> {
        match self {
            Self::All { next } => {
                let key = connections.next_open(*next)?;
                // A worker has fewer connections than there are keys.
                *next = key.saturating_add(1);
                Some(key)
            }
            Self::User { keys, .. } => keys.next(),
        }
    }
}

impl Sweep {
    /// Returns `true` if the action applies to a visited connection.
    pub(crate) fn includes(&self, session: &Session, hub: &Hub) -> bool {
        session.connection_id.serial < self.serial_limit
            && match (&self.targets, &self.action) {
                // A broadcast leaves out clients without a required token.
                (SweepTargets::All { .. }, Action::Send(_)) => session.is_admitted(hub),
                (SweepTargets::All { .. }, Action::Unsubscribe(_) | Action::Disconnect) => true,
                // The key may now belong to a connection of another user.
                (SweepTargets::User { user, .. }, _) => session.user() == Some(user),
            }
    }
}
