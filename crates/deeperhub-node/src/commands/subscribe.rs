//! The `subscribe` message.

use deeperhub_listener::Context;
use deeperhub_protocol::message::{MessageId, ServerMessage, SubscriptionStart};
use deeperhub_protocol::{ErrorCode, Subscription};
use deeperhub_router::Subscribed;

use crate::metrics::{Limit, SentType};
use crate::session::{Session, forbidden_reply};
use crate::worker::NodeWorker;

/// Subscribes the client to a topic or pattern from now on.
pub(crate) fn subscribe(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    subscription: &Subscription<'_>,
    cx: &mut Context<'_, NodeWorker>,
) {
    if session.login.as_ref().is_some_and(|login| !login.may_subscribe(subscription)) {
        let error =
            forbidden_reply(id, subscription.as_str(), "the token does not grant subscribing to this topic");
        return session.reply_error(&error, cx);
    }
    let key = cx.key();
    let worker = cx.worker();
    let is_full = worker.shard.subscription_count(key) >= worker.limits.session.max_subscriptions;
    if is_full && !worker.shard.is_subscribed(key, subscription) {
        worker.metrics.count_limited(Limit::Subscriptions);
        let error = ServerMessage::Error {
            id,
            code: ErrorCode::TooManySubscriptions,
            message: "subscription limit reached",
            field: None,
            topic: Some(subscription.as_str()),
            retry_after_ms: None,
        };
        return session.reply_error(&error, cx);
    }
    // Subscribe before replying: a publish that counts the new subscriber must reach it. Deliveries
    // are queued only after this message was handled, so none overtakes the reply.
    if worker.shard.subscribe(key, subscription) == Subscribed::New {
        worker.metrics.subscriptions.inc();
    }
    let topic = subscription.as_str();
    let reply = ServerMessage::Subscribed { id, topic, start: SubscriptionStart::default() };
    session.reply(SentType::Subscribed, &reply, cx);
}
