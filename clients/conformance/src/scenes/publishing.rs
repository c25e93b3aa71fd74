//! Publishing without loss or repetition.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::failure::{Failure, Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::topic::Topic;

const OTHER: Topic = Topic::new("chat.2", "x9");

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

/// Without history, the result has subscribers alone.
pub(super) async fn result_without_history(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("post", "news", json!(null)).await?;
    let publish = connection.expect_publish("news", json!(null)).await?;
    connection.reply(&publish, "published", json!({"topic": "news", "subscribers": 0})).await?;
    let value = kit.app().expect_value("post").await?;
    let has_no_offset = value.get("offset").is_none_or(Value::is_null);
    ensure(value["subscribers"] == 0 && has_no_offset, || format!("expected 0 subscribers and no offset, not {value}"))
}

/// Any JSON arrives as the application gave it.
pub(super) async fn payloads_arrive_unchanged(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    let payloads = [json!(""), json!(0), json!(-1.5), json!(false), json!([]), json!({}), json!([[1, [2]], {"a": null}]),
        json!("quote \" backslash \\ newline \n tab \t"), json!("žluťoučký 🦆 \u{2028} \u{0}"), json!({"": {"": 1}})];
    for (number, payload) in payloads.iter().enumerate() {
        kit.publish(&format!("post-{number}"), CHAT.name, payload.clone()).await?;
        let publish = connection.expect_publish(CHAT.name, payload.clone()).await?;
        connection.reply_published(&publish, &CHAT, 1 + number as u64).await?;
    }
    Ok(())
}

/// On one topic, the next publish waits for the answer to the one before it.
pub(super) async fn one_at_a_time_on_a_topic(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    for number in 1..=3 {
        kit.publish(&format!("post-{number}"), CHAT.name, json!(number)).await?;
    }
    for number in 1..=3 {
        let publish = connection.expect_publish(CHAT.name, json!(number)).await?;
        connection.refute("expected no publish before the answer", 60, |next| next.kind == "publish").await?;
        connection.reply_published(&publish, &CHAT, number).await?;
        kit.app().expect_published(&format!("post-{number}"), number).await?;
    }
    kit.settle(&mut connection).await
}

/// Other topics do not wait.
pub(super) async fn topics_do_not_wait_for_each_other(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("chat", CHAT.name, json!(1)).await?;
    kit.publish("other", OTHER.name, json!(2)).await?;
    let first = connection.expect_publish(CHAT.name, json!(1)).await?;
    let second = connection.expect_publish(OTHER.name, json!(2)).await?;
    connection.reply_published(&second, &OTHER, 20).await?;
    kit.app().expect_published("other", 20).await?;
    connection.reply_published(&first, &CHAT, 10).await?;
    kit.app().expect_published("chat", 10).await
}

/// `ordered: false` does without the order of one topic, and answers may come in any.
pub(super) async fn unordered_publishes(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    let mut publishes = Vec::new();
    for number in 1..=3 {
        let keys = json!({"as": format!("post-{number}"), "topic": CHAT.name, "message": number, "ordered": false});
        kit.command("publish", keys).await?;
    }
    for number in 1..=3 {
        publishes.push((number, connection.expect_publish(CHAT.name, json!(number)).await?));
    }
    for (number, publish) in publishes.iter().rev() {
        connection.reply_published(publish, &CHAT, 40 + number).await?;
    }
    for number in 1..=3 {
        kit.app().expect_published(&format!("post-{number}"), 40 + number).await?;
    }
    Ok(())
}

/// At most 32 publishes are unanswered.
pub(super) async fn at_most_32_are_unanswered(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    for number in 0..40 {
        kit.publish(&format!("post-{number}"), &format!("topic.{number}"), json!(number)).await?;
    }
    let mut publishes = Vec::new();
    for number in 0..32 {
        publishes.push(connection.expect_publish(&format!("topic.{number}"), json!(number)).await?);
    }
    connection.refute("expected at most 32 unanswered publishes", 60, |next| next.kind == "publish").await?;
    for number in 32..40 {
        let publish = publishes.remove(0);
        connection.reply(&publish, "published", json!({"topic": publish.data["topic"], "subscribers": 0})).await?;
        publishes.push(connection.expect_publish(&format!("topic.{number}"), json!(number)).await?);
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

/// An answered publish is not sent again.
pub(super) async fn answered_publish_is_not_repeated(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("post", CHAT.name, json!(1)).await?;
    let publish = connection.expect_publish(CHAT.name, json!(1)).await?;
    connection.reply_published(&publish, &CHAT, 42).await?;
    connection.reply_published(&publish, &CHAT, 42).await?;
    kit.app().expect_published("post", 42).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    kit.settle(&mut connection).await?;
    kit.app().refute("expected one result", |event| event["event"] == "result")
}

/// Each publish has a `once` of its own, of at most 64 bytes, that another client does not choose.
pub(super) async fn once_is_unique(kit: &mut Kit) -> Result {
    let mut seen = BTreeSet::new();
    for round in 0..2 {
        kit.connect().await?;
        let mut connection = kit.open().await?;
        for number in 0..5 {
            let topic = format!("topic.{}", number % 2);
            kit.publish(&format!("post-{round}-{number}"), &topic, json!("equal")).await?;
            let publish = connection.expect_publish(&topic, json!("equal")).await?;
            let once = publish.data["once"].as_str().unwrap_or_default().to_owned();
            ensure((8..=64).contains(&once.len()), || format!("expected a once of 8 to 64 bytes, not {once:?}"))?;
            ensure(seen.insert(once.clone()), || format!("expected a new once, but {once:?} was used before"))?;
            connection.reply(&publish, "published", json!({"topic": topic, "subscribers": 0})).await?;
        }
        kit.command("reload", json!({})).await?;
        connection.expect_end().await?;
    }
    Ok(())
}

/// Publishes without a connection are sent when it is open, in their order.
pub(super) async fn queued_while_away(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    connection.goodbye(1001, true, Some(400)).await?;
    connection.close(1001).await?;
    kit.app().expect_waiting().await?;
    kit.publish("a", CHAT.name, json!("a")).await?;
    kit.publish("b", OTHER.name, json!("b")).await?;
    kit.publish("c", CHAT.name, json!("c")).await?;
    let mut connection = kit.open().await?;
    let first = connection.expect_publish(CHAT.name, json!("a")).await?;
    let second = connection.expect_publish(OTHER.name, json!("b")).await?;
    connection.reply_published(&first, &CHAT, 11).await?;
    connection.reply_published(&second, &OTHER, 50).await?;
    let third = connection.expect_publish(CHAT.name, json!("c")).await?;
    connection.reply_published(&third, &CHAT, 12).await?;
    for (call, offset) in [("a", 11), ("b", 50), ("c", 12)] {
        kit.app().expect_published(call, offset).await?;
    }
    Ok(())
}

/// Unanswered publishes come before the subscribe, so that their answers fill holes in time.
pub(super) async fn repeated_before_the_subscribe(kit: &mut Kit) -> Result {
    let mut connection = kit.live_at(10).await?;
    kit.publish("a", CHAT.name, json!("a")).await?;
    kit.publish("b", OTHER.name, json!("b")).await?;
    connection.expect_publish(CHAT.name, json!("a")).await?;
    connection.expect_publish(OTHER.name, json!("b")).await?;
    connection.cut();
    let mut connection = kit.open().await?;
    let first = connection.expect_publish(CHAT.name, json!("a")).await?;
    let second = connection.expect_publish(OTHER.name, json!("b")).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_published(&first, &CHAT, 11).await?;
    connection.reply_published(&second, &OTHER, 50).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({"recovered": true, "replay": 1}))]).await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_published("a", 11).await?;
    kit.app().expect_published("b", 50).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    kit.app().expect_recovered("chat").await
}

/// Several unanswered publishes keep their order over a cut.
pub(super) async fn order_over_a_cut(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    for number in 1..=3 {
        kit.publish(&format!("post-{number}"), &format!("topic.{number}"), json!(number)).await?;
    }
    for number in 1..=3 {
        connection.expect_publish(&format!("topic.{number}"), json!(number)).await?;
    }
    connection.cut();
    let mut connection = kit.open().await?;
    for number in 1..=3 {
        let topic = format!("topic.{number}");
        let publish = connection.expect_publish(&topic, json!(number)).await?;
        connection.reply(&publish, "published", json!({"topic": topic, "subscribers": 0})).await?;
        kit.app().expect_value(&format!("post-{number}")).await?;
    }
    Ok(())
}

/// Replies are matched by `id`, not by their order.
pub(super) async fn replies_in_another_order(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.publish("chat", CHAT.name, json!(1)).await?;
    kit.publish("other", OTHER.name, json!(2)).await?;
    kit.command("echo", json!({"as": "echo", "data": {"any": 1}})).await?;
    kit.command("history", json!({"as": "history", "topic": CHAT.name})).await?;
    let mut received = Vec::new();
    for _ in 0..4 {
        received.push(connection.receive().await?);
    }
    received.reverse();
    for message in &received {
        match message.kind.as_str() {
            "publish" if message.data["topic"] == CHAT.name => connection.reply_published(message, &CHAT, 11).await?,
            "publish" => connection.reply_published(message, &OTHER, 21).await?,
            "echo" => connection.reply(message, "echo", message.data.clone()).await?,
            "history" => connection.reply(message, "history", CHAT.at(11, json!({"messages": []}))).await?,
            other => return Err(Failure::new(format!("expected publish, echo or history, not {other:?}"))),
        }
    }
    kit.app().expect_published("chat", 11).await?;
    kit.app().expect_published("other", 21).await?;
    let echo = kit.app().expect_value("echo").await?;
    ensure(echo == json!({"any": 1}), || format!("expected the echo of its data, not {echo}"))?;
    kit.app().expect_value("history").await.map(drop)
}
