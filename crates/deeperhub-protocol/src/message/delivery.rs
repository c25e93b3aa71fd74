//! Functions that read and change encoded deliveries.

use super::sink::JsonSink;
use crate::RawJson;
use crate::frame::{Frame, text_payload, write_text_with};
use crate::json::Scanner;

const HEAD: &str = r#"{"type":"message","data":"#;
const META: &str = r#","meta":{"traceparent":"#;
const META_END: &str = r#""}}"#;
const PREV: &str = r#","prev":"#;

/// Returns the `data` of an encoded delivery: an object with `topic`, `message` and the other keys,
/// as in `messages` of a `history` reply. Returns `None` if the frame is not a delivery that this
/// crate encoded.
///
/// ```
/// use deeperhub_protocol::RawJson;
/// use deeperhub_protocol::message::{ServerMessage, delivery_data};
///
/// let frame = ServerMessage::Message {
///     topic: "a",
///     message: RawJson::parse("7")?,
///     from: None,
///     position: None,
///     prev: None,
///     traceparent: None,
///     tracestate: None,
/// }
/// .to_frame();
/// let data = delivery_data(&frame).map(RawJson::as_str);
/// assert_eq!(data, Some(r#"{"topic":"a","message":7}"#));
/// # Ok::<(), deeperhub_protocol::MessageError<'_>>(())
/// ```
#[must_use]
pub fn delivery_data(frame: &Frame) -> Option<RawJson<'_>> {
    let (data, _) = split_delivery(text_payload(frame.as_bytes())?)?;
    Some(RawJson::scanned(data))
}

/// Returns the same delivery with another `prev`. Returns `None` if the frame is not a delivery with
/// a position.
#[must_use]
pub fn with_prev(frame: &Frame, prev: u64) -> Option<Frame> {
    let (data, tail) = split_delivery(text_payload(frame.as_bytes())?)?;
    let data = without_prev(data.strip_suffix('}')?)?;
    let capacity = frame.len() + PREV.len() + 20;
    Some(Frame::encode_with(capacity, |out| {
        write_text_with(out, |out| {
            out.raw(HEAD);
            out.raw(data);
            out.raw(PREV);
            out.number(prev);
            out.raw("}");
            out.raw(tail);
        });
    }))
}

/// Splits the text of a delivery into `data` and the text after it.
fn split_delivery(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix(HEAD)?;
    // `meta` ends with a string, and a position ends with a number. A quote inside a string is
    // escaped, so `META` occurs only as a key. The last occurrence is the message's own `meta` if
    // only the end of the message follows it. Otherwise it is in a payload.
    if rest.ends_with(META_END)
        && let Some(at) = rest.rfind(META)
        && rest[..at].ends_with('}')
        && is_last_member(&rest[at + r#","meta":"#.len()..])
    {
        return Some(rest.split_at(at));
    }
    rest.strip_suffix('}').map(|data| (data, "}"))
}

/// Returns `true` if `rest` is the value of an object's last member and the end of the object.
fn is_last_member(rest: &str) -> bool {
    let Some(value) = rest.strip_suffix('}') else { return false };
    Scanner::new(value, crate::json::MAX_NESTING).scan_text(0).is_ok()
}

/// Removes `prev` from the end of `data` without its closing bracket. Returns `None` if `data` has
/// no offset.
fn without_prev(data: &str) -> Option<&str> {
    let without_number = data.trim_end_matches(|digit: char| digit.is_ascii_digit());
    let data = without_number.strip_suffix(PREV).unwrap_or(data);
    let without_number = data.trim_end_matches(|digit: char| digit.is_ascii_digit());
    (without_number.len() < data.len() && without_number.ends_with(r#"","offset":"#)).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ServerMessage;
    use crate::{ClientId, Epoch, Position};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn text(frame: &Frame) -> &str {
        text_payload(frame.as_bytes()).unwrap()
    }

    #[test]
    fn data_ends_before_the_messages_own_meta() {
        let client_id = ClientId::parse("c").unwrap();
        let trap = r#"{"a":{"n":1},"meta":{"traceparent":"x"}}"#;
        let position = Position { epoch: Epoch::from_bits(1), offset: 5, time: 6 };
        for message in ["1", r#""},\"meta\":{\"traceparent\":\"x\"}}""#, trap, &format!("[{trap}]"), "{}"] {
            for from in [None, Some(&client_id)] {
                for position in [None, Some(position)] {
                    for traceparent in [None, Some("00-1")] {
                        let frame = ServerMessage::Message {
                            topic: "a",
                            message: RawJson::parse(message).unwrap(),
                            from,
                            position,
                            prev: None,
                            traceparent,
                            tracestate: traceparent.map(|_| r#"},"meta":{"traceparent":"#),
                        }
                        .to_frame();
                        let tree: Value = serde_json::from_str(text(&frame)).unwrap();
                        let data = delivery_data(&frame).unwrap();
                        assert_eq!(serde_json::from_str::<Value>(data.as_str()).unwrap(), tree["data"]);
                        assert_eq!(with_prev(&frame, 3).is_some(), position.is_some());
                    }
                }
            }
        }
    }

    #[test]
    fn other_frames_have_no_delivery_data() {
        let pong = ServerMessage::Pong { id: None }.to_frame();
        let empty = Frame::from_encoded(b"");
        for frame in [pong, empty, Frame::binary(HEAD.as_bytes()), Frame::text(HEAD), Frame::text("")] {
            assert_eq!(delivery_data(&frame), None);
            assert!(with_prev(&frame, 1).is_none());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_delivery_with_another_prev_equals_encoding_it(
            payload in prop_oneof![
                any::<String>().prop_map(Value::from),
                Just(json!({"offset": 1, "prev": 2})),
                any::<u64>().prop_map(Value::from),
            ],
            before in prop::option::of(any::<u64>()),
            prev in any::<u64>(),
            offset in any::<u64>(),
            traceparent in prop::option::of(any::<String>()),
        ) {
            let payload = payload.to_string();
            let encode = |prev| ServerMessage::Message {
                topic: "a",
                message: RawJson::parse(&payload).unwrap(),
                from: None,
                position: Some(Position { epoch: Epoch::from_bits(offset), offset, time: 1 }),
                prev,
                traceparent: traceparent.as_deref(),
                tracestate: None,
            }
            .to_frame();
            let (changed, expected) = (with_prev(&encode(before), prev).unwrap(), encode(Some(prev)));
            prop_assert_eq!(changed.as_bytes(), expected.as_bytes());
        }
    }
}
