//! The `subscribe` message, for one topic or a list.

use std::borrow::Cow;
use std::time::Instant;

use deeperhub_listener::{ConnectionKey, Context};
use deeperhub_protocol::ErrorCode;
use deeperhub_protocol::message::{
    MessageError, MessageId, ServerMessage, SubscribeList, SubscribeRequest, SubscribedEntry,
    SubscribedError, SubscriptionStart,
};
use deeperhub_router::Subscribed;

use crate::auth::Login;
use crate::metrics::{Limit, RecoveryResult, SentType};
use crate::replay::SubscribeStep;
use crate::session::{Session, error_reply};
use crate::worker::NodeWorker;

/// Number of topics in a list that count as one message.
const TOPICS_PER_MESSAGE: usize = 16;

/// Cost of one topic in a list, for [`Context::charge`]. That of a message.
const TOPIC_COST: usize = 512;

/// Subscribes the client to a topic or pattern, and replies where the subscription starts. If the
/// cluster's store must be read first, the reply comes later, and the connection waits for it. `text`
/// is the message as it was received.
pub(crate) fn subscribe(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    request: &SubscribeRequest<'_>,
    text: &str,
    cx: &mut Context<'_, NodeWorker>,
) {
    let worker = cx.worker();
    if worker.hub.streams.cluster.is_some()
        && worker.hold_cold_topics(session, text, std::iter::once(request))
    {
        return cx.park();
    }
    let topic = request.subscription.as_str();
    let (key, now) = (cx.key(), cx.now());
    // Subscribe before replying: a publish that counts the new subscriber must reach it. Deliveries
    // are queued only after this message was handled, so none overtakes the reply.
    let started = start((session.login.as_deref(), key), (request, SubscribeStep::Begin), now, cx.worker());
    match started {
        Ok(start) => session.reply(SentType::Subscribed, &ServerMessage::Subscribed { id, topic, start }, cx),
        Err(error) => session.reply_error(&subscribe_error(id, topic, &error), cx),
    }
}

/// Subscribes the client to each topic or pattern of a list, like [`subscribe`]. An entry that fails
/// affects no other.
pub(crate) fn subscribe_list(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    topics: SubscribeList<'_>,
    text: &str,
    cx: &mut Context<'_, NodeWorker>,
) {
    let max_subscriptions = cx.worker().limits.session.max_subscriptions;
    if topics.len() > max_subscriptions {
        let text = "`topics` has more entries than a connection may have subscriptions";
        let error = error_reply(id, ErrorCode::InvalidMessage, text);
        return session.reply_error(&MessageError { field: Some("topics"), ..error }.to_message(), cx);
    }
    // The message itself was counted as one.
    let more_messages = topics.len().div_ceil(TOPICS_PER_MESSAGE).saturating_sub(1);
    if let Err(wait) = session.check_more_messages(more_messages, cx) {
        return session.reply_rate_limited(id, wait, cx);
    }
    cx.charge(topics.len() * TOPIC_COST);
    let worker = cx.worker();
    if worker.hub.streams.cluster.is_some() {
        let requests: Vec<_> = topics.entries().filter_map(|entry| entry.request.ok()).collect();
        if worker.hold_cold_topics(session, text, requests.iter()) {
            return cx.park();
        }
    }
    let (key, now, login) = (cx.key(), cx.now(), session.login.as_deref());
    let worker = cx.worker();
    let entries =
        start_each(topics, |request| start((login, key), (request, SubscribeStep::Begin), now, worker));
    session.reply(SentType::Subscribed, &ServerMessage::SubscribedList { id, topics: &entries }, cx);
}

/// Subscribes a client to each entry of a list with `start`.
pub(crate) fn start_each<'a>(
    topics: SubscribeList<'a>,
    mut start: impl FnMut(&SubscribeRequest<'_>) -> Result<SubscriptionStart, SubscribedError>,
) -> Vec<SubscribedEntry<'a>> {
    topics
        .entries()
        .map(|entry| SubscribedEntry {
            topic: entry.topic,
            result: match entry.request {
                Ok(request) => start(&request),
                Err(error) => Err(error.into()),
            },
        })
        .collect()
}

/// Checks whether the grants of a client allow a subscribe.
///
/// # Errors
///
/// Returns the error for the client if they do not.
pub(crate) fn check_subscribe(
    login: Option<&Login>,
    request: &SubscribeRequest<'_>,
) -> Result<(), SubscribedError> {
    let Some(login) = login else { return Ok(()) };
    let subscription = &request.subscription;
    if !login.may_subscribe(subscription) {
        return Err(error(ErrorCode::Forbidden, "the token does not grant subscribing to this topic"));
    }
    let reads_history = request.history > 0 || request.recover.is_some_and(|recover| recover.partial);
    if reads_history && !login.may_read_history(subscription) {
        let text = "the token does not grant reading the history of this topic";
        return Err(error(ErrorCode::Forbidden, text));
    }
    Ok(())
}

/// Subscribes a client and returns where the subscription starts.
///
/// # Errors
///
/// Returns the error for the client if it was not subscribed.
pub(crate) fn start(
    (login, key): (Option<&Login>, ConnectionKey),
    (request, step): (&SubscribeRequest<'_>, SubscribeStep),
    now: Instant,
    worker: &mut NodeWorker,
) -> Result<SubscriptionStart, SubscribedError> {
    if step == SubscribeStep::Begin {
        check_subscribe(login, request)?;
        let subscription = &request.subscription;
        let is_full = worker.shard.subscription_count(key) >= worker.limits.session.max_subscriptions;
        if is_full && !worker.shard.is_subscribed(key, subscription) {
            worker.metrics.count_limited(Limit::Subscriptions);
            return Err(error(ErrorCode::TooManySubscriptions, "subscription limit reached"));
        }
    }
    let (streams, router) = (&worker.hub.streams, &worker.hub.router);
    let place = (streams, router, &mut worker.shard);
    let had_subscription = step == SubscribeStep::Resume && place.2.is_subscribed(key, &request.subscription);
    let subscribed = worker.replays.subscribe(key, request, step, place, now);
    let (subscribed, start) = subscribed.map_err(|refusal| {
        if had_subscription {
            worker.metrics.subscriptions.dec();
        }
        let (message, retry_after_ms) = (refusal.text(), refusal.retry_after_ms());
        SubscribedError { code: refusal.code(), message, field: None, retry_after_ms }
    })?;
    if subscribed == Subscribed::New {
        if step == SubscribeStep::Begin {
            worker.metrics.subscriptions.inc();
        }
        if let Some(recovery) = start.recovery {
            worker.metrics.recoveries.inc(RecoveryResult::from(recovery));
        }
    }
    Ok(start)
}

/// Returns the reply to a `subscribe` that failed.
pub(crate) fn subscribe_error<'a>(
    id: Option<MessageId<'a>>,
    topic: &'a str,
    error: &'a SubscribedError,
) -> ServerMessage<'a> {
    ServerMessage::Error {
        id,
        code: error.code,
        message: &error.message,
        field: error.field,
        topic: Some(topic),
        retry_after_ms: error.retry_after_ms,
    }
}

fn error(code: ErrorCode, message: &'static str) -> SubscribedError {
    SubscribedError { code, message: Cow::Borrowed(message), field: None, retry_after_ms: None }
}
