//! Session of one connection: its state and its handling of messages.

mod limits;
mod reply;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_events::{EventDetails, EventKind};
use deeperhub_listener::{Closed, ConnectionKey, Context, Message};
use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage, SpanContext};
use deeperhub_protocol::{ClientId, CloseCode, CloseReason};

use crate::auth::Login;
use crate::commands;
use crate::connection_id::ConnectionId;
use crate::hub::Hub;
use crate::metrics::{ClosedBy, Limit, ReceivedType, SentType};
use crate::trace::{HandshakeTrace, MessageSpan};
use crate::worker::NodeWorker;
use limits::{RareLimiters, RateKind, SessionLimiter, ViolationCounter};
use reply::milliseconds_rounded_up;
pub(crate) use reply::{error_reply, forbidden_reply};

/// State of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection_id: ConnectionId,
    pub(crate) client_id: ClientId,
    /// User of the connection. Boxed, because most connections of most hubs have no login.
    pub(crate) login: Option<Box<Login>>,
    /// Number of received messages.
    pub(crate) received: u64,
    /// Number of sent messages.
    pub(crate) sent: u64,
    opened_at: Option<Instant>,
    message_limiter: SessionLimiter,
    /// Boxed, because few connections need these limiters.
    rare_limiters: Option<Box<RareLimiters>>,
    violations: ViolationCounter,
    peer: SocketAddr,
    origin: Option<Box<str>>,
    /// Trace of the handshake. Messages that name no trace belong to it.
    handshake_trace: Option<Box<HandshakeTrace>>,
}

impl Session {
    /// Creates the session of a connection whose handshake was accepted. The session gets its IDs
    /// when the connection opens.
    pub(crate) fn new(
        peer: SocketAddr,
        origin: Option<&str>,
        placeholder_id: ClientId,
        login: Option<Login>,
        handshake_trace: Option<Box<HandshakeTrace>>,
    ) -> Self {
        Self {
            connection_id: ConnectionId { worker: 0, key: 0, serial: 0 },
            client_id: placeholder_id,
            login: login.map(Box::new),
            received: 0,
            sent: 0,
            opened_at: None,
            message_limiter: SessionLimiter::default(),
            rare_limiters: None,
            violations: ViolationCounter::default(),
            peer,
            origin: origin.map(Into::into),
            handshake_trace,
        }
    }

    /// Returns the user of the token, or of the client's certificate if there is no token.
    pub(crate) fn user(&self) -> Option<&Arc<str>> {
        self.login.as_ref().map(|login| &login.user)
    }

    pub(crate) fn has_token(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.is_from_token())
    }

    pub(crate) const fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Returns the time since the connection opened.
    pub(crate) fn connected_for(&self, now: Instant) -> Duration {
        self.opened_at.map(|opened_at| now.saturating_duration_since(opened_at)).unwrap_or_default()
    }

    /// Returns `true` if messages other than `authenticate` are accepted.
    pub(crate) fn is_admitted(&self, hub: &Hub) -> bool {
        !hub.config.auth.required || self.has_token()
    }

    /// Handles a text message.
    fn on_text(&mut self, text: &str, cx: &mut Context<'_, NodeWorker>) {
        let rate_check = self.check_rates(text.len(), cx);
        let message = ClientMessage::parse_within(text, cx.worker().limits.session.max_json_depth);
        if let Err(wait) = rate_check {
            let id = message.as_ref().map_or_else(|error| error.id, |message| message.id);
            cx.worker().metrics.received.inc(ReceivedType::Invalid);
            return self.reply_rate_limited(id, wait, cx);
        }
        match message {
            Ok(message) => {
                let worker = cx.worker();
                worker.metrics.received.inc((&message.command).into());
                worker.publish_event(EventKind::MessageReceived, &self.client_id, || {
                    EventDetails::MessageReceived {
                        message_type: Command::TYPES
                            .get(message.command.index())
                            .copied()
                            .unwrap_or("unknown"),
                        topic: command_topic(&message.command).map(Into::into),
                        bytes: text.len(),
                    }
                });
                let tracer = &cx.worker().hub.config.tracer;
                match MessageSpan::begin(tracer, &message.trace, self.handshake_trace.as_deref()) {
                    None => self.execute(&message, text, None, cx),
                    Some(span) => self.execute_traced(&message, text, span, cx),
                }
            }
            Err(error) => {
                let worker = cx.worker();
                worker.metrics.received.inc(ReceivedType::Invalid);
                if error.is_too_deep {
                    worker.metrics.count_limited(Limit::JsonDepth);
                }
                worker.publish_event(EventKind::MessageReceived, &self.client_id, || {
                    EventDetails::MessageReceived { message_type: "invalid", topic: None, bytes: text.len() }
                });
                self.reply_error(&error.to_message(), cx);
            }
        }
    }

    /// Returns the span context of the handshake, to which `deliver` spans are linked.
    pub(crate) fn handshake_span(&self) -> Option<SpanContext> {
        self.handshake_trace.as_ref().map(|trace| trace.span)
    }

    /// Executes a message within the log span of its trace, and records its span.
    #[cold]
    fn execute_traced(
        &mut self,
        message: &ClientMessage<'_>,
        text: &str,
        mut span: MessageSpan,
        cx: &mut Context<'_, NodeWorker>,
    ) {
        let log_span = span.span.log_span().entered();
        cx.worker().last_error_code = None;
        self.execute(message, text, Some(&mut span), cx);
        let worker = cx.worker();
        let error_code = worker.last_error_code.take();
        if let Some(code) = error_code {
            let client_id = self.client_id.as_str();
            tracing::debug!(client_id, code, "Message answered with an error");
        }
        drop(log_span);
        worker.hub.config.tracer.record(|| {
            span.end(&message.command, Some(self.client_id.as_str()), Some(self.peer), error_code)
        });
    }

    /// Executes a message, unless the connection must authenticate first. `text` is the message as
    /// it was received.
    fn execute(
        &mut self,
        message: &ClientMessage<'_>,
        text: &str,
        span: Option<&mut MessageSpan>,
        cx: &mut Context<'_, NodeWorker>,
    ) {
        let id = message.id;
        if !self.is_admitted(&cx.worker().hub) && !matches!(message.command, Command::Authenticate { .. }) {
            return self.reply_unauthorized(id, cx);
        }
        match &message.command {
            Command::Echo { data } => commands::echo(self, id, *data, cx),
            Command::Subscribe(request) => commands::subscribe(self, id, request, text, cx),
            Command::SubscribeList { topics } => commands::subscribe_list(self, id, *topics, text, cx),
            Command::Unsubscribe { subscription } => commands::unsubscribe(self, id, subscription, cx),
            Command::Publish { topic, message: payload, exclude_self, once } => {
                let (message, exclude_self, once) = (*payload, *exclude_self, once.as_deref());
                let publish = commands::Publish { topic, message, exclude_self, once };
                commands::publish(self, id, &publish, span, cx);
            }
            Command::Authenticate { token } => match self.check_token_rate(cx) {
                Ok(()) => commands::authenticate(self, id, token, cx),
                Err(wait) => self.reply_rate_limited(id, wait, cx),
            },
            Command::Ping => commands::ping(self, id, cx),
            Command::History(request) => commands::history(self, id, request, cx),
        }
    }
}

impl deeperhub_listener::Session for Session {
    type WorkerState = NodeWorker;

    fn on_open(&mut self, cx: &mut Context<'_, NodeWorker>) {
        let (key, now) = (cx.key(), cx.now());
        let worker = cx.worker();
        self.connection_id = ConnectionId { worker: worker.index, key, serial: worker.allocate_serial() };
        if let Some(id) = self.connection_id.client_id(&worker.hub.node_id) {
            self.client_id = id;
        }
        self.opened_at = Some(now);
        if let Some(limit) = &worker.limits.session.rate_limit {
            self.message_limiter = SessionLimiter::new(limit, self.burst_pool_since(worker));
        }
        worker.metrics.active.inc();
        if let Some(user) = self.user() {
            worker.add_user(user, key);
        }
        worker.publish_event(EventKind::Connected, &self.client_id, || EventDetails::Connected {
            user: self.user().cloned(),
            peer: self.peer,
            origin: self.origin.clone(),
        });
        let limits = worker.hub.welcome_limits(&worker.limits);
        let client_id = self.client_id.clone();
        let welcome = ServerMessage::Welcome {
            client_id: &client_id,
            server: "deeperhub-ws",
            version: env!("CARGO_PKG_VERSION"),
            features: Some(worker.hub.streams.features()),
            server_time: Some(worker.hub.streams.clock.unix_ms(now)),
            limits,
        };
        let mut bytes = 0;
        cx.reply_uncompressed(|out| {
            let start = out.len();
            welcome.write_frame(out);
            bytes = out.len() - start;
        });
        self.record_reply(SentType::Welcome, bytes, cx);
    }

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, NodeWorker>) {
        self.received += 1;
        cx.worker().on_message();
        let now = cx.now();
        if let Some(top_window) = &mut cx.worker().top_window {
            let bytes = match message {
                Message::Text(text) => text.len(),
                Message::Binary(bytes) => bytes.len(),
            };
            top_window.message(self.client_id.as_str(), bytes, now);
        }
        match message {
            Message::Text(text) => {
                cx.worker().metrics.size.observe(text.len() as u64);
                self.on_text(text, cx);
            }
            Message::Binary(bytes) => {
                let worker = cx.worker();
                worker.metrics.size.observe(bytes.len() as u64);
                worker.metrics.received.inc(ReceivedType::Binary);
                match self.check_rates(bytes.len(), cx) {
                    Ok(()) if !self.is_admitted(&cx.worker().hub) => self.reply_unauthorized(None, cx),
                    Ok(()) => {
                        cx.worker().publish_event(EventKind::BinaryReceived, &self.client_id, || {
                            EventDetails::BinaryReceived { payload: bytes.into() }
                        });
                    }
                    Err(wait) => self.reply_rate_limited(None, wait, cx),
                }
            }
        }
    }

    fn admit_control_frame(&mut self, cx: &mut Context<'_, NodeWorker>) -> bool {
        let Some(limit) = cx.worker().limits.session.control_rate_limit else { return true };
        if self.check_rare_rate(RateKind::Control, limit, cx).is_err() {
            self.count_violation(Some(limit), cx);
            return false;
        }
        true
    }

    fn held_bytes(&self, key: ConnectionKey, worker: &NodeWorker) -> usize {
        let per_topic = worker.hub.broker.as_ref().map_or(0, deeperhub_cluster::Broker::bytes_per_topic);
        let queued_publishes = self
            .rare_limiters
            .as_ref()
            .map_or(0, |rare_limiters| rare_limiters.publishes.bytes(worker.uncongested_rounds));
        worker.shard.held_bytes(key, per_topic)
            + worker.replays.bytes(key)
            + worker.parked_bytes(key)
            + queued_publishes
    }

    fn on_tick(&mut self, cx: &mut Context<'_, NodeWorker>) {
        let now = cx.now();
        let worker = cx.worker();
        let reason = match &self.login {
            Some(login) if login.has_expired(worker.unix_seconds(now)) => "the token has expired",
            Some(login) if login.is_from_token() => return,
            _ => {
                let auth = &worker.hub.config.auth;
                let is_overdue = |opened_at: Instant| now.saturating_duration_since(opened_at) >= auth.grace;
                if !auth.required || !self.opened_at.is_some_and(is_overdue) {
                    return;
                }
                "no token within the grace time"
            }
        };
        cx.close(CloseReason::new(CloseCode::TokenExpired, reason));
    }

    fn on_server_close(&mut self, reason: &CloseReason, retry_after: Option<Duration>, out: &mut Vec<u8>) {
        // 0 means that the client need not wait before it reconnects.
        let retry_after_ms = retry_after.map_or(0, milliseconds_rounded_up);
        ServerMessage::Goodbye { reason, retry_after_ms }.write_frame(out);
        self.sent += 1;
    }

    fn on_close(&mut self, key: ConnectionKey, closed: &Closed, worker: &mut NodeWorker) {
        worker.unsubscribe_all(key);
        worker.metrics.active.dec();
        if let Some(user) = self.user() {
            worker.remove_user(user, key);
        }
        worker.remove_parked(key);
        worker.paused_publishers.retain(|&paused| paused != key);
        let (code, reason): (Option<u16>, Cow<'static, str>) = match closed {
            Closed::ByPeer { code } => {
                worker.metrics.count_closed(ClosedBy::Client);
                (*code, Cow::Borrowed("closed by the client"))
            }
            Closed::ByServer(reason) => {
                let code = reason.code();
                worker.metrics.count_closed(code.into());
                if code.sends_goodbye() {
                    worker.metrics.count_sent(SentType::Goodbye, 1);
                }
                if is_abnormal(code) {
                    worker.publish_event(EventKind::Error, &self.client_id, || EventDetails::Error {
                        code: Cow::Owned(code.as_u16().to_string()),
                        message: Cow::Owned(reason.text().to_owned()),
                    });
                }
                (Some(code.as_u16()), Cow::Owned(reason.text().to_owned()))
            }
            _ => {
                worker.metrics.count_closed(ClosedBy::Lost);
                (None, Cow::Borrowed("the connection was lost"))
            }
        };
        let (received, sent, opened_at) = (self.received, self.sent, self.opened_at);
        worker.publish_event(EventKind::Disconnected, &self.client_id, || EventDetails::Disconnected {
            code,
            reason,
            duration: opened_at.map(|opened_at| opened_at.elapsed()).unwrap_or_default(),
            messages_received: received,
            messages_sent: sent,
        });
    }
}

/// Returns the topic or pattern of a command, if it has one.
fn command_topic<'m>(command: &'m Command<'_>) -> Option<&'m str> {
    match command {
        Command::Subscribe(request) => Some(request.subscription.as_str()),
        Command::Unsubscribe { subscription } => Some(subscription.as_str()),
        Command::Publish { topic, .. } => Some(topic.as_str()),
        Command::History(request) => Some(request.topic.as_str()),
        Command::Echo { .. }
        | Command::SubscribeList { .. }
        | Command::Authenticate { .. }
        | Command::Ping => None,
    }
}

/// Returns `true` if a close code of the server indicates a problem with the connection.
fn is_abnormal(code: CloseCode) -> bool {
    !matches!(code, CloseCode::Normal | CloseCode::GoingAway | CloseCode::Disconnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        // Each idle connection takes this memory.
        assert!(size_of::<Session>() <= 160, "{}", size_of::<Session>());
    }
}
