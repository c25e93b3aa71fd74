//! Publishing without loss or repetition.

use serde_json::json;

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};

/// The result of a publish has subscribers and position.
pub(super) async fn result_has_position(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("post", CHAT.name, json!({"text": "hello"})).await?;
    let publish = connection.expect_publish(CHAT.name, json!({"text": "hello"})).await?;
    connection.reply(&publish, "published", CHAT.at(42, json!({"subscribers": 3}))).await?;
    let value = kit.app().expect_value("post").await?;
    let expected = json!({"topic": CHAT.name, "subscribers": 3, "epoch": CHAT.epoch, "offset": 42});
    for key in ["topic", "subscribers", "epoch", "offset"] {
        ensure(value[key] == expected[key], || format!("expected the result {expected}, not {value}"))?;
    }
    Ok(())
}

/// The connection is lost before the answer: the same publish again, with the same `once`.
pub(super) async fn lost_answer_is_asked_for_again(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    let first = connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let second = connection.expect_publish(CHAT.name, json!(1)).await?;
    let once = &first.data["once"];
    ensure(once.is_string() && second.data["once"] == *once, || {
        format!("expected the same once in both publishes: {} and {}", first.data, second.data)
    })?;
    connection.reply_published(&second, &CHAT, 42).await?;
    kit.app().expect_published("post", 42).await?;
    kit.settle(&mut connection).await
}
