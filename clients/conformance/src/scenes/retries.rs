//! Retries that meet reconnects, ends and each other.

use std::time::Instant;

use serde_json::json;

use super::application::recover_full_queue;
use crate::connection::Connection;
use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::received::{Received, Subscribe};
use crate::topic::Topic;

const OTHER: Topic = Topic::new("chat.2", "x9");

/// A subscribe that is refused as a whole is sent again as a whole, with all positions.
pub(super) async fn whole_subscribe_is_rate_limited(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    kit.subscribe("other", OTHER.name).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({})), OTHER.at(3, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    kit.app().expect_live("other").await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let received = connection.expect("subscribe").await?;
    let refused = Instant::now();
    connection.reply_error(&received, "rate_limited", json!({"retry_after_ms": 400})).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name, OTHER.name]).await?;
    kit.expect_not_before(refused, 390)?;
    subscribe.expect_recover(&CHAT, 10)?;
    subscribe.expect_recover(&OTHER, 3)?;
    let more = || json!({"recovered": true, "replay": 0});
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, more()), OTHER.at(3, more())]).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_recovered("other").await?;
    kit.settle(&mut connection).await
}

/// A subscribe that waits for its retry is not sent twice after a reconnect.
pub(super) async fn subscribe_retry_meets_a_reconnect(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let received = connection.expect("subscribe").await?;
    connection.reply_error(&received, "unavailable", json!({"retry_after_ms": 500})).await?;
    kit.await_echo(&mut connection).await?;
    connection.cut();
    let mut connection = kit.recover(10, 0).await?;
    kit.app().expect_recovered("chat").await?;
    connection.refute("expected no second subscribe", 800, |next| next.kind == "subscribe").await?;
    kit.settle(&mut connection).await
}

/// A handle that ends while its subscribe waits for a retry is not subscribed any more.
pub(super) async fn unsubscribe_meets_a_retry(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.open().await?;
    let received = connection.expect("subscribe").await?;
    connection.reply_error(&received, "unavailable", json!({"retry_after_ms": 300})).await?;
    kit.await_echo(&mut connection).await?;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    kit.app().expect_ended("chat", "unsubscribed").await?;
    connection.refute("expected no subscribe", 600, |next| next.kind == "subscribe").await?;
    kit.settle(&mut connection).await
}

/// A publish that waits for its retry is sent once after a reconnect.
pub(super) async fn publish_retry_meets_a_reconnect(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    let first = connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.reply_error(&first, "unavailable", json!({"retry_after_ms": 500})).await?;
    kit.await_echo(&mut connection).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let again = connection.expect_publish(CHAT.name, json!(1)).await?;
    ensure(again.data["once"] == first.data["once"], || {
        format!("expected the same once again: {} and {}", first.data, again.data)
    })?;
    connection.reply_published(&again, &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await?;
    connection.refute("expected no further publish", 800, |next| next.kind == "publish").await
}

/// Closing ends publishes that wait for their retry.
pub(super) async fn close_meets_a_retry(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.reply_error(&publish, "rate_limited", json!({"retry_after_ms": 60_000})).await?;
    kit.await_echo(&mut connection).await?;
    kit.command("close", json!({})).await?;
    kit.app().expect_failed("post", "closed").await?;
    connection.expect_end().await?;
    kit.app().expect_closed().await
}

/// Closing does not wait for a handler that holds.
pub(super) async fn close_meets_a_held_handler(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.command("subscribe", json!({"as": "slow", "topic": CHAT.name, "hold": true})).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("slow").await?;
    connection.deliver_all(&CHAT, 11..=13).await?;
    kit.app().expect_message("slow", &CHAT, 11).await?;
    kit.command("close", json!({})).await?;
    connection.expect_end().await?;
    kit.app().wait_for_state("closed").await?;
    kit.app().expect_closed().await
}

/// `goodbye` is no end yet: messages that follow are handed over.
pub(super) async fn messages_after_goodbye(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.publish("post", OTHER.name, json!(1)).await?;
    let publish = connection.expect_publish(OTHER.name, json!(1)).await?;
    connection.goodbye(1001, true, Some(300)).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    connection.reply_published(&publish, &OTHER, 4).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    kit.app().expect_published("post", 4).await?;
    connection.close(1001).await?;
    let mut connection = kit.recover(12, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// Loses the answer to an own message. Returns the next connection, with the repeated publish and the
/// subscribe that follows it.
async fn repeat_own_publish(kit: &mut Kit) -> Result<(Connection, Received, Subscribe)> {
    let mut connection = kit.live_at(10).await?;
    let keys = json!({"as": "post", "topic": CHAT.name, "message": "mine", "exclude_self": true});
    kit.command("publish", keys).await?;
    connection.expect_publish(CHAT.name, json!("mine")).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let publish = connection.expect_publish(CHAT.name, json!("mine")).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&CHAT, 10)?;
    Ok((connection, publish, subscribe))
}

/// An own message whose answer was lost: the repeated publish says its offset before the replay.
pub(super) async fn lost_answer_of_an_own_message(kit: &mut Kit) -> Result {
    let (mut connection, publish, subscribe) = repeat_own_publish(kit).await?;
    connection.reply_published(&publish, &CHAT, 12).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({"recovered": true, "replay": 3}))]).await?;
    connection.deliver_all(&CHAT, 11..=14).await?;
    kit.app().expect_published("post", 12).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 13).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_message("chat", &CHAT, 14).await?;
    kit.settle(&mut connection).await
}

/// The answer fills a hole while the subscribe is under way, whose replay has the own message.
pub(super) async fn own_message_at_the_start_of_a_replay(kit: &mut Kit) -> Result {
    let (mut connection, publish, subscribe) = repeat_own_publish(kit).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({"recovered": true, "replay": 2}))]).await?;
    connection.deliver_all(&CHAT, 11..=13).await?;
    kit.app().expect_published("post", 11).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_message("chat", &CHAT, 13).await?;
    kit.settle(&mut connection).await
}

/// `gap` and `position` before `subscribed` belong to an earlier subscription, too.
pub(super) async fn positions_before_subscribed_are_dropped(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.send("position", CHAT.at(30, json!({}))).await?;
    connection.send("gap", CHAT.at(40, json!({"from": 31, "to": 40, "reason": "trimmed"}))).await?;
    let error = json!({"code": "unavailable", "message": "not now", "retry_after_ms": 20});
    connection.reply_subscribed(&subscribe, &[json!({"topic": CHAT.name, "error": error})]).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&CHAT, 10)?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({"recovered": true, "replay": 0}))]).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// `history` stays part of the subscribe, for the case that the position is not good.
pub(super) async fn history_is_asked_for_again(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.command("subscribe", json!({"as": "chat", "topic": CHAT.name, "history": 2})).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&CHAT, 10)?;
    let entry = subscribe.entry(CHAT.name)?;
    ensure(entry["history"] == 2, || format!("expected history 2 beside recover, not {entry}"))?;
    let chat = CHAT.in_epoch("e2");
    let answer = chat.at(5, json!({"recovered": false, "reason": "epoch", "replay": 2}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    connection.deliver_all(&chat, 6..=7).await?;
    kit.app().expect_gap("chat", "epoch", None).await?;
    kit.app().expect_messages("chat", &chat, 6..=7).await?;
    kit.app().expect_not_recovered("chat", "epoch").await?;
    kit.settle(&mut connection).await
}

/// A queue that is full when the connection is lost: the recovery starts at its last message.
pub(super) async fn full_queue_meets_a_cut(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"max_queue_bytes": 4096})).await?;
    kit.command("subscribe", json!({"as": "slow", "topic": CHAT.name, "hold": true})).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("slow").await?;
    for offset in 11..=60 {
        let padding = json!({"message": {"n": offset, "padding": "x".repeat(200)}});
        connection.deliver_with(&CHAT, offset, padding).await?;
    }
    kit.app().expect_offset("slow", 11).await?;
    kit.await_echo(&mut connection).await?;
    connection.cut();
    kit.command("release", json!({"as": "slow"})).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    recover_full_queue(kit, &mut connection, &subscribe).await
}
