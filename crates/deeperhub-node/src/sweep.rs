//! What is done to many connections: a part at a time, so that others get their turn in between.

use std::sync::Arc;

use deeperhub_listener::{Connections, Key, Multicast};
use deeperhub_protocol::Subscription;
use tokio::sync::oneshot;

use crate::hub::Hub;
use crate::session::Session;

/// Connections that one round looks at.
pub(crate) const SWEEP_STEPS_PER_ROUND: usize = 1024;

/// What is done to each connection.
#[derive(Debug)]
pub(crate) enum Action {
    Send(Multicast),
    Disconnect,
    Unsubscribe(Subscription<'static>),
}

/// One action under way.
#[derive(Debug)]
pub(crate) struct Sweep {
    pub(crate) action: Action,
    targets: Targets,
    /// Connections from this serial on came later and are not meant.
    serial_limit: u64,
    /// How many the action did something to.
    pub(crate) reached: u64,
    pub(crate) reply: oneshot::Sender<u64>,
}

#[derive(Debug)]
enum Targets {
    All { next: Key },
    User { user: Arc<str>, keys: std::vec::IntoIter<Key> },
}

impl Sweep {
    pub(crate) fn for_all(action: Action, serial_limit: u64, reply: oneshot::Sender<u64>) -> Self {
        Self { action, targets: Targets::All { next: 0 }, serial_limit, reached: 0, reply }
    }

    pub(crate) fn for_user(
        action: Action,
        user: &str,
        keys: Vec<Key>,
        serial_limit: u64,
        reply: oneshot::Sender<u64>,
    ) -> Self {
        let targets = Targets::User { user: user.into(), keys: keys.into_iter() };
        Self { action, targets, serial_limit, reached: 0, reply }
    }

    /// The next connection to look at.
    pub(crate) fn next_key(&mut self, connections: &Connections<'_, Session>) -> Option<Key> {
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

    /// Whether a connection is still one of those that were meant.
    pub(crate) fn includes(&self, session: &Session, hub: &Hub) -> bool {
        session.connection_id.serial < self.serial_limit
            && match &self.targets {
                // One that must bring a token first is none of the clients that a backend has in mind.
                Targets::All { .. } => session.is_admitted(hub),
                // The key may be another's by now.
                Targets::User { user, .. } => session.user() == Some(user),
            }
    }
}
