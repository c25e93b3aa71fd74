//! Signs of life, sleep and wake.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::failure::Result;
use crate::kit::{CHAT, Kit};

const PING_INTERVAL_MS: u64 = 400;

/// Connects with short pings, and subscribes the handle `chat` at 10.
async fn live_with_pings(kit: &mut Kit) -> Result<crate::connection::Connection> {
    kit.connect_with(json!({"pong_timeout_ms": 400})).await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.accept().await?;
    connection.welcome_with(json!({}), json!({"ping_interval_ms": PING_INTERVAL_MS})).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    Ok(connection)
}

/// A server without a sign of life is asked, and then left.
pub(super) async fn silent_server_is_left(kit: &mut Kit) -> Result {
    let mut connection = live_with_pings(kit).await?;
    connection.answers_pings = false;
    connection.expect("ping").await?;
    // The old connection stays open: half-open TCP shows nothing to the client.
    let mut fresh = kit.recover(10, 0).await?;
    kit.app().expect_recovered("chat").await?;
    connection.cut();
    kit.settle(&mut fresh).await
}

/// The client does not ask before 1.5 times the interval of pings have passed.
pub(super) async fn ping_is_not_sent_too_early(kit: &mut Kit) -> Result {
    let mut connection = live_with_pings(kit).await?;
    connection.answers_pings = false;
    let sent = Instant::now();
    connection.deliver(&CHAT, 11).await?;
    connection.expect("ping").await?;
    kit.expect_not_before(sent, PING_INTERVAL_MS * 3 / 2 - 10)?;
    kit.app().expect_message("chat", &CHAT, 11).await
}

/// An answered ping keeps the connection.
pub(super) async fn pong_keeps_the_connection(kit: &mut Kit) -> Result {
    let mut connection = live_with_pings(kit).await?;
    connection.answers_pings = false;
    for _ in 0..3 {
        let ping = connection.expect("ping").await?;
        connection.pong(&ping).await?;
    }
    connection.answers_pings = true;
    kit.settle(&mut connection).await
}

/// Any frame is a sign of life, also instead of a pong.
pub(super) async fn any_frame_is_a_sign_of_life(kit: &mut Kit) -> Result {
    let mut connection = live_with_pings(kit).await?;
    connection.answers_pings = false;
    for offset in 11..=13 {
        connection.expect("ping").await?;
        connection.deliver(&CHAT, offset).await?;
        kit.app().expect_message("chat", &CHAT, offset).await?;
    }
    connection.answers_pings = true;
    kit.settle(&mut connection).await
}

/// A computer sleeps, and the connection survives: what came meanwhile is handed over once.
pub(super) async fn sleep_and_wake(kit: &mut Kit) -> Result {
    let mut connection = live_with_pings(kit).await?;
    kit.driver().signal("STOP").await?;
    connection.deliver_all(&CHAT, 11..=13).await?;
    tokio::time::sleep(Duration::from_millis(2000)).await;
    kit.driver().signal("CONT").await?;
    kit.app().expect_messages("chat", &CHAT, 11..=13).await?;
    connection.deliver(&CHAT, 14).await?;
    kit.app().expect_message("chat", &CHAT, 14).await?;
    kit.settle(&mut connection).await
}

/// A computer sleeps, and the connection is gone when it wakes.
pub(super) async fn connection_is_lost_during_sleep(kit: &mut Kit) -> Result {
    let connection = live_with_pings(kit).await?;
    kit.driver().signal("STOP").await?;
    connection.cut();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    kit.driver().signal("CONT").await?;
    let mut connection = kit.recover(10, 2).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A computer sleeps, and nothing tells that the connection is gone: the client finds out.
pub(super) async fn connection_is_half_open_after_sleep(kit: &mut Kit) -> Result {
    let mut connection = live_with_pings(kit).await?;
    connection.answers_pings = false;
    kit.driver().signal("STOP").await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    kit.driver().signal("CONT").await?;
    connection.expect("ping").await?;
    let mut fresh = kit.recover(10, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut fresh).await
}

/// WebSocket pings of the server are answered.
pub(super) async fn pings_of_the_server_are_answered(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.ping(b"").await?;
    connection.ping(b"are you there?").await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.settle(&mut connection).await
}

/// A server that sends no pings is not asked at once, and not without end.
pub(super) async fn server_without_pings(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.accept().await?;
    connection.answers_pings = false;
    connection.welcome_with(json!({}), json!({"ping_interval_ms": 0})).await?;
    kit.app().wait_for_state("open").await?;
    connection.refute("expected no ping soon after the start", 500, |next| next.kind == "ping").await?;
    kit.settle(&mut connection).await
}
