//! Encoding of publishes without a trace, one after the other.

use std::cell::RefCell;

use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic};

use super::encode::MAX_KEPT_BYTES;
use super::{Envelope, Message, Origin};

/// A publish that belongs to no trace.
#[derive(Debug, Clone, Copy)]
pub struct PlainPublish<'a> {
    /// The topic.
    pub topic: &'a Topic<'a>,
    /// The client that published; `None` for a server.
    pub from: Option<&'a ClientId>,
    /// The published value.
    pub payload: RawJson<'a>,
}

impl PlainPublish<'_> {
    /// Encodes the envelope into a buffer of the calling thread, for the time of a call. The
    /// sequence is any number.
    #[inline]
    pub(crate) fn with_bytes<T>(&self, origin: Origin<'_>, call: impl FnOnce(&mut [u8]) -> T) -> T {
        thread_local! {
            static ENCODER: RefCell<PublishEncoder> = RefCell::default();
        }
        ENCODER.with_borrow_mut(|encoder| {
            let result = call(encoder.encode(origin, self));
            if encoder.bytes.capacity() > MAX_KEPT_BYTES {
                *encoder = PublishEncoder::default();
            }
            result
        })
    }
}

/// Encoder that keeps the fields before the payload. Successive publishes often have the same ones.
#[derive(Default)]
struct PublishEncoder {
    incarnation: u64,
    node: String,
    topic: String,
    from: Option<ClientId>,
    /// The last envelope; empty before the first one.
    bytes: Vec<u8>,
    /// Place of the payload in it.
    payload_at: usize,
}

impl PublishEncoder {
    #[inline]
    fn encode(&mut self, origin: Origin<'_>, publish: &PlainPublish<'_>) -> &mut [u8] {
        let &PlainPublish { topic, from, payload } = publish;
        let is_same = self.incarnation == origin.incarnation
            && self.topic == topic.as_str()
            && self.from.as_ref() == from
            && self.node == origin.node
            && !self.bytes.is_empty();
        if is_same {
            self.bytes.truncate(self.payload_at);
            self.bytes.extend_from_slice(payload.as_str().as_bytes());
        } else {
            self.change(origin, publish);
        }
        &mut self.bytes
    }

    #[inline(never)]
    fn change(&mut self, origin: Origin<'_>, &PlainPublish { topic, from, payload }: &PlainPublish<'_>) {
        self.incarnation = origin.incarnation;
        origin.node.clone_into(&mut self.node);
        topic.as_str().clone_into(&mut self.topic);
        self.from = from.cloned();
        self.bytes.clear();
        let (topic, from, trace) = (topic.borrow(), from.cloned(), TraceContext::default());
        let message = Message::Publish { topic, from, trace, payload };
        Envelope { origin, sequence: 0, message }.write_to(&mut self.bytes);
        self.payload_at = self.bytes.len() - payload.as_str().len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn publishes_are_encoded_like_single_envelopes(
            publishes in prop::collection::vec((0..3_usize, 0..4_usize, 0..4_usize, 0..100_usize), 1..20)
        ) {
            let mut encoder = PublishEncoder::default();
            let topics = ["a", "b.c", "caf\u{e9}", "d"].map(|topic| Topic::parse(topic).unwrap());
            let [one, two] = ["n.0-0-1", "n.0-0-2"].map(ClientId::parse);
            // The same client, with a text of its own.
            let clients = [None, one, two, ClientId::parse("n.0-0-1")];
            for (origin, topic, from, length) in publishes {
                let (node, incarnation) = [("n", 1), ("n", 2), ("m", 1)][origin];
                let origin = Origin { node, incarnation };
                let json = format!("\"{}\"", "x".repeat(length));
                let payload = RawJson::parse(&json).unwrap();
                let (topic, from) = (&topics[topic], clients[from].as_ref());
                let message = Message::Publish {
                    topic: topic.borrow(),
                    from: from.cloned(),
                    trace: TraceContext::default(),
                    payload,
                };
                let expected = Envelope { origin, sequence: 0, message }.write();
                let bytes = encoder.encode(origin, &PlainPublish { topic, from, payload });
                prop_assert_eq!(&*bytes, &expected[..]);
            }
        }
    }

    #[test]
    fn large_buffers_are_freed() {
        let topic = Topic::parse("a").unwrap();
        let json = format!("\"{}\"", "x".repeat(MAX_KEPT_BYTES));
        for text in ["1", &json, "2", &json, "3"] {
            let publish = PlainPublish { topic: &topic, from: None, payload: RawJson::parse(text).unwrap() };
            let origin = Origin { node: "n", incarnation: 1 };
            publish.with_bytes(origin, |bytes| assert!(bytes.ends_with(text.as_bytes())));
        }
    }
}
