//! Events and their JSON form.

use crate::EventKind;
use crate::json::{write_string, write_string_or_null};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use deeperhub_types::ClientId;
use std::borrow::Cow;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An event of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The time of the event, from the node's clock.
    pub at: SystemTime,
    /// The ID of the connection.
    pub client_id: ClientId,
    /// The details of the event. Their variant is the event's kind.
    pub details: EventDetails,
}

/// The details of an event. Each variant is an [`EventKind`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventDetails {
    /// A client completed its handshake.
    Connected {
        /// The user in the client's token or certificate; `None` without either.
        user: Option<Arc<str>>,
        /// The client's address.
        peer: SocketAddr,
        /// The `Origin` header; `None` without one.
        origin: Option<Box<str>>,
    },
    /// A connection ended.
    Disconnected {
        /// The close code that either side sent (RFC 6455 section 7.4); `None` if neither side sent
        /// one.
        code: Option<u16>,
        /// The reason that the server sent with the code, or a text that says how the connection
        /// ended.
        reason: Cow<'static, str>,
        /// Time since the handshake.
        duration: Duration,
        /// Number of text and binary messages that the client sent.
        messages_received: u64,
        /// Number of messages sent to the client: replies and deliveries.
        messages_sent: u64,
    },
    /// A client sent a valid message.
    MessageReceived {
        /// The message's `type`.
        message_type: &'static str,
        /// The topic or pattern in the message; `None` if the message has none.
        topic: Option<Box<str>>,
        /// Length of the text in bytes.
        bytes: usize,
    },
    /// A message was sent to a client.
    MessageSent {
        /// The message's `type`.
        message_type: &'static str,
        /// The topic of a delivery; `None` for a message without a topic.
        topic: Option<Arc<str>>,
        /// Length of the text in bytes.
        bytes: usize,
    },
    /// A client sent a binary message.
    BinaryReceived {
        /// The payload, decompressed.
        payload: Arc<[u8]>,
    },
    /// A message was answered with an error, or a connection failed.
    Error {
        /// The error code, such as `invalid_topic`, or the close code of a failed connection.
        code: Cow<'static, str>,
        /// The error message, or the reason for the close.
        message: Cow<'static, str>,
    },
}

impl Event {
    /// Creates an event of the connection `client_id` at the time `at`.
    #[must_use]
    pub fn new(at: SystemTime, client_id: ClientId, details: EventDetails) -> Self {
        Self { at, client_id, details }
    }

    /// Returns the kind of the event.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        self.details.kind()
    }

    /// Appends the event as a JSON object on one line. Its keys are `client_id`, `at_unix_ms`, and
    /// the names of the fields in [`EventDetails`].
    ///
    /// A binary payload is encoded in base64 (RFC 4648 section 4, padded). A duration has the key
    /// `duration_ms`. Absent values are `null`. The kind is not included.
    pub fn write_json(&self, out: &mut String) {
        // A clock before 1970 is not set; the time then counts as 0.
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        out.push_str(r#"{"client_id":"#);
        write_string(out, self.client_id.as_str());
        write_value(out, "at_unix_ms", at.as_millis());
        match &self.details {
            EventDetails::Connected { user, peer, origin } => {
                write_text(out, "user", user.as_deref());
                write_text(out, "peer", Some(&peer.to_string()));
                write_text(out, "origin", origin.as_deref());
            }
            EventDetails::Disconnected { code, reason, duration, messages_received, messages_sent } => {
                match code {
                    Some(code) => write_value(out, "code", code),
                    None => write_value(out, "code", "null"),
                }
                write_text(out, "reason", Some(reason));
                write_value(out, "duration_ms", duration.as_millis());
                write_value(out, "messages_received", messages_received);
                write_value(out, "messages_sent", messages_sent);
            }
            EventDetails::MessageReceived { message_type, topic, bytes } => {
                write_message(out, message_type, topic.as_deref(), *bytes);
            }
            EventDetails::MessageSent { message_type, topic, bytes } => {
                write_message(out, message_type, topic.as_deref(), *bytes);
            }
            EventDetails::BinaryReceived { payload } => {
                out.push_str(r#","payload":""#);
                STANDARD.encode_string(payload, out);
                out.push('"');
            }
            EventDetails::Error { code, message } => {
                write_text(out, "code", Some(code));
                write_text(out, "message", Some(message));
            }
        }
        out.push('}');
    }

    /// Returns the approximate memory of the event in bytes. Memory that is shared with others
    /// counts in full.
    pub(crate) fn memory_bytes(&self) -> usize {
        let details_bytes = match &self.details {
            EventDetails::Connected { user, origin, .. } => {
                user.as_deref().map_or(0, str::len) + origin.as_deref().map_or(0, str::len)
            }
            EventDetails::Disconnected { reason, .. } => reason.len(),
            EventDetails::MessageReceived { topic, .. } => topic.as_deref().map_or(0, str::len),
            EventDetails::MessageSent { topic, .. } => topic.as_deref().map_or(0, str::len),
            EventDetails::BinaryReceived { payload } => payload.len(),
            EventDetails::Error { code, message } => code.len() + message.len(),
        };
        size_of::<Self>() + self.client_id.as_str().len() + details_bytes
    }
}

impl EventDetails {
    /// Returns the kind of event that has these details.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Connected { .. } => EventKind::Connected,
            Self::Disconnected { .. } => EventKind::Disconnected,
            Self::MessageReceived { .. } => EventKind::MessageReceived,
            Self::MessageSent { .. } => EventKind::MessageSent,
            Self::BinaryReceived { .. } => EventKind::BinaryReceived,
            Self::Error { .. } => EventKind::Error,
        }
    }
}

/// Writes the details that received and sent messages have in common.
fn write_message(out: &mut String, message_type: &str, topic: Option<&str>, bytes: usize) {
    write_text(out, "message_type", Some(message_type));
    write_text(out, "topic", topic);
    write_value(out, "bytes", bytes);
}

fn write_text(out: &mut String, key: &str, value: Option<&str>) {
    write_key(out, key);
    write_string_or_null(out, value);
}

fn write_value(out: &mut String, key: &str, value: impl std::fmt::Display) {
    write_key(out, key);
    // Writing into a string cannot fail.
    let _ = write!(out, "{value}");
}

fn write_key(out: &mut String, key: &str) {
    out.push_str(",\"");
    out.push_str(key);
    out.push_str("\":");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn written(details: EventDetails) -> Value {
        let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let mut out = "data: ".to_owned();
        Event::new(at, ClientId::parse("n1-7").unwrap(), details).write_json(&mut out);
        assert!(!out.contains('\n'), "an event is one line: {out}");
        serde_json::from_str(out.strip_prefix("data: ").unwrap()).unwrap()
    }

    #[test]
    fn each_kind_is_an_object_with_its_fields() {
        let (client_id, at_unix_ms) = ("n1-7", 1_700_000_000_123_u64);
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        assert_eq!(
            written(EventDetails::Connected { user: Some("ann".into()), peer, origin: None }),
            json!({"client_id": client_id, "at_unix_ms": at_unix_ms, "user": "ann", "peer": "127.0.0.1:9", "origin": null}),
        );
        let (duration, reason) = (Duration::from_millis(1500), Cow::Borrowed("bye"));
        assert_eq!(
            written(EventDetails::Disconnected {
                code: Some(1000),
                reason,
                duration,
                messages_received: 3,
                messages_sent: 4
            }),
            json!({"client_id": client_id, "at_unix_ms": at_unix_ms, "code": 1000, "reason": "bye",
                "duration_ms": 1500, "messages_received": 3, "messages_sent": 4}),
        );
        assert_eq!(
            written(EventDetails::MessageReceived {
                message_type: "publish",
                topic: Some("a.b".into()),
                bytes: 60
            }),
            json!({"client_id": client_id, "at_unix_ms": at_unix_ms, "message_type": "publish", "topic": "a.b", "bytes": 60}),
        );
        assert_eq!(
            written(EventDetails::MessageSent { message_type: "pong", topic: None, bytes: 15 }),
            json!({"client_id": client_id, "at_unix_ms": at_unix_ms, "message_type": "pong", "topic": null, "bytes": 15}),
        );
        assert_eq!(
            written(EventDetails::BinaryReceived { payload: Arc::from([0, 255, 1, 2]) }),
            json!({"client_id": client_id, "at_unix_ms": at_unix_ms, "payload": "AP8BAg=="}),
        );
        assert_eq!(
            written(EventDetails::Error { code: "invalid_topic".into(), message: "No \"topic\"\n".into() }),
            json!({"client_id": client_id, "at_unix_ms": at_unix_ms, "code": "invalid_topic", "message": "No \"topic\"\n"}),
        );
    }

    #[test]
    fn an_absent_close_code_is_null() {
        let details = EventDetails::Disconnected {
            code: None,
            reason: "reset".into(),
            duration: Duration::ZERO,
            messages_received: 0,
            messages_sent: 0,
        };
        assert_eq!(written(details)["code"], Value::Null);
    }

    #[test]
    fn a_clock_before_1970_counts_as_0() {
        let at = UNIX_EPOCH - Duration::from_secs(1);
        let details = EventDetails::Error { code: "internal".into(), message: "".into() };
        let mut out = String::new();
        Event::new(at, ClientId::parse("a").unwrap(), details).write_json(&mut out);
        assert!(out.contains(r#""at_unix_ms":0,"#), "{out}");
    }

    proptest! {
        #[test]
        fn any_text_is_encoded_as_json(message in any::<String>(), code in any::<String>()) {
            let value = written(EventDetails::Error { code: code.clone().into(), message: message.clone().into() });
            prop_assert_eq!(value["message"].as_str(), Some(message.as_str()));
            prop_assert_eq!(value["code"].as_str(), Some(code.as_str()));
        }

        #[test]
        fn any_payload_is_encoded_as_base64(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let value = written(EventDetails::BinaryReceived { payload: payload.clone().into() });
            prop_assert_eq!(STANDARD.decode(value["payload"].as_str().unwrap()).unwrap(), payload);
        }
    }
}
