//! Messages that clients mishandle easily: long, in parts, empty, in other scripts.

use serde_json::{Value, json};

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::topic::Topic;

/// Values that are false in some languages are messages as any other.
pub(super) async fn empty_values_are_delivered(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let values = [json!(null), json!(0), json!(false), json!(""), json!([]), json!({})];
    for (offset, value) in (11..).zip(&values) {
        connection.deliver_with(&CHAT, offset, json!({"message": value})).await?;
    }
    for (offset, value) in (11_u64..).zip(values) {
        let event = kit.app().expect_payload("chat", CHAT.name, value).await?;
        ensure(event["offset"] == offset, || format!("expected offset {offset}, but the application saw {event}"))?;
    }
    kit.settle(&mut connection).await
}

/// A message without `from` was published by a backend.
pub(super) async fn message_of_a_backend(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let data = CHAT.at(11, json!({"message": "from a backend"}));
    connection.send("message", data).await?;
    let event = kit.app().expect_payload("chat", CHAT.name, json!("from a backend")).await?;
    ensure(event.get("from").is_none_or(Value::is_null), || format!("expected no from, but the application saw {event}"))?;
    connection.deliver(&CHAT, 12).await?;
    let event = kit.app().expect_payload("chat", CHAT.name, Topic::payload(12)).await?;
    ensure(event["from"] == "n1.0-1-2", || format!("expected from n1.0-1-2, but the application saw {event}"))
}

/// Topics and payloads in any script.
pub(super) async fn other_scripts(kit: &mut Kit) -> Result {
    let topic = Topic::new("žluťoučký.кот.🦆", "ß1");
    kit.connect().await?;
    kit.subscribe("chat", topic.name).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[topic.name]).await?;
    connection.reply_subscribed(&subscribe, &[topic.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    let message = json!({"text": "שלום \u{202e}عالم 👩‍👩‍👧 \u{2028}\u{0}\u{fffd}"});
    connection.deliver_with(&topic, 11, json!({"message": message})).await?;
    kit.app().expect_payload("chat", topic.name, message).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    connection.expect_subscribe(&[topic.name]).await?.expect_recover(&topic, 11)
}

/// Offsets are numbers up to 2^53 - 1.
pub(super) async fn large_offsets(kit: &mut Kit) -> Result {
    const LARGE: u64 = (1 << 53) - 10;
    // The time of these messages would be too large for a client in JavaScript.
    let at = |offset: u64, more: Value| {
        let position = json!({"topic": CHAT.name, "epoch": CHAT.epoch, "offset": offset, "time": 5});
        crate::topic::merge(position, more)
    };
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[at(LARGE, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    for offset in [LARGE + 1, LARGE + 1, LARGE + 2] {
        connection.send("message", at(offset, json!({"message": 1}))).await?;
    }
    kit.app().expect_offset("chat", LARGE + 1).await?;
    kit.app().expect_offset("chat", LARGE + 2).await?;
    kit.settle(&mut connection).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    let entry = subscribe.entry(CHAT.name)?;
    ensure(entry["recover"]["offset"] == LARGE + 2, || format!("expected recover from {}, not {entry}", LARGE + 2))
}

/// A delivery as long as `welcome` says that it may be.
pub(super) async fn long_delivery(kit: &mut Kit) -> Result {
    const LENGTH: usize = 3 << 20;
    kit.connect_with(json!({"max_queue_bytes": 16 << 20})).await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.accept().await?;
    connection.welcome_with(json!({}), json!({"max_delivery_bytes": 4 << 20})).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    let message = Value::from("0123456789abcdef".repeat(LENGTH / 16));
    connection.deliver_with(&CHAT, 11, json!({"message": message})).await?;
    connection.deliver(&CHAT, 12).await?;
    let event = kit.app().next_message_or_gap("chat").await?;
    ensure(event["message"] == message, || "expected the long message unchanged".to_owned())?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// A message in several frames, with a ping between them.
pub(super) async fn message_in_parts(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let text = json!({"type": "message", "data": CHAT.delivery(11)}).to_string();
    let (first, rest) = text.as_bytes().split_at(50);
    let (second, third) = rest.split_at(1);
    for (opcode, part) in [(0x01, first), (0x89, &b"hi"[..]), (0x00, second), (0x80, third)] {
        let mut frame = vec![opcode];
        // Lengths over 125 stand in two more bytes.
        match u8::try_from(part.len()) {
            Ok(length) if length < 126 => frame.push(length),
            _ => {
                frame.push(126);
                frame.extend_from_slice(&u16::try_from(part.len()).unwrap_or_default().to_be_bytes());
            }
        }
        frame.extend_from_slice(part);
        connection.send_bytes(&frame).await?;
    }
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.settle(&mut connection).await
}

/// Keys may stand in any order, with white space between them.
pub(super) async fn json_in_another_form(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let text = " {\n\t\"data\" : { \"offset\": 11, \"message\": {\"n\":11}, \"epoch\":\"e1\",\r\n \"from\": \"n1.0-1-2\", \
                \"time\": 1796000000011, \"topic\":\"\\u0063hat.1\" }, \"type\":\"me\\u0073sage\" } ";
    connection.send_text(text).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.settle(&mut connection).await
}

/// A welcome without limits is enough, as of another version of the server.
pub(super) async fn welcome_without_limits(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.accept().await?;
    connection.send("welcome", json!({"client_id": "n1.0-1-2", "server": "deeperhub-ws", "version": "9.0.0"})).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await
}
