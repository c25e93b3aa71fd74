//! The `ping` message.

use deeperhub_listener::Context;
use deeperhub_protocol::message::{MessageId, ServerMessage};

use crate::metrics::SentType;
use crate::node_worker::NodeWorker;
use crate::session::Session;

/// Replies with `pong`. Browsers need this message, because their scripts cannot send WebSocket
/// pings.
pub(crate) fn ping(session: &mut Session, id: Option<MessageId<'_>>, cx: &mut Context<'_, NodeWorker>) {
    session.reply(SentType::Pong, &ServerMessage::Pong { id }, cx);
}
