//! The hub as the application sees it.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::connect::Connector;
use super::request::{HistoryRequest, Publish, answer_of, to_json};
use super::shared::Shared;
use super::{Errors, Options, States, Subscribe, task};
use crate::Error;
use crate::core::{Core, TokenKind};

/// The state of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubState {
    /// The token, the handshake or the server's `welcome` is awaited.
    Connecting,
    /// Messages can be sent.
    Open,
    /// The connection ended, and the next attempt comes later.
    Waiting {
        /// The time of the next attempt.
        until: Instant,
        /// The end of the last connection.
        reason: Arc<str>,
    },
    /// The end. Nothing is tried any more.
    Closed {
        /// The cause.
        reason: Arc<str>,
    },
}

/// A connection to a hub that comes back.
///
/// Clones share the connection. When all are dropped, the hub is closed.
#[derive(Clone)]
pub struct Hub {
    owner: Arc<Owner>,
}

/// Closes the hub when the last [`Hub`] is dropped.
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.call_and_send(|inner, now| inner.core.close(now));
    }
}

impl Hub {
    /// Connects to the hub at `url` (`ws://…` or `wss://…`), and waits until the connection is open.
    /// While the server is away, it goes on trying, at most until
    /// [`Options::deadline`](crate::Options::deadline).
    ///
    /// # Errors
    /// Returns an error if the address is not valid, if the server refuses this client for good (for
    /// example its token), or at the deadline.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub async fn connect(url: &str, options: Options) -> Result<Self, Error> {
        let deadline = options.deadline;
        let hub = Self::new(url, options)?;
        match deadline {
            None => hub.ready().await?,
            Some(deadline) => tokio::time::timeout(deadline, hub.ready()).await.map_err(|_| {
                Error::new(Error::TIMEOUT, format!("the hub was not there after {deadline:?}"))
            })??,
        }
        Ok(hub)
    }

    /// Starts to connect and does not wait. Subscribe and publish at once: both wait for the
    /// connection.
    ///
    /// # Errors
    /// Returns an error if the address is not valid.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub fn new(url: &str, options: Options) -> Result<Self, Error> {
        let connector = Connector::new(url, &options)?;
        let kind = options.token.as_ref().map_or(TokenKind::None, |token| token.kind());
        let seed = getrandom::u64().map_err(|error| {
            Error::new(Error::INVALID_OPTIONS, format!("the system has no randomness: {error}"))
        })?;
        let mut core = Core::new(options.settings.clone(), kind, seed);
        if options.storage.is_some() {
            core.keep_positions();
        }
        let shared = Arc::new(Shared::new(core, url, options.storage));
        shared.call_and_send(|inner, now| inner.core.start(now));
        tokio::spawn(task::run(Arc::clone(&shared), connector, options.token));
        Ok(Self { owner: Arc::new(Owner { shared }) })
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.owner.shared)
    }

    /// Waits until the connection is open.
    ///
    /// # Errors
    /// Returns an error if the hub is closed.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut states = self.owner.shared.state.subscribe();
        let is_decided = |state: &HubState| matches!(state, HubState::Open | HubState::Closed { .. });
        match states.wait_for(is_decided).await.as_deref() {
            Ok(HubState::Closed { reason }) => Err(Error::closed(reason)),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::closed("its task has ended")),
        }
    }

    /// Returns the state of the hub.
    #[must_use]
    pub fn state(&self) -> HubState {
        self.owner.shared.state.borrow().clone()
    }

    /// Returns the states of the hub as a stream, from the current one on.
    pub fn states(&self) -> States {
        let mut inner = self.owner.shared.lock();
        let state = self.state();
        let is_ended = matches!(state, HubState::Closed { .. });
        States(inner.states.add(Some(state), is_ended))
    }

    /// Returns the errors that no call waits for, as a stream.
    pub fn errors(&self) -> Errors {
        let mut inner = self.owner.shared.lock();
        let is_ended = matches!(self.state(), HubState::Closed { .. });
        Errors(inner.errors.add(None, is_ended))
    }

    /// Subscribes to a topic or pattern when the result is awaited. The [`Subscription`] is a stream
    /// of events.
    ///
    /// [`Subscription`]: crate::Subscription
    pub fn subscribe(&self, topic: impl Into<String>) -> Subscribe {
        Subscribe::new(self.shared(), topic.into())
    }

    /// Publishes a message when the result is awaited. It is sent again after a reconnect until the
    /// server has answered, and stored once in a topic with history.
    pub fn publish<T: Serialize + ?Sized>(&self, topic: impl Into<String>, message: &T) -> Publish {
        Publish::new(self.shared(), topic.into(), message)
    }

    /// Sends a value that the server sends back.
    ///
    /// # Errors
    /// Returns the server's error, `timeout`, or `closed`.
    pub async fn echo<T: Serialize + DeserializeOwned>(&self, data: &T) -> Result<T, Error> {
        let data = to_json(data)?;
        let receiver = self.owner.shared.call_and_send(|inner, now| {
            let id = inner.core.echo(&data, now)?;
            let (sender, receiver) = oneshot::channel();
            inner.echoed.insert(id, sender);
            Ok::<_, Error>(receiver)
        })?;
        let data = answer_of(receiver).await?;
        serde_json::from_str(data.get()).map_err(|error| {
            Error::new(Error::INVALID_MESSAGE, format!("the echo is another value: {error}"))
        })
    }

    /// Reads kept messages of a topic when the result is awaited.
    pub fn history(&self, topic: impl Into<String>) -> HistoryRequest {
        HistoryRequest::new(self.shared(), topic.into())
    }

    /// Closes the hub, and waits until the socket is closed. Calls that wait fail with `closed`, and
    /// subscriptions end after the events that have arrived.
    pub async fn close(&self) {
        self.owner.shared.call_and_send(|inner, now| inner.core.close(now));
        let mut finished = self.owner.shared.finished.subscribe();
        // The sender lives as long as this hub.
        let _ = finished.wait_for(|finished| *finished).await;
    }
}
