//! One connection's side of the hub.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_events::{Details, EventKind};
use deeperhub_listener::{Closed, Context, Key, Message};
use deeperhub_protocol::message::{
    ClientMessage, Command, MessageError, MessageId, ServerMessage, SpanContext,
};
use deeperhub_protocol::{ClientId, CloseCode, CloseReason, ErrorCode, RawJson};
use deeperhub_security::{Drawn, FirstBurst, MAX_ADDRESSES, RateLimit, RateLimiter, RetryAfter};

use crate::auth::Login;
use crate::commands;
use crate::hub::Hub;
use crate::id::Place;
use crate::local::Local;
use crate::metrics::{Limit, RECEIVED_BINARY, RECEIVED_INVALID, Sent};
use crate::trace::{HandshakeTrace, MessageSpan};

/// The time within which refused messages are counted before the connection is closed.
const OFFENCE_WINDOW: Duration = Duration::from_secs(10);

/// Refused messages within the window that any connection is allowed.
const LEAST_OFFENCES: u32 = 10;

/// What a connection keeps.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) place: Place,
    pub(crate) client_id: ClientId,
    /// Boxed, since most connections of most hubs have none.
    pub(crate) login: Option<Box<Login>>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    opened: Option<Instant>,
    messages: SessionLimiter,
    /// Boxed, since few connections do what these limit or count.
    rare: Option<Box<RareLimiters>>,
    offences: Offences,
    peer: SocketAddr,
    origin: Option<Box<str>>,
    /// Where publishes belong that name no trace themselves.
    trace: Option<Box<HandshakeTrace>>,
}

impl Session {
    /// A connection that is about to open; it gets its place and its id when it does.
    pub(crate) fn new(
        peer: SocketAddr,
        origin: Option<&str>,
        unnamed: ClientId,
        login: Option<Login>,
        trace: Option<Box<HandshakeTrace>>,
    ) -> Self {
        Self {
            place: Place { worker: 0, key: 0, serial: 0 },
            client_id: unnamed,
            login: login.map(Box::new),
            received: 0,
            sent: 0,
            opened: None,
            messages: SessionLimiter::default(),
            rare: None,
            offences: Offences::default(),
            peer,
            origin: origin.map(Into::into),
            trace,
        }
    }

    /// The user of the token, or else of the client's certificate.
    pub(crate) fn user(&self) -> Option<&Arc<str>> {
        self.login.as_ref().map(|login| &login.user)
    }

    pub(crate) fn has_token(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.is_of_token())
    }

    /// Whether the connection may do more than bring a token.
    pub(crate) fn is_admitted(&self, hub: &Hub) -> bool {
        !hub.config.auth.required || self.has_token()
    }

    /// Sends a reply.
    pub(crate) fn reply(&mut self, what: Sent, message: &ServerMessage<'_>, cx: &mut Context<'_, Local>) {
        let mut bytes = 0;
        cx.reply(|out| {
            let start = out.len();
            message.write_frame(out);
            bytes = out.len() - start;
        });
        self.replied(what, bytes, cx);
    }

    /// Sends a reply whose payload may be written from where it stands.
    pub(crate) fn reply_around(
        &mut self,
        what: Sent,
        message: &ServerMessage<'_>,
        payload: RawJson<'_>,
        cx: &mut Context<'_, Local>,
    ) {
        let payload = payload.as_str().as_bytes();
        if !cx.writes_in_place(payload.len()) {
            return self.reply(what, message, cx);
        }
        let mut bytes = payload.len();
        cx.reply_around(payload, |out| {
            let start = out.len();
            let at = message.write_frame_without_payload(out);
            bytes += out.len() - start;
            at
        });
        self.replied(what, bytes, cx);
    }

    fn replied(&mut self, what: Sent, bytes: usize, cx: &mut Context<'_, Local>) {
        self.sent += 1;
        let local = cx.local();
        local.metrics.sent(what, 1);
        local.event(EventKind::MessageSent, &self.client_id, || Details::MessageSent {
            message_type: what.name(),
            topic: None,
            bytes,
        });
    }

    /// Answers a message with an error.
    pub(crate) fn reply_error(&mut self, error: &ServerMessage<'_>, cx: &mut Context<'_, Local>) {
        if let ServerMessage::Error { code, message, .. } = error {
            let local = cx.local();
            local.metrics.errors.inc(code.index());
            local.answered_with = Some(code.as_str());
            local.event(EventKind::Error, &self.client_id, || Details::Error {
                code: Cow::Borrowed(code.as_str()),
                message: Cow::Owned((*message).to_owned()),
            });
        }
        self.reply(Sent::Error, error, cx);
    }

    /// Whether the rate limits let a message of `bytes` through; otherwise how long to wait.
    fn admit(&mut self, bytes: usize, cx: &mut Context<'_, Local>) -> Result<(), Duration> {
        let now = cx.now();
        let local = cx.local();
        let now = now.saturating_duration_since(local.hub.started);
        if let Some(limit) = local.live.rate_limit
            && let Err(retry) = self.messages.limiter.check(&limit, now)
        {
            self.over_rate(Kind::Messages, (limit, 1), (now, retry), local)?;
        }
        if let Some(limit) = local.live.byte_rate_limit
            && let Err(retry) =
                self.limiter(Kind::Bytes, &limit, local).limiter.check_amount(&limit, bytes, now)
        {
            self.over_rate(Kind::Bytes, (limit, bytes), (now, retry), local)?;
        }
        Ok(())
    }

    /// Handles a refusal by a limiter: draws from the connection's first burst and asks it again.
    /// If that fails, counts the refusal, and returns how long the client should wait if limits are
    /// enforced.
    #[cold]
    fn over_rate(
        &mut self,
        kind: Kind,
        (limit, amount): (RateLimit, usize),
        (now, mut retry): (Duration, RetryAfter),
        local: &mut Local,
    ) -> Result<(), Duration> {
        let mut by = kind.limit();
        if let Some(begun) = self.begun(local)
            && let Some(bursts) = &local.hub.bursts
        {
            let address = self.peer.ip();
            let pool = |amount| bursts.draw(address, amount, limit.burst, now);
            let SessionLimiter { limiter, first } = self.limiter(kind, &limit, local);
            match first.draw(limiter, &limit, amount, (begun, now), pool) {
                Drawn::Some => match limiter.check_amount(&limit, amount, now) {
                    Ok(()) => return Ok(()),
                    Err(again) => retry = again,
                },
                Drawn::Refused => by = Limit::FirstBurst,
                Drawn::Spent => {}
            }
            let forgotten = bursts.take_evicted();
            if forgotten > 0 {
                tracing::warn!(
                    forgotten,
                    max = MAX_ADDRESSES,
                    "Addresses of new connections forgotten too early"
                );
            }
        }
        local.over_limit(by, retry)
    }

    /// Counts bytes that the connection has published.
    pub(crate) fn published(&mut self, bytes: usize, relief: u32) {
        self.rare.get_or_insert_default().publishes.add(bytes, relief);
    }

    /// Returns when the connection opened, in the hub's time, if its bursts come out of its
    /// address's pool. A trusted proxy's own connections have their own bursts, since it may speak
    /// for any number of clients.
    fn begun(&self, local: &Local) -> Option<Duration> {
        local.hub.bursts.as_ref()?;
        let opened = self.opened?.saturating_duration_since(local.hub.started);
        (!local.hub.config.listener.trusted_proxies.trusts(self.peer.ip())).then_some(opened)
    }

    /// Returns the limiter of a kind, and creates it on first use.
    fn limiter(&mut self, kind: Kind, limit: &RateLimit, local: &Local) -> &mut SessionLimiter {
        let begun = self.begun(local);
        if let Kind::Messages = kind {
            return &mut self.messages;
        }
        let rare = self.rare.get_or_insert_default();
        let slot = match kind {
            Kind::Messages | Kind::Bytes => &mut rare.bytes,
            Kind::Tokens => &mut rare.tokens,
            Kind::Control => &mut rare.control,
        };
        slot.get_or_insert_with(|| SessionLimiter::new(limit, begun))
    }

    /// Whether one more token may be verified, on top of [`Self::admit`].
    fn admit_token(&mut self, cx: &mut Context<'_, Local>) -> Result<(), Duration> {
        let Some(limit) = cx.local().live.token_rate_limit else { return Ok(()) };
        self.admit_rare(Kind::Tokens, limit, cx)
    }

    fn admit_rare(
        &mut self,
        kind: Kind,
        limit: RateLimit,
        cx: &mut Context<'_, Local>,
    ) -> Result<(), Duration> {
        let now = cx.now();
        let local = cx.local();
        let now = now.saturating_duration_since(local.hub.started);
        match self.limiter(kind, &limit, local).limiter.check(&limit, now) {
            Ok(()) => Ok(()),
            Err(retry) => self.over_rate(kind, (limit, 1), (now, retry), local),
        }
    }

    /// Counts something refused by `limit`, and closes the connection if that was too much.
    fn offend(&mut self, limit: Option<RateLimit>, cx: &mut Context<'_, Local>) {
        let burst = limit.map_or(0, |limit| limit.burst.get());
        let now = cx.now();
        let count = self.offences.one_more(now.saturating_duration_since(cx.local().hub.started));
        if count >= burst.max(LEAST_OFFENCES) {
            cx.close(CloseReason::new(CloseCode::PolicyViolation, "kept violating the rate limit"));
        }
    }

    fn on_text(&mut self, text: &str, cx: &mut Context<'_, Local>) {
        let admitted = self.admit(text.len(), cx);
        let message = ClientMessage::parse_within(text, cx.local().live.max_json_depth);
        if let Err(wait) = admitted {
            let id = message.as_ref().map_or_else(|error| error.id, |message| message.id);
            cx.local().metrics.received.inc(RECEIVED_INVALID);
            return self.refuse_for_rate(id, wait, cx);
        }
        match message {
            Ok(message) => {
                let local = cx.local();
                local.metrics.received.inc(message.command.index());
                local.event(EventKind::MessageReceived, &self.client_id, || Details::MessageReceived {
                    message_type: Command::TYPES.get(message.command.index()).copied().unwrap_or("unknown"),
                    topic: topic_of(&message.command).map(Into::into),
                    bytes: text.len(),
                });
                let tracer = &cx.local().hub.config.tracer;
                match MessageSpan::begin(tracer, &message.trace, self.trace.as_deref()) {
                    None => self.carry_out(&message, None, cx),
                    Some(span) => self.carry_out_traced(&message, span, cx),
                }
            }
            Err(error) => {
                let local = cx.local();
                local.metrics.received.inc(RECEIVED_INVALID);
                if error.is_too_deep {
                    local.metrics.limited(Limit::JsonDepth);
                }
                local.event(EventKind::MessageReceived, &self.client_id, || Details::MessageReceived {
                    message_type: "invalid",
                    topic: None,
                    bytes: text.len(),
                });
                self.reply_error(&error.to_message(), cx);
            }
        }
    }

    /// The trace that its handshake named, for links.
    pub(crate) fn trace(&self) -> Option<SpanContext> {
        self.trace.as_ref().map(|trace| trace.span)
    }

    #[cold]
    fn carry_out_traced(
        &mut self,
        message: &ClientMessage<'_>,
        mut span: MessageSpan,
        cx: &mut Context<'_, Local>,
    ) {
        let log = span.span.for_log().entered();
        cx.local().answered_with = None;
        self.carry_out(message, Some(&mut span), cx);
        let local = cx.local();
        let error = local.answered_with.take();
        if let Some(code) = error {
            let client_id = self.client_id.as_str();
            tracing::debug!(client_id, code, "A message was answered with an error.");
        }
        drop(log);
        local
            .hub
            .config
            .tracer
            .record(|| span.end(&message.command, Some(self.client_id.as_str()), Some(self.peer), error));
    }

    fn carry_out(
        &mut self,
        message: &ClientMessage<'_>,
        span: Option<&mut MessageSpan>,
        cx: &mut Context<'_, Local>,
    ) {
        let id = message.id;
        if !self.is_admitted(&cx.local().hub) && !matches!(message.command, Command::Authenticate { .. }) {
            return self.refuse_without_token(id, cx);
        }
        match &message.command {
            Command::Echo { data } => commands::echo(self, id, *data, cx),
            Command::Subscribe { subscription } => commands::subscribe(self, id, subscription, cx),
            Command::Unsubscribe { subscription } => commands::unsubscribe(self, id, subscription, cx),
            Command::Publish { topic, message: payload, exclude_self } => {
                let publish = commands::Publish { topic, message: *payload, exclude_self: *exclude_self };
                commands::publish(self, id, &publish, span, cx);
            }
            Command::Authenticate { token } => match self.admit_token(cx) {
                Ok(()) => commands::authenticate(self, id, token, cx),
                Err(wait) => self.refuse_for_rate(id, wait, cx),
            },
            Command::Ping => commands::ping(self, id, cx),
        }
    }

    fn refuse_without_token(&mut self, id: Option<MessageId<'_>>, cx: &mut Context<'_, Local>) {
        let error = refusal(id, ErrorCode::Unauthorized, "authenticate first");
        self.reply_error(&error.to_message(), cx);
    }

    fn refuse_for_rate(&mut self, id: Option<MessageId<'_>>, wait: Duration, cx: &mut Context<'_, Local>) {
        let error = ServerMessage::Error {
            id,
            code: ErrorCode::RateLimited,
            message: "too many messages: wait before the next",
            field: None,
            topic: None,
            retry_after_ms: Some(milliseconds(wait)),
        };
        self.reply_error(&error, cx);
        let limit = cx.local().live.rate_limit;
        self.offend(limit, cx);
    }
}

/// Limiters of message bytes, of tokens in messages, and of unsolicited pings and pongs. Also
/// counts the bytes that a publisher makes others hold.
#[derive(Debug, Default)]
struct RareLimiters {
    bytes: Option<SessionLimiter>,
    tokens: Option<SessionLimiter>,
    control: Option<SessionLimiter>,
    publishes: WaitingPublishes,
}

/// Kind of rate limit of a connection.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Messages,
    Bytes,
    Tokens,
    Control,
}

impl Kind {
    const fn limit(self) -> Limit {
        match self {
            Self::Messages => Limit::Messages,
            Self::Bytes => Limit::Bytes,
            Self::Tokens => Limit::Tokens,
            Self::Control => Limit::Control,
        }
    }
}

/// Limiter with the state of its connection's first burst. 16 bytes.
#[derive(Debug, Default)]
struct SessionLimiter {
    limiter: RateLimiter,
    first: FirstBurst,
}

impl SessionLimiter {
    /// Creates a limiter. It starts without a burst if that is drawn from a pool; `begun` is when
    /// the connection began.
    fn new(limit: &RateLimit, begun: Option<Duration>) -> Self {
        let limiter = begun.map_or_else(RateLimiter::default, |begun| RateLimiter::empty(limit, begun));
        Self { limiter, first: FirstBurst::default() }
    }
}

/// Bytes that a connection has published and that may still be queued for workers that are behind.
/// 8 bytes.
#[derive(Debug, Default)]
struct WaitingPublishes {
    /// Value of the worker's [`Local::relief`] at the last publish.
    since: u32,
    bytes: u32,
}

impl WaitingPublishes {
    /// Counts a publish.
    fn add(&mut self, bytes: usize, relief: u32) {
        let before = self.bytes(relief);
        self.since = relief;
        self.bytes = u32::try_from(before.saturating_add(bytes)).unwrap_or(u32::MAX);
    }

    /// Returns the bytes that may still be queued.
    fn bytes(&self, relief: u32) -> usize {
        if self.since == relief { self.bytes as usize } else { 0 }
    }
}

/// Refused messages of the current window. 8 bytes.
#[derive(Debug, Default)]
struct Offences {
    /// When the window began, in milliseconds of the hub's life, wrapping.
    since: u32,
    count: u32,
}

impl Offences {
    /// Counts one at a time of the hub's life; how many there are in the window now.
    fn one_more(&mut self, now: Duration) -> u32 {
        let now = now.as_millis() as u32;
        let age = Duration::from_millis(now.wrapping_sub(self.since).into());
        if self.count == 0 || age >= OFFENCE_WINDOW {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count
    }
}

impl deeperhub_listener::Session for Session {
    type Local = Local;

    fn on_open(&mut self, cx: &mut Context<'_, Local>) {
        let (key, now) = (cx.key(), cx.now());
        let local = cx.local();
        self.place = Place { worker: local.worker, key, serial: local.serial() };
        if let Some(id) = self.place.client_id(&local.hub.node_id) {
            self.client_id = id;
        }
        self.opened = Some(now);
        if let Some(limit) = &local.live.rate_limit {
            self.messages = SessionLimiter::new(limit, self.begun(local));
        }
        local.metrics.active.inc();
        if let Some(user) = self.user() {
            local.add_user(user, key);
        }
        local.event(EventKind::Connected, &self.client_id, || Details::Connected {
            user: self.user().cloned(),
            peer: self.peer,
            origin: self.origin.clone(),
        });
        let limits = Hub::welcome_limits(&local.live);
        let client_id = self.client_id.clone();
        let welcome = ServerMessage::Welcome {
            client_id: &client_id,
            server: "deeperhub-ws",
            version: env!("CARGO_PKG_VERSION"),
            limits,
        };
        self.reply(Sent::Welcome, &welcome, cx);
    }

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, Local>) {
        self.received += 1;
        cx.local().on_message();
        let now = cx.now();
        if let Some(counting) = &mut cx.local().counting {
            let bytes = match message {
                Message::Text(text) => text.len(),
                Message::Binary(bytes) => bytes.len(),
            };
            counting.message(self.client_id.as_str(), bytes, now);
        }
        match message {
            Message::Text(text) => {
                cx.local().metrics.size.observe(text.len() as u64);
                self.on_text(text, cx);
            }
            Message::Binary(bytes) => {
                let local = cx.local();
                local.metrics.size.observe(bytes.len() as u64);
                local.metrics.received.inc(RECEIVED_BINARY);
                match self.admit(bytes.len(), cx) {
                    Ok(()) if !self.is_admitted(&cx.local().hub) => self.refuse_without_token(None, cx),
                    Ok(()) => {
                        cx.local().event(EventKind::BinaryReceived, &self.client_id, || {
                            Details::BinaryReceived { payload: bytes.into() }
                        });
                    }
                    Err(wait) => self.refuse_for_rate(None, wait, cx),
                }
            }
        }
    }

    fn admits_control(&mut self, cx: &mut Context<'_, Local>) -> bool {
        let Some(limit) = cx.local().live.control_rate_limit else { return true };
        if self.admit_rare(Kind::Control, limit, cx).is_err() {
            self.offend(Some(limit), cx);
            return false;
        }
        true
    }

    fn held_bytes(&self, key: Key, local: &Local) -> usize {
        let per_topic = local.hub.broker.as_ref().map_or(0, deeperhub_cluster::Broker::bytes_per_topic);
        let publishes = self.rare.as_ref().map_or(0, |rare| rare.publishes.bytes(local.relief));
        local.shard.held_bytes(key, per_topic) + publishes
    }

    fn on_tick(&mut self, cx: &mut Context<'_, Local>) {
        let now = cx.now();
        let local = cx.local();
        let reason = match &self.login {
            Some(login) if login.has_expired(local.unix_seconds(now)) => "the token has expired",
            Some(login) if login.is_of_token() => return,
            _ => {
                let auth = &local.hub.config.auth;
                let is_late = |opened: Instant| now.saturating_duration_since(opened) >= auth.grace;
                if !auth.required || !self.opened.is_some_and(is_late) {
                    return;
                }
                "no token within the grace time"
            }
        };
        cx.close(CloseReason::new(CloseCode::TokenExpired, reason));
    }

    fn on_farewell(&mut self, reason: &CloseReason, retry_after: Option<Duration>, out: &mut Vec<u8>) {
        // A client without a slot may come back now, if at all.
        let retry_after_ms = retry_after.map_or(0, milliseconds);
        ServerMessage::Goodbye { reason, retry_after_ms }.write_frame(out);
        self.sent += 1;
    }

    fn on_close(&mut self, key: Key, closed: &Closed, local: &mut Local) {
        let ended = local.shard.remove(key);
        local.metrics.subscriptions.add(-(ended as i64));
        local.metrics.active.dec();
        if let Some(user) = self.user() {
            local.remove_user(user, key);
        }
        local.paused.retain(|&paused| paused != key);
        let (code, reason): (Option<u16>, Cow<'static, str>) = match closed {
            Closed::ByPeer { code } => {
                local.metrics.closed("client");
                (*code, Cow::Borrowed("closed by the client"))
            }
            Closed::ByServer(reason) => {
                let code = reason.code();
                local.metrics.closed(itoa_code(code));
                if code.sends_goodbye() {
                    local.metrics.sent(Sent::Goodbye, 1);
                }
                if is_failure(code) {
                    local.event(EventKind::Error, &self.client_id, || Details::Error {
                        code: Cow::Owned(code.as_u16().to_string()),
                        message: Cow::Owned(reason.text().to_owned()),
                    });
                }
                (Some(code.as_u16()), Cow::Owned(reason.text().to_owned()))
            }
            _ => {
                local.metrics.closed("lost");
                (None, Cow::Borrowed("the connection was lost"))
            }
        };
        let (received, sent, opened) = (self.received, self.sent, self.opened);
        local.event(EventKind::Disconnected, &self.client_id, || Details::Disconnected {
            code,
            reason,
            duration: opened.map(|opened| opened.elapsed()).unwrap_or_default(),
            messages_received: received,
            messages_sent: sent,
        });
    }
}

fn topic_of<'m>(command: &'m Command<'_>) -> Option<&'m str> {
    match command {
        Command::Subscribe { subscription } | Command::Unsubscribe { subscription } => {
            Some(subscription.as_str())
        }
        Command::Publish { topic, .. } => Some(topic.as_str()),
        Command::Echo { .. } | Command::Authenticate { .. } | Command::Ping => None,
    }
}

/// The reply to a message that the node cannot carry out.
pub(crate) fn refusal<'a>(
    id: Option<MessageId<'a>>,
    code: ErrorCode,
    message: &'static str,
) -> MessageError<'a> {
    MessageError { code, id, field: None, message: Cow::Borrowed(message), is_too_deep: false }
}

/// The reply to a message about a topic that the client's token does not grant.
pub(crate) fn forbidden<'a>(
    id: Option<MessageId<'a>>,
    topic: &'a str,
    message: &'static str,
) -> ServerMessage<'a> {
    ServerMessage::Error {
        id,
        code: ErrorCode::Forbidden,
        message,
        field: None,
        topic: Some(topic),
        retry_after_ms: None,
    }
}

/// Whether a close by the server says that something went wrong with the connection.
fn is_failure(code: CloseCode) -> bool {
    !matches!(code, CloseCode::Normal | CloseCode::GoingAway | CloseCode::Disconnected)
}

fn itoa_code(code: CloseCode) -> &'static str {
    match code.as_u16() {
        1001 => "1001",
        1002 => "1002",
        1007 => "1007",
        1008 => "1008",
        1009 => "1009",
        1011 => "1011",
        1013 => "1013",
        4001 => "4001",
        4003 => "4003",
        4200 => "4200",
        _ => "other",
    }
}

/// Whole milliseconds, rounded up: a client that waits so long does not come too early.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        // Every idle connection costs this much.
        assert!(size_of::<Session>() <= 160, "{}", size_of::<Session>());
    }

    #[test]
    fn publishes_count_as_held_until_no_worker_is_behind() {
        let mut waiting = WaitingPublishes::default();
        waiting.add(1000, 7);
        waiting.add(500, 7);
        assert_eq!((waiting.bytes(7), waiting.bytes(8)), (1500, 0));
        waiting.add(10, 8);
        assert_eq!(waiting.bytes(8), 10);
        waiting.add(usize::MAX, 8);
        assert_eq!(waiting.bytes(8), u32::MAX as usize);
    }

    #[test]
    fn offences_are_counted_within_a_window() {
        let mut offences = Offences::default();
        let mut count = |seconds| offences.one_more(Duration::from_secs(seconds));
        assert_eq!((count(3), count(3), count(12)), (1, 2, 3));
        assert_eq!((count(13), count(22)), (1, 2), "a new window");
        // The clock wraps after 49 days.
        let wraps = u64::from(u32::MAX) / 1000;
        assert_eq!((count(wraps - 1), count(wraps + 2)), (1, 2));
    }
}
