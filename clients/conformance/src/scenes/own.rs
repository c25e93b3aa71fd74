//! Publishers that exclude themselves: their own messages are holes that `published` fills.

use serde_json::json;

use crate::connection::Connection;
use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::received::Received;

/// Lets the application publish for all but itself.
async fn publish_excluded(kit: &mut Kit, connection: &mut Connection) -> Result<Received> {
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
