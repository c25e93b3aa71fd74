//! Parses arbitrary text as a message and compares the result with that of serde_json.

#![no_main]

use std::collections::BTreeMap;

use deeperhub_protocol::message::{
    ClientMessage, Command, EncodedDelivery, HistoryRequest, HistoryStart, ServerMessage, StreamMessage,
    SubscribeRequest, SubscribedEntry, SubscriptionStart, check_server_object,
};
use deeperhub_protocol::{ClientId, Epoch, ErrorCode, Position, RawJson, Subscription, Topic};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let value = serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get);
    scanned(text, value);
    parsed(text, value);
    if let Ok(object) = check_server_object(text) {
        assert_eq!(Some(object.as_str()), value);
        let tree = serde_json::from_str::<Value>(text).ok();
        let is_reserved = |tree: Value| ServerMessage::TYPES.iter().any(|name| tree["type"] == *name);
        assert!(!tree.is_some_and(is_reserved), "clients can trust the server's types");
    }
    if let Ok(subscription) = Subscription::parse(text) {
        assert!(subscription.covers(&subscription));
        assert!(!text.is_empty() && text.len() <= 255 && !text.contains(char::is_whitespace));
    }
});

fn scanned(text: &str, value: Option<&str>) {
    match RawJson::parse(text) {
        Ok(ours) => assert_eq!(Some(ours.as_str()), value),
        Err(error) => {
            let deep = error.code == ErrorCode::InvalidMessage;
            assert!(deep || error.code == ErrorCode::InvalidJson);
            assert_eq!(deep, value.is_some(), "{error}");
            assert!(!deep || depth(text) > RawJson::MAX_NESTING, "{error}");
        }
    }
}

fn parsed(text: &str, value: Option<&str>) {
    // serde_json rejects some valid JSON: numbers out of range, unpaired surrogates.
    let tree = serde_json::from_str::<Value>(text).ok();
    let message = match ClientMessage::parse(text) {
        Ok(message) => message,
        Err(error) => {
            let not_json = error.code == ErrorCode::InvalidJson;
            assert_eq!(not_json, value.is_none(), "{error}");
            written(&error.to_message());
            return;
        }
    };
    assert!(value.is_some());
    if let Some(tree) = &tree {
        assert_eq!(tree["type"], Command::TYPES[message.command.index()]);
        assert_eq!(tree.get("id").is_some(), message.id.is_some());
    }
    let field = |name: &str| {
        let tree = tree.as_ref()?;
        tree["data"].get(name).or_else(|| tree.get(name)).cloned()
    };
    let same = |ours: &str, name: &str| field(name).is_none_or(|theirs| theirs == ours);
    let id = message.id;
    match message.command {
        Command::Echo { data } => {
            let echo = written(&ServerMessage::Echo { id, data });
            assert!(echo.ends_with(&format!("\"data\":{data}}}")), "the payload's bytes are kept");
        }
        Command::Subscribe(request) => {
            assert!(same(request.subscription.as_str(), "topic"));
            if let Some(tree) = &tree {
                requested(&request, &tree["data"]);
            }
            let start = SubscriptionStart::default();
            written(&ServerMessage::Subscribed { id, topic: request.subscription.as_str(), start });
        }
        Command::SubscribeList { topics } => {
            let list = tree.as_ref().map(|tree| tree["data"]["topics"].as_array().expect("a list"));
            assert_eq!(topics.entries().count(), topics.len());
            assert!(list.is_none_or(|list| list.len() == topics.len()));
            let mut replies = Vec::new();
            for (at, entry) in topics.entries().enumerate() {
                if let (Ok(request), Some(list)) = (&entry.request, list) {
                    assert_eq!(list[at]["topic"], request.subscription.as_str());
                    requested(request, &list[at]);
                }
                let result = entry.request.map(|_| SubscriptionStart::default()).map_err(Into::into);
                replies.push(SubscribedEntry { topic: entry.topic, result });
            }
            written(&ServerMessage::SubscribedList { id, topics: &replies });
        }
        Command::Unsubscribe { subscription } => {
            assert!(same(subscription.as_str(), "topic"));
            written(&ServerMessage::Unsubscribed { id, topic: subscription.as_str() });
        }
        Command::History(request) => {
            assert!(same(request.topic.as_str(), "topic"));
            assert!((1..=HistoryRequest::MAX_LIMIT).contains(&request.limit));
            if let Some(tree) = &tree {
                let data = &tree["data"];
                assert_eq!(u64::from(request.limit), data["limit"].as_u64().unwrap_or(100));
                assert_eq!(request.order.as_str(), data["order"].as_str().unwrap_or("asc"));
                let from = match request.from {
                    None => Value::Null,
                    Some(HistoryStart::Offset(offset)) => offset.into(),
                    Some(HistoryStart::FromEnd(number)) => 0i64.wrapping_sub_unsigned(number).into(),
                };
                assert_eq!(data["from"], from);
            }
        }
        Command::Publish { topic, message, exclude_self, once } => {
            assert!(same(topic.as_str(), "topic"));
            assert!(once.as_ref().is_none_or(|once| once.len() <= Command::MAX_ONCE_BYTES));
            if let Some(tree) = &tree {
                assert_eq!(tree["data"]["exclude_self"] == true, exclude_self);
                assert_eq!(tree["data"]["once"].as_str(), once.as_deref());
            }
            let delivery = ServerMessage::Message {
                topic: topic.as_str(),
                message,
                from: None,
                position: None,
                prev: None,
                traceparent: None,
                tracestate: None,
            };
            let delivery = written(&delivery);
            assert!(
                delivery.ends_with(&format!("\"message\":{message}}}}}")),
                "the payload's bytes are kept"
            );
            assert!(depth(&delivery) <= deeperhub_protocol::message::MAX_NESTING);
            sealed(&topic, message, text);
        }
        Command::Authenticate { token } => assert!(same(&token, "token")),
        Command::Ping => {
            written(&ServerMessage::Pong { id });
        }
    }
}

/// Compares the options of a subscription with serde_json's tree of the same object.
fn requested(request: &SubscribeRequest<'_>, tree: &Value) {
    assert_eq!(request.history, tree["history"].as_u64().unwrap_or(0));
    assert_eq!(request.recover.is_none(), tree["recover"].is_null());
    if let Some(recover) = request.recover {
        let tree = &tree["recover"];
        assert_eq!(tree["offset"], recover.offset);
        assert_eq!(tree["time"].as_u64(), recover.time);
        assert_eq!(tree["partial"] == true, recover.partial);
        let epoch = tree["epoch"].as_str().expect("a text");
        assert_eq!(Epoch::parse(epoch), recover.epoch);
    }
}

/// Compares a delivery that is encoded in two steps with one that is encoded at once, and reads its
/// parts. The numbers depend on the length of `text`.
fn sealed(topic: &Topic<'_>, message: RawJson<'_>, text: &str) {
    let number = (text.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (epoch, offset) = (Epoch::from_bits(number), number >> (text.len() % 64));
    let prev = (offset % 2 == 0).then_some(offset / 2);
    let traceparent = (offset % 3 == 0).then_some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let (topic, tracestate) = (topic.as_str(), Some(topic.as_str()));
    let client_id = ClientId::parse("victim").expect("it is an ID");
    for from in [None, Some(&client_id)] {
        let stream = StreamMessage { topic, message, from, time: number, traceparent, tracestate };
        let frame = stream.encode().excluding_publisher().seal(epoch, offset, prev);
        assert_eq!(frame.keep().is_for(&client_id), from.is_none());
        let delivery = |prev| ServerMessage::Message {
            topic,
            message,
            from,
            position: Some(Position { epoch, offset, time: number }),
            prev,
            traceparent,
            tracestate,
        };
        let whole = written(&delivery(prev));
        assert_eq!(frame.as_bytes(), delivery(prev).to_frame().as_bytes());
        let encoded = EncodedDelivery::parse(frame.as_bytes()).expect("it is a delivery");
        let members = serde_json::from_str::<BTreeMap<&str, &RawValue>>(&whole).expect("it is an object");
        assert_eq!(encoded.data().as_str(), members["data"].get());
        assert_eq!((encoded.payload(), encoded.from()), (message, from.map(ClientId::as_str)));
        let changed = encoded.with_prev(number).expect("it has a position");
        assert_eq!(changed.as_bytes(), delivery(Some(number)).to_frame().as_bytes());
    }
}

/// Returns the JSON of the message's frame.
fn written(message: &ServerMessage<'_>) -> String {
    let frame = message.to_frame();
    let mut out = Vec::new();
    message.write_frame(&mut out);
    assert_eq!(frame.as_bytes(), out);
    let header = match out[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let text = String::from_utf8(out.split_off(header)).expect("a text frame is UTF-8");
    serde_json::from_str::<&RawValue>(&text).expect("a message is JSON");
    text
}

/// Returns the nesting depth of a valid JSON text.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest, mut in_string, mut escaped) = (0, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                open += 1;
                deepest = deepest.max(open);
            }
            b']' | b'}' if !in_string => open -= 1,
            _ => {}
        }
    }
    deepest
}
