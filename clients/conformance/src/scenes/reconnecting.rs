//! The time after the end of a connection.

use std::time::Instant;

use serde_json::json;

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit, MAX_DELAY_MS, MIN_DELAY_MS};

/// The backoff before attempt `attempt` lies within these milliseconds.
fn expect_backoff(attempt: u32, wait_ms: f64) -> Result {
    let highest = MAX_DELAY_MS.min(MIN_DELAY_MS << attempt);
    let lowest = if attempt == 1 { 0 } else { MIN_DELAY_MS };
    // `wait_ms` may be measured a moment after the decision, or be rounded.
    let is_within = wait_ms <= highest as f64 + 1.0 && wait_ms >= lowest.saturating_sub(MIN_DELAY_MS / 2) as f64;
    ensure(is_within, || {
        format!("expected a backoff of {lowest} to {highest} ms before attempt {attempt}, not {wait_ms} ms")
    })
}

async fn comes_back(kit: &mut Kit) -> Result {
    let mut connection = kit.recover(10, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// Delays grow from the first to the highest, and stay there.
pub(super) async fn backoff_grows_to_its_limit(kit: &mut Kit) -> Result {
    kit.connect().await?;
    for attempt in 1..=8 {
        kit.request().await?.cut();
        let waiting = kit.app().expect_waiting().await?;
        expect_backoff(attempt, waiting.wait_ms)?;
    }
    let mut connection = kit.open().await?;
    kit.settle(&mut connection).await
}

/// Two hubs do not choose the same delays.
pub(super) async fn backoff_is_random(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"min_delay_ms": 200, "max_delay_ms": 400})).await?;
    let mut waits = Vec::new();
    for _ in 0..6 {
        kit.request().await?.cut();
        waits.push(kit.app().expect_waiting().await?.wait_ms.round());
    }
    let first = waits[1];
    ensure(waits[1..].iter().any(|wait| *wait != first), || format!("expected random delays, not {waits:?}"))
}

/// Connections that end soon do not reset the backoff.
pub(super) async fn short_connections_do_not_reset_the_backoff(kit: &mut Kit) -> Result {
    kit.connect().await?;
    for attempt in 1..=6 {
        let connection = kit.open().await?;
        kit.app().wait_for_state("open").await?;
        connection.cut();
        let waiting = kit.app().expect_waiting().await?;
        expect_backoff(attempt, waiting.wait_ms)?;
    }
    Ok(())
}

/// A connection that was open for ten seconds resets the backoff, and 4200 then means at once.
pub(super) async fn long_connection_resets_the_backoff(kit: &mut Kit) -> Result {
    kit.connect().await?;
    for _ in 0..3 {
        kit.request().await?.cut();
        kit.app().expect_waiting().await?;
    }
    let mut connection = kit.open().await?;
    kit.app().wait_for_state("open").await?;
    connection.refute("expected no message", 10_300, |_| true).await?;
    connection.goodbye(4200, true, None).await?;
    connection.close(4200).await?;
    kit.app().wait_for_state("connecting").await?;
    kit.app().refute("expected an attempt at once", |event| event["state"] == "waiting")?;
    let _connection = kit.open().await?;
    kit.app().wait_for_state("open").await.map(drop)
}

/// 4200 right after the start gets a backoff, so that no loop without a pause can arise.
pub(super) async fn life_lost_at_once_gets_a_backoff(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.close(4200).await?;
    kit.app().expect_waiting().await?;
    comes_back(kit).await
}

async fn comes_back_after_close(kit: &mut Kit, code: u16) -> Result {
    let connection = kit.live_at(10).await?;
    connection.close(code).await?;
    let waiting = kit.app().expect_waiting().await?;
    expect_backoff(1, waiting.wait_ms)?;
    comes_back(kit).await
}

/// 1001 without `goodbye`: the backoff applies.
pub(super) async fn close_1001(kit: &mut Kit) -> Result {
    comes_back_after_close(kit, 1001).await
}

/// 1008: the rate limit was violated.
pub(super) async fn close_1008(kit: &mut Kit) -> Result {
    comes_back_after_close(kit, 1008).await
}

/// 1011: a fault inside the server.
pub(super) async fn close_1011(kit: &mut Kit) -> Result {
    comes_back_after_close(kit, 1011).await
}

/// 1013: too slow for a topic without history.
pub(super) async fn close_1013(kit: &mut Kit) -> Result {
    comes_back_after_close(kit, 1013).await
}

/// 1000 that the application did not ask for is an end as any other.
pub(super) async fn close_1000_by_the_server(kit: &mut Kit) -> Result {
    comes_back_after_close(kit, 1000).await
}

/// A code that no page names.
pub(super) async fn close_with_unknown_code(kit: &mut Kit) -> Result {
    comes_back_after_close(kit, 4150).await
}

async fn closed_for_good(kit: &mut Kit, code: u16) -> Result {
    let connection = kit.live_at(10).await?;
    connection.close(code).await?;
    kit.app().wait_for_state("closed").await?;
    kit.app().expect_ended("chat", "closed").await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    kit.app().expect_failed("post", "closed").await?;
    kit.refute_connection(300).await
}

/// 1002: the client broke the protocol.
pub(super) async fn final_1002(kit: &mut Kit) -> Result {
    closed_for_good(kit, 1002).await
}

/// 1007: the client sent text that is not UTF-8.
pub(super) async fn final_1007(kit: &mut Kit) -> Result {
    closed_for_good(kit, 1007).await
}

/// 1009: the client sent too long a message.
pub(super) async fn final_1009(kit: &mut Kit) -> Result {
    closed_for_good(kit, 1009).await
}

/// 4003: a backend disconnected the client.
pub(super) async fn final_4003(kit: &mut Kit) -> Result {
    closed_for_good(kit, 4003).await
}

/// `goodbye` with `reconnect: false`, before a code that alone would be no end.
pub(super) async fn goodbye_for_good(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.goodbye(4150, false, None).await?;
    connection.close(4150).await?;
    kit.app().wait_for_state("closed").await?;
    kit.app().expect_ended("chat", "closed").await?;
    kit.refute_connection(300).await
}

/// A draining server gives each client its own slot.
pub(super) async fn goodbye_with_slot(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let sent = Instant::now();
    connection.goodbye(1001, true, Some(1500)).await?;
    connection.close(1001).await?;
    let waiting = kit.app().expect_waiting().await?;
    ensure((1400.0..=1500.0).contains(&waiting.wait_ms), || {
        format!("expected wait_ms of 1500 after the slot, not {}", waiting.wait_ms)
    })?;
    let has_reason = waiting.reason.is_some_and(|reason| !reason.is_empty());
    ensure(has_reason, || "expected a reason beside waiting, but there is none".to_owned())?;
    let mut connection = kit.open().await?;
    kit.expect_not_before(sent, 1490)?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&CHAT, 10)
}

/// The slot holds also if the close frame never comes.
pub(super) async fn goodbye_with_slot_then_cut(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let sent = Instant::now();
    connection.goodbye(1001, true, Some(800)).await?;
    // A reset could overtake the message in the client's kernel.
    connection.end().await?;
    let _connection = kit.open().await?;
    kit.expect_not_before(sent, 790)
}

/// A slot beyond the longest backoff is kept.
pub(super) async fn goodbye_with_late_slot(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.goodbye(1001, true, Some(3_600_000)).await?;
    connection.close(1001).await?;
    let waiting = kit.app().expect_waiting().await?;
    ensure((3_590_000.0..=3_600_000.0).contains(&waiting.wait_ms), || {
        format!("expected wait_ms of one hour after the slot, not {}", waiting.wait_ms)
    })?;
    kit.refute_connection(400).await
}

/// A slot too far for a timer becomes the longest one.
pub(super) async fn goodbye_with_absurd_slot(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.goodbye(1001, true, Some(9_007_199_254_740_991)).await?;
    connection.close(1001).await?;
    let waiting = kit.app().expect_waiting().await?;
    ensure((2_147_000_000.0..=2_147_483_647.0).contains(&waiting.wait_ms), || {
        format!("expected wait_ms of 2147483647 after the slot, not {}", waiting.wait_ms)
    })?;
    kit.refute_connection(400).await
}

/// `goodbye` without a slot: the backoff applies.
pub(super) async fn goodbye_without_slot(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.goodbye(1001, true, None).await?;
    connection.close(1001).await?;
    let waiting = kit.app().expect_waiting().await?;
    expect_backoff(1, waiting.wait_ms)?;
    comes_back(kit).await
}

/// A slot belongs to one end of a connection, not to the next.
pub(super) async fn slot_is_used_once(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.goodbye(1001, true, Some(1000)).await?;
    connection.close(1001).await?;
    kit.app().expect_waiting().await?;
    let connection = kit.recover(10, 0).await?;
    kit.app().expect_recovered("chat").await?;
    connection.cut();
    let waiting = kit.app().expect_waiting().await?;
    expect_backoff(2, waiting.wait_ms)?;
    comes_back(kit).await
}

/// A proxy ends the TCP connection without a close frame.
pub(super) async fn end_without_close_frame(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.end().await?;
    kit.app().expect_waiting().await?;
    comes_back(kit).await
}

/// A connection that is cut in the middle of a frame: the half message is not handed over.
pub(super) async fn cut_in_the_middle_of_a_frame(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    let text = json!({"type": "message", "data": CHAT.delivery(11)}).to_string();
    let length = u16::try_from(text.len()).unwrap_or_default().to_be_bytes();
    let mut frame = vec![0x81, 126, length[0], length[1]];
    frame.extend_from_slice(&text.as_bytes()[..text.len() / 2]);
    connection.send_bytes(&frame).await?;
    connection.end().await?;
    let mut connection = kit.recover(10, 1).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A frame that breaks the WebSocket protocol costs the connection, not the hub.
pub(super) async fn broken_frame_of_the_server(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    // A text frame with reserved bits set.
    connection.send_bytes(&[0xf1, 2, b'{', b'}']).await?;
    connection.expect_end().await?;
    kit.app().expect_waiting().await?;
    comes_back(kit).await
}
