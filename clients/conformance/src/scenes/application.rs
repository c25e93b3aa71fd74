//! Applications that are slow or fail.

use serde_json::json;

use crate::connection::Connection;
use crate::failure::{Failure, Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::received::Subscribe;
use crate::topic::{Topic, merge};

/// A handler that fails costs only its own call.
pub(super) async fn handler_fails(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.command("subscribe", json!({"as": "chat", "topic": CHAT.name, "fail": [12]})).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    connection.deliver_all(&CHAT, 11..=14).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=14).await?;
    kit.app().expect_error("handler_failed").await?;
    connection.cut();
    let mut connection = kit.recover(14, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// Connects with a handle `slow` whose handler holds, on [`CHAT`] at 10.
async fn held(kit: &mut Kit, max_queue_bytes: u64) -> Result<Connection> {
    kit.connect_with(json!({"max_queue_bytes": max_queue_bytes})).await?;
    kit.command("subscribe", json!({"as": "slow", "topic": CHAT.name, "hold": true})).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("slow").await?;
    Ok(connection)
}

/// Messages wait for a handler that holds, and come one after the other.
pub(super) async fn messages_wait_for_the_handler(kit: &mut Kit) -> Result {
    let mut connection = held(kit, 1 << 20).await?;
    connection.deliver_all(&CHAT, 11..=15).await?;
    kit.app().expect_message("slow", &CHAT, 11).await?;
    kit.settle(&mut connection).await?;
    kit.command("release", json!({"as": "slow", "messages": 1})).await?;
    kit.app().expect_message("slow", &CHAT, 12).await?;
    kit.settle(&mut connection).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    kit.app().expect_messages("slow", &CHAT, 13..=15).await?;
    kit.settle(&mut connection).await
}

/// A handler that holds does not hold other handles.
pub(super) async fn slow_handler_holds_nobody_else(kit: &mut Kit) -> Result {
    let other = Topic::new("chat.2", "x9");
    let mut connection = held(kit, 1 << 20).await?;
    kit.subscribe("other", other.name).await?;
    connection.serve_subscribes(&[other.at(0, json!({}))]).await?;
    kit.app().expect_live("other").await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    connection.deliver_all(&other, 1..=3).await?;
    kit.app().expect_messages("other", &other, 1..=3).await?;
    kit.app().expect_message("slow", &CHAT, 11).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    kit.app().expect_message("slow", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// Messages that wait survive a cut, and are not asked for again.
pub(super) async fn waiting_messages_survive_a_cut(kit: &mut Kit) -> Result {
    let mut connection = held(kit, 1 << 20).await?;
    connection.deliver_all(&CHAT, 11..=13).await?;
    kit.app().expect_message("slow", &CHAT, 11).await?;
    kit.settle(&mut connection).await?;
    connection.cut();
    let mut connection = kit.recover(13, 1).await?;
    connection.deliver(&CHAT, 14).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    for offset in 12..=14 {
        kit.app().expect_offset("slow", offset).await?;
    }
    kit.settle_leaving(&mut connection, "slow").await
}

/// A handle that ends drops what waits for it.
pub(super) async fn unsubscribe_drops_what_waits(kit: &mut Kit) -> Result {
    let mut connection = held(kit, 1 << 20).await?;
    connection.deliver_all(&CHAT, 11..=13).await?;
    kit.app().expect_message("slow", &CHAT, 11).await?;
    kit.settle(&mut connection).await?;
    kit.command("unsubscribe", json!({"as": "slow"})).await?;
    connection.expect("unsubscribe").await?;
    kit.command("release", json!({"as": "slow"})).await?;
    kit.app().expect_ended("slow", "unsubscribed").await?;
    kit.settle(&mut connection).await
}

/// A full queue of a topic with history: what does not fit is asked for again, and nothing is lost.
pub(super) async fn full_queue_with_history(kit: &mut Kit) -> Result {
    let mut connection = held(kit, 4096).await?;
    let padding = json!({"message": {"n": 0, "padding": "x".repeat(200)}});
    for offset in 11..=60 {
        connection.deliver_with(&CHAT, offset, padding.clone()).await?;
    }
    kit.app().expect_offset("slow", 11).await?;
    kit.await_echo(&mut connection).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    // The old subscription may be ended before.
    let mut received = connection.receive().await?;
    if received.kind == "unsubscribe" {
        if received.id.is_some() {
            connection.reply(&received, "unsubscribed", json!({"topic": CHAT.name})).await?;
        }
        received = connection.receive().await?;
    }
    let subscribe = connection.as_subscribe(received)?;
    recover_full_queue(kit, &mut connection, &subscribe).await
}

/// Recovers the handle `slow`, whose queue was full somewhere between the messages 12 and 59. It gets
/// the messages up to 60.
pub(super) async fn recover_full_queue(
    kit: &mut Kit,
    connection: &mut Connection,
    subscribe: &Subscribe,
) -> Result {
    let entry = subscribe.entry(CHAT.name)?;
    let from = entry["recover"]["offset"].as_u64().unwrap_or_default();
    ensure((12..60).contains(&from), || format!("expected recover from a message between 12 and 59, not {entry}"))?;
    subscribe.expect_recover(&CHAT, from)?;
    let answer = CHAT.at(from, json!({"recovered": true, "replay": 60 - from}));
    connection.reply_subscribed(subscribe, &[answer]).await?;
    let mut next = 12;
    for offset in from + 1..=60 {
        connection.deliver(&CHAT, offset).await?;
        // The application keeps up, so that its queue is not full again.
        while next <= offset {
            kit.app().expect_offset("slow", next).await?;
            next += 1;
        }
    }
    kit.settle_leaving(connection, "slow").await
}

/// A full queue without history: the application learns that messages were dropped.
pub(super) async fn full_queue_without_history(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"max_queue_bytes": 4096})).await?;
    kit.command("subscribe", json!({"as": "slow", "topic": "news", "hold": true})).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&["news"]).await?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "news"})]).await?;
    kit.app().expect_live("slow").await?;
    for number in 0..50 {
        connection.deliver_plain("news", json!({"n": number, "padding": "x".repeat(200)})).await?;
    }
    kit.await_echo(&mut connection).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    expect_dropped(kit, "slow").await?;
    connection.deliver_plain("news", json!({"n": 50})).await?;
    kit.app().expect_payload("slow", "news", json!({"n": 50})).await?;
    kit.settle_leaving(&mut connection, "slow").await
}

/// A full queue of a pattern, too, although its messages have positions.
pub(super) async fn full_queue_of_a_pattern(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"max_queue_bytes": 4096})).await?;
    kit.command("subscribe", json!({"as": "slow", "topic": "chat.*", "hold": true})).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&["chat.*"]).await?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "chat.*"})]).await?;
    kit.app().expect_live("slow").await?;
    for offset in 0..50 {
        let data = merge(CHAT.delivery(offset + 1), json!({"message": {"n": offset, "padding": "x".repeat(200)}}));
        connection.send("message", data).await?;
    }
    kit.await_echo(&mut connection).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    expect_dropped(kit, "slow").await?;
    kit.settle_leaving(&mut connection, "slow").await
}

/// Expects some messages with rising numbers from 0, then a gap `dropped`.
async fn expect_dropped(kit: &mut Kit, handle: &str) -> Result {
    let mut next = 0;
    loop {
        let event = kit.app().next_message_or_gap(handle).await?;
        if event["event"] == "gap" {
            ensure(event["reason"] == "dropped", || format!("expected a gap \"dropped\", not {event}"))?;
            return ensure((1..50).contains(&next), || format!("expected some messages before the gap, not {next}"));
        }
        if event["message"]["n"] != next {
            return Err(Failure::new(format!("expected message {next} or a gap \"dropped\", not {event}")));
        }
        next += 1;
    }
}
