//! Publishes that are refused, too long, or never answered.

use std::time::Instant;

use serde_json::json;

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::topic::Topic;

const OTHER: Topic = Topic::new("chat.2", "x9");

/// A publish that is refused for a while comes again, and the next one does not overtake it.
async fn retried(kit: &mut Kit, code: &str, retry_after_ms: Option<u64>) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("first", CHAT.name, json!(1)).await?;
    kit.publish("second", CHAT.name, json!(2)).await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    let refused = Instant::now();
    let more = retry_after_ms.map_or_else(|| json!({}), |wait| json!({"retry_after_ms": wait}));
    connection.reply_error(&publish, code, more).await?;
    let again = connection.expect_publish(CHAT.name, json!(1)).await?;
    kit.expect_not_before(refused, retry_after_ms.unwrap_or(10).saturating_sub(10))?;
    ensure(again.data["once"] == publish.data["once"], || {
        format!("expected the same once again: {} and {}", publish.data, again.data)
    })?;
    connection.reply_published(&again, &CHAT, 11).await?;
    let second = connection.expect_publish(CHAT.name, json!(2)).await?;
    connection.reply_published(&second, &CHAT, 12).await?;
    kit.app().expect_published("first", 11).await?;
    kit.app().expect_published("second", 12).await
}

/// The store of the history cannot be reached.
pub(super) async fn unavailable_is_retried(kit: &mut Kit) -> Result {
    retried(kit, "unavailable", Some(400)).await
}

/// The server keeps no more topics at present.
pub(super) async fn too_many_topics_is_retried(kit: &mut Kit) -> Result {
    retried(kit, "too_many_topics", Some(200)).await
}

/// A fault inside the server, without a time: a backoff.
pub(super) async fn internal_is_retried(kit: &mut Kit) -> Result {
    retried(kit, "internal", None).await
}

/// `rate_limited` holds all publishes back, of other topics too.
pub(super) async fn rate_limited_holds_all_back(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("first", CHAT.name, json!(1)).await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    let refused = Instant::now();
    connection.reply_error(&publish, "rate_limited", json!({"retry_after_ms": 600})).await?;
    kit.settle(&mut connection).await?;
    kit.publish("other", OTHER.name, json!(2)).await?;
    for _ in 0..2 {
        let publish = connection.expect("publish").await?;
        kit.expect_not_before(refused, 590)?;
        let topic = publish.data["topic"].as_str().unwrap_or_default().to_owned();
        connection.reply(&publish, "published", json!({"topic": topic, "subscribers": 0})).await?;
    }
    kit.app().expect_value("first").await?;
    kit.app().expect_value("other").await.map(drop)
}

/// Any other error is the end of this publish, and the next one goes on.
pub(super) async fn refused_publish_fails(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("first", CHAT.name, json!(1)).await?;
    kit.publish("second", CHAT.name, json!(2)).await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.reply_error(&publish, "forbidden", json!({})).await?;
    kit.app().expect_failed("first", "forbidden").await?;
    let publish = connection.expect_publish(CHAT.name, json!(2)).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("second", 11).await
}

/// No answer in time: the publish fails, since the server would not recognise it any more.
pub(super) async fn unanswered_publish_times_out(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"publish_timeout_ms": 500})).await?;
    let mut connection = kit.open().await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    kit.app().expect_failed("post", "timeout").await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.settle(&mut connection).await
}

/// The time counts from the first sending, also over a reconnect.
pub(super) async fn timeout_counts_from_the_first_sending(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"publish_timeout_ms": 900})).await?;
    let mut connection = kit.open().await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.goodbye(1001, true, Some(2500)).await?;
    connection.close(1001).await?;
    kit.app().expect_failed("post", "timeout").await?;
    let mut connection = kit.open().await?;
    kit.settle(&mut connection).await
}

/// A queue that would hold too many bytes refuses the publish at once.
pub(super) async fn queue_full(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"max_pending_bytes": 3000})).await?;
    let request = kit.request().await?;
    let message = "x".repeat(1000);
    for number in 0..4 {
        kit.publish(&format!("post-{number}"), CHAT.name, json!(message)).await?;
    }
    let failed = kit.app().expect_any_failed("queue_full").await?;
    ensure(failed != "post-0" && failed != "post-1", || format!("expected the last ones to fail, not {failed}"))?;
    let mut connection = request.upgrade().await?;
    connection.welcome().await?;
    for number in 0..2 {
        let publish = connection.expect_publish(CHAT.name, json!(message)).await?;
        connection.reply_published(&publish, &CHAT, 10 + number).await?;
        kit.app().expect_published(&format!("post-{number}"), 10 + number).await?;
    }
    Ok(())
}

/// A message that is longer than the server takes fails, and costs nothing else.
pub(super) async fn message_too_large(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.accept().await?;
    connection.welcome_with(json!({}), json!({"max_message_bytes": 2000})).await?;
    kit.app().wait_for_state("open").await?;
    kit.publish("large", CHAT.name, json!("x".repeat(2000))).await?;
    kit.app().expect_failed("large", "message_too_large").await?;
    // Two bytes for each letter: bytes count, not characters.
    kit.publish("wide", CHAT.name, json!("ž".repeat(1000))).await?;
    kit.app().expect_failed("wide", "message_too_large").await?;
    kit.publish("small", CHAT.name, json!("x".repeat(1000))).await?;
    let publish = connection.expect("publish").await?;
    ensure(publish.length <= 2000, || format!("expected at most 2000 bytes, not {}", publish.length))?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("small", 11).await
}

/// A message that waited without a connection may be too long for the server that comes.
pub(super) async fn queued_message_is_too_large(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let request = kit.request().await?;
    kit.publish("large", CHAT.name, json!("x".repeat(3000))).await?;
    kit.publish("small", CHAT.name, json!(1)).await?;
    let mut connection = request.upgrade().await?;
    connection.welcome_with(json!({}), json!({"max_message_bytes": 2000})).await?;
    kit.app().expect_failed("large", "message_too_large").await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    kit.app().expect_published("small", 11).await
}
