//! The behaviour of a client, without I/O, threads and clocks.
//!
//! A driver tells [`Core`] what happened ([`Input`]) and when, and then does what
//! [`Core::poll_action`] returns ([`Action`]) until that is `None`. At [`Core::next_timeout`] it
//! passes [`Input::Timeout`]. Time is the [`Duration`] since a start that the driver chooses, so a
//! simulation can use its own. The same inputs at the same times cause the same actions.
//!
//! A driver has one connection at most. [`Action::Connect`] opens it, and [`Action::Disconnect`]
//! closes it without a [`Input::Disconnected`].
//!
//! ```
//! use std::time::Duration;
//! use deeperhub_client::core::{Action, Core, Input, Settings, TokenKind};
//!
//! let mut core = Core::new(Settings::default(), TokenKind::None, 7);
//! core.start(Duration::ZERO);
//! assert!(matches!(core.poll_action(), Some(Action::State(_))));
//! assert!(matches!(core.poll_action(), Some(Action::Connect { token: None })));
//! core.handle(Input::Connected, Duration::from_millis(1));
//! core.handle(Input::Text(r#"{"type":"welcome","data":{"client_id":"c1"}}"#), Duration::from_millis(2));
//! core.subscribe("chat.42", 50, None, Duration::from_millis(3));
//! assert!(matches!(core.poll_action(), Some(Action::State(_))));
//! let Some(Action::Send(text)) = core.poll_action() else { panic!() };
//! assert_eq!(text, r#"{"type":"subscribe","id":2,"data":{"topic":"chat.42","history":50}}"#);
//! ```

mod backoff;
mod call;
mod connection;
mod dispatch;
mod handle;
mod life;
mod position;
mod publish;
mod queue;
mod renewal;
mod request;
mod settings;
mod store;
mod subscribe;
mod subscription;
mod subscriptions;
#[cfg(test)]
mod tests;
mod token;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::{Error, HistoryPage, Position, Published};

pub use call::{HistoryOptions, PublishOptions};
use connection::Connection;
pub use connection::ConnectionState;
pub use handle::HandleId;
use publish::Publishes;
use request::Requests;
pub use settings::Settings;
use store::Store;
pub use subscriptions::Next;
use subscriptions::Subscriptions;
pub use token::TokenKind;
use token::Tokens;

/// Identifies a publish, an echo or a read of history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Something that happened outside.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Input<'a> {
    /// The function that returns tokens was called, and this is its result.
    Token(Result<String, String>),
    /// The handshake succeeded.
    Connected,
    /// The server refused the handshake with an HTTP status other than 101.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The value of `Retry-After`.
        retry_after: Option<Duration>,
        /// The code in the body, or any text that says why.
        reason: String,
    },
    /// The connection could not be made, or the answer was no HTTP response.
    Failed(String),
    /// The server sent a text message.
    Text(&'a str),
    /// The server sent any other frame.
    Activity,
    /// The connection ended.
    Disconnected {
        /// The close code, if a close frame came.
        code: Option<u16>,
        /// The text of the close frame, or of the error.
        reason: String,
    },
    /// The time of [`Core::next_timeout`] has come.
    Timeout,
}

/// Something that a driver is to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action {
    /// Call the function that returns tokens, and pass [`Input::Token`].
    RequestToken,
    /// Open a connection, with this token in the handshake.
    Connect {
        /// The token.
        token: Option<String>,
    },
    /// Send a text message.
    Send(String),
    /// Close the connection, or give up opening it. Nothing more is expected of it.
    Disconnect {
        /// The close code to send, if the other side may still read it.
        code: Option<u16>,
    },
    /// The state of the connection changed.
    State(ConnectionState),
    /// Something failed that no call waits for.
    Error(Error),
    /// The first `subscribed` of a handle came, or the handle ended before.
    Ready(HandleId, Result<(), Error>),
    /// Events wait for a handle, see [`Core::take`].
    Wake(HandleId),
    /// The result of a publish.
    Published(RequestId, Result<Published, Error>),
    /// The result of an echo.
    Echoed(RequestId, Result<Box<RawValue>, Error>),
    /// The result of a read of history.
    History(RequestId, Result<HistoryPage, Error>),
    /// Save the position of a topic, or remove it.
    Store {
        /// The topic.
        topic: Arc<str>,
        /// The position up to which the application has processed messages.
        position: Option<Position>,
    },
}

/// A request of the client itself that waits for its answer.
#[derive(Debug)]
enum Pending {
    Subscribe(Vec<u64>),
    Join(HandleId),
    Authenticate,
}

/// The state of a client.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    rng: fastrand::Rng,
    once: String,
    now: Duration,
    actions: VecDeque<Action>,
    connection: Connection,
    tokens: Tokens,
    subscriptions: Subscriptions,
    publishes: Publishes,
    requests: Requests,
    pending: HashMap<u64, Pending>,
    store: Store,
    last_id: u64,
}

impl Core {
    /// Creates a client that does nothing until [`Self::start`]. `seed` decides all that is random,
    /// also the keys by which the server recognises repeated publishes: two clients must not have
    /// the same one.
    #[must_use]
    pub fn new(settings: Settings, token: TokenKind, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let once = format!("{seed:016x}{:08x}", rng.u32(..));
        Self {
            settings,
            rng,
            once,
            now: Duration::ZERO,
            actions: VecDeque::new(),
            connection: Connection::default(),
            tokens: Tokens { kind: token, ..Tokens::default() },
            subscriptions: Subscriptions::default(),
            publishes: Publishes::default(),
            requests: Requests::default(),
            pending: HashMap::new(),
            store: Store::default(),
            last_id: 0,
        }
    }

    /// Makes the client save positions with [`Action::Store`].
    pub fn keep_positions(&mut self) {
        self.store.is_on = true;
    }

    /// Starts to connect.
    pub fn start(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.start_attempt();
    }

    /// Takes note of something that happened.
    pub fn handle(&mut self, input: Input<'_>, now: Duration) {
        self.now = self.now.max(now);
        match input {
            Input::Token(token) => self.on_token(token),
            Input::Connected => self.on_connected(),
            Input::Refused { status, retry_after, reason } => self.on_refused(status, retry_after, reason),
            Input::Failed(reason) => self.on_failed(reason),
            Input::Text(text) => self.on_text(text),
            Input::Activity => self.connection.life.on_activity(self.now),
            Input::Disconnected { code, reason } => self.on_disconnected(code, reason),
            Input::Timeout => self.on_timeout(),
        }
    }

    /// Returns the next thing to do, or `None` if everything is done.
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() {
            self.flush();
        }
        self.actions.pop_front()
    }

    /// Returns `true` if [`Self::poll_action`] has something to return.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty() || self.is_open() && !self.subscriptions.idle.is_empty()
    }

    /// Returns the time at which [`Input::Timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        let times = [
            self.connection.next_timeout(),
            self.tokens.renew_at,
            self.subscriptions.next_timeout(),
            self.publishes.next_timeout(),
            self.requests.next_timeout(),
            self.store.due,
        ];
        times.into_iter().flatten().min()
    }

    /// Returns the state of the connection.
    #[must_use]
    pub fn state(&self) -> &ConnectionState {
        &self.connection.state
    }

    /// Ends everything. Calls that wait fail with `closed`.
    pub fn close(&mut self, now: Duration) {
        self.now = self.now.max(now);
        if !self.is_closed() {
            self.actions.push_back(Action::Disconnect { code: Some(1000) });
            self.end(Error::CLOSED.into());
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.connection.state, ConnectionState::Closed { .. })
    }

    fn on_timeout(&mut self) {
        let now = self.now;
        self.subscriptions.on_time(now);
        while let Some(id) = self.publishes.on_time(now) {
            let text = "the server did not answer in time; the message may have been published";
            self.publishes.expect_late(id);
            self.finish_publish(id, Err(Error::new(Error::TIMEOUT, text)));
        }
        while let Some(id) = self.requests.on_time(now) {
            self.finish_request(id, Error::new(Error::TIMEOUT, "the server did not answer in time"));
        }
        if self.store.due.is_some_and(|due| due <= now) {
            self.save_positions();
        }
        self.on_connection_time();
        if self.tokens.renew_at.is_some_and(|at| at <= now) {
            self.renew_token();
        }
    }

    /// Sends what can be sent.
    fn flush(&mut self) {
        if !self.is_open() {
            return;
        }
        // After a reconnect, publishes come first: those of the last connection may have to fill
        // holes. Else a client that subscribes and then publishes gets its own message.
        if std::mem::take(&mut self.connection.is_reconnected) {
            self.send_publishes();
        }
        self.send_subscribes();
        self.send_joins();
        while let Some(text) = self.requests.next() {
            self.actions.push_back(Action::Send(text.to_owned()));
        }
        self.send_publishes();
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
