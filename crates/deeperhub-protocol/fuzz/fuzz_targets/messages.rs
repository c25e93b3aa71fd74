//! Parses arbitrary text as a message and compares the result with that of serde_json.

#![no_main]

use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage, check_server_object};
use deeperhub_protocol::{ErrorCode, RawJson, Subscription};
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
        Command::Subscribe { subscription } | Command::Unsubscribe { subscription } => {
            assert!(same(subscription.as_str(), "topic"));
            written(&ServerMessage::Subscribed { id, topic: subscription.as_str() });
        }
        Command::Publish { topic, message, exclude_self } => {
            assert!(same(topic.as_str(), "topic"));
            assert!(tree.is_none_or(|tree| (tree["data"]["exclude_self"] == true) == exclude_self));
            let delivery = ServerMessage::Message {
                topic: topic.as_str(),
                message,
                from: None,
                traceparent: None,
                tracestate: None,
            };
            let delivery = written(&delivery);
            assert!(
                delivery.ends_with(&format!("\"message\":{message}}}}}")),
                "the payload's bytes are kept"
            );
            assert!(depth(&delivery) <= deeperhub_protocol::message::MAX_NESTING);
        }
        Command::Authenticate { token } => assert!(same(&token, "token")),
        Command::Ping => {
            written(&ServerMessage::Pong { id });
        }
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
