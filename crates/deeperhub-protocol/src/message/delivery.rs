//! Reading and changing of encoded deliveries.

use std::fmt;

use super::sink::JsonSink;
use crate::frame::{Frame, KeptFrame, text_header, text_payload};
use crate::json::Scanner;
use crate::{ClientId, Epoch, Position, RawJson};

const HEAD: &str = r#"{"type":"message","data":"#;
const META: &str = r#","meta":{"traceparent":"#;
const META_END: &str = r#""}}"#;
const PREV: &str = r#","prev":"#;

/// A delivery that this crate encoded, read from the bytes of its frame.
///
/// Reading costs less than parsing JSON: the payload is checked to be UTF-8 but not scanned. The
/// parts are exact, even if the payload imitates the end of a delivery. `Debug` shows no content.
///
/// ```
/// use deeperhub_protocol::RawJson;
/// use deeperhub_protocol::message::{EncodedDelivery, ServerMessage};
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
/// let delivery = EncodedDelivery::parse(frame.as_bytes()).expect("it is a delivery");
/// assert_eq!(delivery.data().as_str(), r#"{"topic":"a","message":7}"#);
/// assert_eq!(delivery.payload().as_str(), "7");
/// assert_eq!(delivery.from(), None);
/// # Ok::<(), deeperhub_protocol::MessageError<'_>>(())
/// ```
#[derive(Clone, Copy)]
pub struct EncodedDelivery<'a> {
    /// The value of `data`.
    data: &'a str,
    /// The text after `data`.
    tail: &'a str,
    /// The value of `message`.
    payload: &'a str,
    /// The value of `from`.
    from: Option<&'a str>,
    /// The members of `data` up to the offset, without `prev`; `None` without a position.
    until_offset: Option<&'a str>,
}

impl<'a> EncodedDelivery<'a> {
    /// Reads the bytes of a frame ([`Frame::as_bytes`] or [`KeptFrame::as_bytes`]). Returns `None`
    /// if the frame is not a delivery that this crate encoded.
    #[must_use]
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (data, tail) = split_meta(text_payload(frame)?)?;
        let members = data.strip_suffix('}')?;
        // A payload ends with a bracket, or it is one token after the key `message`. A number or
        // string at the end after another key is therefore not in the payload.
        let (members, until_offset) = match split_position(members) {
            Some((before, until_offset)) => (before, Some(until_offset)),
            None => (members, None),
        };
        let (members, from) = match split_from(members) {
            Some((before, id)) => (before, Some(id)),
            None => (members, None),
        };
        let topic_start = members.strip_prefix(r#"{"topic":"#)?;
        let topic = Scanner::new(topic_start, crate::json::MAX_NESTING).scan_value(0).ok()?;
        let payload = topic_start.strip_prefix(topic)?.strip_prefix(r#","message":"#)?;
        Some(Self { data, tail, payload, from, until_offset })
    }

    /// Returns the value of `data`: an object with `topic`, `message` and the other keys, as in
    /// `messages` of a `history` reply.
    #[must_use]
    pub const fn data(&self) -> RawJson<'a> {
        RawJson::scanned(self.data)
    }

    /// Returns the published payload, the value of `message`.
    #[must_use]
    pub const fn payload(&self) -> RawJson<'a> {
        RawJson::scanned(self.payload)
    }

    /// Returns the publisher's client ID; `None` if a backend published.
    #[must_use]
    pub const fn from(&self) -> Option<&'a str> {
        self.from
    }

    /// Returns the position of the message; `None` if the topic has no history.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        let (rest, offset) = split_number(self.until_offset?)?;
        let rest = rest.strip_suffix(r#","offset":"#)?.strip_suffix('"')?;
        let (rest, epoch) = rest.split_at_checked(rest.len().checked_sub(Epoch::BYTES)?)?;
        let (_, time) = split_number(rest.strip_suffix(r#","epoch":""#)?)?;
        Some(Position { epoch: Epoch::parse(epoch)?, offset, time })
    }

    /// Encodes the same delivery with another `prev`. Returns `None` if it has no position.
    ///
    /// The new frame can be sent to the publisher
    /// ([`Unsealed::excluding_publisher`](crate::frame::Unsealed::excluding_publisher)).
    #[must_use]
    pub fn with_prev(&self, prev: u64) -> Option<Frame> {
        let until_offset = self.until_offset?;
        let mut digits = itoa::Buffer::new();
        let prev = digits.format(prev);
        let parts = [HEAD, until_offset, PREV, prev, "}", self.tail];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let (header, header_len) = text_header(length);
        Some(Frame::encode_with(header_len + length, |out| {
            out.extend_from_slice(header.get(..header_len).unwrap_or_default());
            parts.into_iter().for_each(|part| out.raw(part));
        }))
    }
}

impl fmt::Debug for EncodedDelivery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedDelivery").field("data_len", &self.data.len()).finish_non_exhaustive()
    }
}

impl KeptFrame {
    /// Returns `false` if the frame is a delivery that `client` published and must not get
    /// ([`Unsealed::excluding_publisher`](crate::frame::Unsealed::excluding_publisher)).
    #[must_use]
    pub fn is_for(&self, client: &ClientId) -> bool {
        let is_from_client = || {
            let delivery = EncodedDelivery::parse(self.as_bytes());
            delivery.and_then(|delivery| delivery.from()) == Some(client.as_str())
        };
        !(self.excludes_publisher() && is_from_client())
    }

    /// Returns `true` if the frame is a delivery that names the message at `prev` as the one before it.
    /// Returns `false` for others, and for deliveries with trace context, without looking further.
    #[must_use]
    pub fn ends_with_prev(&self, prev: u64) -> bool {
        // Members of a payload are not the last ones before the ends of `data` and of the message.
        let mut digits = itoa::Buffer::new();
        let rest = self.as_bytes().strip_suffix(b"}}");
        let rest = rest.and_then(|rest| rest.strip_suffix(digits.format(prev).as_bytes()));
        rest.is_some_and(|rest| rest.ends_with(PREV.as_bytes()))
    }
}

/// Splits the text of a delivery into `data` and the text after it.
fn split_meta(text: &str) -> Option<(&str, &str)> {
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

/// Returns the members before the position, and the members up to the offset. Returns `None` if the
/// members do not end with a position.
fn split_position(members: &str) -> Option<(&str, &str)> {
    let until_offset = strip_number(members).and_then(|rest| rest.strip_suffix(PREV)).unwrap_or(members);
    let rest = strip_number(until_offset)?.strip_suffix(r#"","offset":"#)?;
    let (rest, _epoch) = rest.split_at_checked(rest.len().checked_sub(Epoch::BYTES)?)?;
    let rest = rest.strip_suffix(r#","epoch":""#)?;
    let before = strip_number(rest)?.strip_suffix(r#","time":"#)?;
    Some((before, until_offset))
}

/// Removes a number from the end of `text`. Returns `None` if there is no digit.
fn strip_number(text: &str) -> Option<&str> {
    let rest = text.trim_end_matches(|digit: char| digit.is_ascii_digit());
    (rest.len() < text.len()).then_some(rest)
}

/// Splits a number off the end of `text`.
fn split_number(text: &str) -> Option<(&str, u64)> {
    let rest = strip_number(text)?;
    Some((rest, text.get(rest.len()..)?.parse().ok()?))
}

/// Splits `from` off the end of the members. Returns the members before it and the client ID, which
/// needs no escapes.
fn split_from(members: &str) -> Option<(&str, &str)> {
    let (rest, id) = members.strip_suffix('"')?.rsplit_once('"')?;
    Some((rest.strip_suffix(r#","from":"#)?, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Position;
    use crate::message::{ServerMessage, StreamMessage};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn text(frame: &Frame) -> &str {
        text_payload(frame.as_bytes()).unwrap()
    }

    /// Members that a payload or topic can imitate, with the IDs of other clients.
    const TRAPS: [&str; 7] = [
        r#","from":"victim""#,
        r#","from":"victim","time":1"#,
        r#","from":"victim","time":1,"epoch":"00000001","offset":5"#,
        r#","time":1,"epoch":"00000001","offset":5,"prev":4"#,
        r#","from":"victim"},"meta":{"traceparent":"x"}}"#,
        r#","meta":{"traceparent":"x"}"#,
        r#","message":1,"from":"victim""#,
    ];

    /// Returns payloads that imitate the end of a delivery, at each place of a JSON text.
    fn hostile_payloads() -> Vec<String> {
        let mut payloads: Vec<_> = ["1", "{}", "[]", "null", r#""""#, r#""from""#].map(str::to_owned).into();
        for trap in TRAPS {
            let object = format!("{{\"x\":1{trap}}}");
            if RawJson::parse(&object).is_ok() {
                payloads.extend([format!("[{object}]"), format!("{{\"data\":{object}}}"), object]);
            }
            let string = Value::from(trap).to_string();
            let end = Value::from(format!("\"{trap}")).to_string();
            payloads.extend([format!("[1,{string}]"), format!("{{\"from\":{end}}}"), string, end]);
        }
        payloads
    }

    #[test]
    fn hostile_payloads_include_each_trap_as_members() {
        let payloads = hostile_payloads();
        for trap in TRAPS.iter().filter(|trap| !trap.ends_with("}}")) {
            assert!(payloads.contains(&format!("{{\"x\":1{trap}}}")), "{trap}");
        }
    }

    /// Checks the parts of a delivery, and that only its publisher is excluded.
    fn check_parts(
        topic: &str,
        payload: &str,
        from: Option<&ClientId>,
        position: Option<(Position, Option<u64>)>,
        trace: Option<(&str, Option<&str>)>,
    ) {
        let message = RawJson::parse(payload).unwrap();
        let (traceparent, tracestate) = (trace.map(|trace| trace.0), trace.and_then(|trace| trace.1));
        let (position, prev) =
            (position.map(|position| position.0), position.and_then(|position| position.1));
        let frame = ServerMessage::Message { topic, message, from, position, prev, traceparent, tracestate }
            .to_frame();
        let tree: Value = serde_json::from_str(text(&frame)).unwrap();
        let delivery = EncodedDelivery::parse(frame.as_bytes()).unwrap();
        assert_eq!(serde_json::from_str::<Value>(delivery.data().as_str()).unwrap(), tree["data"]);
        assert_eq!((delivery.payload(), delivery.from()), (message, from.map(ClientId::as_str)));
        assert_eq!((delivery.with_prev(3).is_some(), delivery.position()), (position.is_some(), position));

        let [victim, x] = ["victim", "x"].map(|id| ClientId::parse(id).unwrap());
        let clients = [Some(&victim), Some(&x), from];
        let Some(Position { epoch, offset, time }) = position else {
            return clients.into_iter().flatten().for_each(|client| assert!(frame.keep().is_for(client)));
        };
        let stream = StreamMessage { topic, message, from, time, traceparent, tracestate };
        let excluding = stream.encode().excluding_publisher().seal(epoch, offset, prev);
        let including = stream.encode().seal(epoch, offset, prev);
        assert!(excluding.as_bytes() == frame.as_bytes() && including.as_bytes() == frame.as_bytes());
        for client in clients.into_iter().flatten() {
            let is_publisher = from == Some(client);
            assert_eq!(excluding.keep().is_for(client), !is_publisher, "{client} {payload}");
            assert_eq!(excluding.fork().keep().to_frame().keep().is_for(client), !is_publisher);
            assert!(including.keep().is_for(client) && frame.keep().is_for(client));
            assert!(delivery.with_prev(3).unwrap().keep().is_for(client));
        }
    }

    #[test]
    fn parts_of_hostile_deliveries_are_exact() {
        let client_id = ClientId::parse("c").unwrap();
        let position = Position { epoch: Epoch::from_bits(1), offset: 5, time: 6 };
        let traces =
            [None, Some(("00-1", None)), Some(("00-1", Some(TRAPS[4]))), Some((TRAPS[5], Some("a=1")))];
        for payload in hostile_payloads() {
            for topic in ["a", TRAPS[6], r#"","message":1"#] {
                for from in [None, Some(&client_id)] {
                    for position in [None, Some((position, None)), Some((position, Some(4)))] {
                        for trace in traces {
                            check_parts(topic, &payload, from, position, trace);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn other_frames_are_no_deliveries() {
        let pong = ServerMessage::Pong { id: None }.to_frame();
        let gap = ServerMessage::Gap {
            topic: "a",
            from: Some(1),
            position: Position { epoch: Epoch::from_bits(1), offset: 5, time: 6 },
            reason: crate::GapReason::Trimmed,
        }
        .to_frame();
        let empty = Frame::from_encoded(b"");
        for frame in [pong, gap, empty, Frame::binary(HEAD.as_bytes()), Frame::text(HEAD), Frame::text("")] {
            assert!(EncodedDelivery::parse(frame.as_bytes()).is_none());
            assert!(frame.keep().is_for(&ClientId::parse("c").unwrap()));
        }
    }

    #[test]
    fn content_is_not_in_the_debug_form() {
        let frame = Frame::text(r#"{"type":"message","data":{"topic":"a","message":"secret"}}"#);
        let delivery = EncodedDelivery::parse(frame.as_bytes()).unwrap();
        assert_eq!(format!("{delivery:?}"), "EncodedDelivery { data_len: 32, .. }");
    }

    /// JSON values with keys and strings of deliveries.
    fn hostile_value() -> impl Strategy<Value = Value> {
        let string = prop_oneof![
            3 => prop::sample::select(&TRAPS[..]).prop_map(str::to_owned),
            1 => any::<String>(),
            1 => Just("victim".to_owned()),
        ];
        let key = prop::sample::select(
            &["from", "time", "epoch", "offset", "prev", "meta", "traceparent", "x"][..],
        );
        let leaf = prop_oneof![
            string.prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            Just(json!("00000001"))
        ];
        leaf.prop_recursive(4, 24, 4, move |value| {
            prop_oneof![
                prop::collection::vec(value.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), value), 0..6).prop_map(|members| members
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect()),
            ]
        })
    }

    fn hostile_text() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), prop::sample::select(&TRAPS[..]).prop_map(str::to_owned)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn parts_of_any_delivery_are_exact(
            topic in hostile_text(),
            payload in prop_oneof![
                hostile_value().prop_map(|value| value.to_string()),
                prop::sample::select(hostile_payloads()),
            ],
            from in prop::option::of(prop_oneof![Just("victim".to_owned()), "[A-Za-z0-9._-]{1,128}"]),
            position in prop::option::of((any::<(u64, u64, u64)>(), prop::option::of(any::<u64>()))),
            trace in prop::option::of((hostile_text(), prop::option::of(hostile_text()))),
        ) {
            let from = from.map(|id| ClientId::parse(&id).unwrap());
            let position = position.map(|((bits, offset, time), prev)| {
                (Position { epoch: Epoch::from_bits(bits), offset, time }, prev)
            });
            let trace = trace.as_ref().map(|(parent, state)| (parent.as_str(), state.as_deref()));
            check_parts(&topic, &payload, from.as_ref(), position, trace);
        }

        #[test]
        fn any_text_is_read_without_panic(
            head in any::<bool>(),
            parts in prop::collection::vec(hostile_text(), 0..4),
            end in any::<bool>(),
        ) {
            let head = if head { r#"{"type":"message","data":{"topic":"a","message":1"# } else { "" };
            let frame = Frame::text(&format!("{head}{}{}", parts.concat(), if end { "}}" } else { "" }));
            if let Some(delivery) = EncodedDelivery::parse(frame.as_bytes()) {
                let _ = delivery.with_prev(1);
            }
        }

        #[test]
        fn a_delivery_with_another_prev_equals_encoding_it(
            payload in hostile_value(),
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
            let frame = encode(before);
            let changed = EncodedDelivery::parse(frame.as_bytes()).unwrap().with_prev(prev).unwrap();
            let expected = encode(Some(prev));
            prop_assert_eq!(changed.as_bytes(), expected.as_bytes());
            prop_assert_eq!(changed.keep().ends_with_prev(prev), traceparent.is_none());
            let names = |prev: u64| before == Some(prev) && traceparent.is_none();
            for prev in before.into_iter().chain([prev, prev / 10, prev % 10]) {
                prop_assert_eq!(frame.keep().ends_with_prev(prev), names(prev));
            }
        }
    }
}
