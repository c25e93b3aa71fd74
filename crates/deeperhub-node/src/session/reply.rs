//! Replies to one connection.

use std::borrow::Cow;
use std::time::Duration;

use deeperhub_events::{EventDetails, EventKind};
use deeperhub_listener::Context;
use deeperhub_protocol::message::{MessageError, MessageId, ServerMessage};
use deeperhub_protocol::{ErrorCode, RawJson};

use super::Session;
use crate::metrics::{ErrorLabel, SentType};
use crate::worker::NodeWorker;

impl Session {
    /// Sends a reply.
    pub(crate) fn reply(
        &mut self,
        sent_type: SentType,
        message: &ServerMessage<'_>,
        cx: &mut Context<'_, NodeWorker>,
    ) {
        let mut bytes = 0;
        cx.reply(|out| {
            let start = out.len();
            message.write_frame(out);
            bytes = out.len() - start;
        });
        self.record_reply(sent_type, bytes, cx);
    }

    /// Sends a reply that contains `payload`. If possible, a long payload is written to the socket
    /// directly from the read buffer, without a copy.
    pub(crate) fn reply_around(
        &mut self,
        sent_type: SentType,
        message: &ServerMessage<'_>,
        payload: RawJson<'_>,
        cx: &mut Context<'_, NodeWorker>,
    ) {
        let payload = payload.as_str().as_bytes();
        if !cx.writes_in_place(payload.len()) {
            return self.reply(sent_type, message, cx);
        }
        let mut bytes = payload.len();
        cx.reply_around(payload, |out| {
            let start = out.len();
            let payload_position = message.write_frame_without_payload(out);
            bytes += out.len() - start;
            payload_position
        });
        self.record_reply(sent_type, bytes, cx);
    }

    pub(super) fn record_reply(
        &mut self,
        sent_type: SentType,
        bytes: usize,
        cx: &mut Context<'_, NodeWorker>,
    ) {
        self.sent += 1;
        let worker = cx.worker();
        worker.metrics.count_sent(sent_type, 1);
        worker.publish_event(EventKind::MessageSent, &self.client_id, || EventDetails::MessageSent {
            message_type: sent_type.name(),
            topic: None,
            bytes,
        });
    }

    /// Replies to a message with an error.
    pub(crate) fn reply_error(&mut self, error: &ServerMessage<'_>, cx: &mut Context<'_, NodeWorker>) {
        if let ServerMessage::Error { code, message, .. } = error {
            let worker = cx.worker();
            worker.metrics.errors.inc(ErrorLabel(*code));
            worker.last_error_code = Some(code.as_str());
            worker.publish_event(EventKind::Error, &self.client_id, || EventDetails::Error {
                code: Cow::Borrowed(code.as_str()),
                message: Cow::Owned((*message).to_owned()),
            });
        }
        self.reply(SentType::Error, error, cx);
    }

    pub(super) fn reply_unauthorized(&mut self, id: Option<MessageId<'_>>, cx: &mut Context<'_, NodeWorker>) {
        let error = error_reply(id, ErrorCode::Unauthorized, "authenticate first");
        self.reply_error(&error.to_message(), cx);
    }

    /// Replies to a message over a rate limit, and counts a violation.
    pub(crate) fn reply_rate_limited(
        &mut self,
        id: Option<MessageId<'_>>,
        wait: Duration,
        cx: &mut Context<'_, NodeWorker>,
    ) {
        let error = ServerMessage::Error {
            id,
            code: ErrorCode::RateLimited,
            message: "too many messages: wait before the next",
            field: None,
            topic: None,
            retry_after_ms: Some(milliseconds_rounded_up(wait)),
        };
        self.reply_error(&error, cx);
        // A violation is a rejected message, so the burst of the message rate applies, even if the
        // message exceeded another rate.
        let limit = cx.worker().limits.session.rate_limit;
        self.count_violation(limit, cx);
    }
}

/// Returns an error reply without a field or topic.
pub(crate) fn error_reply<'a>(
    id: Option<MessageId<'a>>,
    code: ErrorCode,
    message: &'static str,
) -> MessageError<'a> {
    MessageError { code, id, field: None, message: Cow::Borrowed(message), is_too_deep: false }
}

/// Returns the error reply to a message about a topic that the client's token does not grant.
pub(crate) fn forbidden_reply<'a>(
    id: Option<MessageId<'a>>,
    topic: &'a str,
    message: &'static str,
) -> ServerMessage<'a> {
    ServerMessage::Error {
        id,
        code: ErrorCode::Forbidden,
        message,
        field: None,
        topic: Some(topic),
        retry_after_ms: None,
    }
}

/// Returns whole milliseconds, rounded up, so that a client that waits for them is not too early.
pub(super) fn milliseconds_rounded_up(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
