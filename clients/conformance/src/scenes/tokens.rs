//! Tokens: given, refused, renewed.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use serde_json::{Value, json};

use crate::connection::Connection;
use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit};

const REFUSED: &str = r#"{"error":{"code":"unauthorized","message":"the token is not valid"}}"#;

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}

/// Returns a token in the form of a JWT. Its signature is none.
fn jwt(name: &str, expires_s: u64) -> String {
    let encode = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.bm9uZQ", encode(json!({"alg": "HS256"})), encode(json!({"sub": name, "exp": expires_s})))
}

/// Expects a handshake with this token.
async fn expect_token(kit: &mut Kit, token: &str) -> Result<crate::request::Request> {
    let request = kit.request().await?;
    let seen = request.token();
    ensure(seen.as_deref() == Some(token), || format!("expected a handshake with token {token:?}, not {seen:?}"))?;
    Ok(request)
}

async fn open_with(kit: &mut Kit, token: &str) -> Result<Connection> {
    let mut connection = expect_token(kit, token).await?.upgrade().await?;
    connection.welcome().await?;
    kit.app().wait_for_state("open").await?;
    Ok(connection)
}

async fn refuse(kit: &mut Kit, token: &str) -> Result {
    let request = expect_token(kit, token).await?;
    request.refuse("401 Unauthorized", "Content-Type: application/json\r\n", REFUSED).await
}

/// A token that is a string goes into each handshake.
pub(super) async fn string_is_sent(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"token": "aaa.bbb.ccc"})).await?;
    open_with(kit, "aaa.bbb.ccc").await?.cut();
    let mut connection = open_with(kit, "aaa.bbb.ccc").await?;
    kit.settle(&mut connection).await
}

/// A token function is called before each connection.
pub(super) async fn function_is_called_for_each_connection(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"tokens": ["first", "second", "third"]})).await?;
    for token in ["first", "second", "third"] {
        kit.app().expect_token_call().await?;
        open_with(kit, token).await?.cut();
    }
    Ok(())
}

/// A token is never part of the address, which ends up in logs.
pub(super) async fn token_is_not_in_the_address(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"token": "secret-token"})).await?;
    let request = expect_token(kit, "secret-token").await?;
    let line = request.line().to_owned();
    ensure(!line.contains("secret-token"), || format!("expected no token in the address: {line:?}"))
}

/// A refused token is replaced at once by the function's next one.
pub(super) async fn refused_token_is_replaced_at_once(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"tokens": ["old", "new"], "min_delay_ms": 20_000, "max_delay_ms": 20_000})).await?;
    refuse(kit, "old").await?;
    let mut connection = open_with(kit, "new").await?;
    kit.settle(&mut connection).await
}

/// Tokens that are refused again and again get a backoff, not a loop.
pub(super) async fn refused_tokens_get_a_backoff(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"tokens": ["bad"]})).await?;
    refuse(kit, "bad").await?;
    refuse(kit, "bad").await?;
    kit.app().expect_waiting().await?;
    kit.command("token", json!({"tokens": ["good"]})).await?;
    // An attempt may have taken the old token before the command.
    loop {
        let request = kit.request().await?;
        if request.token().as_deref() == Some("good") {
            request.upgrade().await?.welcome().await?;
            return kit.app().wait_for_state("open").await.map(drop);
        }
        request.refuse("401 Unauthorized", "", REFUSED).await?;
    }
}

/// A string that is refused is the end.
pub(super) async fn refused_string_closes(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"token": "bad"})).await?;
    kit.subscribe("chat", CHAT.name).await?;
    refuse(kit, "bad").await?;
    kit.app().wait_for_state("closed").await?;
    kit.app().expect_ended("chat", "closed").await?;
    kit.refute_connection(300).await
}

/// A function that fails is an error of the application, and is tried again after a backoff.
pub(super) async fn function_fails(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"tokens": [null, "good"]})).await?;
    kit.app().expect_error("token_failed").await?;
    kit.app().expect_waiting().await?;
    let mut connection = open_with(kit, "good").await?;
    kit.settle(&mut connection).await
}

/// 4001 with a function: a new token, and a new connection at once.
pub(super) async fn expired_while_connected(kit: &mut Kit) -> Result {
    let delays = json!({"tokens": ["old", "new"], "min_delay_ms": 20_000, "max_delay_ms": 20_000});
    kit.connect_with(delays).await?;
    let mut connection = open_with(kit, "old").await?;
    connection.goodbye(4001, false, None).await?;
    connection.close(4001).await?;
    let mut connection = open_with(kit, "new").await?;
    kit.settle(&mut connection).await
}

/// 4001 again and again: a backoff.
pub(super) async fn expired_again_and_again(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"tokens": ["bad"]})).await?;
    for _ in 0..2 {
        let connection = open_with(kit, "bad").await?;
        connection.close(4001).await?;
    }
    kit.app().expect_waiting().await.map(drop)
}

/// 4001 with a string: the end.
pub(super) async fn expired_string_closes(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"token": "old"})).await?;
    let mut connection = open_with(kit, "old").await?;
    connection.goodbye(4001, false, None).await?;
    connection.close(4001).await?;
    kit.app().wait_for_state("closed").await?;
    kit.refute_connection(300).await
}

/// Opens with a token of three seconds, as the server's clock sees it.
async fn open_with_short_token(kit: &mut Kit, server_ms: u64) -> Result<(Connection, Instant, u64)> {
    let expires_s = server_ms / 1000 + 3;
    let token = jwt("ada", expires_s);
    kit.connect_with(json!({"tokens": [token, "renewed", "again"]})).await?;
    let mut connection = expect_token(kit, &token).await?.upgrade().await?;
    let sent = Instant::now();
    connection.welcome_with(json!({"server_time": server_ms}), json!({})).await?;
    kit.app().wait_for_state("open").await?;
    Ok((connection, sent, expires_s * 1000 - server_ms))
}

async fn expect_renewal(connection: &mut Connection, token: &str) -> Result<crate::received::Received> {
    let authenticate = connection.expect("authenticate").await?;
    ensure(authenticate.data["token"] == token, || {
        format!("expected authenticate with {token:?}, not {}", authenticate.data)
    })?;
    Ok(authenticate)
}

/// A token is renewed on the connection after 80 % of its life.
pub(super) async fn renewed_before_it_expires(kit: &mut Kit) -> Result {
    let (mut connection, sent, life_ms) = open_with_short_token(kit, now_ms()).await?;
    let authenticate = expect_renewal(&mut connection, "renewed").await?;
    kit.expect_not_before(sent, life_ms * 4 / 5 - 20)?;
    let answered = Instant::now();
    let expires_s = now_ms() / 1000 + 3;
    let life_ms = expires_s * 1000 - now_ms();
    let data = json!({"user": "ada", "expires_at": expires_s});
    connection.reply(&authenticate, "authenticated", data).await?;
    expect_renewal(&mut connection, "again").await?;
    kit.expect_not_before(answered, life_ms * 4 / 5 - 100)?;
    kit.settle(&mut connection).await
}

/// The server's clock says how long a token lives, not the client's.
pub(super) async fn clock_of_the_client_is_wrong(kit: &mut Kit) -> Result {
    let (mut connection, sent, life_ms) = open_with_short_token(kit, now_ms() + 86_400_000).await?;
    expect_renewal(&mut connection, "renewed").await?;
    kit.expect_not_before(sent, life_ms * 4 / 5 - 20)
}

/// A renewal that is refused is tried once more, and costs nothing else.
pub(super) async fn refused_renewal_keeps_the_connection(kit: &mut Kit) -> Result {
    let (mut connection, _, _) = open_with_short_token(kit, now_ms()).await?;
    let authenticate = expect_renewal(&mut connection, "renewed").await?;
    connection.reply_error(&authenticate, "token_invalid", json!({})).await?;
    let authenticate = expect_renewal(&mut connection, "again").await?;
    connection.reply_error(&authenticate, "token_expired", json!({})).await?;
    kit.command("echo", json!({"as": "still", "data": 1})).await?;
    loop {
        // Further attempts to renew may come before the echo.
        let received = connection.receive().await?;
        if received.kind == "echo" {
            connection.reply(&received, "echo", json!(1)).await?;
            break;
        }
    }
    kit.app().expect_value("still").await.map(drop)
}

/// The token expired while there was no connection: the function gives a new one.
pub(super) async fn expired_while_away(kit: &mut Kit) -> Result {
    let expired = jwt("ada", now_ms() / 1000 + 30);
    kit.connect_with(json!({"tokens": [expired, "fresh"]})).await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = open_with(kit, &expired).await?;
    let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
    connection.reply_subscribed(&subscribe, &[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    connection.cut();
    let mut connection = open_with(kit, "fresh").await?;
    connection.expect_subscribe(&[CHAT.name]).await?.expect_recover(&CHAT, 10)
}

/// A token that lives for decades is not renewed at once, although no timer lasts as long.
pub(super) async fn token_with_a_long_life(kit: &mut Kit) -> Result {
    let token = jwt("ada", now_ms() / 1000 + 3_000_000_000);
    kit.connect_with(json!({"tokens": [token, "renewed"]})).await?;
    let mut connection = open_with(kit, &token).await?;
    connection.refute("expected no renewal", 500, |next| next.kind == "authenticate").await?;
    kit.settle(&mut connection).await
}

/// A string cannot be renewed, so the client does not try.
pub(super) async fn string_is_not_renewed(kit: &mut Kit) -> Result {
    let token = jwt("ada", now_ms() / 1000 + 2);
    kit.connect_with(json!({"token": token})).await?;
    let mut connection = open_with(kit, &token).await?;
    connection.refute("expected no renewal", 2200, |next| next.kind == "authenticate").await?;
    kit.settle(&mut connection).await
}

/// Tokens that are no JWT have a life that the client does not know.
pub(super) async fn opaque_token(kit: &mut Kit) -> Result {
    for token in ["opaque", "a.b.c", "..", "a.eyJleHAiOiJzb29uIn0.c"] {
        kit.connect_with(json!({"tokens": [token]})).await?;
        let mut connection = open_with(kit, token).await?;
        connection.refute("expected no renewal", 100, |next| next.kind == "authenticate").await?;
        kit.command("reload", json!({})).await?;
        connection.expect_end().await?;
    }
    Ok(())
}

/// A client that cannot see why a handshake failed connects without the token and sends it then.
pub(super) async fn blind_client_authenticates(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"tokens": ["old", "new"], "blind": true})).await?;
    kit.subscribe("chat", CHAT.name).await?;
    refuse(kit, "old").await?;
    let request = kit.request().await?;
    let seen = request.token();
    ensure(seen.is_none(), || format!("expected a handshake without a token, not with {seen:?}"))?;
    let mut connection = request.upgrade().await?;
    connection.welcome().await?;
    let authenticate = expect_renewal(&mut connection, "new").await?;
    kit.app().refute("expected not to be open before authenticated", |event| event["state"] == "open")?;
    connection.reply(&authenticate, "authenticated", json!({"user": "ada", "expires_at": now_ms() / 1000 + 3600})).await?;
    kit.app().wait_for_state("open").await?;
    connection.expect_subscribe(&[CHAT.name]).await.map(drop)
}

/// A string that is refused with `authenticate` is the end.
pub(super) async fn blind_client_is_refused(kit: &mut Kit) -> Result {
    kit.connect_with(json!({"token": "bad", "blind": true})).await?;
    refuse(kit, "bad").await?;
    let mut connection = kit.open().await?;
    let authenticate = expect_renewal(&mut connection, "bad").await?;
    connection.reply_error(&authenticate, "token_invalid", json!({})).await?;
    kit.app().wait_for_state("closed").await?;
    kit.refute_connection(300).await
}
