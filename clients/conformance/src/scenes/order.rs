//! Exactly once and in order: the chain of offsets, gaps and positions.

use serde_json::json;

use crate::connection::Connection;
use crate::failure::Result;
use crate::kit::{CHAT, Kit};

/// A delivery at or below the position is dropped.
pub(super) async fn duplicates_are_dropped(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    for offset in [10, 11, 11, 12, 11, 12, 13, 5, 13] {
        connection.deliver(&CHAT, offset).await?;
    }
    kit.app().expect_messages("chat", &CHAT, 11..=13).await?;
    kit.settle(&mut connection).await
}

/// Many messages in one go keep their order.
pub(super) async fn burst_keeps_its_order(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(0).await?;
    connection.deliver_all(&CHAT, 1..=500).await?;
    kit.app().expect_messages("chat", &CHAT, 1..=500).await?;
    kit.settle(&mut connection).await
}

/// `prev` bridges offsets that are nobody's message.
pub(super) async fn prev_bridges(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver(&CHAT, 11).await?;
    connection.deliver_with(&CHAT, 15, json!({"prev": 11})).await?;
    connection.deliver(&CHAT, 16).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_messages("chat", &CHAT, 15..=16).await?;
    kit.settle(&mut connection).await
}

/// `prev` may lie below the position: the client has more than the server asks for.
pub(super) async fn prev_below_the_position(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver_with(&CHAT, 12, json!({"prev": 8})).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// A gap is handed over in its place among the messages, and moves the position.
pub(super) async fn gap_in_its_place(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver(&CHAT, 11).await?;
    connection.send("gap", CHAT.at(20, json!({"from": 12, "to": 20, "reason": "trimmed"}))).await?;
    connection.deliver(&CHAT, 21).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_gap("chat", "trimmed", Some((12, 20))).await?;
    kit.app().expect_message("chat", &CHAT, 21).await?;
    kit.settle(&mut connection).await
}

/// The position after a gap is that of the gap.
pub(super) async fn gap_is_a_position(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.send("gap", CHAT.at(20, json!({"from": 11, "to": 20, "reason": "dropped"}))).await?;
    kit.app().expect_gap("chat", "dropped", Some((11, 20))).await?;
    connection.cut();
    let mut connection = kit.recover(20, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// The history was emptied while live: a gap without offsets, and counting starts anew.
pub(super) async fn epoch_changes_while_live(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver(&CHAT, 11).await?;
    let chat = CHAT.in_epoch("e2");
    connection.send("gap", chat.at(0, json!({"reason": "epoch"}))).await?;
    connection.deliver_all(&chat, 1..=2).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_gap("chat", "epoch", None).await?;
    kit.app().expect_messages("chat", &chat, 1..=2).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    connection.expect_subscribe(&[CHAT.name]).await?.expect_recover(&chat, 2)
}

/// `position` moves the position and shows the application nothing.
pub(super) async fn position_of_a_quiet_topic(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.send("position", CHAT.at(30, json!({}))).await?;
    connection.deliver(&CHAT, 31).await?;
    kit.app().expect_message("chat", &CHAT, 31).await?;
    connection.send("position", CHAT.at(40, json!({}))).await?;
    kit.settle(&mut connection).await?;
    connection.cut();
    let mut connection = kit.recover(40, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// Expects that the client subscribes to the topic anew. It may end the old subscription before.
pub(super) async fn expect_resubscribe(connection: &mut Connection) -> Result<crate::received::Subscribe> {
    let received = connection.receive().await?;
    if received.kind == "unsubscribe" {
        if received.id.is_some() {
            connection.reply(&received, "unsubscribed", json!({"topic": CHAT.name})).await?;
        }
        return connection.expect_subscribe(&[CHAT.name]).await;
    }
    connection.as_subscribe(received)
}

/// A message is missing and nobody told: the client reports it and asks for it.
pub(super) async fn hole_is_reported_and_filled(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver(&CHAT, 11).await?;
    connection.deliver(&CHAT, 13).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_error("hole").await?;
    let subscribe = expect_resubscribe(&mut connection).await?;
    subscribe.expect_recover(&CHAT, 11)?;
    let answer = CHAT.at(11, json!({"recovered": true, "replay": 2}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    connection.deliver_all(&CHAT, 12..=14).await?;
    kit.app().expect_messages("chat", &CHAT, 12..=13).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_message("chat", &CHAT, 14).await?;
    kit.settle(&mut connection).await
}

/// Deliveries behind a hole are dropped until the new subscription begins, and told once.
pub(super) async fn hole_is_reported_once(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver_all(&CHAT, 12..=14).await?;
    kit.app().expect_error("hole").await?;
    let subscribe = expect_resubscribe(&mut connection).await?;
    connection.deliver(&CHAT, 15).await?;
    let answer = CHAT.at(10, json!({"recovered": true, "replay": 5}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    connection.deliver_all(&CHAT, 11..=15).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=15).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// `prev` beyond the position is a hole, too.
pub(super) async fn prev_beyond_the_position_is_a_hole(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver_with(&CHAT, 20, json!({"prev": 15})).await?;
    kit.app().expect_error("hole").await?;
    let subscribe = expect_resubscribe(&mut connection).await?;
    subscribe.expect_recover(&CHAT, 10)?;
    let answer = CHAT.at(20, json!({"recovered": false, "reason": "trimmed"}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    kit.app().expect_gap("chat", "trimmed", Some((11, 20))).await?;
    kit.app().expect_not_recovered("chat", "trimmed").await?;
    kit.settle(&mut connection).await
}

/// A delivery of another epoch that no gap announced is a hole, whatever its offset.
pub(super) async fn other_epoch_is_a_hole(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let chat = CHAT.in_epoch("e2");
    connection.deliver(&chat, 11).await?;
    kit.app().expect_error("hole").await?;
    let subscribe = expect_resubscribe(&mut connection).await?;
    subscribe.expect_recover(&CHAT, 10)?;
    let answer = chat.at(11, json!({"recovered": false, "reason": "epoch"}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    kit.app().expect_gap("chat", "epoch", None).await?;
    kit.app().expect_not_recovered("chat", "epoch").await?;
    kit.settle(&mut connection).await
}

/// Topics have positions of their own.
pub(super) async fn topics_have_their_own_chains(kit: &mut Kit) -> Result {
    let other = crate::topic::Topic::new("chat.2", "x9");
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    kit.subscribe("other", other.name).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({})), other.at(500, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    kit.app().expect_live("other").await?;
    for step in 1..=5 {
        connection.deliver(&CHAT, 10 + step).await?;
        connection.deliver(&other, 500 + step).await?;
    }
    kit.app().expect_messages("chat", &CHAT, 11..=15).await?;
    kit.app().expect_messages("other", &other, 501..=505).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name, other.name]).await?;
    subscribe.expect_recover(&CHAT, 15)?;
    subscribe.expect_recover(&other, 505)
}
