//! From the handshake to `open`, and messages that no client expects.

use serde_json::json;

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};

/// The hub is open only after `welcome`.
pub(super) async fn opens_after_welcome(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.accept().await?;
    connection.refute("expected no message before welcome", 50, |_| true).await?;
    kit.app().refute("expected not to be open before welcome", |event| event["state"] == "open")?;
    connection.welcome().await?;
    kit.app().wait_for_state("open").await?;
    kit.settle(&mut connection).await
}

/// Messages of a backend, types and keys of later versions cost nothing.
pub(super) async fn unknown_types_and_keys_are_ignored(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.send("invoice.paid", json!({"number": 7})).await?;
    connection.send_text(r#"{"type":"later","id":"?","data":[1,2],"meta":{"traceparent":"00-x"}}"#).await?;
    connection.send_text(r#"{"type":"bare"}"#).await?;
    connection.deliver_with(&CHAT, 11, json!({"colour": "red", "nested": {"offset": 3}})).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.settle(&mut connection).await
}

/// Frames that hold no message of the protocol cost nothing either.
pub(super) async fn malformed_messages_are_ignored(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    for text in ["", "{", "null", "[]", "7", "\"text\"", "{}", r#"{"type":5}"#, r#"{"type":"message"}"#] {
        connection.send_text(text).await?;
    }
    connection.send_text(r#"{"type":"message","data":null}"#).await?;
    connection.send_text(r#"{"type":"published","id":"nobody","data":{}}"#).await?;
    connection.send_binary(&[0, 159, 146, 150]).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.settle(&mut connection).await
}

/// Closing while the handshake is unanswered ends everything.
pub(super) async fn close_while_connecting(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    kit.publish("post", CHAT.name, json!("hello")).await?;
    let request = kit.request().await?;
    kit.command("close", json!({})).await?;
    kit.app().expect_ended("chat", "closed").await?;
    kit.app().expect_failed("post", "closed").await?;
    kit.app().wait_for_state("closed").await?;
    request.cut();
    kit.app().expect_closed().await?;
    kit.refute_connection(300).await
}

/// Closing an open hub closes the connection in an orderly way, and ends all that waits.
pub(super) async fn close_while_open(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.publish("post", CHAT.name, json!("hello")).await?;
    connection.expect_publish(CHAT.name, json!("hello")).await?;
    kit.command("close", json!({})).await?;
    let code = connection.expect_end().await?;
    ensure(code == Some(1000) || code == Some(1005), || format!("expected close code 1000, not {code:?}"))?;
    kit.app().expect_ended("chat", "closed").await?;
    kit.app().expect_failed("post", "closed").await?;
    kit.app().wait_for_state("closed").await?;
    kit.app().expect_closed().await?;
    kit.refute_connection(300).await
}
