//! How a connection's readiness reaches its worker.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Slab keys of the connections that have something to do, and the worker's waker.
///
/// Bounded by twice the number of connections in practice: tokio takes a waker when it fires, so a connection
/// stands in it at most once for reading and once for writing until the worker has armed it again. A key may be
/// stale (its connection closed meanwhile and the key used again): that costs a poll and does no harm.
#[derive(Debug, Default)]
pub(crate) struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: Vec<u32>,
    /// Stands here only while the worker sleeps or is about to: a wake during a round needs no call.
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

    /// Lets the next key wake `waker`. False: there are keys already, don't sleep.
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
