//! Wakers that pass a connection's readiness to its worker.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Keys of ready connections, and the worker's waker.
///
/// Holds at most two keys per connection: tokio consumes a waker when it fires, so each is listed once
/// for reading and once for writing until the worker arms it again. A stale key, reused by a new
/// connection, costs only a poll.
#[derive(Debug, Default)]
pub(crate) struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: Vec<u32>,
    /// Waker of the worker while it sleeps. Wakes during a round need no call.
    sleeper: Option<Waker>,
}

impl ReadyList {
    /// Moves the keys to the end of `into`.
    pub(crate) fn take(&self, into: &mut Vec<u32>) {
        let mut state = self.lock();
        state.sleeper = None;
        if into.is_empty() {
            std::mem::swap(&mut state.keys, into);
        } else {
            into.append(&mut state.keys);
        }
    }

    /// Registers `waker` for the next key. Returns `false` if keys are listed already.
    pub(crate) fn sleep(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        if !state.keys.is_empty() {
            return false;
        }
        state.sleeper = Some(waker.clone());
        true
    }

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
        // Nothing that could panic happens under the lock, and a list of keys is valid at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waker of one connection.
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
