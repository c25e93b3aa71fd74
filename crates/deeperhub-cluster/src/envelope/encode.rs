//! Encoding of envelopes.

use deeperhub_protocol::ClientId;

use super::header::ORIGIN_OFFSET;
use super::{ANSWER, BYE, Envelope, HELLO, Message, PROBE, TAKEN, VERSION};

impl Envelope<'_> {
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

impl Message<'_> {
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

    pub(super) const fn payload_len(&self) -> usize {
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
