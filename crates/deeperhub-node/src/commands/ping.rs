//! The `ping` message.

use deeperhub_listener::Context;
use deeperhub_protocol::message::{MessageId, ServerMessage};

use crate::metrics::SentType;
use crate::session::Session;
use crate::worker::NodeWorker;

/// Replies with `pong`. Browsers need this message, because their scripts cannot send WebSocket
/// pings.
pub(crate) fn ping(session: &mut Session, id: Option<MessageId<'_>>, cx: &mut Context<'_, NodeWorker>) {
    session.reply(SentType::Pong, &ServerMessage::Pong { id }, cx);
}
