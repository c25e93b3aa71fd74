use deeperhub_listener::Context;
use deeperhub_protocol::ErrorCode;
use deeperhub_protocol::message::MessageId;

use crate::local::Local;
use crate::session::{Session, refusal};

/// Logs in, or renews. A node without keys takes no token for good.
pub(crate) fn authenticate(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    _token: &str,
    cx: &mut Context<'_, Local>,
) {
    let error = refusal(id, ErrorCode::TokenInvalid, "this server has no keys to check tokens with");
    session.reply_error(&error.to_message(), cx);
}
