//! Positions over a reload of the page.

use std::time::Duration;

use serde_json::json;

use crate::failure::Result;
use crate::kit::{CHAT, Kit};

/// Longer than clients wait before they save.
const SAVED_AFTER: Duration = Duration::from_millis(800);

/// A page that is reloaded continues where it was.
pub(super) async fn reload_continues(kit: &mut Kit) -> Result {
    let mut connection = kit.live_with(json!({"storage": true}), 10).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    tokio::time::sleep(SAVED_AFTER).await;
    kit.command("reload", json!({})).await?;
    connection.expect_end().await?;
    kit.connect_with(json!({"storage": true})).await?;
    kit.subscribe("again", CHAT.name).await?;
    let mut connection = kit.recover(12, 1).await?;
    connection.deliver(&CHAT, 13).await?;
    kit.app().expect_message("again", &CHAT, 13).await?;
    kit.app().expect_recovered("again").await?;
    kit.settle(&mut connection).await
}

/// Only messages that were handed over count: the ones that waited come again.
pub(super) async fn waiting_messages_are_not_saved(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"storage": true})).await?;
    kit.command("subscribe", json!({"as": "slow", "topic": CHAT.name, "hold": true})).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("slow").await?;
    connection.deliver_all(&CHAT, 11..=14).await?;
    kit.app().expect_message("slow", &CHAT, 11).await?;
    kit.command("release", json!({"as": "slow", "messages": 1})).await?;
    kit.app().expect_message("slow", &CHAT, 12).await?;
    kit.settle(&mut connection).await?;
    tokio::time::sleep(SAVED_AFTER).await;
    kit.command("reload", json!({})).await?;
    connection.expect_end().await?;
    kit.connect_with(json!({"storage": true})).await?;
    kit.subscribe("again", CHAT.name).await?;
    // The handler of 12 had not returned, so the application may not be done with it.
    let mut connection = kit.recover(11, 3).await?;
    connection.deliver_all(&CHAT, 12..=14).await?;
    kit.app().expect_messages("again", &CHAT, 12..=14).await?;
    kit.app().expect_recovered("again").await?;
    kit.settle(&mut connection).await
}

/// A saved position may be useless after the reload.
pub(super) async fn saved_position_is_not_recovered(kit: &mut Kit) -> Result {
    let mut connection = kit.live_with(json!({"storage": true}), 10).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    tokio::time::sleep(SAVED_AFTER).await;
    kit.command("reload", json!({})).await?;
    connection.expect_end().await?;
    kit.connect_with(json!({"storage": true})).await?;
    kit.subscribe("again", CHAT.name).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&CHAT, 11)?;
    let chat = CHAT.in_epoch("e2");
    connection.reply_subscribed(&subscribe, &[chat.at(3, json!({"recovered": false, "reason": "epoch"}))]).await?;
    kit.app().expect_gap("again", "epoch", None).await?;
    kit.app().expect_not_recovered("again", "epoch").await?;
    kit.settle(&mut connection).await
}

/// `unsubscribe` removes the position.
pub(super) async fn unsubscribe_removes_the_position(kit: &mut Kit) -> Result {
    let mut connection = kit.live_with(json!({"storage": true}), 10).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    tokio::time::sleep(SAVED_AFTER).await;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    connection.expect("unsubscribe").await?;
    kit.app().expect_ended("chat", "unsubscribed").await?;
    kit.command("reload", json!({})).await?;
    connection.expect_end().await?;
    kit.connect_with(json!({"storage": true})).await?;
    kit.subscribe("again", CHAT.name).await?;
    let mut connection = kit.open().await?;
    connection.expect_subscribe(&[CHAT.name]).await?.expect_no_recover(CHAT.name)
}

/// Without a storage, a reload starts anew.
pub(super) async fn reload_without_storage(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.command("reload", json!({})).await?;
    connection.expect_end().await?;
    kit.connect().await?;
    kit.subscribe("again", CHAT.name).await?;
    let mut connection = kit.open().await?;
    connection.expect_subscribe(&[CHAT.name]).await?.expect_no_recover(CHAT.name)
}
