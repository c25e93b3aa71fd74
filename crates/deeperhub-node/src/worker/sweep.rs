//! Sweeps: a sweep executes one action on many connections of a worker. It runs in slices, so that
//! the worker continues its other work in between.

use std::sync::Arc;

use deeperhub_listener::{ConnectionKey, Connections};
use tokio::sync::oneshot;

use crate::operation::{Reached, WorkerAction};

/// Maximum cost of a sweep per round: connections that it visits, and subscriptions that end with
/// them. Bounds the time for which the sweep delays other work. One connection may exceed it.
pub(super) const SWEEP_COST_PER_ROUND: usize = 1024;

/// Sweep in progress.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) action: WorkerAction,
    pub(super) targets: SweepTargets,
    /// First serial that is left out. Connections with this or a later serial opened after the
    /// request.
    pub(super) serial_limit: u64,
    /// Number of connections on which the action had an effect.
    pub(super) reached: u64,
    pub(super) reply: oneshot::Sender<Reached>,
}

/// Connections that a sweep visits.
#[derive(Debug)]
pub(super) enum SweepTargets {
    All { next: ConnectionKey },
    User { user: Arc<str>, keys: std::vec::IntoIter<ConnectionKey> },
}

impl SweepTargets {
    /// Returns targets that include all connections.
    pub(super) const fn all() -> Self {
        Self::All { next: 0 }
    }

    /// Returns targets that include those of `keys` that belong to `user`.
    pub(super) fn user(user: &str, keys: Vec<ConnectionKey>) -> Self {
        Self::User { user: user.into(), keys: keys.into_iter() }
    }

    /// Returns the next connection to visit.
    pub(super) fn next_key<S>(&mut self, connections: &Connections<'_, S>) -> Option<ConnectionKey> {
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
