//! The `subscribe` message, for one topic or a list.

use std::borrow::Cow;

use deeperhub_listener::Context;
use deeperhub_protocol::ErrorCode;
use deeperhub_protocol::message::{
    MessageError, MessageId, ServerMessage, SubscribeList, SubscribeRequest, SubscribedEntry,
    SubscribedError, SubscriptionStart,
};
use deeperhub_router::Subscribed;

use crate::metrics::{Limit, RecoveryResult, SentType};
use crate::session::{Session, error_reply};
use crate::worker::NodeWorker;

/// Number of topics in a list that count as one message.
const TOPICS_PER_MESSAGE: usize = 16;

/// Cost of one topic in a list, for [`Context::charge`]. That of a message.
const TOPIC_COST: usize = 512;

/// Subscribes the client to a topic or pattern, and replies where the subscription starts.
pub(crate) fn subscribe(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    request: &SubscribeRequest<'_>,
    cx: &mut Context<'_, NodeWorker>,
) {
    let topic = request.subscription.as_str();
    // Subscribe before replying: a publish that counts the new subscriber must reach it. Deliveries
    // are queued only after this message was handled, so none overtakes the reply.
    match start(session, request, cx) {
        Ok(start) => session.reply(SentType::Subscribed, &ServerMessage::Subscribed { id, topic, start }, cx),
        Err(error) => {
            let reply = ServerMessage::Error {
                id,
                code: error.code,
                message: &error.message,
                field: error.field,
                topic: Some(topic),
                retry_after_ms: error.retry_after_ms,
            };
            session.reply_error(&reply, cx);
        }
    }
}

/// Subscribes the client to each topic or pattern of a list. An entry that fails affects no other.
pub(crate) fn subscribe_list(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    topics: SubscribeList<'_>,
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
    let entries: Vec<_> = topics
        .entries()
        .map(|entry| SubscribedEntry {
            topic: entry.topic,
            result: match entry.request {
                Ok(request) => start(session, &request, cx),
                Err(error) => Err(error.into()),
            },
        })
        .collect();
    session.reply(SentType::Subscribed, &ServerMessage::SubscribedList { id, topics: &entries }, cx);
}

/// Subscribes the client and returns where the subscription starts.
fn start(
    session: &mut Session,
    request: &SubscribeRequest<'_>,
    cx: &mut Context<'_, NodeWorker>,
) -> Result<SubscriptionStart, SubscribedError> {
    let subscription = &request.subscription;
    if let Some(login) = &session.login {
        if !login.may_subscribe(subscription) {
            return Err(error(ErrorCode::Forbidden, "the token does not grant subscribing to this topic"));
        }
        let reads_history = request.history > 0 || request.recover.is_some_and(|recover| recover.partial);
        if reads_history && !login.may_read_history(subscription) {
            let text = "the token does not grant reading the history of this topic";
            return Err(error(ErrorCode::Forbidden, text));
        }
    }
    let key = cx.key();
    let worker = cx.worker();
    let is_full = worker.shard.subscription_count(key) >= worker.limits.session.max_subscriptions;
    if is_full && !worker.shard.is_subscribed(key, subscription) {
        worker.metrics.count_limited(Limit::Subscriptions);
        return Err(error(ErrorCode::TooManySubscriptions, "subscription limit reached"));
    }
    let now = cx.now();
    let worker = cx.worker();
    let (streams, router) = (&worker.hub.streams, &worker.hub.router);
    let subscribed = worker.replays.subscribe(key, request, (streams, router, &mut worker.shard), now);
    let (subscribed, start) = subscribed.map_err(|refusal| {
        let retry_after_ms = Some(refusal.retry_after_ms());
        let message = Cow::Borrowed(refusal.text());
        SubscribedError { code: refusal.code(), message, field: None, retry_after_ms }
    })?;
    if subscribed == Subscribed::New {
        worker.metrics.subscriptions.inc();
        if let Some(recovery) = start.recovery {
            worker.metrics.recoveries.inc(RecoveryResult::from(recovery));
        }
    }
    Ok(start)
}

fn error(code: ErrorCode, message: &'static str) -> SubscribedError {
    SubscribedError { code, message: Cow::Borrowed(message), field: None, retry_after_ms: None }
}
