//! `echo` and `history`.

use serde_json::json;

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};

/// An echo comes back as it was sent.
pub(super) async fn echo(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    for (number, data) in [json!({"any": [1, null, "ž"]}), json!(null), json!(0), json!("")].into_iter().enumerate() {
        let call = format!("echo-{number}");
        kit.command("echo", json!({"as": call, "data": data})).await?;
        let echo = connection.expect("echo").await?;
        ensure(echo.data == data, || format!("expected an echo of {data}, not {}", echo.data))?;
        connection.reply(&echo, "echo", data.clone()).await?;
        let value = kit.app().expect_value(&call).await?;
        ensure(value == data, || format!("expected the echo {data}, not {value}"))?;
    }
    Ok(())
}

/// The keys of a history go to the server, and its answer to the application.
pub(super) async fn history(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    let keys = json!({"as": "read", "topic": CHAT.name, "from": -10, "limit": 5, "order": "desc"});
    kit.command("history", keys).await?;
    let history = connection.expect("history").await?;
    let expected = json!({"topic": CHAT.name, "from": -10, "limit": 5, "order": "desc"});
    ensure(history.data == expected, || format!("expected history with {expected}, not {}", history.data))?;
    let messages = json!([CHAT.delivery(12), CHAT.delivery(11)]);
    connection.reply(&history, "history", CHAT.at(12, json!({"messages": messages, "next": 10}))).await?;
    let value = kit.app().expect_value("read").await?;
    let offsets: Vec<_> = value["messages"].as_array().into_iter().flatten().map(|message| &message["offset"]).collect();
    ensure(offsets == [12, 11] && value["offset"] == 12, || format!("expected messages 12 and 11, not {value}"))
}

/// Requests wait for the connection, and are sent again after a cut.
pub(super) async fn requests_over_a_cut(kit: &mut Kit) -> Result {
    kit.connect().await?;
    kit.command("echo", json!({"as": "echo", "data": 7})).await?;
    kit.command("history", json!({"as": "read", "topic": CHAT.name})).await?;
    let mut connection = kit.open().await?;
    connection.receive().await?;
    connection.receive().await?;
    connection.cut();
    let mut connection = kit.open().await?;
    for _ in 0..2 {
        let received = connection.receive().await?;
        match received.kind.as_str() {
            "echo" => connection.reply(&received, "echo", json!(7)).await?,
            _ => connection.reply(&received, "history", CHAT.at(1, json!({"messages": []}))).await?,
        }
    }
    kit.app().expect_value("echo").await?;
    kit.app().expect_value("read").await?;
    kit.settle(&mut connection).await
}

/// A request without an answer fails in time, and a late answer is nobody's.
pub(super) async fn request_times_out(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"request_timeout_ms": 400})).await?;
    let mut connection = kit.open().await?;
    kit.command("echo", json!({"as": "echo", "data": 7})).await?;
    let echo = connection.expect("echo").await?;
    kit.app().expect_failed("echo", "timeout").await?;
    connection.reply(&echo, "echo", json!(7)).await?;
    connection.refute("expected nothing more", 100, |_| true).await?;
    kit.app().refute("expected one result", |event| event["event"] == "result")
}

/// A request without a connection fails in time, too.
pub(super) async fn request_times_out_while_away(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"request_timeout_ms": 400})).await?;
    let request = kit.request().await?;
    kit.command("echo", json!({"as": "echo", "data": 7})).await?;
    kit.app().expect_failed("echo", "timeout").await?;
    let mut connection = request.upgrade().await?;
    connection.welcome().await?;
    kit.app().wait_for_state("open").await?;
    connection.refute("expected nothing of the failed echo", 100, |next| next.kind == "echo").await
}

/// The server's errors reach the caller.
pub(super) async fn request_is_refused(kit: &mut Kit) -> Result {
    kit.connect().await?;
    let mut connection = kit.open().await?;
    kit.command("history", json!({"as": "read", "topic": CHAT.name, "limit": 5000})).await?;
    let history = connection.expect("history").await?;
    connection.reply_error(&history, "invalid_message", json!({"field": "limit"})).await?;
    kit.app().expect_failed("read", "invalid_message").await?;
    kit.settle(&mut connection).await
}
