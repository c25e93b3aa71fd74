//! The connection: attempts, ends, and what follows from them.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::life::{Life, Sign};
use super::token::{TokenKind, expiry_of};
use super::wire::{Goodbye, Welcome};
use super::{Action, Core, wire};
use crate::Error;

/// A connection that was open for this time was good: the backoff starts anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// IDs of earlier connections that are remembered.
const MAX_CLIENT_IDS: usize = 8;

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// The token, the handshake or the `welcome` is awaited.
    Connecting,
    /// Messages can be sent.
    Open,
    /// The next attempt is due later.
    Waiting {
        /// The time of the next attempt.
        until: Duration,
        /// The end of the last connection.
        reason: Arc<str>,
    },
    /// The end. Nothing is tried any more.
    Closed {
        /// The cause.
        reason: Arc<str>,
    },
}

/// The step of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// There is no connection.
    #[default]
    None,
    Token,
    Handshake,
    Welcome,
    Open,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: ConnectionState,
    pub(super) phase: Phase,
    /// End of the current step of an attempt.
    deadline: Option<Duration>,
    opened_at: Option<Duration>,
    backoff: Backoff,
    pub(super) life: Life,
    goodbye: Option<Goodbye>,
    /// The client's IDs, the current one last.
    pub(super) client_ids: Vec<Arc<str>>,
    /// Longest message that the server takes, once it is known.
    pub(super) max_message_bytes: Option<usize>,
    /// The connection is open again, and nothing was sent yet.
    pub(super) is_reconnected: bool,
    /// The server's clock in Unix milliseconds, at a time of ours.
    server_clock: Option<(u64, Duration)>,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            state: ConnectionState::Connecting,
            phase: Phase::None,
            deadline: None,
            opened_at: None,
            backoff: Backoff::default(),
            life: Life::default(),
            goodbye: None,
            client_ids: Vec::new(),
            max_message_bytes: None,
            is_reconnected: false,
            server_clock: None,
        }
    }
}

impl Connection {
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        match (&self.state, self.phase) {
            (ConnectionState::Closed { .. }, _) => None,
            (ConnectionState::Waiting { until, .. }, _) => Some(*until),
            (_, Phase::Open) => Some(self.life.due()),
            _ => self.deadline,
        }
    }

    pub(super) fn server_ms(&self, now: Duration) -> Option<u64> {
        let (server_ms, at) = self.server_clock?;
        Some(server_ms.saturating_add(u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The end of a connection or of an attempt.
#[derive(Debug, Default)]
pub(super) struct End {
    code: Option<u16>,
    goodbye: Option<Goodbye>,
    status: Option<u16>,
    retry_after: Option<Duration>,
    is_silent: bool,
    reason: String,
}

impl End {
    /// Returns the end of an attempt that failed for a reason.
    pub(super) fn of(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }
}

/// The next step after an end.
enum Step {
    Close,
    ConnectNow,
    ConnectAfter(Duration),
}

impl Core {
    pub(super) fn is_open(&self) -> bool {
        self.connection.phase == Phase::Open
    }

    pub(super) fn start_attempt(&mut self) {
        self.set_state(ConnectionState::Connecting);
        self.connection.deadline = self.now.checked_add(self.settings.connect_timeout);
        match &self.tokens.kind {
            TokenKind::Function => {
                self.connection.phase = Phase::Token;
                self.actions.push_back(Action::RequestToken);
            }
            TokenKind::Fixed(token) => self.connect(Some(token.clone())),
            TokenKind::None => self.connect(None),
        }
    }

    pub(super) fn connect(&mut self, token: Option<String>) {
        self.connection.phase = Phase::Handshake;
        self.connection.deadline = self.now.checked_add(self.settings.connect_timeout);
        // A token that was read from a file may end with a line break.
        let token = token.map(|token| token.trim().to_owned());
        self.tokens.current.clone_from(&token);
        self.actions.push_back(Action::Connect { token });
    }

    fn set_state(&mut self, state: ConnectionState) {
        self.connection.state = state.clone();
        self.actions.push_back(Action::State(state));
    }

    pub(super) fn on_connected(&mut self) {
        if self.connection.phase == Phase::Handshake {
            self.connection.phase = Phase::Welcome;
        }
    }

    pub(super) fn on_welcome(&mut self, welcome: &Welcome<'_>) {
        if self.connection.phase != Phase::Welcome {
            return;
        }
        let now = self.now;
        let connection = &mut self.connection;
        connection.phase = Phase::Open;
        connection.opened_at = Some(now);
        connection.life = Life::new(welcome.limits.ping_interval_ms, now);
        connection.max_message_bytes = welcome.limits.max_message_bytes;
        connection.server_clock = welcome.server_time.map(|time| (time, now));
        connection.is_reconnected = !connection.client_ids.is_empty();
        if connection.client_ids.len() == MAX_CLIENT_IDS {
            connection.client_ids.remove(0);
        }
        connection.client_ids.push(welcome.client_id.as_ref().into());
        self.tokens.was_refused = false;
        let expires_at = self.tokens.current.as_deref().and_then(expiry_of);
        self.tokens.schedule(expires_at, welcome.server_time, now);
        self.set_state(ConnectionState::Open);
        if let Some(max) = self.connection.max_message_bytes {
            self.fail_too_large(max);
        }
    }

    pub(super) fn on_goodbye(&mut self, goodbye: Goodbye) {
        self.connection.goodbye = Some(goodbye);
    }

    pub(super) fn on_refused(&mut self, status: u16, retry_after: Option<Duration>, reason: String) {
        if self.connection.phase == Phase::Handshake {
            let reason = if reason.is_empty() { format!("HTTP status {status}") } else { reason };
            self.on_end(End { status: Some(status), retry_after, reason, ..End::default() });
        }
    }

    pub(super) fn on_failed(&mut self, reason: String) {
        if self.connection.phase == Phase::Handshake {
            self.on_end(End::of(reason));
        }
    }

    pub(super) fn on_disconnected(&mut self, code: Option<u16>, reason: String) {
        if matches!(self.connection.phase, Phase::Welcome | Phase::Open) {
            let goodbye = self.connection.goodbye.take();
            // 1005 and 1006 stand for a code that did not come.
            let code = code.filter(|code| !matches!(code, 1005 | 1006));
            let code = goodbye.as_ref().and_then(|goodbye| goodbye.code).or(code);
            let told = goodbye.as_ref().map(|goodbye| goodbye.reason.clone()).filter(|told| !told.is_empty());
            let reason = match (told, code) {
                (Some(told), _) => told,
                (None, Some(code)) if reason.is_empty() => format!("close code {code}"),
                _ if reason.is_empty() => "the connection ended".to_owned(),
                _ => reason,
            };
            self.on_end(End { code, goodbye, reason, ..End::default() });
        }
    }

    /// Checks the deadlines of the connection.
    pub(super) fn on_connection_time(&mut self) {
        let now = self.now;
        if self.connection.next_timeout().is_none_or(|at| at > now) {
            return;
        }
        match (&self.connection.state, self.connection.phase) {
            (ConnectionState::Waiting { .. }, _) => self.start_attempt(),
            (_, Phase::Open) => match self.connection.life.on_time(now, self.settings.pong_timeout) {
                Sign::Nothing => {}
                Sign::Ping => self.actions.push_back(Action::Send(wire::PING.to_owned())),
                Sign::Dead => {
                    self.actions.push_back(Action::Disconnect { code: None });
                    let reason = "the server showed no life".to_owned();
                    self.on_end(End { is_silent: true, reason, ..End::default() });
                }
            },
            (_, Phase::Token) => {
                self.report(Error::new(Error::TOKEN_FAILED, "the token function did not return in time"));
                self.on_end(End::of(Error::TOKEN_FAILED));
            }
            (_, Phase::Handshake | Phase::Welcome) => {
                self.actions.push_back(Action::Disconnect { code: None });
                let goodbye = self.connection.goodbye.take();
                self.on_end(End { goodbye, reason: Error::TIMEOUT.into(), ..End::default() });
            }
            (_, Phase::None) => {}
        }
    }

    /// Decides what follows an end.
    pub(super) fn on_end(&mut self, end: End) {
        let open_for = self.connection.opened_at.take().map(|at| self.now.saturating_sub(at));
        let was_good = open_for.is_some_and(|time| time >= GOOD_CONNECTION);
        if was_good {
            self.connection.backoff.reset();
        }
        if was_good || open_for.is_some() && end.code != Some(4001) {
            self.tokens.was_expired = false;
        }
        self.connection.phase = Phase::None;
        self.connection.goodbye = None;
        self.tokens.on_disconnect();
        let step = self.step_after(&end, was_good);
        let reason: Arc<str> = end.reason.into();
        if matches!(step, Step::Close) {
            self.end(reason);
            return;
        }
        self.pending.clear();
        self.publishes.on_disconnect();
        self.requests.on_disconnect();
        self.on_subscriptions_lost();
        match step {
            Step::ConnectAfter(delay) if !delay.is_zero() => {
                let until = self.now + delay;
                self.set_state(ConnectionState::Waiting { until, reason });
            }
            _ => self.start_attempt(),
        }
    }

    /// Returns the first line that applies of the table "When to reconnect".
    fn step_after(&mut self, end: &End, was_good: bool) -> Step {
        let goodbye = end.goodbye.as_ref();
        let is_expired = end.code == Some(4001);
        if goodbye.is_some_and(|goodbye| goodbye.reconnect == Some(false)) && !is_expired {
            return Step::Close;
        }
        if is_expired || end.status == Some(401) {
            if !matches!(self.tokens.kind, TokenKind::Function) {
                return Step::Close;
            }
            let repeated =
                if is_expired { &mut self.tokens.was_expired } else { &mut self.tokens.was_refused };
            return match std::mem::replace(repeated, true) {
                false => Step::ConnectNow,
                true => self.backoff(),
            };
        }
        if matches!(end.code, Some(1002 | 1007 | 1009 | 4000..=4099))
            || matches!(end.status, Some(400 | 403 | 404))
        {
            return Step::Close;
        }
        let told = goodbye.and_then(|goodbye| goodbye.retry_after_ms).map(wire::wait_of);
        if let Some(delay) = told.or(end.retry_after) {
            self.connection.backoff.count();
            return Step::ConnectAfter(delay.min(wire::wait_of(u64::MAX)));
        }
        if was_good && (end.is_silent || matches!(end.code, Some(4200..=4299))) {
            return Step::ConnectNow;
        }
        self.backoff()
    }

    fn backoff(&mut self) -> Step {
        Step::ConnectAfter(self.connection.backoff.next_delay(&self.settings, &mut self.rng))
    }

    /// Ends everything.
    pub(super) fn end(&mut self, reason: Arc<str>) {
        self.save_positions();
        self.connection.phase = Phase::None;
        self.pending.clear();
        self.tokens.on_disconnect();
        self.set_state(ConnectionState::Closed { reason: Arc::clone(&reason) });
        let error = Error::closed(&reason);
        for id in self.publishes.ids() {
            self.finish_publish(id, Err(error.clone()));
        }
        for id in self.requests.ids() {
            self.finish_request(id, error.clone());
        }
        for number in self.subscriptions.numbers() {
            self.end_subscription(number, error.clone());
        }
    }

    pub(super) fn report(&mut self, error: Error) {
        self.actions.push_back(Action::Error(error));
    }
}
