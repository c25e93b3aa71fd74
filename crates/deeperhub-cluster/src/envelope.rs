//! The wire format of messages between nodes.
//!
//! All numbers are big-endian. Every envelope begins with
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | kind, see [`Message`] |
//! | 8 | incarnation of the origin |
//! | 8 | sequence, counted by the origin over all its envelopes |
//! | 1 + n | name of the origin |
//!
//! and continues with the fields of its kind. A payload is the last field, without a length, and
//! unchanged from the client or the backend. Parsing is strict, because everyone who has the
//! broker's password can send messages.

use std::borrow::Cow;

use deeperhub_protocol::message::{TraceContext, check_server_object};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};

/// Version of the format.
const VERSION: u8 = 1;

/// Offset of the sequence, which the queue fills in.
const SEQUENCE_OFFSET: usize = 10;

// Kinds that [`Header`] recognizes before the rest is parsed.
const ANSWER: u8 = 7;
const HELLO: u8 = 8;
const TAKEN: u8 = 9;
const BYE: u8 = 10;
const PROBE: u8 = 14;

/// Offset of the origin's name, which starts with its length byte.
const ORIGIN_OFFSET: usize = 18;

/// Maximum number of bytes that an envelope adds to a payload: header, longest topic, client and
/// trace. A send to a user also adds the user's name.
pub const MAX_ENVELOPE_OVERHEAD_BYTES: usize = 1024;

/// Maximum length of a node's name, in bytes.
pub const MAX_NODE_ID_BYTES: usize = 32;

/// Maximum length of a user, in bytes.
pub const MAX_USER_BYTES: usize = u16::MAX as usize;

/// Sender of an envelope: a node's name, and a number that grows with each of its starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin<'a> {
    /// 1 to 32 bytes of `A-Z a-z 0-9 _ -`.
    pub node: &'a str,
    /// Start time and random bits in one number, which is larger for a later start.
    pub incarnation: u64,
}

/// One message between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The sender.
    pub origin: Origin<'a>,
    /// Number of the envelope, counted over all envelopes of its origin.
    pub sequence: u64,
    /// The content.
    pub message: Message<'a>,
}

/// Content of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// A publish. Kind 1: topic (1 + n), publisher (1 + n; empty for a server), traceparent (2 +
    /// n), tracestate (2 + n), payload.
    Publish {
        /// The topic.
        topic: Topic<'a>,
        /// The client that published; `None` for a server.
        from: Option<ClientId>,
        /// The trace that the publish belongs to.
        trace: TraceContext<'a>,
        /// The published value.
        payload: RawJson<'a>,
    },
    /// A send to a client of the receiving node, which answers. Kind 2: request (8), client (1 +
    /// n), payload.
    Send {
        /// Number that the answer repeats.
        request: u64,
        /// The receiver.
        client: ClientId,
        /// A JSON object with a string `type`.
        payload: RawJson<'a>,
    },
    /// Disconnects a client of the receiving node, which answers. Kind 3: request (8), client (1 +
    /// n).
    Disconnect {
        /// Number that the answer repeats.
        request: u64,
        /// The client to disconnect.
        client: ClientId,
    },
    /// A send to all connections of a user. Kind 4: user (2 + n), payload.
    SendToUser {
        /// The receiver.
        user: &'a str,
        /// A JSON object with a string `type`.
        payload: RawJson<'a>,
    },
    /// A send to all clients. Kind 5: payload.
    Broadcast {
        /// A JSON object with a string `type`.
        payload: RawJson<'a>,
    },
    /// A query of the application, which the receiving node answers. Kind 6: request (8), text.
    Query {
        /// Number that the answer repeats.
        request: u64,
        /// Text of the application.
        text: &'a str,
    },
    /// An answer. Kind 7: request (8), text.
    Answer {
        /// Number of the request.
        request: u64,
        /// Text of the application.
        text: &'a str,
    },
    /// Greeting on joining, and heartbeat. Kind 8: has joined (1: 0 or 1), wants an answer (1: 0 or
    /// 1), connections (8), version (1 + n).
    Hello {
        /// `true` if the node has joined, so that its name is confirmed.
        joined: bool,
        /// `true` if receivers are to answer with a `Hello`.
        wants_answer: bool,
        /// Number of open connections.
        connections: u64,
        /// Version of the node's program.
        version: &'a str,
    },
    /// Tells a node that its name is taken. Kind 9: incarnation of the node that must end (8).
    NameTaken {
        /// Incarnation of the node that must end. That node has the origin's name.
        incarnation: u64,
    },
    /// The origin leaves the cluster. Kind 10.
    Bye,
    /// Disconnects all clients of a user. Kind 11: user (2 + n).
    DisconnectUser {
        /// The user.
        user: &'a str,
    },
    /// Ends a subscription of a client of the receiving node, which answers. Kind 12: request (8),
    /// client (1 + n), topic or pattern (1 + n).
    Unsubscribe {
        /// Number that the answer repeats.
        request: u64,
        /// The subscriber.
        client: ClientId,
        /// The topic or pattern.
        topic: Subscription<'a>,
    },
    /// Ends a subscription of all clients of a user. Kind 13: user (2 + n), topic or pattern (1 +
    /// n).
    UnsubscribeUser {
        /// The user.
        user: &'a str,
        /// The topic or pattern.
        topic: Subscription<'a>,
    },
    /// A probe of the origin to itself, which is sent and received like all messages. Kind 14:
    /// number (8).
    Probe {
        /// Number of the application.
        number: u64,
    },
}

/// Reason why bytes are not an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The envelope is shorter or longer than its fields.
    #[error("the envelope is shorter or longer than its fields")]
    Length,
    /// The version is unknown.
    #[error("unknown envelope version {0}; expected {VERSION}")]
    Version(u8),
    /// The kind is unknown, for example because the sender has a later version.
    #[error("unknown envelope kind {0}")]
    Kind(u8),
    /// A field has an invalid value.
    #[error("invalid field {0} in the envelope")]
    Field(&'static str),
}

/// Returns `true` if the text is a valid name of a node: 1 to 32 bytes of `A-Z a-z 0-9 _ -`.
pub fn is_node_id(text: &str) -> bool {
    (1..=MAX_NODE_ID_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

impl<'a> Envelope<'a> {
    /// Parses an envelope. Only client IDs are copied.
    ///
    /// # Errors
    ///
    /// Returns [`EnvelopeError`] for bytes that [`Self::write`] would not have written.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let mut reader = Reader(bytes);
        let Header { kind, origin, sequence } = Header::read(&mut reader)?;
        let message = Message::read(kind, &mut reader)?;
        Ok(Self { origin, sequence, message })
    }

    /// Encodes the envelope.
    ///
    /// Truncates a text that is too long for its field. Topics, clients and traces always fit,
    /// because their types limit the length.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ORIGIN_OFFSET + 96 + self.message.payload_len());
        out.extend([VERSION, self.message.kind()]);
        out.extend(self.origin.incarnation.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        write_short_text(&mut out, self.origin.node);
        self.message.write(&mut out);
        out
    }
}

/// Fields at the start of every envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header<'a> {
    kind: u8,
    pub(crate) origin: Origin<'a>,
    pub(crate) sequence: u64,
}

impl<'a> Header<'a> {
    /// Parses the start of an envelope and ignores the rest.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        Self::read(&mut Reader(bytes))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, EnvelopeError> {
        let version = reader.byte()?;
        if version != VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let kind = reader.byte()?;
        let incarnation = reader.number()?;
        let sequence = reader.number()?;
        let node = reader.short_text("origin")?;
        if !is_node_id(node) {
            return Err(EnvelopeError::Field("origin"));
        }
        Ok(Self { kind, origin: Origin { node, incarnation }, sequence })
    }

    /// Returns `true` if the message is between drivers, such as an answer or a heartbeat. Such
    /// messages never wait in the backlog.
    pub(crate) const fn is_control(&self) -> bool {
        matches!(self.kind, ANSWER | HELLO | TAKEN | BYE)
    }

    /// Returns `true` if the message is a probe of the origin to itself.
    pub(crate) const fn is_probe(&self) -> bool {
        self.kind == PROBE
    }
}

/// Returns a key that sorts the envelopes of one incarnation in sending order. Returns 0 if the
/// bytes are too short for an envelope.
#[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only that library loses the order"))]
pub(crate) fn sort_key(envelope: &[u8]) -> u128 {
    let key = envelope.get(ORIGIN_OFFSET - 16..ORIGIN_OFFSET).and_then(|key| key.try_into().ok());
    key.map_or(0, u128::from_be_bytes)
}

/// Fills in the sequence of an encoded envelope.
pub(crate) fn set_sequence(envelope: &mut [u8], sequence: u64) {
    if let Some(field) = envelope.get_mut(SEQUENCE_OFFSET..ORIGIN_OFFSET) {
        field.copy_from_slice(&sequence.to_be_bytes());
    }
}

/// Returns the offset of the topic in an encoded publish whose origin's name has this length.
pub(crate) const fn topic_offset(origin_len: usize) -> usize {
    ORIGIN_OFFSET + 1 + origin_len + 1
}

impl<'a> Message<'a> {
    const fn kind(&self) -> u8 {
        match self {
            Self::Publish { .. } => 1,
            Self::Send { .. } => 2,
            Self::Disconnect { .. } => 3,
            Self::SendToUser { .. } => 4,
            Self::Broadcast { .. } => 5,
            Self::Query { .. } => 6,
            Self::Answer { .. } => ANSWER,
            Self::Hello { .. } => HELLO,
            Self::NameTaken { .. } => TAKEN,
            Self::Bye => BYE,
            Self::DisconnectUser { .. } => 11,
            Self::Unsubscribe { .. } => 12,
            Self::UnsubscribeUser { .. } => 13,
            Self::Probe { .. } => PROBE,
        }
    }

    const fn payload_len(&self) -> usize {
        match self {
            Self::Publish { payload, .. }
            | Self::Send { payload, .. }
            | Self::SendToUser { payload, .. }
            | Self::Broadcast { payload } => payload.as_str().len(),
            Self::Query { text, .. } | Self::Answer { text, .. } => text.len(),
            _ => 0,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Publish { topic, from, trace, payload } => {
                write_short_text(out, topic.as_str());
                write_short_text(out, from.as_ref().map_or("", ClientId::as_str));
                write_long_text(out, trace.traceparent.as_deref().unwrap_or_default());
                write_long_text(out, trace.tracestate.as_deref().unwrap_or_default());
                out.extend(payload.as_str().as_bytes());
            }
            Self::Send { request, client, payload } => {
                out.extend(request.to_be_bytes());
                write_short_text(out, client.as_str());
                out.extend(payload.as_str().as_bytes());
            }
            Self::Disconnect { request, client } => {
                out.extend(request.to_be_bytes());
                write_short_text(out, client.as_str());
            }
            Self::SendToUser { user, payload } => {
                write_long_text(out, user);
                out.extend(payload.as_str().as_bytes());
            }
            Self::Broadcast { payload } => out.extend(payload.as_str().as_bytes()),
            Self::Query { request, text } | Self::Answer { request, text } => {
                out.extend(request.to_be_bytes());
                out.extend(text.as_bytes());
            }
            Self::Hello { joined, wants_answer, connections, version } => {
                out.extend([u8::from(*joined), u8::from(*wants_answer)]);
                out.extend(connections.to_be_bytes());
                write_short_text(out, version);
            }
            Self::NameTaken { incarnation } => out.extend(incarnation.to_be_bytes()),
            Self::Bye => {}
            Self::DisconnectUser { user } => write_long_text(out, user),
            Self::Unsubscribe { request, client, topic } => {
                out.extend(request.to_be_bytes());
                write_short_text(out, client.as_str());
                write_short_text(out, topic.as_str());
            }
            Self::UnsubscribeUser { user, topic } => {
                write_long_text(out, user);
                write_short_text(out, topic.as_str());
            }
            Self::Probe { number } => out.extend(number.to_be_bytes()),
        }
    }

    fn read(kind: u8, reader: &mut Reader<'a>) -> Result<Self, EnvelopeError> {
        let message = match kind {
            1 => {
                let topic = Topic::parse(reader.short_text("topic")?);
                let from = match reader.short_text("from")? {
                    "" => None,
                    id => Some(ClientId::parse(id).ok_or(EnvelopeError::Field("from"))?),
                };
                let trace = reader.trace()?;
                let payload = reader.payload(|text| RawJson::parse(text).ok())?;
                Self::Publish {
                    topic: topic.map_err(|_| EnvelopeError::Field("topic"))?,
                    from,
                    trace,
                    payload,
                }
            }
            2 => Self::Send {
                request: reader.number()?,
                client: reader.client()?,
                payload: reader.server_object()?,
            },
            3 => Self::Disconnect { request: reader.number()?, client: reader.client()? },
            4 => Self::SendToUser { user: reader.long_text("user")?, payload: reader.server_object()? },
            5 => Self::Broadcast { payload: reader.server_object()? },
            6 => Self::Query { request: reader.number()?, text: reader.rest("text")? },
            7 => Self::Answer { request: reader.number()?, text: reader.rest("text")? },
            8 => Self::Hello {
                joined: reader.boolean("joined")?,
                wants_answer: reader.boolean("wants_answer")?,
                connections: reader.number()?,
                version: reader.short_text("version")?,
            },
            9 => Self::NameTaken { incarnation: reader.number()? },
            10 => Self::Bye,
            11 => Self::DisconnectUser { user: reader.long_text("user")? },
            12 => Self::Unsubscribe {
                request: reader.number()?,
                client: reader.client()?,
                topic: reader.subscription()?,
            },
            13 => Self::UnsubscribeUser { user: reader.long_text("user")?, topic: reader.subscription()? },
            14 => Self::Probe { number: reader.number()? },
            unknown => return Err(EnvelopeError::Kind(unknown)),
        };
        if reader.0.is_empty() { Ok(message) } else { Err(EnvelopeError::Length) }
    }
}

/// Writes a text after its length in one byte.
fn write_short_text(out: &mut Vec<u8>, text: &str) {
    let text = text.get(..text.floor_char_boundary(u8::MAX.into())).unwrap_or_default();
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

/// Writes a text after its length in two bytes.
fn write_long_text(out: &mut Vec<u8>, text: &str) {
    let text = text.get(..text.floor_char_boundary(u16::MAX.into())).unwrap_or_default();
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

/// The bytes that are not parsed yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], EnvelopeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(EnvelopeError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EnvelopeError> {
        self.take(N)?.try_into().map_err(|_| EnvelopeError::Length)
    }

    fn byte(&mut self) -> Result<u8, EnvelopeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn number(&mut self) -> Result<u64, EnvelopeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn boolean(&mut self, field: &'static str) -> Result<bool, EnvelopeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EnvelopeError::Field(field)),
        }
    }

    fn short_text(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        let length = self.byte()?;
        text(self.take(length.into())?, field)
    }

    fn long_text(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        let length = u16::from_be_bytes(self.array()?);
        text(self.take(length.into())?, field)
    }

    fn rest(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        text(std::mem::take(&mut self.0), field)
    }

    fn client(&mut self) -> Result<ClientId, EnvelopeError> {
        ClientId::parse(self.short_text("client")?).ok_or(EnvelopeError::Field("client"))
    }

    fn subscription(&mut self) -> Result<Subscription<'a>, EnvelopeError> {
        Subscription::parse(self.short_text("topic")?).map_err(|_| EnvelopeError::Field("topic"))
    }

    fn trace(&mut self) -> Result<TraceContext<'a>, EnvelopeError> {
        let mut field = |name| {
            let text = self.long_text(name)?;
            Ok((!text.is_empty()).then_some(Cow::Borrowed(text)))
        };
        let (traceparent, tracestate) = (field("traceparent")?, field("tracestate")?);
        let trace = TraceContext::new(traceparent.clone(), tracestate.clone());
        if trace.traceparent != traceparent {
            return Err(EnvelopeError::Field("traceparent"));
        }
        if trace.tracestate != tracestate {
            return Err(EnvelopeError::Field("tracestate"));
        }
        Ok(trace)
    }

    fn server_object(&mut self) -> Result<RawJson<'a>, EnvelopeError> {
        self.payload(|text| check_server_object(text).ok())
    }

    /// Parses the rest as JSON. Rejects surrounding white space, which the sending node has
    /// removed.
    fn payload(
        &mut self,
        parse: impl FnOnce(&'a str) -> Option<RawJson<'a>>,
    ) -> Result<RawJson<'a>, EnvelopeError> {
        let text = self.rest("payload")?;
        let is_whole = |json: &RawJson<'_>| json.as_str().len() == text.len();
        parse(text).filter(is_whole).ok_or(EnvelopeError::Field("payload"))
    }
}

fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, EnvelopeError> {
    std::str::from_utf8(bytes).map_err(|_| EnvelopeError::Field(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORIGIN: Origin<'static> = Origin { node: "node-1", incarnation: 0x0102_0304_0506_0708 };
    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn client(id: &str) -> ClientId {
        ClientId::parse(id).unwrap()
    }

    fn json(text: &str) -> RawJson<'_> {
        RawJson::parse(text).unwrap()
    }

    fn messages() -> Vec<Message<'static>> {
        vec![
            Message::Publish {
                topic: Topic::parse("a.é.c").unwrap(),
                from: Some(client("node-1.0-1-2")),
                trace: TraceContext::new(Some(TRACEPARENT.into()), Some("a=1".into())),
                payload: json(r#"{"b" : 1.0,"a":12345678901234567890.10e5}"#),
            },
            Message::Publish {
                topic: Topic::parse("t").unwrap(),
                from: None,
                trace: TraceContext::default(),
                payload: json("null"),
            },
            Message::Send { request: 7, client: client("n.0-0-0"), payload: json(r#"{"type":"x"}"#) },
            Message::Disconnect { request: u64::MAX, client: client("n.0-0-0") },
            Message::SendToUser { user: "émile", payload: json(r#"{"type":"x","data":[1, 2]}"#) },
            Message::Broadcast { payload: json(r#"{"type":"x"}"#) },
            Message::Query { request: 1, text: "clients 10" },
            Message::Answer { request: 1, text: "" },
            Message::Hello { joined: true, wants_answer: false, connections: 5, version: "0.1.0" },
            Message::NameTaken { incarnation: 9 },
            Message::Bye,
            Message::DisconnectUser { user: "émile" },
            Message::Unsubscribe {
                request: 1,
                client: client("n.0-0-0"),
                topic: Subscription::parse("a.*").unwrap(),
            },
            Message::UnsubscribeUser { user: "", topic: Subscription::parse("a").unwrap() },
            Message::Probe { number: u64::MAX },
        ]
    }

    /// Bytes of each of [`messages`], as the first version wrote them: the kind, and what follows the
    /// origin. A row never changes; new kinds add rows.
    const GOLDEN: &[(u8, &[u8])] = &[
        (
            1,
            b"\x06a.\xC3\xA9.c\x0Cnode-1.0-1-2\0700-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\
              \0\x03a=1{\"b\" : 1.0,\"a\":12345678901234567890.10e5}",
        ),
        (1, b"\x01t\0\0\0\0\0null"),
        (2, b"\0\0\0\0\0\0\0\x07\x07n.0-0-0{\"type\":\"x\"}"),
        (3, b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x07n.0-0-0"),
        (4, b"\0\x06\xC3\xA9mile{\"type\":\"x\",\"data\":[1, 2]}"),
        (5, b"{\"type\":\"x\"}"),
        (6, b"\0\0\0\0\0\0\0\x01clients 10"),
        (7, b"\0\0\0\0\0\0\0\x01"),
        (8, b"\x01\0\0\0\0\0\0\0\0\x05\x050.1.0"),
        (9, b"\0\0\0\0\0\0\0\x09"),
        (10, b""),
        (11, b"\0\x06\xC3\xA9mile"),
        (12, b"\0\0\0\0\0\0\0\x01\x07n.0-0-0\x03a.*"),
        (13, b"\0\0\x01a"),
        (14, b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
    ];

    /// Nodes of different versions run in one cluster, so the bytes of a kind never change.
    #[test]
    fn every_kind_keeps_its_bytes() {
        let messages = messages();
        assert_eq!(messages.len(), GOLDEN.len());
        for (message, (kind, rest)) in messages.into_iter().zip(GOLDEN) {
            let head = b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x2A\x06node-1";
            let golden = [&[1, *kind][..], head, rest].concat();
            let envelope = Envelope { origin: ORIGIN, sequence: 42, message };
            assert_eq!(envelope.write().escape_ascii().to_string(), golden.escape_ascii().to_string());
            assert_eq!(Envelope::parse(&golden), Ok(envelope));
        }
    }

    #[test]
    fn written_envelopes_are_parsed_back() {
        for message in messages() {
            let envelope = Envelope { origin: ORIGIN, sequence: 42, message };
            let bytes = envelope.write();
            assert_eq!(Envelope::parse(&bytes), Ok(envelope));
        }
    }

    #[test]
    fn bytes_match_the_documented_format() {
        let message = Message::Publish {
            topic: Topic::parse("ab").unwrap(),
            from: Some(client("c")),
            trace: TraceContext::default(),
            payload: json("[1]"),
        };
        let bytes = Envelope { origin: ORIGIN, sequence: 0x11, message }.write();
        assert_eq!(
            bytes,
            b"\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x11\x06node-1\x02ab\x01c\0\0\0\0[1]"
        );
        assert_eq!(bytes.get(topic_offset(ORIGIN.node.len())..).unwrap().get(..2), Some(&b"ab"[..]));
    }

    #[test]
    fn missing_and_surplus_bytes_are_rejected() {
        for message in messages() {
            let whole = Envelope { origin: ORIGIN, sequence: 1, message: message.clone() }.write();
            let fixed = whole.len() - message.payload_len();
            for end in 0..fixed {
                assert_eq!(Envelope::parse(&whole[..end]), Err(EnvelopeError::Length), "{message:?} {end}");
            }
            if message.payload_len() == 0 && !matches!(message, Message::Answer { .. }) {
                let more = [&whole[..], b"x"].concat();
                assert_eq!(Envelope::parse(&more), Err(EnvelopeError::Length), "{message:?}");
            }
        }
    }

    #[test]
    fn invalid_fields_are_rejected() {
        let head = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\x01n";
        for (version, kind, rest, error) in [
            (0, 1, &b""[..], EnvelopeError::Version(0)),
            (2, 1, b"", EnvelopeError::Version(2)),
            (1, 0, b"", EnvelopeError::Kind(0)),
            (1, 15, b"", EnvelopeError::Kind(15)),
            (1, 1, b"\x03a.*\0\0\0\0\0null", EnvelopeError::Field("topic")),
            (1, 1, b"\x02\xFF\xFF\0\0\0\0\0null", EnvelopeError::Field("topic")),
            (1, 1, b"\x01a\x02a/\0\0\0\0null", EnvelopeError::Field("from")),
            (1, 1, b"\x01a\0\0\x01x\0\0null", EnvelopeError::Field("traceparent")),
            (1, 1, b"\x01a\0\0\0\0\x03a=1null", EnvelopeError::Field("tracestate")),
            (1, 1, b"\x01a\0\0\0\0\0", EnvelopeError::Field("payload")),
            (1, 1, b"\x01a\0\0\0\0\0{", EnvelopeError::Field("payload")),
            (1, 1, b"\x01a\0\0\0\0\0 1", EnvelopeError::Field("payload")),
            (1, 2, b"\0\0\0\0\0\0\0\x01\0{}", EnvelopeError::Field("client")),
            (1, 2, b"\0\0\0\0\0\0\0\x01\x01c[]", EnvelopeError::Field("payload")),
            (1, 5, b"{}", EnvelopeError::Field("payload")),
            (1, 8, b"\x02\0\0\0\0\0\0\0\0\0\0", EnvelopeError::Field("joined")),
        ] {
            let bytes = [&[version, kind][..], head, rest].concat();
            assert_eq!(Envelope::parse(&bytes), Err(error), "{}", bytes.escape_ascii());
        }
        let mut nameless = Envelope { origin: ORIGIN, sequence: 1, message: Message::Bye }.write();
        nameless.truncate(ORIGIN_OFFSET);
        nameless.push(0);
        assert_eq!(Envelope::parse(&nameless), Err(EnvelopeError::Field("origin")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(envelope) = Envelope::parse(&bytes) {
                prop_assert_eq!(envelope.write(), bytes);
            }
        }

        #[test]
        fn every_accepted_encoding_is_canonical(index in 0_usize..200, byte: u8, which in 0_usize..15) {
            let message = messages().swap_remove(which);
            let mut bytes = Envelope { origin: ORIGIN, sequence: 3, message }.write();
            let length = bytes.len();
            bytes[index % length] = byte;
            if let Ok(envelope) = Envelope::parse(&bytes) {
                prop_assert_eq!(envelope.write(), bytes);
            }
        }
    }
}
