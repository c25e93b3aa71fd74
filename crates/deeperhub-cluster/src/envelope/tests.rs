use super::header::ORIGIN_OFFSET;
use super::*;
use crate::operation::{Action, Target};
use crate::store::{MAX_EPOCH, MAX_OFFSET};
use deeperhub_protocol::Subscription;
use proptest::prelude::*;

const ORIGIN: Origin<'static> = Origin { node: "node-1", incarnation: 0x0102_0304_0506_0708 };
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn client(id: &str) -> ClientId {
    ClientId::parse(id).unwrap()
}

fn json(text: &str) -> RawJson<'_> {
    RawJson::parse(text).unwrap()
}

fn operation(target: Target<'static, ClientRequest>, action: Action<'static>) -> Message<'static> {
    Message::Operation(Operation { target, action })
}

fn to_client(request: u64) -> Target<'static, ClientRequest> {
    Target::Client(ClientRequest { request, client: client("n.0-0-0") })
}

fn unsubscribe(topic: &'static str) -> Action<'static> {
    Action::Unsubscribe(Subscription::parse(topic).unwrap())
}

/// Returns a message of each kind.
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
        operation(to_client(7), Action::Send(json(r#"{"type":"x"}"#))),
        operation(to_client(u64::MAX), Action::Disconnect),
        operation(Target::User("émile".into()), Action::Send(json(r#"{"type":"x","data":[1, 2]}"#))),
        operation(Target::All, Action::Send(json(r#"{"type":"x"}"#))),
        Message::Query { request: 1, text: "clients 10" },
        Message::Answer { request: 1, text: "" },
        Message::Hello { joined: true, wants_answer: false, connections: 5, version: "0.1.0" },
        Message::NameTaken { incarnation: 9 },
        Message::Bye,
        operation(Target::User("émile".into()), Action::Disconnect),
        operation(to_client(1), unsubscribe("a.*")),
        operation(Target::User("".into()), unsubscribe("a")),
        Message::Probe { number: u64::MAX },
        operation(Target::All, Action::Disconnect),
        operation(Target::All, unsubscribe("é.>")),
        Message::Stored {
            position: StorePosition { epoch: 0x0000_0101_0203_0405, offset: 7 },
            previous: 5,
            time: 0x0000_0102_0304_0506,
            excludes_publisher: true,
            topic: Topic::parse("a.é").unwrap(),
            from: Some(client("n.0-1-2")),
            trace: TraceContext::new(Some(TRACEPARENT.into()), None),
            payload: json(r#"{"a":1}"#),
        },
        Message::Stored {
            position: StorePosition { epoch: MAX_EPOCH, offset: MAX_OFFSET },
            previous: MAX_OFFSET - 1,
            time: 0,
            excludes_publisher: false,
            topic: Topic::parse("t").unwrap(),
            from: None,
            trace: TraceContext::default(),
            payload: json("0"),
        },
        Message::StreamReset { epoch: 1, time: 2, topic: Topic::parse("a.é").unwrap() },
    ]
}

/// Bytes of each of [`messages`], as the first version to write them did: the kind, and what
/// follows the origin. A row never changes; new kinds add rows.
const GOLDEN: &[(u8, &[u8])] = &[
    (
        1,
        b"\x06a.\xC3\xA9.c\x0Cnode-1.0-1-2\x00700-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\
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
    (15, b""),
    (16, b"\x04\xC3\xA9.>"),
    (
        17,
        b"\0\0\x01\x01\x02\x03\x04\x05\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\x01\x02\x03\x04\x05\x06\x01\
          \x04a.\xC3\xA9\x07n.0-1-2\x00700-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\0\0{\"a\":1}",
    ),
    (
        17,
        b"\0\0\x7F\xFF\xFF\xFF\xFF\xFF\0\x1F\xFF\xFF\xFF\xFF\xFF\xFF\0\x1F\xFF\xFF\xFF\xFF\xFF\xFE\
          \0\0\0\0\0\0\0\0\0\x01t\0\0\0\0\x000",
    ),
    (18, b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x04a.\xC3\xA9"),
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
            assert_eq!(parse_in_steps(&whole[..end]), Err(EnvelopeError::Length), "{message:?} {end}");
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
        (1, 19, b"", EnvelopeError::Kind(19)),
        (1, 17, &[0; 8], EnvelopeError::Field("epoch")),
        (1, 17, b"\0\x01\0\0\0\0\0\0", EnvelopeError::Field("epoch")),
        (
            1,
            17,
            b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0",
            EnvelopeError::Field("offset"),
        ),
        (
            1,
            17,
            b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x02",
            EnvelopeError::Field("excludes_publisher"),
        ),
        (1, 18, b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x02a.", EnvelopeError::Field("topic")),
        (1, 16, b"\x03a..", EnvelopeError::Field("topic")),
        (1, 1, b"\x03a.*\0\0\0\0\0null", EnvelopeError::Field("topic")),
        (1, 1, b"\x02\xFF\xFF\0\0\0\0\0null", EnvelopeError::Field("topic")),
        // The rest is UTF-8 as a whole, and the field is not.
        (1, 1, b"\x01\xC3\xA9\0\0\0\0\0null", EnvelopeError::Field("topic")),
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
        assert_eq!(parse_in_steps(&bytes), Err(error), "{}", bytes.escape_ascii());
    }
    let mut nameless = Envelope { origin: ORIGIN, sequence: 1, message: Message::Bye }.write();
    nameless.truncate(ORIGIN_OFFSET);
    nameless.push(0);
    assert_eq!(Envelope::parse(&nameless), Err(EnvelopeError::Field("origin")));
}

/// An envelope that arrived is checked in two steps, with the results of one.
fn parse_in_steps(bytes: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    let received = Received::check(bytes::Bytes::copy_from_slice(bytes))?;
    let expected = received.parse()?;
    let envelope = Envelope::parse(bytes)?;
    assert_eq!(expected, envelope);
    let Origin { node, incarnation } = envelope.origin;
    assert_eq!((received.node(), received.incarnation()), (node.as_bytes(), incarnation));
    assert_eq!((received.sequence(), received.len()), (envelope.sequence, bytes.len()));
    assert_eq!(received.is_probe(), matches!(envelope.message, Message::Probe { .. }));
    assert_eq!(received.is_from_store(), envelope.message.is_from_store());
    Ok(envelope)
}

#[test]
fn names_of_nodes_have_few_characters() {
    for byte in 0..=u8::MAX {
        let is_allowed = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        assert_eq!(are_node_id_bytes(&[b'n', byte]), is_allowed, "{byte}");
    }
    let longest = "n".repeat(MAX_NODE_ID_BYTES);
    assert!(is_node_id(&longest) && !is_node_id(&format!("{longest}n")) && !is_node_id(""));
}

#[test]
fn kinds_of_later_versions_are_told_apart_from_invalid_bytes() {
    for (error, is_later) in [
        (EnvelopeError::Kind(19), true),
        (EnvelopeError::Version(2), true),
        (EnvelopeError::Version(0), false),
        (EnvelopeError::Field("epoch"), false),
    ] {
        assert_eq!(error.is_of_later_version(), is_later, "{error}");
    }
}

#[test]
fn the_store_fills_in_its_fields_at_their_offsets() {
    let message = Message::Stored {
        position: StorePosition { epoch: 1, offset: 3 },
        previous: 2,
        time: 4,
        excludes_publisher: false,
        topic: Topic::parse("ab").unwrap(),
        from: None,
        trace: TraceContext::default(),
        payload: json("1"),
    };
    let bytes = Envelope { origin: ORIGIN, sequence: 1, message }.write();
    let stamp = stamp_offset(ORIGIN.node.len());
    let numbers: Vec<_> = (0..4).map(|at| bytes[stamp + at * 8 + 7]).collect();
    assert_eq!(numbers, [1, 3, 2, 4]);
    assert_eq!(bytes[stamp + STAMP_BYTES..][..4], *b"\0\x02ab");
    assert_eq!(bytes[stored_topic_offset(ORIGIN.node.len())..][..2], *b"ab");
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(parse_in_steps(&bytes), Envelope::parse(&bytes));
        if let Ok(envelope) = Envelope::parse(&bytes) {
            prop_assert_eq!(envelope.write(), bytes);
        }
    }

    #[test]
    fn every_accepted_encoding_is_canonical(index in 0_usize..200, byte: u8, which in 0_usize..20) {
        let message = messages().swap_remove(which);
        let mut bytes = Envelope { origin: ORIGIN, sequence: 3, message }.write();
        let length = bytes.len();
        bytes[index % length] = byte;
        prop_assert_eq!(parse_in_steps(&bytes), Envelope::parse(&bytes));
        if let Ok(envelope) = Envelope::parse(&bytes) {
            prop_assert_eq!(envelope.write(), bytes);
        }
    }
}
