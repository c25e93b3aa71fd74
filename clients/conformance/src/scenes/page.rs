//! Pages that are hidden or offline.

use serde_json::json;

use crate::failure::Result;
use crate::kit::{CHAT, Kit};

/// A hidden page does not connect until it is shown.
pub(super) async fn hidden_page_waits(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.command("hide", json!({})).await?;
    kit.settle(&mut connection).await?;
    connection.cut();
    kit.app().expect_waiting().await?;
    kit.refute_connection(600).await?;
    kit.command("show", json!({})).await?;
    let mut connection = kit.recover(10, 1).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A page that is hidden and shown again in time notices nothing.
pub(super) async fn hidden_page_stays_connected(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.command("hide", json!({})).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.command("show", json!({})).await?;
    connection.deliver(&CHAT, 12).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// A browser that is offline leaves, and comes back as soon as it is online.
pub(super) async fn offline_and_online(kit: &mut Kit) -> Result {
    let connection = kit.live_with(json!({"min_delay_ms": 20_000, "max_delay_ms": 20_000}), 10).await?;
    kit.command("offline", json!({})).await?;
    connection.expect_end().await?;
    kit.app().expect_recovering("chat").await?;
    kit.refute_connection(300).await?;
    kit.command("online", json!({})).await?;
    let mut connection = kit.recover(10, 1).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// The slot of the server counts also for a browser that was offline meanwhile.
pub(super) async fn online_before_the_slot(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let sent = std::time::Instant::now();
    connection.goodbye(1001, true, Some(2000)).await?;
    connection.close(1001).await?;
    kit.app().expect_waiting().await?;
    kit.command("offline", json!({})).await?;
    kit.command("online", json!({})).await?;
    let _connection = kit.open().await?;
    kit.expect_not_before(sent, 1990)
}

/// A page that saves its position when it is hidden loses nothing in a reload right after it.
pub(super) async fn position_is_saved_when_hidden(kit: &mut Kit) -> Result {
    let mut connection = kit.live_with(json!({"storage": true}), 10).await?;
    connection.deliver_all(&CHAT, 11..=13).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=13).await?;
    kit.settle(&mut connection).await?;
    kit.command("hide", json!({})).await?;
    kit.command("reload", json!({})).await?;
    connection.expect_end().await?;
    kit.command("show", json!({})).await?;
    kit.connect_with(json!({"storage": true})).await?;
    kit.subscribe("again", CHAT.name).await?;
    let mut connection = kit.recover(13, 0).await?;
    kit.app().expect_recovered("again").await?;
    kit.settle(&mut connection).await
}
