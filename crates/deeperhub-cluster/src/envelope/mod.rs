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
//!
//! Nodes of different versions run in one cluster during a rolling upgrade. The bytes of a kind
//! therefore never change. A node counts an envelope of a kind that it does not know as invalid,
//! and handles nothing of it; a new kind is added if that is right for the nodes before it. If it
//! is not, the version grows.

mod encode;
mod header;
mod parse;
mod publish_encoder;
mod reader;
mod received;

use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic};

use crate::operation::Operation;
use crate::store::StorePosition;

pub(crate) use header::{Header, set_sequence, stamp_offset, stored_topic_offset, topic_offset};
pub use publish_encoder::PlainPublish;
pub(crate) use received::Received;

/// Version of the format.
const VERSION: u8 = 1;

// Kinds that [`Header`] recognizes before the rest is parsed.
const ANSWER: u8 = 7;
const HELLO: u8 = 8;
const TAKEN: u8 = 9;
const BYE: u8 = 10;
const PROBE: u8 = 14;
pub(crate) const STORED: u8 = 17;
const STREAM_RESET: u8 = 18;

/// Length of the fields of a stored message that the store fills in.
pub(crate) const STAMP_BYTES: usize = 32;

/// Maximum number of bytes that an envelope adds to a payload: header, longest topic, client and
/// trace. A send to a user also adds the user's name, and a stored message 33 bytes.
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
    /// An operation on clients. The kind says which:
    ///
    /// | target | send | unsubscribe | disconnect |
    /// |---|---|---|---|
    /// | a client of the receiving node, which answers | 2 | 12 | 3 |
    /// | a user | 4 | 13 | 11 |
    /// | all clients | 5 | 16 | 15 |
    ///
    /// The fields of the target come first: request (8) and client (1 + n), or user (2 + n), or
    /// none. The action has a payload, or a topic or pattern (1 + n), or nothing.
    Operation(Operation<'a, ClientRequest>),
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
    /// A probe of the origin to itself, which is sent and received like all messages. Kind 14:
    /// number (8).
    Probe {
        /// Number of the application.
        number: u64,
    },
    /// A publish that the store has appended to the topic's stream. Kind 17: epoch (8), offset (8),
    /// previous offset (8), time (8), excludes the publisher (1: 0 or 1), and the fields of a
    /// publish.
    ///
    /// The store writes the first four fields. It keeps the whole envelope, and sends the same
    /// bytes to all nodes that follow the topic, the origin included.
    Stored {
        /// The position in the topic's stream.
        position: StorePosition,
        /// Offset of the topic's message before this one, or 0 if this is the stream's first.
        previous: u64,
        /// Time of the store in milliseconds since the Unix epoch.
        time: u64,
        /// `true` if the publisher must not get its own message.
        excludes_publisher: bool,
        /// The topic.
        topic: Topic<'a>,
        /// The client that published; `None` for a server.
        from: Option<ClientId>,
        /// The trace that the publish belongs to.
        trace: TraceContext<'a>,
        /// The published value.
        payload: RawJson<'a>,
    },
    /// The topic has a new, empty stream. Kind 18: epoch (8), time (8), topic (1 + n). The store
    /// writes the first two fields.
    StreamReset {
        /// Epoch of the new stream.
        epoch: u64,
        /// Time of the store in milliseconds since the Unix epoch.
        time: u64,
        /// The topic.
        topic: Topic<'a>,
    },
}

impl Message<'_> {
    /// Returns `true` if the store has sent the message. It may stem from an earlier start of this
    /// node.
    pub(crate) const fn is_from_store(&self) -> bool {
        matches!(self, Self::Stored { .. } | Self::StreamReset { .. })
    }
}

/// Client of the receiving node, and the request that the node answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRequest {
    /// Number that the answer repeats.
    pub request: u64,
    /// The client.
    pub client: ClientId,
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

impl EnvelopeError {
    /// Returns `true` if the sender seems to have a later version than this program.
    #[must_use]
    pub const fn is_of_later_version(self) -> bool {
        match self {
            Self::Version(version) => version > VERSION,
            Self::Kind(_) => true,
            Self::Length | Self::Field(_) => false,
        }
    }
}

/// Returns `true` if the text is a valid name of a node: 1 to 32 bytes of `A-Z a-z 0-9 _ -`.
pub fn is_node_id(text: &str) -> bool {
    are_node_id_bytes(text.as_bytes())
}

/// Returns `true` if the bytes are a valid name of a node, which is ASCII.
fn are_node_id_bytes(bytes: &[u8]) -> bool {
    let are_allowed = || bytes.iter().fold(true, |all, byte| all & IS_NODE_ID_BYTE[usize::from(*byte)]);
    (1..=MAX_NODE_ID_BYTES).contains(&bytes.len()) && are_allowed()
}

/// `true` for each byte that the name of a node can have.
const IS_NODE_ID_BYTE: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        allowed[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'_' | b'-');
        byte += 1;
    }
    allowed
};

#[cfg(test)]
mod tests;
