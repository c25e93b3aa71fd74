//! Handles that join others with `history`, which may be ahead of the messages that the topic gets.

use std::ops::RangeInclusive;

use serde_json::json;

use super::own::publish_excluded;
use crate::connection::Connection;
use crate::failure::{Failure, Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::received::Received;
use crate::topic::{Topic, merge};

const SECOND: Topic = CHAT.in_epoch("e2");
const THIRD: Topic = CHAT.in_epoch("e3");

/// An event that a handle must see.
enum Seen {
    Message(Topic, u64),
    Gap(&'static str),
}

/// Expects these events as the next ones of a handle. States are left out.
async fn expect_all(kit: &mut Kit, handle: &str, events: &[Seen]) -> Result {
    for expected in events {
        let event = kit.app().next_message_or_gap(handle).await?;
        let (is_it, text) = match expected {
            Seen::Message(topic, offset) => (
                event["event"] == "message" && event["epoch"] == topic.epoch && event["offset"] == *offset,
                format!("message {offset} of {}", topic.epoch),
            ),
            Seen::Gap(reason) => {
                (event["event"] == "gap" && event["reason"] == *reason, format!("a gap {reason:?}"))
            }
        };
        ensure(is_it, || format!("expected {text} at handle {handle:?}, but the application saw {event}"))?;
    }
    Ok(())
}

/// Lets the handle `late` join with `history`.
async fn join(kit: &mut Kit) -> Result {
    kit.command("subscribe", json!({"as": "late", "topic": CHAT.name, "history": 5})).await
}

/// Returns a connection with the live handle `chat` at 10, and the request of `late` for its history.
async fn joined(kit: &mut Kit) -> Result<(Connection, Received)> {
    let mut connection = kit.live_at(10).await?;
    join(kit).await?;
    let history = connection.expect("history").await?;
    Ok((connection, history))
}

/// Answers a request for history.
async fn answer(
    connection: &mut Connection,
    history: &Received,
    topic: &Topic,
    offsets: RangeInclusive<u64>,
) -> Result {
    let newest = *offsets.end();
    let messages: Vec<_> = offsets.map(|offset| topic.delivery(offset)).collect();
    connection.reply(history, "history", topic.at(newest, json!({"messages": messages}))).await
}

/// Tells that a new epoch has begun after an offset.
async fn begin_epoch(connection: &mut Connection, topic: &Topic, offset: u64) -> Result {
    connection.send("gap", topic.at(offset, json!({"reason": "epoch"}))).await
}

/// Ends a scene that did not look at the states of `late`.
async fn settle(kit: &mut Kit, connection: &mut Connection) -> Result {
    kit.settle_leaving(connection, "late").await
}

/// Gaps and messages before the epoch of the history do not lead the handle back.
pub(super) async fn events_before_the_epoch_of_the_history(kit: &mut Kit) -> Result {
    let (mut connection, history) = joined(kit).await?;
    // The history was emptied twice, and the topic is behind.
    connection.deliver(&CHAT, 11).await?;
    begin_epoch(&mut connection, &SECOND, 11).await?;
    connection.deliver(&SECOND, 12).await?;
    answer(&mut connection, &history, &THIRD, 15..=15).await?;
    connection.deliver(&SECOND, 13).await?;
    let trimmed = json!({"from": 14, "to": 14, "reason": "trimmed"});
    connection.send("gap", SECOND.at(14, trimmed)).await?;
    begin_epoch(&mut connection, &THIRD, 14).await?;
    connection.deliver_all(&THIRD, 15..=16).await?;
    expect_all(kit, "late", &[Seen::Message(THIRD, 15), Seen::Message(THIRD, 16)]).await?;
    let all = [
        Seen::Message(CHAT, 11),
        Seen::Gap("epoch"),
        Seen::Message(SECOND, 12),
        Seen::Message(SECOND, 13),
        Seen::Gap("trimmed"),
        Seen::Gap("epoch"),
        Seen::Message(THIRD, 15),
        Seen::Message(THIRD, 16),
    ];
    expect_all(kit, "chat", &all).await?;
    settle(kit, &mut connection).await
}

/// As above, with a handle that joined before the topic's `subscribed`.
pub(super) async fn joined_before_subscribed(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    join(kit).await?;
    kit.await_echo(&mut connection).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    let history = connection.expect("history").await?;
    answer(&mut connection, &history, &THIRD, 15..=15).await?;
    begin_epoch(&mut connection, &SECOND, 11).await?;
    connection.deliver(&SECOND, 12).await?;
    begin_epoch(&mut connection, &THIRD, 14).await?;
    connection.deliver_all(&THIRD, 15..=16).await?;
    expect_all(kit, "late", &[Seen::Message(THIRD, 15), Seen::Message(THIRD, 16)]).await?;
    let all = [
        Seen::Gap("epoch"),
        Seen::Message(SECOND, 12),
        Seen::Gap("epoch"),
        Seen::Message(THIRD, 15),
        Seen::Message(THIRD, 16),
    ];
    expect_all(kit, "chat", &all).await?;
    kit.app().skip_states("chat");
    settle(kit, &mut connection).await
}

/// The topic never reaches the epoch of the history. The gap to a later one is told before or after
/// the history has arrived.
async fn follow_to_a_later_epoch(kit: &mut Kit, is_told_before: bool) -> Result {
    let (mut connection, history) = joined(kit).await?;
    if is_told_before {
        begin_epoch(&mut connection, &THIRD, 20).await?;
        answer(&mut connection, &history, &SECOND, 15..=15).await?;
    } else {
        answer(&mut connection, &history, &SECOND, 15..=15).await?;
        begin_epoch(&mut connection, &THIRD, 20).await?;
    }
    connection.deliver(&THIRD, 21).await?;
    let late = [Seen::Message(SECOND, 15), Seen::Gap("epoch"), Seen::Message(THIRD, 21)];
    expect_all(kit, "late", &late).await?;
    expect_all(kit, "chat", &[Seen::Gap("epoch"), Seen::Message(THIRD, 21)]).await?;
    settle(kit, &mut connection).await
}

/// A gap to a later epoch waits when the history arrives.
pub(super) async fn later_epoch_waits_for_the_history(kit: &mut Kit) -> Result {
    follow_to_a_later_epoch(kit, true).await
}

/// A gap to a later epoch comes after the history.
pub(super) async fn later_epoch_after_the_history(kit: &mut Kit) -> Result {
    follow_to_a_later_epoch(kit, false).await
}

/// A server that lost its offsets begins the next epoch with lower ones.
pub(super) async fn lower_offsets_wait_for_the_history(kit: &mut Kit) -> Result {
    let (mut connection, history) = joined(kit).await?;
    begin_epoch(&mut connection, &SECOND, 14).await?;
    connection.deliver(&SECOND, 15).await?;
    begin_epoch(&mut connection, &THIRD, 2).await?;
    answer(&mut connection, &history, &SECOND, 15..=15).await?;
    connection.deliver(&THIRD, 3).await?;
    let late = [Seen::Message(SECOND, 15), Seen::Gap("epoch"), Seen::Message(THIRD, 3)];
    expect_all(kit, "late", &late).await?;
    expect_all(kit, "chat", &[Seen::Gap("epoch")]).await?;
    expect_all(kit, "chat", &late).await?;
    settle(kit, &mut connection).await
}

/// The history is emptied between two of its parts: the handle sees the first one and a gap, or
/// begins with the second one.
pub(super) async fn history_is_emptied_between_its_parts(kit: &mut Kit) -> Result {
    let (mut connection, history) = joined(kit).await?;
    let messages = json!([CHAT.delivery(9), CHAT.delivery(10)]);
    let part = CHAT.at(10, json!({"messages": messages, "next": 11}));
    connection.reply(&history, "history", part).await?;
    let history = connection.expect("history").await?;
    begin_epoch(&mut connection, &SECOND, 12).await?;
    connection.deliver(&SECOND, 13).await?;
    answer(&mut connection, &history, &SECOND, 13..=13).await?;
    connection.deliver(&SECOND, 14).await?;
    let event = kit.app().next_message_or_gap("late").await?;
    if event["epoch"] == CHAT.epoch && event["offset"] == 9 {
        let rest = [Seen::Message(CHAT, 10), Seen::Gap("epoch"), Seen::Message(SECOND, 13)];
        expect_all(kit, "late", &rest).await?;
    } else {
        ensure(event["epoch"] == SECOND.epoch && event["offset"] == 13, || {
            format!(
                "expected message 9 of e1 or 13 of e2 at handle \"late\", but the application saw {event}"
            )
        })?;
    }
    expect_all(kit, "late", &[Seen::Message(SECOND, 14)]).await?;
    let all = [Seen::Gap("epoch"), Seen::Message(SECOND, 13), Seen::Message(SECOND, 14)];
    expect_all(kit, "chat", &all).await?;
    settle(kit, &mut connection).await
}

/// An own message of the topic's epoch does not move a handle that is ahead.
pub(super) async fn own_message_behind_the_history(kit: &mut Kit) -> Result {
    let (mut connection, history) = joined(kit).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    answer(&mut connection, &history, &SECOND, 15..=15).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    connection.send("gap", CHAT.at(12, json!({"from": 12, "to": 12, "reason": "trimmed"}))).await?;
    connection.deliver(&CHAT, 13).await?;
    begin_epoch(&mut connection, &SECOND, 14).await?;
    connection.deliver_all(&SECOND, 15..=16).await?;
    expect_all(kit, "late", &[Seen::Message(SECOND, 15), Seen::Message(SECOND, 16)]).await?;
    let all = [
        Seen::Gap("trimmed"),
        Seen::Message(CHAT, 13),
        Seen::Gap("epoch"),
        Seen::Message(SECOND, 15),
        Seen::Message(SECOND, 16),
    ];
    expect_all(kit, "chat", &all).await?;
    settle(kit, &mut connection).await
}

/// An own message that the history has fills its hole when the topic reaches that epoch.
pub(super) async fn own_message_in_the_history(kit: &mut Kit) -> Result {
    let (mut connection, history) = joined(kit).await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    answer(&mut connection, &history, &SECOND, 15..=15).await?;
    connection.reply_published(&publish, &SECOND, 15).await?;
    begin_epoch(&mut connection, &SECOND, 14).await?;
    connection.deliver(&SECOND, 16).await?;
    expect_all(kit, "late", &[Seen::Message(SECOND, 15), Seen::Message(SECOND, 16)]).await?;
    expect_all(kit, "chat", &[Seen::Gap("epoch"), Seen::Message(SECOND, 16)]).await?;
    settle(kit, &mut connection).await
}

/// Answers the subscribes of a client until its echo. The replay has no message, since the only one
/// is the client's own.
async fn serve_until_echo(kit: &mut Kit, connection: &mut Connection) -> Result {
    kit.command("echo", json!({"as": "mark", "data": "mark"})).await?;
    loop {
        let received = connection.receive().await?;
        match &*received.kind {
            "unsubscribe" => {}
            "echo" => {
                connection.reply(&received, "echo", received.data.clone()).await?;
                return kit.app().expect_value("mark").await.map(drop);
            }
            _ => {
                let subscribe = connection.as_subscribe(received)?;
                let from = subscribe.entry(CHAT.name)?["recover"]["offset"].as_u64().unwrap_or_default();
                ensure((10..=11).contains(&from), || format!("expected recover from 10 or 11, not {from}"))?;
                let answer = CHAT.at(from, json!({"recovered": true, "replay": 0}));
                connection.reply_subscribed(&subscribe, &[answer]).await?;
            }
        }
    }
}

/// A history that does not fit is asked for again, from before an own message.
pub(super) async fn own_message_in_a_history_that_does_not_fit(kit: &mut Kit) -> Result {
    let mut connection = kit.live_with(json!({"max_queue_bytes": 800}), 10).await?;
    let keys = json!({"as": "late", "topic": CHAT.name, "history": 5, "hold": true});
    kit.command("subscribe", keys).await?;
    let history = connection.expect("history").await?;
    let publish = publish_excluded(kit, &mut connection).await?;
    connection.reply_published(&publish, &CHAT, 11).await?;
    let padded = json!({"message": {"padding": "x".repeat(400)}});
    let messages = [10, 11].map(|offset| merge(CHAT.delivery(offset), padded.clone()));
    connection.reply(&history, "history", CHAT.at(11, json!({"messages": messages}))).await?;
    kit.app().expect_offset("late", 10).await?;
    serve_until_echo(kit, &mut connection).await?;
    connection.deliver(&CHAT, 12).await?;
    kit.app().expect_offset("chat", 12).await?;
    kit.command("release", json!({"as": "late"})).await?;
    let mut event = kit.app().next_message_or_gap("late").await?;
    if event["offset"] == 11 {
        event = kit.app().next_message_or_gap("late").await?;
    }
    if event["event"] != "message" || event["offset"] != 12 {
        return Err(Failure::new(format!("expected message 12 at handle \"late\", not {event}")));
    }
    kit.app().skip_states("chat");
    settle(kit, &mut connection).await
}
