//! Deliveries of topics with history, whose position is not known when they are encoded.

use super::server::{write_message_head, write_meta};
use super::sink::JsonSink;
use crate::frame::Unsealed;
use crate::{ClientId, RawJson};

/// A delivery of a topic with history, before it has an offset.
///
/// ```
/// use deeperhub_protocol::message::StreamMessage;
/// use deeperhub_protocol::{Epoch, RawJson};
///
/// let message = RawJson::parse(r#"{"n":1}"#)?;
/// let delivery = StreamMessage {
///     topic: "a",
///     message,
///     from: None,
///     time: 1_796_000_000_123,
///     traceparent: None,
///     tracestate: None,
/// };
/// let unsealed = delivery.encode();
/// // Under the lock of the stream:
/// let frame = unsealed.seal(Epoch::from_bits(7), 42, None);
/// let text = br#"{"type":"message","data":{"topic":"a","message":{"n":1},"time":1796000000123,"epoch":"00000007","offset":42}}"#;
/// assert_eq!(&frame.as_bytes()[2..], text);
/// # Ok::<(), deeperhub_protocol::MessageError<'_>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct StreamMessage<'a> {
    /// The topic of the publish.
    pub topic: &'a str,
    /// The published payload.
    pub message: RawJson<'a>,
    /// The publisher; `None` if a backend published.
    pub from: Option<&'a ClientId>,
    /// The time of the publish in milliseconds since the Unix epoch.
    pub time: u64,
    /// The W3C `traceparent` of the delivery; `None` if its trace is not sampled.
    pub traceparent: Option<&'a str>,
    /// The W3C `tracestate`; omitted without a `traceparent`.
    pub tracestate: Option<&'a str>,
}

/// Length in bytes of the keys, quotes and numbers of a delivery before its epoch, without `from`.
const OVERHEAD_BYTES: usize =
    r#"{"type":"message","data":{"topic":"","message":,"time":1796000000123,"epoch":""#.len();

/// Length in bytes of `from` without the value.
const FROM_OVERHEAD_BYTES: usize = r#","from":"""#.len();

/// Length in bytes of `meta` without the values.
const META_OVERHEAD_BYTES: usize = r#"},"meta":{"traceparent":""}}"#.len();

/// Length in bytes of `tracestate` without the value.
const TRACESTATE_OVERHEAD_BYTES: usize = r#","tracestate":"""#.len();

impl StreamMessage<'_> {
    /// Encodes all but epoch, offset and `prev`. The buffer is allocated once, unless the topic or
    /// `tracestate` needs escapes.
    #[must_use]
    pub fn encode(&self) -> Unsealed {
        let meta = self.traceparent.map_or(0, |traceparent| {
            let tracestate = self.tracestate.map_or(0, |text| TRACESTATE_OVERHEAD_BYTES + text.len());
            META_OVERHEAD_BYTES + traceparent.len() + tracestate
        });
        let from = self.from.map_or(0, |from| FROM_OVERHEAD_BYTES + from.as_str().len());
        let capacity = OVERHEAD_BYTES + self.topic.len() + self.message.as_str().len() + from + meta;
        Unsealed::encode_with(
            capacity,
            |out| {
                write_message_head(out, self.topic, self.message, self.from);
                out.raw(r#","time":"#);
                out.number(self.time);
                out.raw(r#","epoch":""#);
            },
            |out| {
                if self.traceparent.is_some() {
                    write_meta(out, self.traceparent, self.tracestate);
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ServerMessage;
    use crate::{Epoch, Position};
    use proptest::prelude::*;

    fn sealed_and_whole(
        delivery: &StreamMessage<'_>,
        epoch: Epoch,
        offset: u64,
        prev: Option<u64>,
    ) -> (crate::frame::Frame, crate::frame::Frame) {
        let StreamMessage { topic, message, from, time, traceparent, tracestate } = *delivery;
        let position = Some(Position { epoch, offset, time });
        let whole = ServerMessage::Message { topic, message, from, position, prev, traceparent, tracestate };
        (delivery.encode().seal(epoch, offset, prev), whole.to_frame())
    }

    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// Every length of the text around the boundaries of the header's length classes.
    #[test]
    fn a_sealed_frame_equals_the_whole_frame_at_every_header_length() {
        for around in [126usize, 65_536] {
            for length in around - 120..around + 20 {
                let payload = "7".repeat(length.saturating_sub(90).max(1));
                for (offset, prev) in [(1, None), (u64::MAX, None), (42, Some(7)), (u64::MAX, Some(u64::MAX))]
                {
                    for traceparent in [None, Some(TRACEPARENT)] {
                        let delivery = StreamMessage {
                            topic: "a",
                            message: RawJson::parse(&payload).unwrap(),
                            from: None,
                            time: 1_796_000_000_123,
                            traceparent,
                            tracestate: None,
                        };
                        let (sealed, whole) = sealed_and_whole(&delivery, Epoch::from_bits(1), offset, prev);
                        assert!(sealed.as_bytes() == whole.as_bytes(), "{length} bytes, offset {offset}");
                        assert_eq!(sealed.len(), whole.len());
                    }
                }
            }
        }
    }

    #[test]
    fn sealing_does_not_move_the_payload() {
        let client_id = ClientId::parse("n1-0-4a-7f3b21").unwrap();
        let payload = format!("\"{}\"", "x".repeat(70_000));
        let escaped = "\"".repeat(255);
        for length in [3, 60, 128, 4096, 65_300, 65_450, 70_000] {
            let payload = format!("{}\"", &payload[..length - 1]);
            for traceparent in [None, Some(TRACEPARENT)] {
                let delivery = StreamMessage {
                    topic: "sports.football.results",
                    message: RawJson::parse(&payload).unwrap(),
                    from: Some(&client_id),
                    time: 1_796_000_000_123,
                    traceparent,
                    tracestate: traceparent.map(|_| "vendor=1"),
                };
                for offset in [1, 1_234_567_890, 999_999_999_999] {
                    let topic = if offset == 1 { delivery.topic } else { escaped.as_str() };
                    let delivery = StreamMessage { topic, ..delivery };
                    let unsealed = delivery.encode();
                    let range = unsealed.buffer();
                    let frame = unsealed.seal(Epoch::from_bits(9), offset, None);
                    let bytes = frame.as_bytes().as_ptr_range();
                    assert!(range.contains(&bytes.start) && bytes.end <= range.end, "{length} bytes");
                    let unused = (range.end as usize - range.start as usize) - frame.len();
                    assert!(unused <= 40, "{unused} bytes unused of {}", frame.len());
                }
            }
        }
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn a_sealed_frame_is_compressed_once_for_all_forks() {
        use crate::deflate::{Config, Deflater, negotiate};

        let config = Config::default();
        let params = negotiate(&config, [&b"permessage-deflate"[..]]).unwrap().unwrap();
        let (mut deflater, mut other) = (Deflater::new(&config), Deflater::new(&config));
        // With the second length, the header is shorter than the space for it.
        for length in [300, 65_420] {
            let payload = format!("\"{}\"", "all the same ".repeat(length / 13 + 1).split_at(length).0);
            let delivery = StreamMessage {
                topic: "a",
                message: RawJson::parse(&payload).unwrap(),
                from: None,
                time: 1_796_000_000_123,
                traceparent: None,
                tracestate: None,
            };
            let (sealed, whole) = sealed_and_whole(&delivery, Epoch::from_bits(1), 7, None);
            let fork = sealed.fork();
            let compressed = sealed.for_receiver(&mut deflater, params);
            assert!(compressed.len() < sealed.len() / 2, "{length} bytes");
            assert_eq!(compressed.as_bytes(), whole.for_receiver(&mut other, params).as_bytes());
            let of_fork = fork.for_receiver(&mut deflater, params);
            assert_eq!(of_fork.as_bytes().as_ptr(), compressed.as_bytes().as_ptr(), "the form is shared");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_sealed_frame_equals_the_whole_frame(
            topic in any::<String>(),
            payload in prop_oneof![any::<String>(), "x{0,300}", "x{65200,65600}"],
            from in prop::option::of("[a-z0-9.-]{1,40}"),
            numbers in any::<(u64, u64, u64, u64)>(),
            prev in any::<bool>(),
            traceparent in prop::option::of(any::<String>()),
            tracestate in prop::option::of(any::<String>()),
        ) {
            let (bits, offset, time, before) = numbers;
            let payload = serde_json::Value::from(payload).to_string();
            let from = from.map(|from| ClientId::parse(&from).unwrap());
            let delivery = StreamMessage {
                topic: &topic,
                message: RawJson::parse(&payload).unwrap(),
                from: from.as_ref(),
                time,
                traceparent: traceparent.as_deref(),
                tracestate: tracestate.as_deref(),
            };
            let prev = prev.then_some(before);
            let (sealed, whole) = sealed_and_whole(&delivery, Epoch::from_bits(bits), offset, prev);
            prop_assert!(sealed.as_bytes() == whole.as_bytes());
            // Small offsets too: most numbers above have 19 or 20 digits.
            let (sealed, whole) =
                sealed_and_whole(&delivery, Epoch::from_bits(bits), offset % 1000, prev.map(|prev| prev % 1000));
            prop_assert!(sealed.as_bytes() == whole.as_bytes());
        }
    }
}
