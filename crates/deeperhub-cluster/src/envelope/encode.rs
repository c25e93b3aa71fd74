//! Encoding of envelopes.

use std::cell::Cell;

use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic};

use super::header::{ORIGIN_OFFSET, SEQUENCE_OFFSET};
use super::{
    ANSWER, BYE, ClientRequest, Envelope, HELLO, Message, PROBE, STORED, STREAM_RESET, TAKEN, VERSION,
};
use crate::operation::{Action, Operation, Target};

/// Maximum size of the buffer for envelopes that each thread keeps.
pub(super) const MAX_KEPT_BYTES: usize = 64 << 10;

impl Envelope<'_> {
    /// Encodes the envelope.
    ///
    /// Truncates a text that is too long for its field. Topics, clients and traces always fit,
    /// because their types limit the length.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out
    }

    /// Encodes the envelope into a buffer of the calling thread, for the time of a call.
    pub(crate) fn with_bytes<T>(&self, call: impl FnOnce(&mut [u8]) -> T) -> T {
        thread_local! {
            static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let mut buffer = BUFFER.take();
        buffer.clear();
        self.write_to(&mut buffer);
        let result = call(&mut buffer);
        if buffer.capacity() <= MAX_KEPT_BYTES {
            BUFFER.set(buffer);
        }
        result
    }

    /// Appends the encoded envelope.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.reserve(ORIGIN_OFFSET + 96 + self.message.payload_len());
        let mut fixed = [0; ORIGIN_OFFSET];
        let (head, sequence) = fixed.split_at_mut(SEQUENCE_OFFSET);
        sequence.copy_from_slice(&self.sequence.to_be_bytes());
        let (kind, incarnation) = head.split_at_mut(2);
        kind.copy_from_slice(&[VERSION, self.message.kind()]);
        incarnation.copy_from_slice(&self.origin.incarnation.to_be_bytes());
        out.extend_from_slice(&fixed);
        write_short_text(out, self.origin.node);
        self.message.write(out);
    }
}

impl Message<'_> {
    const fn kind(&self) -> u8 {
        match self {
            Self::Publish { .. } => 1,
            Self::Operation(operation) => operation.kind(),
            Self::Query { .. } => 6,
            Self::Answer { .. } => ANSWER,
            Self::Hello { .. } => HELLO,
            Self::NameTaken { .. } => TAKEN,
            Self::Bye => BYE,
            Self::Probe { .. } => PROBE,
            Self::Stored { .. } => STORED,
            Self::StreamReset { .. } => STREAM_RESET,
        }
    }

    pub(super) const fn payload_len(&self) -> usize {
        match self {
            Self::Publish { payload, .. } | Self::Stored { payload, .. } => payload.as_str().len(),
            Self::Operation(Operation { action: Action::Send(payload), .. }) => payload.as_str().len(),
            Self::Query { text, .. } | Self::Answer { text, .. } => text.len(),
            _ => 0,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Publish { topic, from, trace, payload } => {
                write_publish(out, topic, from.as_ref(), trace, payload);
            }
            Self::Operation(operation) => operation.write(out),
            Self::Query { request, text } | Self::Answer { request, text } => {
                out.extend(request.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Self::Hello { joined, wants_answer, connections, version } => {
                out.extend([u8::from(*joined), u8::from(*wants_answer)]);
                out.extend(connections.to_be_bytes());
                write_short_text(out, version);
            }
            Self::NameTaken { incarnation } => out.extend(incarnation.to_be_bytes()),
            Self::Bye => {}
            Self::Probe { number } => out.extend(number.to_be_bytes()),
            Self::Stored { position, previous, time, excludes_publisher, topic, from, trace, payload } => {
                for field in [position.epoch, position.offset, *previous, *time] {
                    out.extend(field.to_be_bytes());
                }
                out.push(u8::from(*excludes_publisher));
                write_publish(out, topic, from.as_ref(), trace, payload);
            }
            Self::StreamReset { epoch, time, topic } => {
                out.extend(epoch.to_be_bytes());
                out.extend(time.to_be_bytes());
                write_short_text(out, topic.as_str());
            }
        }
    }
}

impl Operation<'_, ClientRequest> {
    const fn kind(&self) -> u8 {
        match (&self.target, &self.action) {
            (Target::Client(_), Action::Send(_)) => 2,
            (Target::Client(_), Action::Disconnect) => 3,
            (Target::Client(_), Action::Unsubscribe(_)) => 12,
            (Target::User(_), Action::Send(_)) => 4,
            (Target::User(_), Action::Disconnect) => 11,
            (Target::User(_), Action::Unsubscribe(_)) => 13,
            (Target::All, Action::Send(_)) => 5,
            (Target::All, Action::Disconnect) => 15,
            (Target::All, Action::Unsubscribe(_)) => 16,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match &self.target {
            Target::Client(ClientRequest { request, client }) => {
                out.extend(request.to_be_bytes());
                write_short_text(out, client.as_str());
            }
            Target::User(user) => write_long_text(out, user),
            Target::All => {}
        }
        match &self.action {
            Action::Send(payload) => out.extend_from_slice(payload.as_str().as_bytes()),
            Action::Unsubscribe(topic) => write_short_text(out, topic.as_str()),
            Action::Disconnect => {}
        }
    }
}

/// Writes the fields of a publish.
fn write_publish(
    out: &mut Vec<u8>,
    topic: &Topic<'_>,
    from: Option<&ClientId>,
    trace: &TraceContext<'_>,
    payload: &RawJson<'_>,
) {
    write_short_text(out, topic.as_str());
    write_short_text(out, from.map_or("", ClientId::as_str));
    write_long_text(out, trace.traceparent.as_deref().unwrap_or_default());
    write_long_text(out, trace.tracestate.as_deref().unwrap_or_default());
    out.extend_from_slice(payload.as_str().as_bytes());
}

/// Writes a text after its length in one byte.
fn write_short_text(out: &mut Vec<u8>, text: &str) {
    let text = text.get(..text.floor_char_boundary(u8::MAX.into())).unwrap_or_default();
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

/// Writes a text after its length in two bytes.
fn write_long_text(out: &mut Vec<u8>, text: &str) {
    let text = text.get(..text.floor_char_boundary(u16::MAX.into())).unwrap_or_default();
    out.extend((text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
