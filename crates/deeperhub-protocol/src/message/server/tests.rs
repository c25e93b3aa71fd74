use super::*;
use crate::frame::write_text;
use crate::message::{
    ClientMessage, Command, EncodedDelivery, MessageError, SpanContext, SubscribedError, TraceContext,
};
use crate::{CloseCode, Epoch, NotRecovered, Topic};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Returns the JSON of a message, after checking that all ways of writing it give the same frame.
fn written(message: &ServerMessage<'_>) -> String {
    let mut out = b"before".to_vec();
    message.write_frame(&mut out);
    let frame = message.to_frame();
    assert_eq!(
        out.strip_prefix(b"before"),
        Some(frame.as_bytes()),
        "`write_frame` and `to_frame` give the same frame"
    );
    let header = match frame.as_bytes()[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let text = std::str::from_utf8(&frame.as_bytes()[header..]).unwrap();
    let mut expected = Vec::new();
    write_text(&mut expected, text);
    assert_eq!(expected, frame.as_bytes(), "the header has the text's length");
    let mut gap = b"before".to_vec();
    match (message.write_frame_without_payload(&mut gap), message) {
        (Some(at), ServerMessage::Echo { data, .. }) => {
            gap.splice(at..at, data.as_str().bytes());
        }
        (at, _) => assert_eq!(at, None),
    }
    assert_eq!(gap, out, "the frame is complete with the payload inserted");
    text.to_owned()
}

fn id(json: &str) -> Option<MessageId<'_>> {
    Some(MessageId::from_json(json).unwrap())
}

fn raw(json: &str) -> RawJson<'_> {
    RawJson::parse(json).unwrap()
}

/// The position with the longest text.
const LONGEST_POSITION: Position =
    Position { epoch: Epoch::from_bits(u64::MAX), offset: u64::MAX, time: u64::MAX };

const LONGEST_START: SubscriptionStart = SubscriptionStart {
    position: Some(LONGEST_POSITION),
    recovery: Some(Err(NotRecovered::NoHistory)),
    replay: u64::MAX,
};

#[test]
fn every_message_has_its_keys_in_order() {
    let client_id = ClientId::parse("n1-42").unwrap();
    let limits = WelcomeLimits {
        max_message_bytes: 65_536,
        max_delivery_bytes: 67_000,
        max_subscriptions: 128,
        ping_interval_ms: 25_000,
    };
    let going = CloseReason::new(CloseCode::GoingAway, "the server shuts down");
    let expired = CloseReason::new(CloseCode::TokenExpired, "token expired");
    let error = ServerMessage::Error {
        id: None,
        code: ErrorCode::InvalidJson,
        message: "no \"JSON\"",
        field: None,
        topic: None,
        retry_after_ms: None,
    };
    let full_error = ServerMessage::Error {
        id: id("7"),
        code: ErrorCode::InvalidTopic,
        message: "no",
        field: Some("topic"),
        topic: Some("a b"),
        retry_after_ms: Some(120),
    };
    for (message, expected) in [
        (
            ServerMessage::Welcome {
                client_id: &client_id,
                server: "deeperhub-ws",
                version: "0.1.0",
                features: None,
                server_time: None,
                limits,
            },
            r#"{"type":"welcome","data":{"client_id":"n1-42","server":"deeperhub-ws","version":"0.1.0","limits":{"max_message_bytes":65536,"max_delivery_bytes":67000,"max_subscriptions":128,"ping_interval_ms":25000}}}"#,
        ),
        (
            ServerMessage::Echo { id: id("0"), data: raw(" [1,  2] ") },
            r#"{"type":"echo","id":0,"data":[1,  2]}"#,
        ),
        (ServerMessage::Echo { id: None, data: raw("null") }, r#"{"type":"echo","data":null}"#),
        (
            ServerMessage::Subscribed {
                id: id(r#""a\/b""#),
                topic: "a.*",
                start: SubscriptionStart::default(),
            },
            r#"{"type":"subscribed","id":"a\/b","data":{"topic":"a.*"}}"#,
        ),
        (
            ServerMessage::Unsubscribed { id: None, topic: "q\"\\" },
            r#"{"type":"unsubscribed","data":{"topic":"q\"\\"}}"#,
        ),
        (
            ServerMessage::Published {
                id: id("7"),
                topic: "é",
                subscribers: 0,
                position: None,
                cluster: None,
            },
            r#"{"type":"published","id":7,"data":{"topic":"é","subscribers":0}}"#,
        ),
        (
            ServerMessage::Published {
                id: id("7"),
                topic: "a",
                subscribers: u64::MAX,
                position: None,
                cluster: Some(ClusterFault::Unavailable),
            },
            r#"{"type":"published","id":7,"data":{"topic":"a","subscribers":18446744073709551615,"cluster":"unavailable"}}"#,
        ),
        (
            ServerMessage::Published {
                id: None,
                topic: "a",
                subscribers: 1,
                position: None,
                cluster: Some(ClusterFault::TooLarge),
            },
            r#"{"type":"published","data":{"topic":"a","subscribers":1,"cluster":"too_large"}}"#,
        ),
        (
            ServerMessage::Authenticated { id: id("1"), user: "eve\n", expires_at: 1_900_000_000 },
            r#"{"type":"authenticated","id":1,"data":{"user":"eve\n","expires_at":1900000000}}"#,
        ),
        (ServerMessage::Pong { id: id(r#""p""#) }, r#"{"type":"pong","id":"p"}"#),
        (ServerMessage::Pong { id: None }, r#"{"type":"pong"}"#),
        (
            ServerMessage::Message {
                topic: "a",
                message: raw("1.0"),
                from: None,
                position: None,
                prev: None,
                traceparent: None,
                tracestate: Some("left=out"),
            },
            r#"{"type":"message","data":{"topic":"a","message":1.0}}"#,
        ),
        (
            ServerMessage::Message {
                topic: "a",
                message: raw("{}"),
                from: Some(&client_id),
                position: None,
                prev: None,
                traceparent: Some("00-1"),
                tracestate: None,
            },
            r#"{"type":"message","data":{"topic":"a","message":{},"from":"n1-42"},"meta":{"traceparent":"00-1"}}"#,
        ),
        (
            ServerMessage::Message {
                topic: "a",
                message: raw("1"),
                from: None,
                position: None,
                prev: None,
                traceparent: Some("00-1"),
                tracestate: Some("a=\"1\""),
            },
            r#"{"type":"message","data":{"topic":"a","message":1},"meta":{"traceparent":"00-1","tracestate":"a=\"1\""}}"#,
        ),
        (
            ServerMessage::Goodbye { reason: &going, retry_after_ms: 1500 },
            r#"{"type":"goodbye","data":{"code":1001,"reason":"the server shuts down","reconnect":true,"retry_after_ms":1500}}"#,
        ),
        (
            ServerMessage::Goodbye { reason: &expired, retry_after_ms: 0 },
            r#"{"type":"goodbye","data":{"code":4001,"reason":"token expired","reconnect":false,"retry_after_ms":0}}"#,
        ),
        (error, r#"{"type":"error","data":{"code":"invalid_json","message":"no \"JSON\""}}"#),
        (
            full_error,
            r#"{"type":"error","id":7,"data":{"code":"invalid_topic","message":"no","field":"topic","topic":"a b","retry_after_ms":120}}"#,
        ),
        (ServerMessage::Raw(raw(r#" {"type": "x"} "#)), r#"{"type": "x"}"#),
    ] {
        let text = written(&message);
        assert_eq!(text, expected);
        let value: Value = serde_json::from_str(&text).unwrap();
        if message.type_name() != "raw" {
            assert_eq!(value["type"], message.type_name());
        }
    }
}

#[test]
fn every_message_of_streams_has_its_keys_in_order() {
    let client_id = ClientId::parse("n1.0-1-2").unwrap();
    let position = |text, offset, time| Position { epoch: Epoch::parse(text).unwrap(), offset, time };
    let at = |offset| Some(position("k3J9aQx2", offset, 1_796_000_000_123));
    let start = |position, recovery, replay| SubscriptionStart { position, recovery, replay };
    let entries = [
        SubscribedEntry { topic: raw(r#""a\u002eb""#), result: Ok(start(at(41), Some(Ok(())), 3)) },
        SubscribedEntry {
            topic: raw(r#""c""#),
            result: Err(SubscribedError {
                code: ErrorCode::Unavailable,
                message: "no \"store\"".into(),
                field: None,
                retry_after_ms: Some(250),
            }),
        },
        SubscribedEntry {
            topic: raw(r#""d..e""#),
            result: Err(MessageError::invalid("no").at("topic").into()),
        },
        SubscribedEntry { topic: raw(r#""f""#), result: Ok(SubscriptionStart::default()) },
    ];
    let messages = [raw(r#"{"topic":"a","message":1}"#), raw("{}")];
    let subscribed = |start| ServerMessage::Subscribed { id: id("1"), topic: "chat.42", start };
    for (message, expected) in [
        (
            subscribed(start(at(41), Some(Ok(())), 3)),
            r#"{"type":"subscribed","id":1,"data":{"topic":"chat.42","time":1796000000123,"epoch":"k3J9aQx2","offset":41,"recovered":true,"replay":3}}"#,
        ),
        (
            subscribed(start(at(41), Some(Ok(())), 0)),
            r#"{"type":"subscribed","id":1,"data":{"topic":"chat.42","time":1796000000123,"epoch":"k3J9aQx2","offset":41,"recovered":true,"replay":0}}"#,
        ),
        (
            subscribed(start(
                Some(position("Zp0vT6bw", 70, 1_796_000_000_123)),
                Some(Err(NotRecovered::Epoch)),
                0,
            )),
            r#"{"type":"subscribed","id":1,"data":{"topic":"chat.42","time":1796000000123,"epoch":"Zp0vT6bw","offset":70,"recovered":false,"reason":"epoch"}}"#,
        ),
        (
            subscribed(start(at(1), None, 20)),
            r#"{"type":"subscribed","id":1,"data":{"topic":"chat.42","time":1796000000123,"epoch":"k3J9aQx2","offset":1,"replay":20}}"#,
        ),
        (
            subscribed(start(None, Some(Err(NotRecovered::NoHistory)), 0)),
            r#"{"type":"subscribed","id":1,"data":{"topic":"chat.42","recovered":false,"reason":"no_history"}}"#,
        ),
        (
            ServerMessage::SubscribedList { id: id("1"), topics: &entries },
            r#"{"type":"subscribed","id":1,"data":{"topics":[{"topic":"a\u002eb","time":1796000000123,"epoch":"k3J9aQx2","offset":41,"recovered":true,"replay":3},{"topic":"c","error":{"code":"unavailable","message":"no \"store\"","retry_after_ms":250}},{"topic":"d..e","error":{"code":"invalid_message","message":"no","field":"topic"}},{"topic":"f"}]}}"#,
        ),
        (
            ServerMessage::SubscribedList { id: None, topics: &[] },
            r#"{"type":"subscribed","data":{"topics":[]}}"#,
        ),
        (
            ServerMessage::Message {
                topic: "chat.42",
                message: raw("{}"),
                from: Some(&client_id),
                position: at(42),
                prev: None,
                traceparent: None,
                tracestate: None,
            },
            r#"{"type":"message","data":{"topic":"chat.42","message":{},"from":"n1.0-1-2","time":1796000000123,"epoch":"k3J9aQx2","offset":42}}"#,
        ),
        (
            ServerMessage::Message {
                topic: "chat.42",
                message: raw("1"),
                from: None,
                position: at(42),
                prev: Some(7),
                traceparent: Some("00-1"),
                tracestate: None,
            },
            r#"{"type":"message","data":{"topic":"chat.42","message":1,"time":1796000000123,"epoch":"k3J9aQx2","offset":42,"prev":7},"meta":{"traceparent":"00-1"}}"#,
        ),
        (
            ServerMessage::Gap {
                topic: "chat.42",
                from: Some(43),
                position: position("k3J9aQx2", 57, 5),
                reason: GapReason::Trimmed,
            },
            r#"{"type":"gap","data":{"topic":"chat.42","time":5,"epoch":"k3J9aQx2","offset":57,"from":43,"to":57,"reason":"trimmed"}}"#,
        ),
        (
            ServerMessage::Gap {
                topic: "q\"",
                from: None,
                position: position("Zp0vT6bw", 0, 5),
                reason: GapReason::Epoch,
            },
            r#"{"type":"gap","data":{"topic":"q\"","time":5,"epoch":"Zp0vT6bw","offset":0,"reason":"epoch"}}"#,
        ),
        (
            ServerMessage::Position {
                topic: "chat.42",
                position: position("k3J9aQx2", 9017, 1_796_000_300_000),
            },
            r#"{"type":"position","data":{"topic":"chat.42","time":1796000300000,"epoch":"k3J9aQx2","offset":9017}}"#,
        ),
        (
            ServerMessage::Published {
                id: id("7"),
                topic: "chat.42",
                subscribers: 3,
                position: at(42),
                cluster: Some(ClusterFault::Unavailable),
            },
            r#"{"type":"published","id":7,"data":{"topic":"chat.42","subscribers":3,"time":1796000000123,"epoch":"k3J9aQx2","offset":42,"cluster":"unavailable"}}"#,
        ),
        (
            ServerMessage::History {
                id: id("1"),
                topic: "a",
                position: at(9),
                messages: &messages,
                next: Some(8),
            },
            r#"{"type":"history","id":1,"data":{"topic":"a","time":1796000000123,"epoch":"k3J9aQx2","offset":9,"messages":[{"topic":"a","message":1},{}],"next":8}}"#,
        ),
        (
            ServerMessage::History { id: None, topic: "a", position: None, messages: &[], next: None },
            r#"{"type":"history","data":{"topic":"a","messages":[]}}"#,
        ),
    ] {
        let text = written(&message);
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["type"], message.type_name());
    }
}

#[test]
fn welcome_announces_features_and_time() {
    let client_id = ClientId::parse("c").unwrap();
    let limits = WelcomeLimits {
        max_message_bytes: 1,
        max_delivery_bytes: 2,
        max_subscriptions: 3,
        ping_interval_ms: 4,
    };
    let welcome = |features, server_time| {
        written(&ServerMessage::Welcome {
            client_id: &client_id,
            server: "s",
            version: "v",
            features,
            server_time,
            limits,
        })
    };
    for (features, expected) in [
        (None, ""),
        (Some(Features::NONE), r#","features":[]"#),
        (Some(Features::HISTORY), r#","features":["history"]"#),
    ] {
        let text = welcome(features, Some(9));
        assert!(text.contains(&format!(r#""version":"v"{expected},"server_time":9,"limits":"#)), "{text}");
    }
}

#[test]
fn a_position_parses_as_recover_unchanged() {
    let position =
        Position { epoch: Epoch::from_bits(u64::MAX / 3), offset: u64::MAX, time: 1_796_000_000_123 };
    for message in [
        ServerMessage::Position { topic: "a", position },
        ServerMessage::Gap { topic: "a", from: Some(1), position, reason: GapReason::Lost },
        ServerMessage::Published {
            id: None,
            topic: "a",
            subscribers: 1,
            position: Some(position),
            cluster: None,
        },
    ] {
        let text = written(&message);
        let tree: Value = serde_json::from_str(&text).unwrap();
        let subscribe =
            json!({"type": "subscribe", "data": {"topic": "a", "recover": tree["data"]}}).to_string();
        let Command::Subscribe(request) = ClientMessage::parse(&subscribe).unwrap().command else {
            panic!("it subscribes")
        };
        let recover = request.recover.unwrap();
        assert_eq!(recover.epoch, Some(position.epoch));
        assert_eq!((recover.offset, recover.time), (position.offset, Some(position.time)));
    }
}

#[test]
fn types_of_the_server_are_reserved() {
    for name in ServerMessage::TYPES.iter().chain(&["presence"]) {
        for text in [
            format!(r#"{{"type":"{name}"}}"#),
            format!(r#"{{"data":1,"type":"\u{:04x}{}"}}"#, name.as_bytes()[0], &name[1..]),
        ] {
            let error = check_server_object(&text).unwrap_err();
            assert_eq!((error.code, error.field), (ErrorCode::InvalidMessage, Some("type")), "{text}");
            assert!(error.message.contains(name), "{error}");
        }
    }
    for name in ["Message", "messages", "raw", "subscribe", "publish", "ping", "", r"\ud800"] {
        let text = format!(r#"{{"type":"{name}"}}"#);
        assert!(check_server_object(&text).is_ok(), "{text}");
    }
}

#[test]
fn the_reply_to_a_list_is_within_its_bound() {
    const MAX_ERROR_BYTES: usize = 80;
    let topic = format!("\"{}\"", "x".repeat(Topic::MAX_BYTES));
    let longest_error = SubscribedError {
        code: ErrorCode::TooManySubscriptions,
        message: "x".repeat(MAX_ERROR_BYTES).into(),
        field: Some("partial"),
        retry_after_ms: Some(u64::MAX),
    };
    for result in [Ok(LONGEST_START), Err(longest_error)] {
        for count in [0, 1, 128] {
            let request = format!(
                r#"{{"type":"subscribe","id":1,"data":{{"topics":[{}]}}}}"#,
                vec![format!(r#"{{"topic":{topic}}}"#); count].join(",")
            );
            let entry = SubscribedEntry { topic: raw(&topic), result: result.clone() };
            let entries = vec![entry; count];
            let reply = written(&ServerMessage::SubscribedList { id: id("1"), topics: &entries });
            let bound = ServerMessage::max_subscribed_list_bytes(
                request.len() as u64,
                count as u64,
                MAX_ERROR_BYTES as u64,
            );
            assert!(reply.len() as u64 <= bound, "{} of {bound}", reply.len());
        }
    }
    assert_eq!(ServerMessage::max_subscribed_list_bytes(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
}

#[test]
fn an_error_reply_carries_id_field_and_code() {
    let error =
        crate::ClientMessage::parse(r#"{"id":"i","type":"subscribe","data":{"topic":"a b"}}"#).unwrap_err();
    let value: Value = serde_json::from_str(&written(&error.to_message())).unwrap();
    assert_eq!(
        value,
        json!({"type": "error", "id": "i", "data": {
            "code": "invalid_topic", "field": "topic", "message": error.message,
        }})
    );
}

#[test]
fn frames_of_every_header_length_are_exact() {
    let overhead = r#"{"type":"echo","data":""}"#.len();
    for length in [overhead, 125, 126, 127, 65_535, 65_536, 100_000] {
        let payload = format!("\"{}\"", "x".repeat(length - overhead));
        assert_eq!(written(&ServerMessage::Echo { id: None, data: raw(&payload) }).len(), length);
    }
}

#[test]
fn objects_with_a_string_type_are_accepted() {
    for (text, accepted) in [
        (r#"{"type":"x"}"#, r#"{"type":"x"}"#),
        (
            " \r\n\t{ \"a\":1, \"a\":2, \"\\u0074ype\" : \"\\u0061\" } ",
            "{ \"a\":1, \"a\":2, \"\\u0074ype\" : \"\\u0061\" }",
        ),
        (
            r#"{"type":"x","id":-1.5,"data":{"topic":1,"topic":2},"meta":[]}"#,
            r#"{"type":"x","id":-1.5,"data":{"topic":1,"topic":2},"meta":[]}"#,
        ),
    ] {
        assert_eq!(check_server_object(text).map(RawJson::as_str), Ok(accepted));
    }
}

#[test]
fn other_texts_are_rejected() {
    for (text, code, field) in [
        ("", ErrorCode::InvalidJson, None),
        (r#"{"type":"x"} 1"#, ErrorCode::InvalidJson, None),
        (r#"{"type":"x",}"#, ErrorCode::InvalidJson, None),
        ("[]", ErrorCode::InvalidMessage, None),
        (r#""type""#, ErrorCode::InvalidMessage, None),
        ("{}", ErrorCode::InvalidMessage, Some("type")),
        (r#"{"type":null}"#, ErrorCode::InvalidMessage, Some("type")),
        (r#"{"data":{"type":"x"}}"#, ErrorCode::InvalidMessage, Some("type")),
        (r#"{"type":"x","type":"x"}"#, ErrorCode::InvalidMessage, Some("type")),
        (r#"{"type":"x","id":1,"id":1}"#, ErrorCode::InvalidMessage, Some("id")),
        (r#"{"type":"x","data":1,"d\u0061ta":1}"#, ErrorCode::InvalidMessage, Some("data")),
        (r#"{"type":"x","meta":1,"meta":1}"#, ErrorCode::InvalidMessage, Some("meta")),
    ] {
        let error = check_server_object(text).unwrap_err();
        assert_eq!((error.code, error.field), (code, field), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_texts_and_numbers_are_encoded(
        texts in prop::array::uniform4(any::<String>()),
        numbers in any::<(u64, u64)>(),
        flag in any::<bool>(),
        payload in prop_oneof![any::<i64>().prop_map(Value::from), any::<String>().prop_map(Value::from)],
    ) {
        let [a, b, c, d] = &texts;
        let (m, n) = numbers;
        let client_id = ClientId::parse("c-1").unwrap();
        let reason = CloseReason::new(CloseCode::SlowConsumer, a.clone());
        let payload_text = payload.to_string();
        let some = |text| if flag { Some(text) } else { None };
        for (message, mut expected) in [
            (
                ServerMessage::Subscribed { id: None, topic: a, start: SubscriptionStart::default() },
                json!({"type": "subscribed", "data": {"topic": a}}),
            ),
            (
                ServerMessage::Published {
                    id: None,
                    topic: a,
                    subscribers: m,
                    position: None,
                    cluster: flag.then_some(ClusterFault::Unavailable),
                },
                json!({"type": "published", "data": {"topic": a, "subscribers": m, "cluster": flag.then_some("unavailable")}}),
            ),
            (
                ServerMessage::Authenticated { id: None, user: a, expires_at: m },
                json!({"type": "authenticated", "data": {"user": a, "expires_at": m}}),
            ),
            (
                ServerMessage::Message {
                    topic: a,
                    message: RawJson::parse(&payload_text).unwrap(),
                    from: flag.then_some(&client_id),
                    position: None,                    prev: None,                    traceparent: some(b.as_str()),
                    tracestate: some(a.as_str()),
                },
                json!({
                    "type": "message",
                    "data": {"topic": a, "message": payload, "from": flag.then_some("c-1")},
                    "meta": flag.then(|| json!({"traceparent": b, "tracestate": a})),
                }),
            ),
            (
                ServerMessage::Goodbye { reason: &reason, retry_after_ms: n },
                json!({"type": "goodbye", "data": {
                    "code": 1013, "reason": reason.text(), "reconnect": true, "retry_after_ms": n,
                }}),
            ),
            (
                ServerMessage::Error {
                    id: None,
                    code: ErrorCode::RateLimited,
                    message: b,
                    field: some(c.as_str()),
                    topic: some(d.as_str()),
                    retry_after_ms: flag.then_some(n),
                },
                json!({"type": "error", "data": {
                    "code": "rate_limited", "message": b, "field": flag.then_some(c), "topic": flag.then_some(d),
                    "retry_after_ms": flag.then_some(n),
                }}),
            ),
        ] {
            remove_nulls(&mut expected);
            prop_assert_eq!(serde_json::from_str::<Value>(&written(&message))?, expected);
        }
    }
}

/// Removes keys with the value `null`: messages omit keys without a value. No payload here is
/// `null`.
fn remove_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, value| !value.is_null());
        members.values_mut().for_each(remove_nulls);
    }
}

/// Returns the JSON of the longest delivery of `message` by a server with the given features. If
/// `from` is `None`, a backend published it.
fn delivery(
    features: Features,
    topic: &str,
    message: &str,
    from: Option<&ClientId>,
    tracestate: &str,
) -> String {
    let has_history = features.contains(Features::HISTORY);
    let traceparent = SpanContext::new(u128::MAX, u64::MAX, true).unwrap().to_string();
    let context = TraceContext::new(Some(traceparent.into()), Some(tracestate.into()));
    written(&ServerMessage::Message {
        topic: Topic::parse(topic).unwrap().as_str(),
        message: raw(message),
        from,
        position: has_history.then_some(LONGEST_POSITION),
        prev: has_history.then_some(u64::MAX),
        traceparent: context.traceparent.as_deref(),
        tracestate: context.tracestate.as_deref(),
    })
}

#[test]
fn the_longest_delivery_has_max_delivery_bytes() {
    let (topic, tracestate) =
        ("\"".repeat(Topic::MAX_BYTES), "\\".repeat(TraceContext::MAX_TRACESTATE_BYTES));
    for max_message_bytes in [1, 100, 65_536] {
        let payload = "7".repeat(max_message_bytes as usize);
        for features in [Features::NONE, Features::HISTORY] {
            let max_delivery_bytes = ServerMessage::max_delivery_bytes(max_message_bytes, features);
            let longest = delivery(features, &topic, &payload, None, &tracestate);
            assert_eq!(longest.len() as u64, max_delivery_bytes);
        }
    }
    // The delivery of a client's publish is always shorter, whatever its topic.
    let client_id = ClientId::parse(&"x".repeat(ClientId::MAX_BYTES)).unwrap();
    for topic in ["a", &topic] {
        let mut text = format!(r#"{{"type":"publish","topic":{},"message":7"#, json!(topic));
        text.push_str(&"7".repeat(65_536 - text.len() - 1));
        text.push('}');
        assert_eq!(text.len(), 65_536);
        let message = ClientMessage::parse(&text).unwrap();
        let Command::Publish { message, .. } = message.command else { panic!("it publishes") };
        for features in [Features::NONE, Features::HISTORY] {
            let length =
                delivery(features, topic, message.as_str(), Some(&client_id), &tracestate).len() as u64;
            assert!(length < ServerMessage::max_delivery_bytes(65_536, features), "{length}");
        }
    }
    assert_eq!(ServerMessage::max_delivery_bytes(u64::MAX, Features::HISTORY), u64::MAX);
}

#[test]
fn a_history_reply_with_any_one_message_is_shorter_than_the_longest_delivery() {
    let client_id = ClientId::parse(&"x".repeat(ClientId::MAX_BYTES)).unwrap();
    let topic = "\"".repeat(Topic::MAX_BYTES);
    let escaped_id = format!("\"{}\"", "\\u0078".repeat(MessageId::MAX_BYTES));
    // A client's publish has a client ID, and its payload is shorter than that of a backend.
    let overhead = r#"{"type":"publish","topic":,"message":}"#.len() + 2 * Topic::MAX_BYTES + 2;
    for (from, payload) in [(None, 65_536), (Some(&client_id), 65_536 - overhead)] {
        let frame = ServerMessage::Message {
            topic: &topic,
            message: raw(&"7".repeat(payload)),
            from,
            position: Some(LONGEST_POSITION),
            prev: Some(u64::MAX),
            traceparent: None,
            tracestate: None,
        }
        .to_frame();
        let reply = written(&ServerMessage::History {
            id: id(&escaped_id),
            topic: &topic,
            position: Some(LONGEST_POSITION),
            messages: &[EncodedDelivery::parse(frame.as_bytes()).unwrap().data()],
            next: Some(u64::MAX),
        });
        assert!((reply.len() as u64) < ServerMessage::max_delivery_bytes(65_536, Features::HISTORY));
    }
}

#[test]
fn other_messages_are_shorter_than_the_longest_delivery() {
    let client_id = ClientId::parse(&"x".repeat(ClientId::MAX_BYTES)).unwrap();
    let topic = "\"".repeat(Topic::MAX_BYTES);
    let escaped_id = format!("\"{}\"", "\\u0078".repeat(MessageId::MAX_BYTES));
    let limits = WelcomeLimits {
        max_message_bytes: u64::MAX,
        max_delivery_bytes: u64::MAX,
        max_subscriptions: u64::MAX,
        ping_interval_ms: u64::MAX,
    };
    let shortest = ServerMessage::max_delivery_bytes(1, Features::NONE);
    for message in [
        ServerMessage::Welcome {
            client_id: &client_id,
            server: "deeperhub-ws",
            version: "100.100.100",
            features: Some(Features::HISTORY),
            server_time: Some(u64::MAX),
            limits,
        },
        ServerMessage::Subscribed { id: id(&escaped_id), topic: &topic, start: LONGEST_START },
        ServerMessage::Gap {
            topic: &topic,
            from: Some(u64::MAX),
            position: LONGEST_POSITION,
            reason: GapReason::Conflated,
        },
        ServerMessage::Position { topic: &topic, position: LONGEST_POSITION },
        ServerMessage::Published {
            id: id(&escaped_id),
            topic: &topic,
            subscribers: u64::MAX,
            position: Some(LONGEST_POSITION),
            cluster: Some(ClusterFault::Unavailable),
        },
        ServerMessage::Error {
            id: id(&escaped_id),
            code: ErrorCode::TooManySubscriptions,
            message: &"x".repeat(200),
            field: Some("exclude_self"),
            topic: Some(&topic),
            retry_after_ms: Some(u64::MAX),
        },
    ] {
        assert!((written(&message).len() as u64) < shortest, "{message:?}");
    }
}
