//! Encoding of messages from the server.

use super::{ClusterFault, ServerMessage};
use crate::frame::{Frame, text_header};
use crate::message::MessageId;
use crate::message::sink::{JsonSink, LengthCounter, PayloadGap};
use crate::message::subscribed::write_position;
use crate::{ClientId, RawJson};

impl ServerMessage<'_> {
    /// Appends the message as one complete unmasked text frame (header and JSON) to `out`.
    pub fn write_frame(&self, out: &mut Vec<u8>) {
        self.write_frame_of(self.json_len(), out);
    }

    /// Appends the message like [`write_frame`](Self::write_frame), but omits the payload of an
    /// [`Echo`](Self::Echo), so that the caller can send the payload from another buffer. Returns
    /// the offset in `out` at which the payload belongs. Writes other messages in full and returns
    /// `None`.
    pub fn write_frame_without_payload(&self, out: &mut Vec<u8>) -> Option<usize> {
        let (header, header_len) = text_header(self.json_len());
        out.extend_from_slice(header.get(..header_len).unwrap_or_default());
        let mut gap = PayloadGap { out, at: None };
        self.write(&mut gap);
        gap.at
    }

    /// Encodes the message as a frame that many connections can share.
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        let length = self.json_len();
        Frame::encode_with(text_header(length).1 + length, |out| self.write_frame_of(length, out))
    }

    /// Returns the length of the frame that [`to_frame`](Self::to_frame) makes.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        let length = self.json_len();
        text_header(length).1 + length
    }

    /// Appends the message as a frame with `length` bytes of JSON.
    fn write_frame_of(&self, length: usize, out: &mut Vec<u8>) {
        let (header, header_len) = text_header(length);
        out.reserve(header_len + length);
        out.extend_from_slice(header.get(..header_len).unwrap_or_default());
        self.write(out);
    }

    fn json_len(&self) -> usize {
        let mut length = LengthCounter::default();
        self.write(&mut length);
        length.0
    }

    fn write(&self, sink: &mut impl JsonSink) {
        match *self {
            Self::Welcome { client_id, server, version, features, server_time, limits } => {
                sink.raw(r#"{"type":"welcome","data":{"client_id":""#);
                sink.raw(client_id.as_str());
                sink.raw(r#"","server":"#);
                sink.string(server);
                sink.raw(r#","version":"#);
                sink.string(version);
                if let Some(features) = features {
                    sink.raw(r#","features":["#);
                    for (at, name) in features.names().enumerate() {
                        sink.raw(if at == 0 { "\"" } else { ",\"" });
                        sink.raw(name);
                        sink.raw("\"");
                    }
                    sink.raw("]");
                }
                if let Some(server_time) = server_time {
                    sink.raw(r#","server_time":"#);
                    sink.number(server_time);
                }
                sink.raw(r#","limits":{"max_message_bytes":"#);
                sink.number(limits.max_message_bytes);
                sink.raw(r#","max_delivery_bytes":"#);
                sink.number(limits.max_delivery_bytes);
                sink.raw(r#","max_subscriptions":"#);
                sink.number(limits.max_subscriptions);
                sink.raw(r#","ping_interval_ms":"#);
                sink.number(limits.ping_interval_ms);
                sink.raw("}}}");
            }
            Self::Echo { id, data } => {
                reply(sink, r#"{"type":"echo""#, id);
                sink.raw(r#","data":"#);
                sink.payload(data.as_str());
                sink.raw("}");
            }
            Self::Subscribed { id, topic, start } => {
                reply(sink, r#"{"type":"subscribed""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                start.write(sink);
                sink.raw("}}");
            }
            Self::SubscribedList { id, topics } => {
                reply(sink, r#"{"type":"subscribed""#, id);
                sink.raw(r#","data":{"topics":["#);
                for (at, entry) in topics.iter().enumerate() {
                    if at > 0 {
                        sink.raw(",");
                    }
                    entry.write(sink);
                }
                sink.raw("]}}");
            }
            Self::Unsubscribed { id, topic } => {
                reply(sink, r#"{"type":"unsubscribed""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                sink.raw("}}");
            }
            Self::Published { id, topic, subscribers, position, cluster } => {
                reply(sink, r#"{"type":"published""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                sink.raw(r#","subscribers":"#);
                sink.number(subscribers);
                if let Some(position) = position {
                    write_position(sink, position);
                }
                sink.raw(match cluster {
                    None => "}}",
                    Some(ClusterFault::Unavailable) => r#","cluster":"unavailable"}}"#,
                    Some(ClusterFault::TooLarge) => r#","cluster":"too_large"}}"#,
                });
            }
            Self::Authenticated { id, user, expires_at } => {
                reply(sink, r#"{"type":"authenticated""#, id);
                sink.raw(r#","data":{"user":"#);
                sink.string(user);
                sink.raw(r#","expires_at":"#);
                sink.number(expires_at);
                sink.raw("}}");
            }
            Self::Pong { id } => {
                reply(sink, r#"{"type":"pong""#, id);
                sink.raw("}");
            }
            Self::Message { topic, message, from, position, prev, traceparent, tracestate } => {
                write_message_head(sink, topic, message, from);
                if let Some(position) = position {
                    write_position(sink, position);
                    if let Some(prev) = prev {
                        sink.raw(r#","prev":"#);
                        sink.number(prev);
                    }
                }
                write_meta(sink, traceparent, tracestate);
            }
            Self::Gap { topic, from, position, reason } => {
                sink.raw(r#"{"type":"gap","data":{"topic":"#);
                sink.string(topic);
                write_position(sink, position);
                if let Some(from) = from {
                    sink.raw(r#","from":"#);
                    sink.number(from);
                    sink.raw(r#","to":"#);
                    sink.number(position.offset);
                }
                sink.raw(r#","reason":""#);
                sink.raw(reason.as_str());
                sink.raw(r#""}}"#);
            }
            Self::Position { topic, position } => {
                sink.raw(r#"{"type":"position","data":{"topic":"#);
                sink.string(topic);
                write_position(sink, position);
                sink.raw("}}");
            }
            Self::History { id, topic, position, messages, next } => {
                reply(sink, r#"{"type":"history""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                if let Some(position) = position {
                    write_position(sink, position);
                }
                sink.raw(r#","messages":["#);
                for (at, message) in messages.iter().enumerate() {
                    if at > 0 {
                        sink.raw(",");
                    }
                    sink.raw(message.as_str());
                }
                sink.raw("]");
                if let Some(next) = next {
                    sink.raw(r#","next":"#);
                    sink.number(next);
                }
                sink.raw("}}");
            }
            Self::Goodbye { reason, retry_after_ms } => {
                sink.raw(r#"{"type":"goodbye","data":{"code":"#);
                sink.number(reason.code().as_u16().into());
                sink.raw(r#","reason":"#);
                sink.string(reason.text());
                sink.raw(r#","reconnect":"#);
                sink.raw(if reason.code().allows_reconnect() { "true" } else { "false" });
                write_retry_after(sink, Some(retry_after_ms));
                sink.raw("}}");
            }
            Self::Error { id, code, message, field, topic, retry_after_ms } => {
                reply(sink, r#"{"type":"error""#, id);
                sink.raw(r#","data":{"code":""#);
                sink.raw(code.as_str());
                sink.raw(r#"","message":"#);
                sink.string(message);
                if let Some(field) = field {
                    sink.raw(r#","field":"#);
                    sink.string(field);
                }
                if let Some(topic) = topic {
                    sink.raw(r#","topic":"#);
                    sink.string(topic);
                }
                write_retry_after(sink, retry_after_ms);
                sink.raw("}}");
            }
            Self::Raw(object) => sink.raw(object.as_str()),
        }
    }
}

/// Writes a delivery without payload, position and trace context, and returns the place of the
/// payload. `from` is the ID of the publisher.
pub(in crate::message) fn write_message(out: &mut Vec<u8>, topic: &str, from: Option<&str>) -> usize {
    write_message_start(out, topic);
    let payload_at = out.len();
    write_from(out, from);
    write_meta(out, None, None);
    payload_at
}

/// Writes a delivery up to its position or the end of `data`.
pub(in crate::message) fn write_message_head(
    sink: &mut impl JsonSink,
    topic: &str,
    message: RawJson<'_>,
    from: Option<&ClientId>,
) {
    write_message_start(sink, topic);
    sink.raw(message.as_str());
    write_from(sink, from.map(ClientId::as_str));
}

/// Writes a delivery up to its payload.
fn write_message_start(sink: &mut impl JsonSink, topic: &str) {
    sink.raw(r#"{"type":"message","data":{"topic":"#);
    sink.string(topic);
    sink.raw(r#","message":"#);
}

fn write_from(sink: &mut impl JsonSink, from: Option<&str>) {
    if let Some(from) = from {
        sink.raw(r#","from":""#);
        sink.raw(from);
        sink.raw("\"");
    }
}

/// Writes the end of a delivery: the end of `data`, and `meta` if there is a trace context.
pub(in crate::message) fn write_meta(
    sink: &mut impl JsonSink,
    traceparent: Option<&str>,
    tracestate: Option<&str>,
) {
    let Some(traceparent) = traceparent else { return sink.raw("}}") };
    sink.raw(r#"},"meta":{"traceparent":"#);
    sink.string(traceparent);
    if let Some(tracestate) = tracestate {
        sink.raw(r#","tracestate":"#);
        sink.string(tracestate);
    }
    sink.raw("}}");
}

/// Writes the start of a reply: `head`, then the ID if the message has one.
fn reply(sink: &mut impl JsonSink, head: &str, id: Option<MessageId<'_>>) {
    sink.raw(head);
    if let Some(id) = id {
        sink.raw(r#","id":"#);
        sink.raw(id.as_json());
    }
}

pub(in crate::message) fn write_retry_after(sink: &mut impl JsonSink, milliseconds: Option<u64>) {
    if let Some(milliseconds) = milliseconds {
        sink.raw(r#","retry_after_ms":"#);
        sink.number(milliseconds);
    }
}
