//! From the handshake to `open`, and messages that no client expects.

use serde_json::json;

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};

const PORTAL: &str = "<!doctype html><title>Welcome to the hotel</title><p>Please log in.";

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

/// A client offers the subprotocol of the hub, or none.
pub(super) async fn subprotocol_is_of_the_hub(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let request = kit.request().await?;
    let offered = request.subprotocols();
    ensure(offered.iter().all(|name| name == "deeperhub.v1.json"), || {
        format!("expected the subprotocol deeperhub.v1.json or none, not {offered:?}")
    })?;
    request.upgrade().await?.welcome().await?;
    kit.app().wait_for_state("open").await.map(drop)
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

/// Replies, deliveries and gaps that nobody asked for cost nothing.
pub(super) async fn messages_of_nobody_are_ignored(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.send_text(r#"{"type":"subscribed","id":"nobody","data":{"topic":"chat.1","offset":99}}"#).await?;
    connection.send_text(r#"{"type":"error","data":{"code":"invalid_json","message":"no"}}"#).await?;
    connection.send("message", json!({"topic": "stranger", "message": 1})).await?;
    connection.send("gap", json!({"topic": "stranger", "epoch": "e", "offset": 3, "reason": "trimmed"})).await?;
    connection.send("unsubscribed", json!({"topic": "stranger"})).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.settle(&mut connection).await
}

/// An attempt that gets no `welcome` counts as failed.
pub(super) async fn missing_welcome_counts_as_failed(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"connect_timeout_ms": 300})).await?;
    let silent = kit.accept().await?;
    let mut connection = kit.open().await?;
    kit.app().expect_waiting().await?;
    kit.app().wait_for_state("open").await?;
    silent.cut();
    kit.settle(&mut connection).await
}

/// A handshake that is never answered counts as failed.
pub(super) async fn unanswered_handshake_counts_as_failed(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"connect_timeout_ms": 300})).await?;
    let silent = kit.request().await?;
    let mut connection = kit.open().await?;
    silent.cut();
    kit.settle(&mut connection).await
}

/// A captive portal answers with a page: the client tries again.
pub(super) async fn page_instead_of_upgrade(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.request().await?.refuse("200 OK", "Content-Type: text/html\r\n", PORTAL).await?;
    kit.app().expect_waiting().await?;
    kit.request().await?.refuse("511 Network Authentication Required", "", PORTAL).await?;
    kit.app().expect_waiting().await?;
    let mut connection = kit.open().await?;
    kit.app().wait_for_state("open").await?;
    kit.settle(&mut connection).await
}

/// An answer that is no HTTP counts as failed.
pub(super) async fn garbage_instead_of_upgrade(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.request().await?.answer_with(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await?;
    kit.app().expect_waiting().await?;
    let mut connection = kit.open().await?;
    kit.settle(&mut connection).await
}

/// A handshake that is cut before its answer is tried again.
pub(super) async fn handshake_is_cut(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    for _ in 0..3 {
        kit.request().await?.cut();
        kit.app().expect_waiting().await?;
    }
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    kit.settle(&mut connection).await
}

async fn refused_for_good(kit: &mut Kit, status: &str) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    kit.request().await?.refuse(status, "Content-Type: application/json\r\n", r#"{"error":{"code":"x"}}"#).await?;
    kit.app().wait_for_state("closed").await?;
    kit.app().expect_ended("chat", "closed").await?;
    kit.refute_connection(300).await
}

/// 400: this client will never be accepted.
pub(super) async fn refused_with_400(kit: &mut Kit) -> Result {
    refused_for_good(kit, "400 Bad Request").await
}

/// 403: this origin will never be accepted.
pub(super) async fn refused_with_403(kit: &mut Kit) -> Result {
    refused_for_good(kit, "403 Forbidden").await
}

/// 404: there is no hub at this address.
pub(super) async fn refused_with_404(kit: &mut Kit) -> Result {
    refused_for_good(kit, "404 Not Found").await
}

/// 503 with a slot: the client comes back exactly then.
pub(super) async fn full_server_names_a_slot(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.request().await?.refuse("503 Service Unavailable", "Retry-After: 2\r\n", "").await?;
    let refused = std::time::Instant::now();
    let waiting = kit.app().expect_waiting().await?;
    ensure((1900.0..=2000.0).contains(&waiting.wait_ms), || {
        format!("expected wait_ms of 2000 after Retry-After: 2, not {}", waiting.wait_ms)
    })?;
    let mut connection = kit.open().await?;
    kit.expect_not_before(refused, 1900)?;
    kit.settle(&mut connection).await
}

/// 503 and 429 without a slot: the backoff applies.
pub(super) async fn full_server_without_slot(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.request().await?.refuse("503 Service Unavailable", "", "").await?;
    kit.app().expect_waiting().await?;
    kit.request().await?.refuse("429 Too Many Requests", "", "").await?;
    kit.app().expect_waiting().await?;
    let mut connection = kit.open().await?;
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

/// Closing while the next attempt is awaited ends everything.
pub(super) async fn close_while_waiting(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.goodbye(1001, true, Some(400)).await?;
    connection.close(1001).await?;
    kit.app().expect_waiting().await?;
    kit.command("close", json!({})).await?;
    kit.app().expect_ended("chat", "closed").await?;
    kit.app().wait_for_state("closed").await?;
    kit.app().expect_closed().await?;
    kit.refute_connection(700).await
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

/// A closed hub refuses all calls.
pub(super) async fn calls_after_close_fail(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let connection = kit.open().await?;
    kit.app().wait_for_state("open").await?;
    kit.command("close", json!({})).await?;
    connection.expect_end().await?;
    kit.app().expect_closed().await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    kit.app().expect_failed("post", "closed").await?;
    kit.command("echo", json!({"as": "echo", "data": 1})).await?;
    kit.app().expect_failed("echo", "closed").await?;
    kit.subscribe("late", CHAT.name).await?;
    kit.app().expect_ready_error("late", "closed").await
}

/// The driver ends at the end of its input, with a connection too: nothing keeps the process.
pub(super) async fn driver_ends_with_its_input(kit: &mut Kit) -> Result {
    let _connection = kit.live_at(10).await?;
    kit.driver().end().await
}
