//! The `unsubscribe` message.

use deeperhub_listener::Context;
use deeperhub_protocol::Subscription;
use deeperhub_protocol::message::{MessageId, ServerMessage};

use crate::metrics::SentType;
use crate::session::Session;
use crate::worker::NodeWorker;

/// Ends a subscription of the client. The reply is the same if there was no such subscription.
pub(crate) fn unsubscribe(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    subscription: &Subscription<'_>,
    cx: &mut Context<'_, NodeWorker>,
) {
    let key = cx.key();
    let worker = cx.worker();
    worker.unsubscribe(key, subscription);
    session.reply(
        SentType::Unsubscribed,
        &ServerMessage::Unsubscribed { id, topic: subscription.as_str() },
        cx,
    );
}
