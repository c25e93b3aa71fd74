use deeperhub_listener::Context;
use deeperhub_protocol::message::{MessageId, ServerMessage};

use crate::local::Local;
use crate::metrics::SentType;
use crate::session::Session;

/// Replies with `pong`. Browsers need this because they cannot send WebSocket pings.
pub(crate) fn ping(session: &mut Session, id: Option<MessageId<'_>>, cx: &mut Context<'_, Local>) {
    session.reply(SentType::Pong, &ServerMessage::Pong { id }, cx);
}
