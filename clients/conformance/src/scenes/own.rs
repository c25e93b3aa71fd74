//! Publishers that exclude themselves: their own messages are holes that `published` fills.

use serde_json::json;

use super::order::expect_resubscribe;
use crate::connection::Connection;
use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::received::Received;

/// Lets the application publish for all but itself.
pub(super) async fn publish_excluded(kit: &mut Kit, connection: &mut Connection) -> Result<Received> {
    let keys = json!({"as": "post", "topic": CHAT.name, "message": "mine", "exclude_self": true});
    kit.command("publish", keys).await?;
    let publish = connection.expect_publish(CHAT.name, json!("mine")).await?;
    ensure(publish.data["exclude_self"] == true, || {
        format!("expected a publish with exclude_self, not {}", publish.data)
    })?;
    Ok(publish)
}

/// The answer fills the hole before the next delivery.
pub(super) async fn published_fills_the_hole(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await?;
    connection.deliver(&CHAT, 12).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// The next delivery overtakes the answer, and waits for it.
pub(super) async fn delivery_waits_for_published(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.deliver_all(&CHAT, 12..=13).await?;
    kit.settle(&mut connection).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await?;
    kit.app().expect_messages("chat", &CHAT, 12..=13).await?;
    kit.settle(&mut connection).await
}

/// The answer comes before deliveries of lower offsets.
pub(super) async fn published_overtakes_deliveries(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.reply_published(&publish, &CHAT, 13).await?;
    kit.app().expect_published("post", 13).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    connection.deliver(&CHAT, 14).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    kit.app().expect_message("chat", &CHAT, 14).await?;
    kit.settle(&mut connection).await
}

/// A recovery after an own message starts before or behind it, from a position that is whole.
pub(super) async fn position_around_an_own_message(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    let from = subscribe.entry(CHAT.name)?["recover"]["offset"].as_u64().unwrap_or_default();
    ensure((10..=11).contains(&from), || format!("expected recover from 10 or 11, not {from}"))?;
    subscribe.expect_recover(&CHAT, from)?;
    let answer = CHAT.at(from, json!({"recovered": true, "replay": 12 - from}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    connection.deliver_all(&CHAT, from + 1..=12).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A replay has the own message nevertheless: it is dropped.
pub(super) async fn own_message_in_a_replay(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.reply_published(&publish, &CHAT, 12).await?;
    kit.app().expect_published("post", 12).await?;
    connection.cut();
    let mut connection = kit.recover(10, 3).await?;
    connection.deliver_all(&CHAT, 11..=14).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 13).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_message("chat", &CHAT, 14).await?;
    kit.settle(&mut connection).await
}

/// A refused publish fills nothing: what waited for it shows a hole.
pub(super) async fn refused_publish_fills_nothing(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.deliver(&CHAT, 12).await?;
    connection.reply_error(&publish, "forbidden", json!({})).await?;
    kit.app().expect_failed("post", "forbidden").await?;
    kit.app().expect_error("hole").await?;
    let mut received = connection.receive().await?;
    if received.kind == "unsubscribe" {
        received = connection.receive().await?;
    }
    let subscribe = connection.as_subscribe(received)?;
    subscribe.expect_recover(&CHAT, 10)?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({"recovered": true, "replay": 2}))]).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// Without `exclude_self`, the own message is a message as any other.
pub(super) async fn own_message_is_delivered(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.publish("post", CHAT.name, json!({"n": 11})).await?;
    let publish = connection.expect_publish(CHAT.name, json!({"n": 11})).await?;
    connection.deliver(&CHAT, 11).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await?;
    connection.deliver(&CHAT, 12).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// The answer comes after the publish failed with `timeout`, and still fills the hole.
pub(super) async fn late_answer_fills_the_hole(kit: &mut Kit) -> Result {
    let mut connection = kit.live_with(json!({"publish_timeout_ms": 100}), 10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    kit.app().expect_failed("post", "timeout").await?;
    connection.deliver(&CHAT, 12).await?;
    kit.settle(&mut connection).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    connection.deliver(&CHAT, 13).await?;
    kit.app().expect_messages("chat", &CHAT, 12..=13).await?;
    kit.settle(&mut connection).await
}

/// The answer is of an epoch that the topic reaches later.
pub(super) async fn published_in_an_epoch_to_come(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    let chat = CHAT.in_epoch("e2");
    connection.reply_published(&publish, &chat, 13).await?;
    kit.app().expect_published("post", 13).await?;
    connection.deliver(&CHAT, 11).await?;
    connection.send("gap", chat.at(12, json!({"reason": "epoch"}))).await?;
    connection.deliver(&chat, 14).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_gap("chat", "epoch", None).await?;
    kit.app().expect_message("chat", &chat, 14).await?;
    kit.settle(&mut connection).await
}

/// Among offsets with holes, a position comes in the place of the own message.
pub(super) async fn position_in_the_place_of_an_own_message(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.send("position", CHAT.at(15, json!({}))).await?;
    // A message of another client: one of its own would wait for the answer.
    connection.deliver_with(&CHAT, 18, json!({"prev": 15, "from": "n1.0-1-3"})).await?;
    kit.app().expect_offset("chat", 18).await?;
    connection.reply_published(&publish, &CHAT, 15).await?;
    kit.app().expect_published("post", 15).await?;
    connection.deliver(&CHAT, 19).await?;
    kit.app().expect_message("chat", &CHAT, 19).await?;
    kit.settle(&mut connection).await
}

/// The position keeps its place among deliveries that wait for the answer to an earlier publish.
pub(super) async fn position_waits_behind_deliveries(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.deliver(&CHAT, 12).await?;
    connection.send("position", CHAT.at(15, json!({}))).await?;
    connection.deliver_with(&CHAT, 18, json!({"prev": 15})).await?;
    kit.settle(&mut connection).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.app().expect_offset("chat", 18).await?;
    kit.settle(&mut connection).await
}

/// The answers to publishes overtake the position, which then leads back.
pub(super) async fn position_behind_own_messages(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    for offset in 11..=12 {
        let publish = publish_excluded(kit, &mut connection).await?;
        connection.reply_published(&publish, &CHAT, offset).await?;
        kit.app().expect_published("post", offset).await?;
    }
    connection.send("position", CHAT.at(11, json!({}))).await?;
    connection.deliver(&CHAT, 13).await?;
    kit.app().expect_message("chat", &CHAT, 13).await?;
    kit.settle(&mut connection).await
}

/// Delivers a message that fills most of a queue of 600 bytes.
async fn deliver_long(connection: &mut Connection, offset: u64) -> Result {
    connection.deliver_with(&CHAT, offset, json!({"padding": "x".repeat(350)})).await
}

/// The queue was full before the epoch of the own message, whose answer comes first: the topic is asked
/// for in this epoch.
pub(super) async fn full_queue_before_a_new_epoch(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"max_queue_bytes": 600})).await?;
    kit.command("subscribe", json!({"as": "slow", "topic": CHAT.name, "hold": true})).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("slow").await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("slow", &CHAT, 11).await?;
    deliver_long(&mut connection, 12).await?;
    deliver_long(&mut connection, 13).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    let chat = CHAT.in_epoch("e2");
    connection.reply_published(&publish, &chat, 14).await?;
    connection.send("gap", chat.at(13, json!({"reason": "epoch"}))).await?;
    kit.app().expect_published("post", 14).await?;
    kit.await_echo(&mut connection).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    let subscribe = expect_resubscribe(&mut connection).await?;
    // A client may know already that its own message comes next.
    let from = subscribe.entry(CHAT.name)?["recover"]["offset"].as_u64().unwrap_or_default();
    ensure((13..=14).contains(&from), || format!("expected recover from 13 or 14, not {from}"))?;
    subscribe.expect_recover(&chat, from)?;
    connection.reply_subscribed(&subscribe, &[chat.at(from, json!({"recovered": true}))]).await?;
    connection.deliver(&chat, 15).await?;
    kit.app().expect_offset("slow", 12).await?;
    kit.app().expect_gap("slow", "epoch", None).await?;
    kit.app().expect_recovered("slow").await?;
    kit.app().expect_message("slow", &chat, 15).await?;
    kit.settle(&mut connection).await
}

/// Deliveries that wait for an answer are limited as a queue is: the client asks for the rest again,
/// and reports no hole.
pub(super) async fn waiting_deliveries_are_limited(kit: &mut Kit) -> Result {
    let mut connection = kit.live_with(json!({"max_queue_bytes": 4096}), 10).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    for offset in 12..=60 {
        connection.deliver_with(&CHAT, offset, json!({"padding": "x".repeat(200)})).await?;
    }
    kit.settle(&mut connection).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("post", 11).await?;
    let subscribe = expect_resubscribe(&mut connection).await?;
    let from = subscribe.entry(CHAT.name)?["recover"]["offset"].as_u64().unwrap_or_default();
    ensure((10..60).contains(&from), || format!("expected recover from 10 to 59, not {from}"))?;
    subscribe.expect_recover(&CHAT, from)?;
    // The own message is not in the replay.
    let first = from.max(11) + 1;
    let answer = CHAT.at(from, json!({"recovered": true, "replay": 61 - first}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    let mut next = 12;
    for offset in first..=60 {
        let prev = if offset == first { from } else { offset - 1 };
        connection.deliver_with(&CHAT, offset, json!({"prev": prev})).await?;
        // The application keeps up, so that its queue is not full again.
        while next <= offset {
            kit.app().expect_offset("chat", next).await?;
            next += 1;
        }
    }
    kit.settle_leaving(&mut connection, "chat").await
}

/// Nothing waits on a topic without history, whose messages have no places.
pub(super) async fn topic_without_history_waits_for_no_answer(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("news", "news").await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[json!({"topic": "news"})]).await?;
    kit.app().expect_live("news").await?;
    let keys = json!({"as": "post", "topic": "news", "message": "mine", "exclude_self": true});
    kit.command("publish", keys).await?;
    let publish = connection.expect_publish("news", json!("mine")).await?;
    for number in 0..3 {
        connection.deliver_plain("news", json!(number)).await?;
        kit.app().expect_payload("news", "news", json!(number)).await?;
    }
    connection.reply(&publish, "published", json!({"topic": "news", "subscribers": 1})).await?;
    kit.app().expect_value("post").await?;
    kit.settle(&mut connection).await
}
