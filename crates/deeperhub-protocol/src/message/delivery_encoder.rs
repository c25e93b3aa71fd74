//! Encoding of deliveries without position and trace, one after the other.

use super::server::write_message;
use crate::frame::{Frame, header_len, text_header};
use crate::{ClientId, RawJson};

/// Encoder of deliveries that have neither a position nor a trace context.
///
/// Successive deliveries often have the same topic and publisher. The encoder keeps the text around
/// their payloads, so that each costs little more than a copy of its payload.
///
/// ```
/// use deeperhub_protocol::RawJson;
/// use deeperhub_protocol::message::DeliveryEncoder;
///
/// let mut encoder = DeliveryEncoder::default();
/// let frame = encoder.encode("a", RawJson::parse("7")?, None);
/// assert_eq!(&frame.as_bytes()[2..], br#"{"type":"message","data":{"topic":"a","message":7}}"#);
/// # Ok::<(), deeperhub_protocol::MessageError<'_>>(())
/// ```
#[derive(Debug, Default)]
pub struct DeliveryEncoder {
    /// The last topic.
    topic: String,
    /// The last publisher; `None` if it was a server.
    from: Option<ClientId>,
    /// The text around the last payload; empty before the first delivery.
    text: Vec<u8>,
    /// Place of the payload in it.
    payload_at: usize,
}

impl DeliveryEncoder {
    /// Encodes a delivery. `from` is the client that published.
    pub fn encode(&mut self, topic: &str, message: RawJson<'_>, from: Option<&ClientId>) -> Frame {
        let (head, tail) = self.around_payload(topic, from);
        let payload = message.as_str().as_bytes();
        let length = head.len() + payload.len() + tail.len();
        let (header, header_len) = text_header(length);
        let mut bytes = Vec::with_capacity(header_len + length);
        bytes.extend_from_slice(header.get(..header_len).unwrap_or_default());
        bytes.extend_from_slice(head);
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(tail);
        Frame::from_own_bytes(bytes)
    }

    /// Returns the length of the frame that [`encode`](Self::encode) makes.
    pub fn frame_len(&mut self, topic: &str, message: RawJson<'_>, from: Option<&ClientId>) -> usize {
        let (head, tail) = self.around_payload(topic, from);
        let length = head.len() + message.as_str().len() + tail.len();
        header_len(length) + length
    }

    #[inline]
    fn around_payload(&mut self, topic: &str, from: Option<&ClientId>) -> (&[u8], &[u8]) {
        if self.topic != topic || self.from.as_ref() != from || self.text.is_empty() {
            self.change(topic, from);
        }
        self.text.split_at_checked(self.payload_at).unwrap_or_default()
    }

    #[inline(never)]
    fn change(&mut self, topic: &str, from: Option<&ClientId>) {
        topic.clone_into(&mut self.topic);
        self.from = from.cloned();
        self.text.clear();
        self.payload_at = write_message(&mut self.text, topic, from.map(ClientId::as_str));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ServerMessage;
    use proptest::prelude::*;

    fn frame_of(topic: &str, message: RawJson<'_>, from: Option<&ClientId>) -> Frame {
        let (position, prev, traceparent, tracestate) = (None, None, None, None);
        ServerMessage::Message { topic, message, from, position, prev, traceparent, tracestate }.to_frame()
    }

    proptest! {
        #[test]
        fn deliveries_are_encoded_like_single_messages(
            deliveries in prop::collection::vec((0..5_usize, 0..3_usize, 0..400_usize), 1..20)
        ) {
            let mut encoder = DeliveryEncoder::default();
            let long = "t".repeat(crate::Topic::MAX_BYTES);
            let clients = [None, ClientId::parse("n.0-0-1"), ClientId::parse("n.0-0-2")];
            for (topic, from, length) in deliveries {
                let topic = ["a", "b", "\"quoted\\", "caf\u{e9}", &long][topic];
                let from = clients[from].as_ref();
                let payload = format!("\"{}\"", "x".repeat(length));
                let message = RawJson::parse(&payload).unwrap();
                let expected = frame_of(topic, message, from);
                prop_assert_eq!(encoder.frame_len(topic, message, from), expected.len());
                let frame = encoder.encode(topic, message, from);
                prop_assert_eq!(frame.as_bytes(), expected.as_bytes());
            }
        }
    }

    #[test]
    fn large_payloads_have_long_headers() {
        let payload = format!("\"{}\"", "x".repeat(70_000));
        let message = RawJson::parse(&payload).unwrap();
        let mut encoder = DeliveryEncoder::default();
        assert_eq!(encoder.encode("a", message, None).as_bytes(), frame_of("a", message, None).as_bytes());
    }
}
