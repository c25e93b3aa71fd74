//! Subscribing, unsubscribing, and errors of subscriptions.

use std::time::Instant;

use serde_json::{Value, json};

use crate::connection::Connection;
use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::topic::Topic;

const OTHER: Topic = Topic::new("chat.2", "x9");

/// The last messages come before live ones if the application asks for them.
pub(super) async fn history_comes_first(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.command("subscribe", json!({"as": "chat", "topic": CHAT.name, "history": 3})).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    subscribe.expect_no_recover(CHAT.name)?;
    let entry = subscribe.entry(CHAT.name)?;
    ensure(entry["history"] == 3, || format!("expected a subscribe with history 3, not {entry}"))?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({"replay": 3}))]).await?;
    connection.deliver_all(&CHAT, 11..=14).await?;
    kit.app().expect_messages("chat", &CHAT, 11..=13).await?;
    kit.app().expect_live("chat").await?;
    kit.app().expect_message("chat", &CHAT, 14).await?;
    kit.settle(&mut connection).await
}

/// A topic that nobody has published to has a position, too.
pub(super) async fn empty_topic(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(0).await?;
    connection.deliver(&CHAT, 1).await?;
    kit.app().expect_message("chat", &CHAT, 1).await?;
    connection.cut();
    let mut connection = kit.recover(1, 0).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A subscription that is made while the connection is open.
pub(super) async fn subscribes_while_open(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.subscribe("other", OTHER.name).await?;
    connection.serve_subscribes(&[OTHER.at(3, json!({}))]).await?;
    kit.app().expect_ready("other").await?;
    kit.app().expect_live("other").await?;
    connection.deliver(&OTHER, 4).await?;
    kit.app().expect_message("other", &OTHER, 4).await?;
    kit.settle(&mut connection).await
}

/// After a reconnect, one message subscribes to all topics, each with its own position.
pub(super) async fn one_message_for_all_topics(kit: &mut Kit) -> Result {
    let topics: Vec<String> = (0..20).map(|number| format!("room.{number}")).collect();
    let position = |number: usize| json!({"epoch": format!("e{number}"), "offset": number, "time": 5000 + number});
    let answer = |number: usize, more: Value| {
        let base = crate::topic::merge(json!({"topic": topics[number]}), position(number));
        crate::topic::merge(base, more)
    };
    kit.connect().await?;
    for topic in &topics {
        kit.subscribe(topic, topic).await?;
    }
    let mut connection = kit.open().await?;
    let answers: Vec<Value> = (0..20).map(|number| answer(number, json!({}))).collect();
    connection.serve_subscribes(&answers).await?;
    for topic in &topics {
        kit.app().expect_live(topic).await?;
    }
    connection.cut();
    let mut connection = kit.open().await?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let subscribe = connection.expect_subscribe(&names).await?;
    for (number, topic) in topics.iter().enumerate() {
        let entry = subscribe.entry(topic)?;
        ensure(entry["recover"] == position(number), || {
            format!("expected recover {} for {topic}, not {entry}", position(number))
        })?;
    }
    let answers: Vec<Value> =
        (0..20).map(|number| answer(number, json!({"recovered": true, "replay": 0}))).collect();
    connection.reply_subscribed(&subscribe, &answers).await?;
    for topic in &topics {
        kit.app().expect_recovered(topic).await?;
    }
    kit.settle(&mut connection).await
}

/// Takes subscribes until this many topics were asked for, and answers them. Returns the number of
/// messages.
async fn serve_many(connection: &mut Connection, topics: usize, limit: usize, more: &Value) -> Result<usize> {
    let (mut served, mut messages) = (0, 0);
    while served < topics {
        let subscribe = connection.expect_any_subscribe().await?;
        ensure(subscribe.length <= limit, || {
            format!("expected subscribes of at most {limit} bytes, but one has {}", subscribe.length)
        })?;
        let answer = |entry: &Value| {
            let position = json!({"topic": entry["topic"], "epoch": "e1", "offset": 7, "time": 1_796_000_000_007_u64});
            crate::topic::merge(position, more.clone())
        };
        let answers: Vec<Value> = subscribe.entries.iter().map(answer).collect();
        served += answers.len();
        messages += 1;
        connection.reply_subscribed(&subscribe, &answers).await?;
    }
    Ok(messages)
}

/// A subscribe for thousands of topics is divided, so that each part is short enough.
pub(super) async fn thousands_of_topics(kit: &mut Kit) -> Result {
    const TOPICS: usize = 2000;
    const LIMIT: usize = 16_384;
    let limits = json!({"max_message_bytes": LIMIT, "max_subscriptions": 5000});
    kit.connect().await?;
    for number in 0..TOPICS {
        kit.subscribe(&format!("h{number}"), &format!("sensors.building-7.room.{number}")).await?;
    }
    let mut connection = kit.accept().await?;
    connection.welcome_with(json!({}), limits.clone()).await?;
    serve_many(&mut connection, TOPICS, LIMIT, &json!({})).await?;
    for number in [0, 1, TOPICS / 2, TOPICS - 1] {
        kit.app().expect_live(&format!("h{number}")).await?;
    }
    connection.cut();
    let mut connection = kit.accept().await?;
    connection.welcome_with(json!({}), limits).await?;
    let messages = serve_many(&mut connection, TOPICS, LIMIT, &json!({"recovered": true, "replay": 0})).await?;
    // An entry has about 120 bytes, so 16 parts are enough; some clients count generously.
    ensure(messages <= 40, || format!("expected at most 40 subscribes for {TOPICS} topics, not {messages}"))?;
    for number in [0, 1, TOPICS / 2, TOPICS - 1] {
        kit.app().expect_recovered(&format!("h{number}")).await?;
    }
    Ok(())
}

/// `forbidden` ends the subscription, now and for ever.
pub(super) async fn forbidden_ends(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    let error = json!({"topic": CHAT.name, "error": {"code": "forbidden", "message": "no"}});
    connection.reply_subscribed(&subscribe, &[error]).await?;
    kit.app().expect_ready_error("chat", "forbidden").await?;
    kit.app().expect_ended("chat", "forbidden").await?;
    connection.cut();
    let mut connection = kit.open().await?;
    kit.settle(&mut connection).await
}

/// An error of one entry does not concern the others.
pub(super) async fn error_of_one_entry(kit: &mut Kit) -> Result {
    kit.connect().await?;
    for (handle, topic) in [("chat", CHAT.name), ("bad", "a..b"), ("other", OTHER.name)] {
        kit.subscribe(handle, topic).await?;
    }
    let mut connection = kit.open().await?;
    let error = json!({"topic": "a..b", "error": {"code": "invalid_topic", "message": "no", "field": "topic"}});
    connection.serve_subscribes(&[CHAT.at(10, json!({})), error, OTHER.at(3, json!({}))]).await?;
    kit.app().expect_ended("bad", "invalid_topic").await?;
    kit.app().expect_live("chat").await?;
    kit.app().expect_live("other").await?;
    connection.cut();
    let mut connection = kit.open().await?;
    connection.expect_subscribe(&[CHAT.name, OTHER.name]).await.map(drop)
}

/// The subscribe comes again after the server's time, and the position stays.
async fn retried_after(kit: &mut Kit, code: &str, retry_after_ms: Option<u64>) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    let mut error = json!({"code": code, "message": "not now"});
    if let Some(retry_after_ms) = retry_after_ms {
        error["retry_after_ms"] = retry_after_ms.into();
    }
    let refused = Instant::now();
    connection.reply_subscribed(&subscribe, &[json!({"topic": CHAT.name, "error": error})]).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    kit.expect_not_before(refused, retry_after_ms.unwrap_or(10).saturating_sub(10))?;
    subscribe.expect_recover(&CHAT, 10)?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({"recovered": true, "replay": 1}))]).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// The store of the history cannot be reached.
pub(super) async fn unavailable_is_retried(kit: &mut Kit) -> Result {
    retried_after(kit, "unavailable", Some(500)).await
}

/// The client subscribes too fast.
pub(super) async fn rate_limited_is_retried(kit: &mut Kit) -> Result {
    retried_after(kit, "rate_limited", Some(300)).await
}

/// The server keeps no more topics at present.
pub(super) async fn too_many_topics_is_retried(kit: &mut Kit) -> Result {
    retried_after(kit, "too_many_topics", Some(300)).await
}

/// A fault inside the server, without a time: a backoff.
pub(super) async fn internal_is_retried(kit: &mut Kit) -> Result {
    retried_after(kit, "internal", None).await
}

/// `unavailable` of one entry: only this topic is asked for again.
pub(super) async fn one_of_two_is_unavailable(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    kit.subscribe("other", OTHER.name).await?;
    let mut connection = kit.open().await?;
    let error = json!({"code": "unavailable", "message": "not now", "retry_after_ms": 50});
    let answers = [CHAT.at(10, json!({})), json!({"topic": OTHER.name, "error": error})];
    connection.serve_subscribes(&answers).await?;
    kit.app().expect_live("chat").await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    let subscribe = connection.expect_subscribe(&[OTHER.name]).await?;
    connection.reply_subscribed(&subscribe, &[OTHER.at(3, json!({}))]).await?;
    kit.app().expect_live("other").await?;
    kit.settle(&mut connection).await
}

/// The connection has as many subscriptions as it may: no other attempt would help.
pub(super) async fn too_many_subscriptions_ends(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.subscribe("other", OTHER.name).await?;
    let error = json!({"topic": OTHER.name, "error": {"code": "too_many_subscriptions", "message": "no"}});
    connection.serve_subscribes(&[error]).await?;
    kit.app().expect_ended("other", "too_many_subscriptions").await?;
    kit.settle(&mut connection).await
}

/// The server ends a subscription that the token does not allow any more.
pub(super) async fn ended_by_the_server(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.send("unsubscribed", json!({"topic": CHAT.name})).await?;
    kit.app().expect_ended("chat", "forbidden").await?;
    connection.cut();
    let mut connection = kit.open().await?;
    kit.settle(&mut connection).await
}

/// After `unsubscribe`, nothing more is handed over.
pub(super) async fn unsubscribe(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    let unsubscribe = connection.expect("unsubscribe").await?;
    ensure(unsubscribe.data["topic"] == CHAT.name, || {
        format!("expected unsubscribe of {}, not {}", CHAT.name, unsubscribe.data)
    })?;
    connection.deliver(&CHAT, 11).await?;
    if unsubscribe.id.is_some() {
        connection.reply(&unsubscribe, "unsubscribed", json!({"topic": CHAT.name})).await?;
    }
    kit.app().expect_ended("chat", "unsubscribed").await?;
    kit.settle(&mut connection).await
}

/// A handle that ends while there is no connection is not subscribed again.
pub(super) async fn unsubscribe_while_away(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    connection.goodbye(1001, true, Some(500)).await?;
    connection.close(1001).await?;
    kit.app().expect_waiting().await?;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    kit.app().expect_ended("chat", "unsubscribed").await?;
    let mut connection = kit.open().await?;
    kit.settle(&mut connection).await
}

/// A handle that ends in the middle of its recovery sees nothing more.
pub(super) async fn unsubscribe_while_recovering(kit: &mut Kit) -> Result {
    let connection = kit.live_at(10).await?;
    connection.cut();
    let mut connection = kit.recover(10, 3).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    connection.expect("unsubscribe").await?;
    kit.app().expect_ended("chat", "unsubscribed").await?;
    connection.deliver_all(&CHAT, 12..=14).await?;
    kit.settle(&mut connection).await
}

/// A handle that ends before its subscribe is answered stays ended.
pub(super) async fn unsubscribe_before_subscribed(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.open().await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    kit.app().expect_ended("chat", "unsubscribed").await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    connection.deliver(&CHAT, 11).await?;
    // Some clients unsubscribe at once, others when they know that they are subscribed.
    connection.expect("unsubscribe").await?;
    kit.settle(&mut connection).await
}

/// A topic that is subscribed again starts anew: late messages of the earlier time are dropped.
pub(super) async fn subscribe_again(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.command("unsubscribe", json!({"as": "chat"})).await?;
    connection.expect("unsubscribe").await?;
    kit.app().expect_ended("chat", "unsubscribed").await?;
    kit.subscribe("again", CHAT.name).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.deliver_all(&CHAT, 11..=12).await?;
    connection.send("unsubscribed", json!({"topic": "somewhere-else"})).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(12, json!({}))]).await?;
    kit.app().expect_live("again").await?;
    connection.deliver(&CHAT, 13).await?;
    kit.app().expect_message("again", &CHAT, 13).await?;
    kit.settle(&mut connection).await
}
