//! Recovery after a connection was lost.

use serde_json::{Value, json};

use crate::connection::Connection;
use crate::failure::Result;
use crate::kit::{CHAT, Kit};

/// Messages of the time without a connection come once, before live ones.
pub(super) async fn missed_messages_are_replayed(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver_all(&CHAT, 11..=13).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=13).await?;
    connection.cut();
    kit.app().expect_recovering("chat").await?;
    let mut connection = kit.recover(13, 2).await?;
    connection.deliver_all(&CHAT, 14..=16).await?;
    kit.app().expect_messages("chat", &CHAT, 14..=15).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_message("chat", &CHAT, 16).await?;
    kit.settle(&mut connection).await
}

/// A second cut in the middle of a replay: the position is where the replay ended.
pub(super) async fn cut_in_mid_replay(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.recover(10, 4).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    connection.cut();
    let mut connection = kit.recover(12, 3).await?;
    connection.deliver_all(&CHAT, 13..=15).await?;
    kit.app().expect_messages("chat", &CHAT, 13..=15).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A cut between the subscribe and its answer moves nothing.
pub(super) async fn cut_before_subscribed(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    for _ in 0..3 {
        let mut connection = kit.open().await?;
        connection.expect_subscribe(&[CHAT.name]).await?.expect_recover(&CHAT, 10)?;
        connection.cut();
    }
    let mut connection = kit.recover(10, 1).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A cut before the very first answer: there is no position yet.
pub(super) async fn cut_before_the_first_subscribed(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.open().await?;
    connection.expect_subscribe(&[CHAT.name]).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_no_recover(CHAT.name)?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_ready("chat").await?;
    kit.app().expect_live("chat").await?;
    kit.settle(&mut connection).await
}

/// The three keys of a position go back unchanged, also from `subscribed` alone.
pub(super) async fn position_is_given_back_as_it_came(kit: &mut Kit) -> Result {
    let connection = kit.live_at(41).await?;
    connection.cut();
    let mut connection = kit.recover(41, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A long replay arrives whole and in order.
pub(super) async fn long_replay(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.recover(10, 1000).await?;
    connection.deliver_all(&CHAT, 11..=1012).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=1010).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_messages("chat", &CHAT, 1011..=1012).await?;
    kit.settle(&mut connection).await
}

/// Repeated frames around the end of a replay are handed over once.
pub(super) async fn replay_overlaps_live_messages(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.recover(10, 2).await?;
    for offset in [11, 12, 12, 11, 13, 12, 13, 14] {
        connection.deliver(&CHAT, offset).await?;
    }
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.app().expect_messages("chat", &CHAT, 13..=14).await?;
    kit.settle(&mut connection).await
}

/// Messages before `subscribed` belong to an earlier subscription.
pub(super) async fn messages_before_subscribed_are_dropped(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    connection.deliver(&CHAT, 11).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    let answer = CHAT.at(10, json!({"recovered": true, "replay": 2}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// Lets the client come back from 10, and answers that it was not recovered.
async fn not_recovered(kit: &mut Kit, answer: Value) -> Result<Connection> {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&CHAT, 10)?;
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    Ok(connection)
}

/// Counting started anew: a gap without offsets, then live at the new position.
pub(super) async fn reason_epoch(kit: &mut Kit) -> Result {
    let chat = CHAT.in_epoch("e2");
    let mut connection = not_recovered(kit, chat.at(3, json!({"recovered": false, "reason": "epoch"}))).await?;
    kit.app().expect_gap("chat", "epoch", None).await?;
    kit.app().expect_not_recovered("chat", "epoch").await?;
    connection.deliver(&chat, 4).await?;
    kit.app().expect_message("chat", &chat, 4).await?;
    kit.settle(&mut connection).await
}

/// Missed messages are no longer kept: a gap with their offsets.
pub(super) async fn reason_trimmed(kit: &mut Kit) -> Result {
    let mut connection = not_recovered(kit, CHAT.at(50, json!({"recovered": false, "reason": "trimmed"}))).await?;
    kit.app().expect_gap("chat", "trimmed", Some((11, 50))).await?;
    kit.app().expect_not_recovered("chat", "trimmed").await?;
    connection.deliver(&CHAT, 51).await?;
    kit.app().expect_message("chat", &CHAT, 51).await?;
    kit.settle(&mut connection).await
}

/// The server knows fewer messages than the client: no offsets can be missing.
pub(super) async fn reason_ahead(kit: &mut Kit) -> Result {
    let mut connection = not_recovered(kit, CHAT.at(5, json!({"recovered": false, "reason": "ahead"}))).await?;
    kit.app().expect_gap("chat", "ahead", None).await?;
    kit.app().expect_not_recovered("chat", "ahead").await?;
    connection.deliver(&CHAT, 6).await?;
    kit.app().expect_message("chat", &CHAT, 6).await?;
    kit.settle(&mut connection).await
}

/// The rule of the topic was removed: messages have no positions any more.
pub(super) async fn reason_no_history(kit: &mut Kit) -> Result {
    let answer = json!({"topic": CHAT.name, "recovered": false, "reason": "no_history"});
    let mut connection = not_recovered(kit, answer).await?;
    kit.app().expect_gap("chat", "no_history", None).await?;
    kit.app().expect_not_recovered("chat", "no_history").await?;
    connection.deliver_plain(CHAT.name, json!("plain")).await?;
    kit.app().expect_payload("chat", CHAT.name, json!("plain")).await?;
    kit.settle(&mut connection).await
}

/// Another subscription of the connection matches the topic already.
pub(super) async fn reason_overlap(kit: &mut Kit) -> Result {
    let mut connection = not_recovered(kit, CHAT.at(12, json!({"recovered": false, "reason": "overlap"}))).await?;
    kit.app().expect_gap("chat", "overlap", Some((11, 12))).await?;
    kit.app().expect_not_recovered("chat", "overlap").await?;
    connection.deliver(&CHAT, 13).await?;
    kit.app().expect_message("chat", &CHAT, 13).await?;
    kit.settle(&mut connection).await
}

/// Not recovered, but the application asked for the last messages: they come before live ones.
pub(super) async fn not_recovered_with_replay(kit: &mut Kit) -> Result {
    let answer = CHAT.at(48, json!({"recovered": false, "reason": "trimmed", "replay": 2}));
    let mut connection = not_recovered(kit, answer).await?;
    kit.app().expect_gap("chat", "trimmed", Some((11, 48))).await?;
    connection.deliver_all(&CHAT, 49..=50).await?;
    kit.app().expect_messages("chat", &CHAT, 49..=50).await?;
    kit.app().expect_not_recovered("chat", "trimmed").await?;
    kit.settle(&mut connection).await
}

/// After a failed recovery, the next one is from the new position.
pub(super) async fn recovered_after_it_was_not(kit: &mut Kit) -> Result {
    let chat = CHAT.in_epoch("e2");
    let connection = not_recovered(kit, chat.at(3, json!({"recovered": false, "reason": "epoch"}))).await?;
    kit.app().expect_gap("chat", "epoch", None).await?;
    kit.app().expect_not_recovered("chat", "epoch").await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&chat, 3)?;
    let answer = chat.at(3, json!({"recovered": true, "replay": 1}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    connection.deliver(&chat, 4).await?;
    kit.app().expect_message("chat", &chat, 4).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// The server was restarted and goes on from its disk: recovered, under a new epoch.
pub(super) async fn recovered_into_a_new_epoch(kit: &mut Kit) -> Result {
    let chat = CHAT.in_epoch("e2");
    let mut connection = not_recovered(kit, chat.at(10, json!({"recovered": true, "replay": 2}))).await?;
    connection.deliver_all(&chat, 11..=12).await?;
    kit.app().expect_messages("chat", &chat, 11..=12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A topic whose delivery skips: the gap stands before the newest message.
pub(super) async fn recovered_with_a_gap(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.recover(10, 1).await?;
    connection.send("gap", CHAT.at(19, json!({"from": 11, "to": 19, "reason": "conflated"}))).await?;
    connection.deliver(&CHAT, 20).await?;
    kit.app().expect_gap("chat", "conflated", Some((11, 19))).await?;
    kit.app().expect_message("chat", &CHAT, 20).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A gap that no delivery policy made in a replay: the topic is live, but not recovered.
pub(super) async fn recovered_but_for_a_gap(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.recover(10, 4).await?;
    connection.deliver(&CHAT, 11).await?;
    connection.send("gap", CHAT.at(13, json!({"from": 12, "to": 13, "reason": "trimmed"}))).await?;
    connection.deliver_all(&CHAT, 14..=15).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_gap("chat", "trimmed", Some((12, 13))).await?;
    kit.app().expect_message("chat", &CHAT, 14).await?;
    kit.app().expect_not_recovered("chat", "trimmed").await?;
    kit.app().expect_message("chat", &CHAT, 15).await?;
    kit.settle(&mut connection).await
}

/// A topic without history: what was missed is unknown, and the client says so.
pub(super) async fn topic_without_history(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("news", "news").await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&["news"]).await?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "news"})]).await?;
    kit.app().expect_live("news").await?;
    connection.deliver_plain("news", json!(1)).await?;
    kit.app().expect_payload("news", "news", json!(1)).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&["news"]).await?;
    subscribe.expect_no_recover("news")?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "news"})]).await?;
    kit.app().expect_gap("news", "no_history", None).await?;
    kit.app().expect_not_recovered("news", "no_history").await?;
    // Without positions there are no duplicates: equal messages are two messages.
    connection.deliver_plain("news", json!(2)).await?;
    connection.deliver_plain("news", json!(2)).await?;
    kit.app().expect_payload("news", "news", json!(2)).await?;
    kit.app().expect_payload("news", "news", json!(2)).await?;
    kit.settle(&mut connection).await
}
