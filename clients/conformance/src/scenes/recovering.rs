//! Recovery after a connection was lost.

use serde_json::json;

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

/// The three keys of a position go back unchanged, also from `subscribed` alone.
pub(super) async fn position_is_given_back_as_it_came(kit: &mut Kit) -> Result {
    let connection = kit.live_at(41).await?;
    connection.cut();
    let mut connection = kit.recover(41, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// Counting started anew: a gap without offsets, then live at the new position.
pub(super) async fn reason_epoch(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&CHAT, 10)?;
    let chat = CHAT.in_epoch("e2");
    let answer = chat.at(3, json!({"recovered": false, "reason": "epoch"}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    kit.app().expect_gap("chat", "epoch", None).await?;
    kit.app().expect_not_recovered("chat", "epoch").await?;
    connection.deliver(&chat, 4).await?;
    kit.app().expect_message("chat", &chat, 4).await?;
    kit.settle(&mut connection).await
}

/// Missed messages are no longer kept: a gap with their offsets.
pub(super) async fn reason_trimmed(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    let answer = CHAT.at(50, json!({"recovered": false, "reason": "trimmed"}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    kit.app().expect_gap("chat", "trimmed", Some((11, 50))).await?;
    kit.app().expect_not_recovered("chat", "trimmed").await?;
    connection.deliver(&CHAT, 51).await?;
    kit.app().expect_message("chat", &CHAT, 51).await?;
    kit.settle(&mut connection).await
}

/// A delivery at or below the position is dropped.
pub(super) async fn duplicates_are_dropped(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    for offset in [10, 11, 11, 12, 11, 12, 13, 5, 13] {
        connection.deliver(&CHAT, offset).await?;
    }
    kit.app().expect_messages("chat", &CHAT, 11..=13).await?;
    kit.settle(&mut connection).await
}
