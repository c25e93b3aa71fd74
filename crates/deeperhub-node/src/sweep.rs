//! What is done to many connections: a part at a time, so that others get their turn in between.

use std::sync::Arc;

use deeperhub_listener::{ConnectionKey, Connections, Multicast};
use deeperhub_protocol::Subscription;
use tokio::sync::oneshot;

use crate::hub::Hub;
use crate::session::Session;

/// Connections that one round looks at.
pub(crate) const STEPS_PER_ROUND: usize = 1024;

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
    whom: Whom,
    /// Connections from this serial on came later and are not meant.
    end: u64,
    /// How many the action did something to.
    pub(crate) reached: u64,
    pub(crate) reply: oneshot::Sender<u64>,
}

#[derive(Debug)]
enum Whom {
    All { next: ConnectionKey },
    User { user: Arc<str>, keys: std::vec::IntoIter<ConnectionKey> },
}

impl Sweep {
    pub(crate) fn of_all(action: Action, end: u64, reply: oneshot::Sender<u64>) -> Self {
        Self { action, whom: Whom::All { next: 0 }, end, reached: 0, reply }
    }

    pub(crate) fn of_user(
        action: Action,
        user: &str,
        keys: Vec<ConnectionKey>,
        end: u64,
        reply: oneshot::Sender<u64>,
    ) -> Self {
        let whom = Whom::User { user: user.into(), keys: keys.into_iter() };
        Self { action, whom, end, reached: 0, reply }
    }

    /// The next connection to look at.
    pub(crate) fn next(&mut self, connections: &Connections<'_, Session>) -> Option<ConnectionKey> {
        match &mut self.whom {
            Whom::All { next } => {
                let key = connections.next_open(*next)?;
                // A worker has fewer connections than there are keys.
                *next = key.saturating_add(1);
                Some(key)
            }
            Whom::User { keys, .. } => keys.next(),
        }
    }

    /// Whether a connection is still one of those that were meant.
    pub(crate) fn is_for(&self, session: &Session, hub: &Hub) -> bool {
        session.place.serial < self.end
            && match &self.whom {
                // One that must bring a token first is none of the clients that a backend has in mind.
                Whom::All { .. } => session.is_admitted(hub),
                // The key may be another's by now.
                Whom::User { user, .. } => session.user() == Some(user),
            }
    }
}
