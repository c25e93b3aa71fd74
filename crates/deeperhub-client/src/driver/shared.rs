//! The state that a hub's task shares with the application's handles.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::listeners::Listeners;
use super::{HubState, Storage};
use crate::core::{Action, ConnectionState, Core, HandleId, RequestId};
use crate::{Error, HistoryPage, Published};

type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// The core with the futures that wait for it.
pub(super) struct Inner {
    pub(super) core: Core,
    pub(super) wakers: HashMap<HandleId, Waker>,
    pub(super) ready: HashMap<HandleId, Answer<()>>,
    pub(super) published: HashMap<RequestId, Answer<Published>>,
    pub(super) echoed: HashMap<RequestId, Answer<Box<RawValue>>>,
    pub(super) histories: HashMap<RequestId, Answer<HistoryPage>>,
    pub(super) states: Listeners<HubState>,
    pub(super) errors: Listeners<Error>,
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    /// Wakes the task when the core has something to do.
    pub(super) changed: Notify,
    pub(super) start: Instant,
    pub(super) state: watch::Sender<HubState>,
    /// `true` when the socket is closed and the task has ended.
    pub(super) finished: watch::Sender<bool>,
    pub(super) storage: Option<Arc<dyn Storage>>,
    key_prefix: String,
}

impl Shared {
    pub(super) fn new(core: Core, url: &str, storage: Option<Arc<dyn Storage>>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                core,
                wakers: HashMap::new(),
                ready: HashMap::new(),
                published: HashMap::new(),
                echoed: HashMap::new(),
                histories: HashMap::new(),
                states: Listeners::default(),
                errors: Listeners::default(),
            }),
            changed: Notify::new(),
            start: Instant::now(),
            state: watch::Sender::new(HubState::Connecting),
            finished: watch::Sender::new(false),
            storage,
            key_prefix: format!("deeperhub:{url}:"),
        }
    }

    /// Locks the state. A panic of another thread leaves it usable, because the core is changed by
    /// whole calls.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Returns the key of a topic in the storage.
    pub(super) fn key(&self, topic: &str) -> String {
        format!("{}{topic}", self.key_prefix)
    }

    /// Does a step of the core for the application, and wakes the task if it has work.
    pub(super) fn call<T>(&self, step: impl FnOnce(&mut Inner, Duration) -> T) -> T {
        let mut inner = self.lock();
        let before = inner.core.next_timeout();
        let result = step(&mut inner, self.now());
        let has_work = inner.core.has_actions() || inner.core.next_timeout() != before;
        drop(inner);
        if *self.finished.borrow() {
            // The task has ended, so this thread does what is left.
            self.finish();
        }
        if has_work {
            self.changed.notify_one();
        }
        result
    }

    /// Like [`Self::call`], for steps after which messages may wait to be sent.
    pub(super) fn call_and_send<T>(&self, step: impl FnOnce(&mut Inner, Duration) -> T) -> T {
        let result = self.call(step);
        self.changed.notify_one();
        result
    }

    /// Does what concerns the application, and returns what concerns the connection.
    pub(super) fn drain(&self) -> Vec<Action> {
        let mut inner = self.lock();
        let mut rest = Vec::new();
        while let Some(action) = inner.core.poll_action() {
            match action {
                Action::State(state) => self.on_state(&mut inner, state),
                Action::Error(error) => inner.errors.push(&error),
                Action::Ready(handle, result) => answer(inner.ready.remove(&handle), result),
                Action::Wake(handle) => {
                    if let Some(waker) = inner.wakers.remove(&handle) {
                        waker.wake();
                    }
                }
                Action::Published(id, result) => answer(inner.published.remove(&id), result),
                Action::Echoed(id, result) => answer(inner.echoed.remove(&id), result),
                Action::History(id, result) => answer(inner.histories.remove(&id), result),
                other => rest.push(other),
            }
        }
        rest
    }

    /// Does what is left when the task has ended.
    pub(super) fn finish(&self) {
        for action in self.drain() {
            if let Action::Store { topic, position } = action {
                self.store(&topic, position.as_ref());
            }
        }
    }

    fn on_state(&self, inner: &mut Inner, state: ConnectionState) {
        let state = match state {
            ConnectionState::Connecting => HubState::Connecting,
            ConnectionState::Open => HubState::Open,
            ConnectionState::Waiting { until, reason } => {
                let until = self.start.checked_add(until).unwrap_or(self.start).into_std();
                HubState::Waiting { until, reason }
            }
            ConnectionState::Closed { reason } => HubState::Closed { reason },
        };
        if *self.state.borrow() == state {
            return;
        }
        inner.states.push(&state);
        if matches!(state, HubState::Closed { .. }) {
            inner.states.end();
            inner.errors.end();
        }
        self.state.send_replace(state);
    }

    /// Saves or removes a position.
    pub(super) fn store(&self, topic: &str, position: Option<&crate::Position>) {
        let Some(storage) = &self.storage else { return };
        match position.map(serde_json::to_string) {
            Some(Ok(text)) => storage.set(&self.key(topic), &text),
            Some(Err(_)) => {}
            None => storage.remove(&self.key(topic)),
        }
    }
}

fn answer<T>(sender: Option<Answer<T>>, result: Result<T, Error>) {
    if let Some(sender) = sender {
        // Nobody waits any more if the future was dropped.
        let _ = sender.send(result);
    }
}
