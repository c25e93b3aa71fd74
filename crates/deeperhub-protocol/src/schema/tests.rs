//! Checks that messages agree with their schema.

use serde_json::{Value, json};

use crate::message::{
    ClientMessage, ClusterFault, Command, Features, ServerMessage, SubscribedEntry, SubscribedError,
    SubscriptionStart, WelcomeLimits,
};
use crate::{ClientId, CloseCode, CloseReason, Epoch, ErrorCode, GapReason, NotRecovered, Position, RawJson};

/// Returns the first violation of `schema`, with the keywords that this crate's schemas use. Panics
/// at an unknown keyword.
fn violation(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    let at_fault = |what: &str| Some(format!("{value} violates {what} of {schema}"));
    let size = |value: &Value| value.as_str().map(|text| text.chars().count() as u64);
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        let rules = || rule.as_array().expect("a list");
        let matching = || rules().iter().filter(|rule| violation(root, rule, value).is_none()).count();
        let is_valid = match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" | "default" => true,
            "$ref" => {
                let target =
                    rule.as_str().and_then(|text| text.strip_prefix('#')).expect("a local reference");
                let target = root.pointer(target).unwrap_or_else(|| panic!("{rule} has no target"));
                if let Some(fault) = violation(root, target, value) {
                    return Some(fault);
                }
                true
            }
            "anyOf" => matching() > 0,
            "oneOf" => matching() == 1,
            "const" => value == rule,
            "enum" => rules().contains(value),
            "type" => {
                let has_type = |name: &Value| match name.as_str().expect("a name") {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("unknown type {other}"),
                };
                rule.as_array().map_or_else(|| has_type(rule), |names| names.iter().any(has_type))
            }
            "required" => value.as_object().is_none_or(|object| {
                rules().iter().all(|key| object.contains_key(key.as_str().expect("a key")))
            }),
            "dependentRequired" => value.as_object().is_none_or(|object| {
                let rule = rule.as_object().expect("an object");
                rule.iter().filter(|(key, _)| object.contains_key(*key)).all(|(_, needed)| {
                    let needed = needed.as_array().expect("a list");
                    needed.iter().all(|key| object.contains_key(key.as_str().expect("a key")))
                })
            }),
            "properties" => {
                let rule = rule.as_object().expect("an object");
                for (key, rule) in rule {
                    if let Some(fault) = value.get(key).and_then(|value| violation(root, rule, value)) {
                        return Some(fault);
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = schema["properties"].as_object().expect("`properties`");
                value.as_object().is_none_or(|object| object.keys().all(|key| known.contains_key(key)))
            }
            "items" => {
                let items = value.as_array().into_iter().flatten();
                if let Some(fault) = items.filter_map(|item| violation(root, rule, item)).next() {
                    return Some(fault);
                }
                true
            }
            "minLength" => size(value).is_none_or(|size| size >= rule.as_u64().expect("a number")),
            "maxLength" => size(value).is_none_or(|size| size <= rule.as_u64().expect("a number")),
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().expect("a number")),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().expect("a number")),
            // The patterns are of topics, client IDs and epochs, which the types check.
            "pattern" => true,
            other => panic!("unknown keyword {other}"),
        };
        if !is_valid {
            return at_fault(keyword);
        }
    }
    None
}

fn check(features: Features, side: &str, value: &Value) -> Option<String> {
    let root = super::messages(features);
    violation(&root, &json!({ "$ref": format!("#/$defs/{side}") }), value)
}

fn raw(text: &str) -> RawJson<'_> {
    RawJson::parse(text).unwrap()
}

fn tree(message: &ServerMessage<'_>) -> Value {
    let frame = message.to_frame();
    serde_json::from_str(crate::frame::text_payload(frame.as_bytes()).unwrap()).unwrap()
}

#[test]
fn server_messages_agree_with_the_schema() {
    let client_id = ClientId::parse("n1-42").unwrap();
    let limits = WelcomeLimits {
        max_message_bytes: 1,
        max_delivery_bytes: 2,
        max_subscriptions: 3,
        ping_interval_ms: 4,
    };
    let position = Position { epoch: Epoch::from_bits(77), offset: u64::MAX, time: 1_796_000_000_123 };
    let reason = CloseReason::new(CloseCode::GoingAway, "restart");
    let start = |position, recovery, replay| SubscriptionStart { position, recovery, replay };
    let (none, some) = (SubscriptionStart::default(), start(Some(position), Some(Ok(())), 3));
    let failed = NotRecovered::ALL.iter().map(|reason| start(None, Some(Err(*reason)), 0));
    let error = SubscribedError {
        code: ErrorCode::Unavailable,
        message: "no".into(),
        field: Some("topic"),
        retry_after_ms: Some(1),
    };
    let entries = [
        SubscribedEntry { topic: raw(r#""a""#), result: Ok(some) },
        SubscribedEntry { topic: raw(r#""a..""#), result: Err(error) },
    ];
    let data = r#"{"topic":"a","message":1,"from":"c","time":1,"epoch":"k3J9aQx2","offset":1,"prev":0}"#;
    let messages = [raw(data)];
    let subscribed = |start| ServerMessage::Subscribed { id: None, topic: "a.*", start };
    let published = |position| ServerMessage::Published {
        id: None,
        topic: "a",
        subscribers: 1,
        position,
        cluster: Some(ClusterFault::TooLarge),
    };
    let delivery = |position, prev| ServerMessage::Message {
        topic: "a",
        message: raw("{}"),
        from: Some(&client_id),
        position,
        prev,
        traceparent: Some("00-1"),
        tracestate: None,
    };
    let error = |code| ServerMessage::Error {
        id: None,
        code,
        message: "no",
        field: Some("x"),
        topic: Some("a"),
        retry_after_ms: Some(1),
    };
    let welcome = |features, server_time| ServerMessage::Welcome {
        client_id: &client_id,
        server: "s",
        version: "v",
        features,
        server_time,
        limits,
    };
    let gap = |from, reason| ServerMessage::Gap { topic: "a", from, position, reason };
    let history =
        |position, next| ServerMessage::History { id: None, topic: "a", position, messages: &messages, next };

    // Messages of every server, then those of a server with history.
    let mut both = vec![
        subscribed(none),
        published(None),
        delivery(None, None),
        ServerMessage::Echo { id: None, data: raw("1") },
        ServerMessage::Unsubscribed { id: None, topic: "a" },
        ServerMessage::Authenticated { id: None, user: "u", expires_at: 1 },
        ServerMessage::Pong { id: None },
        ServerMessage::Goodbye { reason: &reason, retry_after_ms: 1 },
    ];
    both.extend(
        ErrorCode::ALL.iter().filter(|code| !super::streams::needs_history(**code)).map(|code| error(*code)),
    );
    let mut with_history = vec![
        welcome(Some(Features::HISTORY), Some(1)),
        subscribed(some),
        subscribed(start(Some(position), None, 20)),
        ServerMessage::SubscribedList { id: None, topics: &entries },
        published(Some(position)),
        delivery(Some(position), None),
        delivery(Some(position), Some(7)),
        ServerMessage::Position { topic: "a", position },
        gap(None, GapReason::Epoch),
        history(None, None),
        history(Some(position), Some(1)),
        error(ErrorCode::TooManyTopics),
        error(ErrorCode::Unavailable),
    ];
    with_history.extend(failed.map(subscribed));
    with_history.extend(GapReason::ALL.iter().map(|reason| gap(Some(1), *reason)));

    assert_eq!(check(Features::NONE, "server", &tree(&welcome(None, None))), None);
    for message in both.iter().chain(&with_history) {
        // Backends' messages can have any content, so check the definition of the type.
        let side = format!("server.{}", message.type_name());
        assert_eq!(check(Features::HISTORY, &side, &tree(message)), None);
    }
    for message in &both {
        let side = format!("server.{}", message.type_name());
        assert_eq!(check(Features::NONE, &side, &tree(message)), None);
    }
    let without = super::messages(Features::NONE);
    for message in &with_history {
        let definition = &without["$defs"][format!("server.{}", message.type_name())];
        let offered = !definition.is_null() && violation(&without, definition, &tree(message)).is_none();
        assert!(!offered, "a server without history does not send {message:?}");
    }
}

#[test]
fn a_position_is_complete() {
    for key in ["time", "epoch", "offset"] {
        let mut message = json!({"type": "published", "data": {
            "topic": "a", "subscribers": 1, "time": 1, "epoch": "k3J9aQx2", "offset": 2,
        }});
        assert_eq!(check(Features::HISTORY, "server.published", &message), None);
        message["data"].as_object_mut().unwrap().remove(key);
        assert!(check(Features::HISTORY, "server.published", &message).is_some(), "without {key}");
    }
}

/// Compares the schema of client messages with the parser.
#[test]
fn the_parser_accepts_what_the_schema_describes() {
    for (data, is_valid) in [
        (json!({"topic": "a"}), true),
        (
            json!({"topic": "a", "recover": {"epoch": "k3J9aQx2", "offset": 1, "time": 2, "partial": true}}),
            true,
        ),
        (json!({"topic": "a", "recover": null, "history": null, "topics": null}), true),
        (json!({"topic": "a", "recover": {"epoch": "x", "offset": 0, "time": null}, "history": 20}), true),
        (json!({"topics": []}), true),
        (json!({"topics": [{"topic": "a"}, {"topic": "b", "history": 1}], "topic": null}), true),
        (json!({"topic": "a", "history": -1}), false),
        (json!({"topic": "a", "history": "1"}), false),
        (json!({"topic": "a", "recover": {"epoch": "", "offset": 0}}), false),
        (json!({"topic": "a", "recover": {"offset": 0}}), false),
        (json!({"topic": "a", "recover": {"epoch": "a", "offset": 0.5}}), false),
        (json!({"topic": "a", "recover": []}), false),
        (json!({"topics": [{"topic": 1}]}), false),
        (json!({"topics": [], "topic": "a"}), false),
        (json!({"topics": {}}), false),
    ] {
        assert_agreement("subscribe", &data, is_valid);
    }
    for (data, is_valid) in [
        (json!({"topic": "a", "message": 1, "once": "x"}), true),
        (json!({"topic": "a", "message": 1, "once": null}), true),
        (json!({"topic": "a", "message": 1, "once": "x".repeat(65)}), false),
        (json!({"topic": "a", "message": 1, "once": 1}), false),
    ] {
        assert_agreement("publish", &data, is_valid);
    }
    for (data, is_valid) in [
        (json!({"topic": "a"}), true),
        (json!({"topic": "a", "from": -1, "limit": 1000, "order": "desc"}), true),
        (json!({"topic": "a", "from": u64::MAX, "limit": 1, "order": "asc"}), true),
        (json!({"topic": "a", "from": i64::MIN, "limit": null, "order": null}), true),
        (json!({"topic": "a", "from": "1"}), false),
        (json!({"topic": "a", "limit": 0}), false),
        (json!({"topic": "a", "limit": 1001}), false),
        (json!({"topic": "a", "order": "up"}), false),
        (json!({}), false),
    ] {
        assert_agreement("history", &data, is_valid);
    }
    let without = super::messages(Features::NONE);
    assert!(without["$defs"]["client.history"].is_null());
    assert!(without["$defs"]["client.publish"]["properties"]["data"]["properties"]["once"].is_null());
}

#[track_caller]
fn assert_agreement(kind: &str, data: &Value, is_valid: bool) {
    let message = json!({"type": kind, "data": data});
    let fault = check(Features::HISTORY, "client", &message);
    assert_eq!(fault.is_none(), is_valid, "{message}: {fault:?}");
    let text = message.to_string();
    let parsed = ClientMessage::parse(&text).map(|message| message.command.index());
    assert_eq!(parsed.is_ok(), is_valid, "{message}: {parsed:?}");
    if let Ok(index) = parsed {
        assert_eq!(Command::TYPES[index], kind);
    }
}

#[test]
fn the_asyncapi_document_has_the_messages_of_its_features() {
    for (features, is_offered) in [(Features::NONE, false), (Features::HISTORY, true)] {
        let document = super::asyncapi(features);
        for name in ["client.history", "server.gap", "server.position", "server.history"] {
            assert_eq!(document["components"]["messages"].get(name).is_some(), is_offered, "{name}");
            assert_eq!(document["components"]["schemas"].get(name).is_some(), is_offered, "{name}");
        }
        assert_eq!(document["operations"].get("history").is_some(), is_offered);
        let unsolicited = document["operations"]["deliver"]["messages"].to_string();
        for name in ["server.gap", "server.position"] {
            assert_eq!(unsolicited.contains(name), is_offered, "{name}");
        }
    }
}
