use deeperhub_listener::Context;
use deeperhub_protocol::message::{MessageId, ServerMessage};
use deeperhub_protocol::{ErrorCode, Subscription};
use deeperhub_router::Subscribed;

use crate::local::Local;
use crate::metrics::{Limit, SentType};
use crate::session::{Session, forbidden_reply};

/// Subscribes to a topic or pattern from now on.
pub(crate) fn subscribe(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    subscription: &Subscription<'_>,
    cx: &mut Context<'_, Local>,
) {
    if session.login.as_ref().is_some_and(|login| !login.may_subscribe(subscription)) {
        let error =
            forbidden_reply(id, subscription.as_str(), "the token does not grant subscribing to this topic");
        return session.reply_error(&error, cx);
    }
    let key = cx.key();
    let local = cx.worker();
    let full = local.shard.subscription_count(key) >= local.live.max_subscriptions;
    if full && !local.shard.is_subscribed(key, subscription) {
        local.metrics.count_limited(Limit::Subscriptions);
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
    // Subscribes before the reply, so that a publish that counts the subscriber reaches it.
    // Deliveries are queued only after this message was handled, so none overtakes the reply.
    if local.shard.subscribe(key, subscription) == Subscribed::New {
        local.metrics.subscriptions.inc();
    }
    session.reply(SentType::Subscribed, &ServerMessage::Subscribed { id, topic: subscription.as_str() }, cx);
}
