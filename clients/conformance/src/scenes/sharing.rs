//! Several handles on one topic, patterns, and overlapping subscriptions.

use serde_json::json;

use crate::connection::Connection;
use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::topic::Topic;

const OTHER: Topic = Topic::new("chat.2", "x9");

/// Two handles on one topic share one subscription, and each sees each message.
pub(super) async fn two_handles_share(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.subscribe("second", CHAT.name).await?;
    kit.app().expect_ready("second").await?;
    kit.app().expect_live("second").await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    for handle in ["chat", "second"] {
        kit.app().expect_messages(handle, &CHAT, 11..=12).await?;
    }
    kit.settle(&mut connection).await?;
    connection.cut();
    let mut connection = kit.recover(12, 1).await?;
    connection.deliver(&CHAT, 13).await?;
    for handle in ["chat", "second"] {
        kit.app().expect_message(handle, &CHAT, 13).await?;
        kit.app().expect_recovered(handle).await?;
    }
    kit.settle(&mut connection).await
}

/// Two handles of the beginning need one subscribe, too.
pub(super) async fn two_handles_before_the_connection(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("first", CHAT.name).await?;
    kit.subscribe("second", CHAT.name).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({}))]).await?;
    for handle in ["first", "second"] {
        kit.app().expect_ready(handle).await?;
        kit.app().expect_live(handle).await?;
    }
    connection.deliver(&CHAT, 11).await?;
    for handle in ["first", "second"] {
        kit.app().expect_message(handle, &CHAT, 11).await?;
    }
    kit.settle(&mut connection).await
}

/// The subscription ends with the last of its handles.
pub(super) async fn last_handle_ends_the_subscription(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.subscribe("second", CHAT.name).await?;
    kit.app().expect_live("second").await?;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    kit.app().expect_ended("chat", "unsubscribed").await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("second", &CHAT, 11).await?;
    kit.settle(&mut connection).await?;
    kit.command("unsubscribe", json!({"as": "second"})).await?;
    connection.expect("unsubscribe").await?;
    kit.app().expect_ended("second", "unsubscribed").await
}

/// A later handle reads its history with a message of its own, before live messages.
pub(super) async fn later_handle_reads_history(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.command("subscribe", json!({"as": "second", "topic": CHAT.name, "history": 2})).await?;
    let history = connection.expect("history").await?;
    ensure(history.data["topic"] == CHAT.name && history.data["from"] == -2, || {
        format!("expected history of {} from -2, not {}", CHAT.name, history.data)
    })?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    let messages = json!([CHAT.delivery(10), CHAT.delivery(11)]);
    connection.reply(&history, "history", CHAT.at(11, json!({"messages": messages}))).await?;
    connection.deliver(&CHAT, 12).await?;
    for offset in 10..=12 {
        kit.app().expect_offset("second", offset).await?;
    }
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.settle_leaving(&mut connection, "second").await
}

/// A replay that one handle asked for: another one sees all of it or nothing, and its gap likewise.
pub(super) async fn replay_for_another_handle(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.command("subscribe", json!({"as": "first", "topic": CHAT.name, "history": 4})).await?;
    kit.subscribe("second", CHAT.name).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({"replay": 4}))]).await?;
    connection.send("gap", CHAT.at(12, json!({"from": 11, "to": 12, "reason": "trimmed"}))).await?;
    connection.deliver_all(&CHAT, 13..=15).await?;
    kit.app().expect_gap("first", "trimmed", Some((11, 12))).await?;
    for offset in 13..=15 {
        kit.app().expect_offset("first", offset).await?;
    }
    let event = kit.app().next_message_or_gap("second").await?;
    if event["event"] == "gap" {
        for offset in 13..=15 {
            kit.app().expect_offset("second", offset).await?;
        }
    } else {
        ensure(event["offset"] == 15, || {
            format!("expected the gap or message 15 at handle \"second\", but the application saw {event}")
        })?;
    }
    kit.app().skip_states("first");
    kit.settle_leaving(&mut connection, "second").await
}

/// Answers the subscribes of a client that stops and continues, up to the offset `top`.
async fn serve_until_cancelled(connection: &mut Connection, top: u64) -> Result {
    loop {
        let received = connection.receive().await?;
        if received.kind == "unsubscribe" {
            continue;
        }
        let subscribe = connection.as_subscribe(received)?;
        let from = subscribe.entry(CHAT.name)?["recover"]["offset"].as_u64().unwrap_or_default();
        subscribe.expect_recover(&CHAT, from)?;
        let answer = CHAT.at(from, json!({"recovered": true, "replay": top - from}));
        connection.reply_subscribed(&subscribe, &[answer]).await?;
        for offset in from + 1..=top {
            deliver_long(connection, offset).await?;
        }
    }
}

/// Subscribes to one topic with a handle that is held and a fast one. Their queues have room for few
/// long messages. Both stand at the message 10.
async fn open_slow_and_fast(kit: &mut Kit) -> Result<Connection> {
    kit.connect_with(json!({"max_queue_bytes": 4096})).await?;
    kit.command("subscribe", json!({"as": "slow", "topic": CHAT.name, "hold": true})).await?;
    kit.subscribe("fast", CHAT.name).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("slow").await?;
    kit.app().expect_live("fast").await?;
    Ok(connection)
}

async fn deliver_long(connection: &mut Connection, offset: u64) -> Result {
    connection.deliver_with(&CHAT, offset, json!({"padding": "x".repeat(200)})).await
}

/// A slow and a fast handle on one topic: each sees each message once and in order.
pub(super) async fn slow_and_fast_handle(kit: &mut Kit) -> Result {
    const TOP: u64 = 60;
    let mut connection = open_slow_and_fast(kit).await?;
    for offset in 11..=TOP {
        deliver_long(&mut connection, offset).await?;
    }
    kit.app().expect_offset("slow", 11).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    let seen = async {
        for offset in 12..=TOP {
            kit.app().expect_offset("slow", offset).await?;
        }
        for offset in 11..=TOP {
            kit.app().expect_offset("fast", offset).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = seen => result,
        result = serve_until_cancelled(&mut connection, TOP) => result,
    }
}

/// A handle whose queue is full when a new epoch begins continues at its start, and misses nothing of
/// it. No other handle misses something.
pub(super) async fn full_queue_before_a_new_epoch(kit: &mut Kit) -> Result {
    const LAST: u64 = 60;
    let renewed = CHAT.in_epoch("n8");
    let mut connection = open_slow_and_fast(kit).await?;
    for offset in 11..=LAST {
        deliver_long(&mut connection, offset).await?;
        if offset.is_multiple_of(10) {
            // The queue of the fast handle is never full.
            kit.await_echo(&mut connection).await?;
        }
    }
    connection.send("gap", renewed.at(LAST, json!({"reason": "epoch"}))).await?;
    connection.deliver(&renewed, LAST + 1).await?;
    kit.app().expect_offset("slow", 11).await?;
    kit.await_echo(&mut connection).await?;
    kit.command("release", json!({"as": "slow"})).await?;
    connection.expect("unsubscribe").await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_recover(&renewed, LAST)?;
    let answer = renewed.at(LAST, json!({"recovered": true, "replay": 2}));
    connection.reply_subscribed(&subscribe, &[answer]).await?;
    connection.deliver_all(&renewed, LAST + 1..=LAST + 2).await?;
    for handle in ["slow", "fast"] {
        let mut last = if handle == "slow" { 11 } else { 10 };
        loop {
            let event = kit.app().next_message_or_gap(handle).await?;
            if event["event"] == "gap" {
                ensure(event["reason"] == "epoch" && event["from"].is_null(), || {
                    format!("expected a gap of a new epoch at handle {handle:?}, but the application saw {event}")
                })?;
                break;
            }
            last += 1;
            ensure(event["offset"] == last, || {
                format!("expected message {last} at handle {handle:?}, but the application saw {event}")
            })?;
        }
        for offset in LAST + 1..=LAST + 2 {
            kit.app().expect_offset(handle, offset).await?;
        }
    }
    kit.await_echo(&mut connection).await?;
    kit.app().skip_states("fast");
    kit.settle_leaving(&mut connection, "slow").await
}

/// A pattern receives the messages of all topics that it matches.
pub(super) async fn pattern_receives_all_topics(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("all", "chat.*").await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&["chat.*"]).await?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "chat.*"})]).await?;
    kit.app().expect_live("all").await?;
    connection.deliver(&CHAT, 11).await?;
    connection.deliver(&OTHER, 501).await?;
    connection.deliver(&CHAT, 12).await?;
    kit.app().expect_message("all", &CHAT, 11).await?;
    kit.app().expect_message("all", &OTHER, 501).await?;
    kit.app().expect_message("all", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// Levels decide what a pattern matches.
pub(super) async fn patterns_match_levels(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("one", "a.*").await?;
    kit.subscribe("more", "a.>").await?;
    kit.subscribe("middle", "*.b.c").await?;
    let mut connection = kit.open().await?;
    let answers = [json!({"topic": "a.*"}), json!({"topic": "a.>"}), json!({"topic": "*.b.c"})];
    connection.serve_subscribes(&answers).await?;
    for handle in ["one", "more", "middle"] {
        kit.app().expect_live(handle).await?;
    }
    for topic in ["a.b", "a.b.c", "x.b.c", "a.bb"] {
        connection.deliver_plain(topic, json!(topic)).await?;
    }
    for (handle, topics) in
        [("one", vec!["a.b", "a.bb"]), ("more", vec!["a.b", "a.b.c", "a.bb"]), ("middle", vec!["a.b.c", "x.b.c"])]
    {
        for topic in topics {
            kit.app().expect_payload(handle, topic, json!(topic)).await?;
        }
    }
    kit.settle(&mut connection).await
}

/// A pattern cannot recover: after a reconnect, the client says so.
pub(super) async fn pattern_cannot_recover(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("all", "chat.>").await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&["chat.>"]).await?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "chat.>"})]).await?;
    kit.app().expect_live("all").await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("all", &CHAT, 11).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&["chat.>"]).await?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "chat.>"})]).await?;
    kit.app().expect_gap("all", "no_history", None).await?;
    kit.app().expect_not_recovered("all", "no_history").await?;
    connection.deliver(&CHAT, 15).await?;
    kit.app().expect_message("all", &CHAT, 15).await?;
    kit.settle(&mut connection).await
}

/// Returns a connection with the topic at offset 10, and with a pattern that matches it.
async fn live_with_pattern(kit: &mut Kit) -> Result<Connection> {
    let mut connection = kit.live_at(10).await?;
    kit.subscribe("all", "chat.*").await?;
    let subscribe = connection.expect_subscribe(&["chat.*"]).await?;
    connection.reply_subscribed(&subscribe, &[json!({"topic": "chat.*"})]).await?;
    kit.app().expect_live("all").await?;
    Ok(connection)
}

/// A message that matches a topic and a pattern comes once, and goes to both handles.
pub(super) async fn topic_and_pattern_overlap(kit: &mut Kit) -> Result {
    let mut connection = live_with_pattern(kit).await?;
    connection.deliver(&CHAT, 11).await?;
    connection.deliver(&OTHER, 501).await?;
    connection.deliver(&CHAT, 12).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=12).await?;
    kit.app().expect_message("all", &CHAT, 11).await?;
    kit.app().expect_message("all", &OTHER, 501).await?;
    kit.app().expect_message("all", &CHAT, 12).await?;
    kit.settle(&mut connection).await
}

/// A handle that leaves a pattern does not end the topic below it.
pub(super) async fn pattern_ends_alone(kit: &mut Kit) -> Result {
    let mut connection = live_with_pattern(kit).await?;
    kit.command("unsubscribe", json!({"as": "all"})).await?;
    let unsubscribe = connection.expect("unsubscribe").await?;
    ensure(unsubscribe.data["topic"] == "chat.*", || format!("expected unsubscribe of chat.*, not {}", unsubscribe.data))?;
    kit.app().expect_ended("all", "unsubscribed").await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.settle(&mut connection).await
}
