//! Messages that a backend sends to clients.

use super::ServerMessage;
use crate::RawJson;
use crate::json::clamp_nesting;
use crate::message::envelope::{Envelope, MessageKey, decode_string};
use crate::message::{MAX_NESTING, MessageError};

/// Checks a message that a backend sends to clients. Returns it without white space around it.
///
/// # Errors
/// - [`ErrorCode::InvalidJson`]: the text is not JSON.
/// - [`ErrorCode::InvalidMessage`]: the text is not an object, or it nests deeper than
///   [`MAX_NESTING`].
/// - [`ErrorCode::InvalidMessage`]: `type`, `id`, `data` or `meta` occurs twice, or `type` is
///   missing or is not a string.
/// - [`ErrorCode::InvalidMessage`]: `type` is a type of the server ([`ServerMessage::TYPES`], and
///   `presence`), which clients must be able to trust.
///
/// [`ErrorCode::InvalidJson`]: crate::ErrorCode::InvalidJson
/// [`ErrorCode::InvalidMessage`]: crate::ErrorCode::InvalidMessage
pub fn check_server_object(text: &str) -> Result<RawJson<'_>, MessageError<'_>> {
    check_server_object_within(text, MAX_NESTING)
}

/// Checks a message like [`check_server_object`], with a limit of `max_nesting` levels of arrays
/// and objects. A value over [`MAX_NESTING`] acts like `MAX_NESTING`.
///
/// # Errors
/// Returns the errors of [`check_server_object`].
pub fn check_server_object_within(text: &str, max_nesting: usize) -> Result<RawJson<'_>, MessageError<'_>> {
    let mut envelope = Envelope::default();
    if !envelope.scan(text, clamp_nesting(max_nesting))? {
        return Err(MessageError::invalid("message must be a JSON object with a `type`"));
    }
    envelope.check_depth()?;
    for key in [MessageKey::Id, MessageKey::Data, MessageKey::Meta] {
        envelope.unique_value(key)?;
    }
    let Some(message_type) = envelope.unique_value(MessageKey::Type)?.filter(|json| json.starts_with('"'))
    else {
        return Err(MessageError::invalid("`type` is missing or not a string").at("type"));
    };
    let message_type = decode_string(message_type).unwrap_or_default();
    let mut server_types = ServerMessage::TYPES.iter().chain(ServerMessage::RESERVED_TYPES);
    if server_types.any(|server_type| *server_type == message_type) {
        let message = format!("type `{message_type}` is reserved for the server; use another one");
        return Err(MessageError { message: message.into(), ..MessageError::invalid("").at("type") });
    }
    Ok(RawJson::scanned(text.trim_matches([' ', '\n', '\r', '\t'])))
}
