//! The `echo` message.

use deeperhub_listener::Context;
use deeperhub_protocol::RawJson;
use deeperhub_protocol::message::{MessageId, ServerMessage};

use crate::metrics::SentType;
use crate::session::Session;
use crate::worker::NodeWorker;

/// Replies with the `data` of the message.
pub(crate) fn echo(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    data: RawJson<'_>,
    cx: &mut Context<'_, NodeWorker>,
) {
    session.reply_around(SentType::Echo, &ServerMessage::Echo { id, data }, data, cx);
}
