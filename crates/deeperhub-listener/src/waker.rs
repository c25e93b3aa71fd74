//! Wakers that list a connection as ready and wake its worker.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// List of the ready connections of a worker.
///
/// Sockets and handshake decisions add keys from any thread. Until the worker arms a socket again,
/// the socket adds its key at most once for reading and once for writing. The reason is that tokio
/// drops a waker that it has woken. A key may belong to a closed connection; a new connection that
/// reuses the key is then polled once too often.
#[derive(Debug, Default)]
pub(crate) struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: Vec<u32>,
    /// Waker of the worker while it sleeps. During a round, there is no need to wake the worker.
    sleeper: Option<Waker>,
}

impl ReadyList {
    /// Moves all keys to the end of `into`. Called at the start of a round.
    pub(crate) fn take(&self, into: &mut Vec<u32>) {
        let mut state = self.lock();
        state.sleeper = None;
        if into.is_empty() {
            std::mem::swap(&mut state.keys, into);
        } else {
            into.append(&mut state.keys);
        }
    }

    /// Makes the next key wake `waker`. Returns `false`, and does nothing, if there are keys
    /// already.
    pub(crate) fn sleep(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        if !state.keys.is_empty() {
            return false;
        }
        state.sleeper = Some(waker.clone());
        true
    }

    /// Adds a key, and wakes the worker if it sleeps.
    fn push(&self, key: u32) {
        let sleeper = {
            let mut state = self.lock();
            state.keys.push(key);
            state.sleeper.take()
        };
        if let Some(waker) = sleeper {
            waker.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A poisoned lock is no problem: a list of keys is valid at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waker of one connection. Waking it lists the connection as ready.
#[derive(Debug)]
pub(crate) struct ConnectionWaker {
    key: u32,
    ready: Arc<ReadyList>,
}

impl ConnectionWaker {
    pub(crate) fn waker(key: u32, ready: &Arc<ReadyList>) -> Waker {
        Waker::from(Arc::new(Self { key, ready: Arc::clone(ready) }))
    }
}

impl Wake for ConnectionWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self.key);
    }
}
