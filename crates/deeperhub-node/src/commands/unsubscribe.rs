use deeperhub_listener::Context;
use deeperhub_protocol::Subscription;
use deeperhub_protocol::message::{MessageId, ServerMessage};

use crate::local::Local;
use crate::metrics::SentType;
use crate::session::Session;

/// Ends a subscription. The reply is the same if there was none.
pub(crate) fn unsubscribe(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    subscription: &Subscription<'_>,
    cx: &mut Context<'_, Local>,
) {
    let key = cx.key();
    let local = cx.worker();
    if local.shard.unsubscribe(key, subscription) {
        local.metrics.subscriptions.dec();
    }
    session.reply(
        SentType::Unsubscribed,
        &ServerMessage::Unsubscribed { id, topic: subscription.as_str() },
        cx,
    );
}
