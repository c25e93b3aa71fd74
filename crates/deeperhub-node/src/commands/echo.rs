use deeperhub_listener::Context;
use deeperhub_protocol::RawJson;
use deeperhub_protocol::message::{MessageId, ServerMessage};

use crate::local::Local;
use crate::metrics::SentType;
use crate::session::Session;

/// Replies with the same `data`.
pub(crate) fn echo(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    data: RawJson<'_>,
    cx: &mut Context<'_, Local>,
) {
    session.reply_around(SentType::Echo, &ServerMessage::Echo { id, data }, data, cx);
}
