//! Tokens and the rights that they grant.

use std::time::Duration;

use futures_util::SinkExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{
    Client, Issuer, Response, Server, TemporaryDir, from_now, http, jwks_file, run, signed, wait_for,
    with_token,
};

const SECRET: &str = "a secret of the tests, of more than 32 bytes";
/// Log line of a successful key reload.
const KEYS_RELOADED: &str = "Reloaded what=\"keys for tokens\"";
const HOUR: Duration = Duration::from_secs(3600);

/// Sends a handshake request and returns the response.
async fn handshake(server: &Server, target: &str, headers: &[&str]) -> Response {
    let mut lines = vec![
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    lines.extend(headers);
    http(server.clients, &format!("GET {target}"), &lines, "").await
}

#[track_caller]
fn check_refused(response: &Response, what: &str) {
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (401, &json!("unauthorized")),
        "{what}: {response:?}"
    );
    assert_eq!(response.header("www-authenticate"), Some("Bearer"), "{what}: {response:?}");
}

#[track_caller]
fn check_error(reply: &Value, code: &str) {
    assert_eq!((&reply["type"], &reply["data"]["code"]), (&json!("error"), &json!(code)), "{reply}");
}

fn authenticate(token: &str) -> Value {
    json!({"type": "authenticate", "id": "login", "data": {"token": token}})
}

fn subscribe(topic: &str) -> Value {
    json!({"type": "subscribe", "data": {"topic": topic}})
}

fn claims(user: &str, after: Duration) -> Value {
    json!({"sub": user, "exp": from_now(after)})
}

/// Returns claims that are valid for an hour and have grants.
fn granted(user: &str, subscribe: &[&str], publish: &[&str]) -> Value {
    json!({"sub": user, "exp": from_now(HOUR), "deeperhub": {"subscribe": subscribe, "publish": publish}})
}

async fn user_of(server: &Server, client: &Client) -> Value {
    let response = http(server.api(), &format!("GET /v1/clients/{}", client.id()), &[], "").await;
    response.json()["user"].clone()
}

/// Starts a server that knows an issuer's secret.
fn server_for(issuer: &Issuer, flags: &[&str]) -> Server {
    let file = issuer.file();
    let mut all = vec!["--auth-secret-file", &file];
    all.extend(flags);
    Server::start(&all)
}

#[tokio::test]
async fn a_handshake_carries_its_token_in_a_header_a_subprotocol_or_the_query() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &[]);
    let token = issuer.token(&claims("ada", HOUR));

    let in_header = Client::connect_with(with_token(&server, &token)).await.unwrap();
    assert_eq!(user_of(&server, &in_header).await, "ada");
    let in_query = Client::connect_with(server.url(&format!("/ws?a=b&token={token}"))).await.unwrap();
    assert_eq!(user_of(&server, &in_query).await, "ada");
    let mut request = server.url("/").into_client_request().unwrap();
    let offered = format!("deeperhub.v1.json, bearer.{token}").parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", offered);
    let in_subprotocol = Client::connect_with(request).await.unwrap();
    assert_eq!(user_of(&server, &in_subprotocol).await, "ada");

    let anonymous = Client::connect(&server).await;
    assert_eq!(user_of(&server, &anonymous).await, Value::Null);
}

#[tokio::test]
async fn a_token_is_never_echoed_as_a_subprotocol() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &[]);
    let token = issuer.token(&claims("ada", HOUR));
    for (offered, status) in [
        (format!("Sec-WebSocket-Protocol: bearer.{token}, deeperhub.v1.json"), 101),
        (format!("Sec-WebSocket-Protocol: bearer.{token}"), 400),
    ] {
        // An accepted handshake has no end of response, so this request also has a fault that is
        // checked later.
        if status == 400 {
            let response = handshake(&server, "/", &[&offered, "Connection: Upgrade"]).await;
            assert_eq!((response.status, &response.json()["error"]["code"]), (400, &json!("bad_handshake")));
            assert!(!response.body.contains(&token));
            continue;
        }
        let mut request = server.url("/").into_client_request().unwrap();
        let value = offered.split_once(": ").unwrap().1.parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", value);
        let (_, accepted) =
            wait_for("the handshake", tokio_tungstenite::connect_async(request)).await.unwrap();
        assert_eq!(accepted.headers()["sec-websocket-protocol"], "deeperhub.v1.json");
        assert!(!format!("{accepted:?}").contains(&token));
    }
}

/// Returns tokens that no server with the secret [`SECRET`] may accept.
fn bad_tokens() -> Vec<(&'static str, String)> {
    let issuer = Issuer::new(SECRET);
    let good = issuer.token(&claims("ada", HOUR));
    let (message, _) = good.rsplit_once('.').unwrap();
    let stranger = Issuer::new("a secret of somebody else, of more than 32 bytes");
    vec![
        ("nothing", String::new()),
        ("no token", "nonsense".to_owned()),
        ("another secret", stranger.token(&claims("ada", HOUR))),
        ("no signature", format!("{message}.")),
        // {"alg":"none"}, the classic attack.
        ("alg none", format!("eyJhbGciOiJub25lIn0.{}.", good.split('.').nth(1).unwrap())),
        ("no exp", issuer.token(&json!({"sub": "ada"}))),
        ("no sub", issuer.token(&json!({"exp": from_now(HOUR)}))),
        ("expired", issuer.token(&json!({"sub": "ada", "exp": from_now(Duration::ZERO) - 1}))),
        ("not yet", issuer.token(&json!({"sub": "ada", "exp": from_now(2 * HOUR), "nbf": from_now(HOUR)}))),
        (
            "bad grants",
            issuer.token(&json!({"sub": "ada", "exp": from_now(HOUR), "deeperhub": {"publish": ["a..b"]}})),
        ),
        ("a public key's", signed("jwt-rsa.key", Algorithm::RS256, None, &claims("ada", HOUR))),
    ]
}

#[tokio::test]
async fn an_invalid_token_in_the_handshake_is_refused_with_401() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &[]);
    for (what, token) in bad_tokens() {
        let response = handshake(&server, &format!("/?token={token}"), &["Connection: Upgrade"]).await;
        check_refused(&response, what);
        let header = format!("Authorization: Bearer {token}");
        check_refused(&handshake(&server, "/", &["Connection: Upgrade", &header]).await, what);
        assert!(token.is_empty() || !response.body.contains(&token));
    }
    let (one, other) = (issuer.token(&claims("ada", HOUR)), issuer.token(&claims("eve", HOUR)));
    let header = format!("Authorization: Bearer {one}");
    let both = handshake(&server, &format!("/?token={other}"), &["Connection: Upgrade", &header]).await;
    check_refused(&both, "two that differ");
}

#[tokio::test]
async fn an_invalid_token_in_a_message_gets_an_error_and_changes_nothing() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &[]);
    let token = issuer.token(&granted("ada", &["room.*"], &["room.*"]));
    let mut client = Client::connect_with(with_token(&server, &token)).await.unwrap();
    client.request(&subscribe("room.a")).await;
    for (what, token) in bad_tokens() {
        let reply = client.request(&authenticate(&token)).await;
        check_error(&reply, if what == "expired" { "token_expired" } else { "token_invalid" });
        assert_eq!(reply["id"], "login");
    }
    let another = issuer.token(&claims("eve", HOUR));
    check_error(&client.request(&authenticate(&another)).await, "token_invalid");

    assert_eq!(user_of(&server, &client).await, "ada");
    check_error(&client.request(&subscribe("other")).await, "forbidden");
    let publish = json!({"type": "publish", "data": {"topic": "room.a", "message": 1}});
    assert_eq!(client.request(&publish).await["data"]["topic"], "room.a", "it is subscribed as before");
}

#[tokio::test]
async fn a_server_without_keys_accepts_no_token() {
    let issuer = Issuer::new(SECRET);
    let server = Server::start(&[]);
    let token = issuer.token(&claims("ada", HOUR));
    let response = handshake(&server, &format!("/?token={token}"), &["Connection: Upgrade"]).await;
    check_refused(&response, "no keys");
    let mut client = Client::connect(&server).await;
    check_error(&client.request(&authenticate(&token)).await, "token_invalid");
    assert_eq!(client.request(&subscribe("a")).await["type"], "subscribed");
}

#[tokio::test]
async fn authentication_sets_the_user() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &["--workers", "2"]);
    let claims = claims("ada é", HOUR);
    let token = issuer.token(&claims);
    let mut client = Client::connect(&server).await;
    let hello = r#"{"type":"hello"}"#;
    let send = "POST /v1/users/ada%20%C3%A9/messages";
    assert_eq!(http(server.api(), send, &[], hello).await.json(), json!({"clients": 0}));

    for _ in 0..2 {
        let reply = client.request(&authenticate(&token)).await;
        let data = json!({"user": "ada é", "expires_at": claims["exp"]});
        assert_eq!(reply, json!({"type": "authenticated", "id": "login", "data": data}));
        assert_eq!(user_of(&server, &client).await, "ada é");
        assert_eq!(http(server.api(), send, &[], hello).await.json(), json!({"clients": 1}));
        assert_eq!(client.receive().await["type"], "hello");
    }
}

#[tokio::test]
async fn a_token_with_grants_allows_nothing_else() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &[]);
    let token = issuer.token(&granted("ada", &["news", "room.*", "log.>"], &["room.a"]));
    let mut client = Client::connect_with(with_token(&server, &token)).await.unwrap();
    for topic in ["news", "room.a", "room.*", "log.x.y", "log.*", "log.>"] {
        assert_eq!(client.request(&subscribe(topic)).await["type"], "subscribed", "{topic}");
    }
    for topic in ["other", "room", "room.a.b", "room.>", "*.a", "*", ">", "log", "news.>"] {
        let error = client.request(&subscribe(topic)).await;
        check_error(&error, "forbidden");
        assert_eq!(error["data"]["topic"], topic);
    }
    for (topic, code) in [("news", "forbidden"), ("room.b", "forbidden"), ("log.x", "forbidden")] {
        // Without an id, only errors are answered.
        let error = client.request(&json!({"type": "publish", "data": {"topic": topic, "message": 1}})).await;
        check_error(&error, code);
        assert_eq!(error["data"]["topic"], topic);
    }
    let publish =
        json!({"type": "publish", "id": 1, "data": {"topic": "room.a", "message": 1, "exclude_self": true}});
    assert_eq!(client.request(&publish).await["type"], "published");

    // A missing list grants nothing. Unsubscribing from topics without a subscription is still
    // allowed.
    let token =
        issuer.token(&json!({"sub": "eve", "exp": from_now(HOUR), "deeperhub": {"subscribe": [">"]}}));
    let mut client = Client::connect_with(with_token(&server, &token)).await.unwrap();
    assert_eq!(client.request(&subscribe("*.a")).await["type"], "subscribed");
    check_error(&client.request(&publish).await, "forbidden");
    let unsubscribe = json!({"type": "unsubscribe", "data": {"topic": "b"}});
    assert_eq!(client.request(&unsubscribe).await["type"], "unsubscribed");
}

#[tokio::test]
async fn a_renewal_ends_the_subscriptions_that_it_does_not_grant() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &[]);
    let mut client = Client::connect(&server).await;
    for topic in ["keep.a", "drop.a", "keep.>", ">"] {
        client.request(&subscribe(topic)).await;
    }
    let token = issuer.token(&granted("ada", &["keep.>"], &[]));
    assert_eq!(client.request(&authenticate(&token)).await["type"], "authenticated");
    let mut ended = [client.receive().await, client.receive().await];
    ended.sort_by_key(|message| message["data"]["topic"].to_string());
    for (message, topic) in ended.iter().zip([">", "drop.a"]) {
        assert_eq!(*message, json!({"type": "unsubscribed", "data": {"topic": topic}}));
    }

    for (topic, subscribers) in [("drop.a", 0), ("keep.a", 2)] {
        let response = http(server.api(), &format!("POST /v1/topics/{topic}/messages"), &[], "1").await;
        assert_eq!(response.json(), json!({"subscribers": subscribers}), "{topic}");
    }
    assert_eq!(client.receive().await["data"]["topic"], "keep.a");
    let response = http(server.api(), &format!("GET /v1/clients/{}", client.id()), &[], "").await;
    assert_eq!(response.json()["subscriptions"].as_array().map(Vec::len), Some(2));
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    assert!(metrics.lines().any(|line| line == "deeperhub_subscriptions 2"), "{metrics}");
}

#[tokio::test]
async fn a_client_without_a_required_token_may_only_authenticate() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &["--auth-required"]);
    let mut client = Client::connect(&server).await;
    for (message, id) in [
        (json!({"type": "echo", "id": 1, "data": 1}), json!(1)),
        (json!({"type": "ping", "id": "p"}), json!("p")),
        (subscribe("a"), Value::Null),
        (json!({"type": "unsubscribe", "id": 2, "data": {"topic": "a"}}), json!(2)),
        (json!({"type": "publish", "data": {"topic": "a", "message": 1}}), Value::Null),
    ] {
        let reply = client.request(&message).await;
        check_error(&reply, "unauthorized");
        assert_eq!(reply["id"], id);
    }
    client.socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    check_error(&client.receive().await, "unauthorized");
    let broadcast = "POST /v1/broadcast";
    let response = http(server.api(), broadcast, &[], r#"{"type":"secret"}"#).await;
    assert_eq!(response.json(), json!({"clients": 0}), "a client without a user does not get it");

    check_error(&client.request(&authenticate("nonsense")).await, "token_invalid");
    let reply = client.request(&authenticate(&issuer.token(&claims("ada", HOUR)))).await;
    assert_eq!(reply["data"]["user"], "ada", "{reply}");
    assert_eq!(client.request(&subscribe("a")).await["type"], "subscribed");
    let response = http(server.api(), broadcast, &[], r#"{"type":"public"}"#).await;
    assert_eq!(response.json(), json!({"clients": 1}));
    assert_eq!(client.receive().await["type"], "public");
}

#[tokio::test]
async fn a_client_without_a_token_after_the_grace_time_is_closed_with_4001() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &["--auth-required", "--auth-grace", "500ms"]);
    let token = issuer.token(&claims("ada", HOUR));
    let mut in_time = Client::connect_with(with_token(&server, &token)).await.unwrap();
    let mut late = Client::connect(&server).await;
    let (code, reason, goodbye) = late.closed().await;
    assert_eq!((code, reason.as_str()), (4001, "no token within the grace time"));
    let data = &goodbye.unwrap()["data"];
    assert_eq!((&data["code"], &data["reconnect"]), (&json!(4001), &json!(false)));
    assert_eq!(in_time.request(&json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn an_expired_token_closes_with_4001_unless_it_was_renewed() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &[]);
    // Long enough to connect on a busy machine.
    let short = issuer.token(&claims("ada", Duration::from_secs(8)));
    let mut expiring = Client::connect_with(with_token(&server, &short)).await.unwrap();
    let mut renewed = Client::connect_with(with_token(&server, &short)).await.unwrap();
    let mut logged_in = Client::connect(&server).await;
    assert_eq!(logged_in.request(&authenticate(&short)).await["type"], "authenticated");
    let long = issuer.token(&claims("ada", HOUR));
    assert_eq!(renewed.request(&authenticate(&long)).await["type"], "authenticated");

    for client in [&mut expiring, &mut logged_in] {
        let (code, reason, goodbye) = client.closed().await;
        assert_eq!((code, reason.as_str()), (4001, "the token has expired"));
        assert_eq!(goodbye.unwrap()["data"]["reconnect"], false);
    }
    // Not before the second of `exp` has begun.
    let exp = from_now(Duration::ZERO);
    assert_eq!(renewed.request(&json!({"type": "ping"})).await["type"], "pong");

    // The expired token is useless.
    let replayed = handshake(&server, &format!("/?token={short}"), &["Connection: Upgrade"]).await;
    check_refused(&replayed, "replayed");
    check_error(&renewed.request(&authenticate(&short)).await, "token_expired");
    let payload = issuer.token(&json!({"sub": "ada", "exp": exp}));
    check_error(&renewed.request(&authenticate(&payload)).await, "token_expired");
    assert_eq!(renewed.request(&json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn public_keys_are_found_by_kid_and_never_used_as_secrets() {
    let file = jwks_file();
    let server = Server::start(&["--auth-jwks-file", file.to_str().unwrap(), "--auth-required"]);
    let mut client = Client::connect(&server).await;
    let claims = claims("ada", HOUR);
    for (key, algorithm, kid) in [
        ("jwt-rsa.key", Algorithm::RS256, "rsa"),
        ("jwt-rsa.key", Algorithm::PS512, "rsa"),
        ("jwt-p256.key", Algorithm::ES256, "P-256"),
        ("jwt-p384.key", Algorithm::ES384, "P-384"),
        ("jwt-ed25519.key", Algorithm::EdDSA, "ed25519"),
    ] {
        for kid in [Some(kid), None] {
            let reply = client.request(&authenticate(&signed(key, algorithm, kid, &claims))).await;
            assert_eq!(reply["type"], "authenticated", "{key} {algorithm:?} {kid:?}: {reply}");
        }
        let reply = client.request(&authenticate(&signed(key, algorithm, Some("other"), &claims))).await;
        check_error(&reply, "token_invalid");
    }
    // The classic key confusion: a public key used as a shared secret.
    let jwks = std::fs::read(&file).unwrap();
    let keys: Value = serde_json::from_slice(&jwks).unwrap();
    let modulus = keys["keys"][0]["n"].as_str().unwrap();
    for secret in [&jwks, modulus.as_bytes()] {
        let header = Header { kid: Some("rsa".to_owned()), ..Header::new(Algorithm::HS256) };
        let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap();
        check_error(&client.request(&authenticate(&token)).await, "token_invalid");
        check_refused(
            &handshake(&server, &format!("/?token={token}"), &["Connection: Upgrade"]).await,
            "confused",
        );
    }
}

#[tokio::test]
async fn audience_and_issuer_are_checked_if_configured() {
    let issuer = Issuer::new(SECRET);
    let server =
        server_for(&issuer, &["--auth-audience", "hub,other", "--auth-issuer", "https://id.example"]);
    let mut client = Client::connect(&server).await;
    let token = |aud: &str, iss: &str| {
        issuer.token(&json!({"sub": "ada", "exp": from_now(HOUR), "aud": aud, "iss": iss}))
    };
    check_error(&client.request(&authenticate(&token("hub", "https://evil.example"))).await, "token_invalid");
    check_error(&client.request(&authenticate(&token("shop", "https://id.example"))).await, "token_invalid");
    check_error(&client.request(&authenticate(&issuer.token(&claims("ada", HOUR)))).await, "token_invalid");
    let reply = client.request(&authenticate(&token("other", "https://id.example"))).await;
    assert_eq!(reply["type"], "authenticated", "{reply}");
}

#[tokio::test]
async fn keys_are_reloaded_and_invalid_ones_are_ignored() {
    let (old, new) = (Issuer::new(SECRET), Issuer::new("the next secret, of more than 32 bytes, too"));
    let server = server_for(&old, &["--auth-required"]);
    let old_token = old.token(&claims("ada", HOUR));
    let new_token = new.token(&claims("ada", HOUR));
    let mut connected = Client::connect_with(with_token(&server, &old_token)).await.unwrap();

    old.write("");
    server.signal("HUP");
    server.wait_for_stderr("Reload failed");
    assert!(server.stderr().contains("the secret is empty"), "{}", server.stderr());
    assert!(Client::connect_with(with_token(&server, &old_token)).await.is_ok());

    old.write("the next secret, of more than 32 bytes, too");
    server.signal("HUP");
    server.wait_for_stderr(KEYS_RELOADED);
    let refused = handshake(&server, &format!("/?token={old_token}"), &["Connection: Upgrade"]).await;
    check_refused(&refused, "signed with the old key");
    let mut fresh = Client::connect_with(with_token(&server, &new_token)).await.unwrap();
    assert_eq!(fresh.request(&subscribe("a")).await["type"], "subscribed");
    // Connected clients stay connected and need the new key to renew.
    assert_eq!(connected.request(&json!({"type": "ping"})).await["type"], "pong");
    check_error(&connected.request(&authenticate(&old_token)).await, "token_invalid");
    assert_eq!(connected.request(&authenticate(&new_token)).await["type"], "authenticated");
}

#[tokio::test]
async fn keys_are_reloaded_when_their_file_changes() {
    let directory = TemporaryDir::new();
    let all: Value = serde_json::from_slice(&std::fs::read(jwks_file()).unwrap()).unwrap();
    let only = |index: usize| json!({"keys": [all["keys"][index]]}).to_string();
    let file = directory.write("jwks.json", &only(0));
    let server = Server::start(&["--auth-jwks-file", file.to_str().unwrap()]);
    let mut client = Client::connect(&server).await;
    let ed25519 = signed("jwt-ed25519.key", Algorithm::EdDSA, Some("ed25519"), &claims("ada", HOUR));
    check_error(&client.request(&authenticate(&ed25519)).await, "token_invalid");
    directory.write("jwks.json", &only(3));
    server.wait_for_stderr(KEYS_RELOADED);
    assert_eq!(client.request(&authenticate(&ed25519)).await["type"], "authenticated");
}

#[tokio::test]
async fn the_api_disconnects_all_connections_of_a_user() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &["--workers", "2"]);
    let mut clients = Vec::new();
    for user in ["a/b", "a/b", "a/b", "eve"] {
        let token = issuer.token(&claims(user, HOUR));
        clients.push(Client::connect_with(with_token(&server, &token)).await.unwrap());
    }
    let response = http(server.api(), "DELETE /v1/users/a%2Fb", &[], "").await;
    assert_eq!((response.status, response.json()), (200, json!({"clients": 3})));
    for client in &mut clients[..3] {
        let (code, _, goodbye) = client.closed().await;
        assert_eq!((code, &goodbye.unwrap()["data"]["reconnect"]), (4003, &json!(false)));
    }
    assert_eq!(clients[3].request(&json!({"type": "ping"})).await["type"], "pong");
    let response = http(server.api(), "DELETE /v1/users/a%2Fb", &[], "").await;
    assert_eq!((response.status, response.json()), (200, json!({"clients": 0})));
}

#[tokio::test]
async fn a_user_with_many_connections_is_reached_on_all_of_them() {
    const CONNECTIONS: usize = 1100;
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &["--workers", "1", "--max-connections", "2000"]);
    let token = issuer.token(&claims("ada", HOUR));
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect_with(with_token(&server, &token)).await.unwrap());
    }
    let response = http(server.api(), "POST /v1/users/ada/messages", &[], r#"{"type":"hello"}"#).await;
    assert_eq!(response.json(), json!({"clients": CONNECTIONS}));
    for client in &mut clients {
        assert_eq!(client.receive().await["type"], "hello");
    }
    let response = http(server.api(), "DELETE /v1/users/ada", &[], "").await;
    assert_eq!(response.json(), json!({"clients": CONNECTIONS}));
    for client in &mut clients {
        assert_eq!(client.closed().await.0, 4003);
    }
}

#[tokio::test]
async fn a_server_accepts_tokens_printed_with_its_settings() {
    let issuer = Issuer::new(SECRET);
    let file = issuer.file();
    let server = server_for(&issuer, &["--auth-required", "--auth-audience", "hub", "--auth-issuer", "me"]);
    let arguments =
        ["token", "--sub", "ada", "--subscribe", "room.*", "--subscribe", "news", "--publish", "room.a"];
    let variables = [
        ("DEEPERHUB_AUTH_SECRET_FILE", file.as_str()),
        ("DEEPERHUB_AUTH_AUDIENCE", "hub,other"),
        ("DEEPERHUB_AUTH_ISSUER", "me"),
    ];
    let made = run(&[&arguments[..], &["--ttl", "48h"]].concat(), &variables);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""));
    let mut client = Client::connect(&server).await;
    let reply = client.request(&authenticate(made.stdout.trim_end())).await;
    assert_eq!(reply["data"]["user"], "ada", "{reply}");
    let expires = reply["data"]["expires_at"].as_u64().unwrap();
    assert!((from_now(47 * HOUR)..=from_now(48 * HOUR)).contains(&expires), "{expires}");
    for (topic, kind) in [("room.*", "subscribed"), ("news", "subscribed"), ("other", "error")] {
        assert_eq!(client.request(&subscribe(topic)).await["type"], kind, "{topic}");
    }

    let unrestricted = run(&["token", "--sub", "ada", "--auth-secret-file", &file], &variables[1..]);
    client.request(&authenticate(unrestricted.stdout.trim_end())).await;
    assert_eq!(client.request(&subscribe("other")).await["type"], "subscribed");

    for (arguments, expected) in [
        (&["token", "--sub", "ada"][..], "no secret to sign with: name its file with --auth-secret-file"),
        (
            &["token", "--sub", "ada", "--auth-secret-file", "/nowhere"],
            "for --auth-secret-file: it cannot be read",
        ),
        (&["token", "--sub", "", "--auth-secret-file", &file], "--sub: the user must have 1 to 255 bytes"),
        (&["token", "--auth-secret-file", &file], "--sub <USER>"),
        (&["token", "--sub", "ada", "--publish", "a..b", "--auth-secret-file", &file], "--publish"),
    ] {
        let refused = run(arguments, &[]);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(refused.stderr.contains(expected), "{arguments:?}: {}", refused.stderr);
    }
}

#[tokio::test]
async fn bench_drives_a_server_that_requires_tokens() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &["--auth-required", "--rate-limit", "0"]);
    let token = issuer.token(&claims("bench", HOUR));
    let url = server.url("/");
    let arguments = ["bench", "fanout", "--connections", "5", "--messages", "50", "--url", &url, "--json"];
    let finished = run(&[&arguments[..], &["--fail-on-loss", "--token", &token]].concat(), &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let figures: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(figures["messages"]["delivered"], 250, "{figures}");
}

#[tokio::test]
async fn tokens_of_a_connection_have_their_own_rate_limit() {
    let issuer = Issuer::new(SECRET);
    let server = server_for(&issuer, &["--rate-limit", "1000", "--rate-burst", "1000"]);
    let mut client = Client::connect(&server).await;
    for _ in 0..100 {
        client.send(&authenticate("nonsense")).await;
    }
    let mut refused = 0;
    for n in 0..100 {
        let reply = client.receive().await;
        if reply["data"]["code"] == "rate_limited" {
            assert!(n >= 50, "{n}: {reply}");
            assert!((1..=200).contains(&reply["data"]["retry_after_ms"].as_u64().unwrap()), "{reply}");
            refused += 1;
        } else {
            check_error(&reply, "token_invalid");
        }
    }
    assert!(refused > 0);
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    let counted = format!("deeperhub_messages_limited_total{{limit=\"tokens\"}} {refused}");
    assert!(metrics.lines().any(|line| line == counted), "{counted} is not in {metrics}");
    assert_eq!(client.request(&json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn bytes_of_a_connection_have_their_own_rate_limit() {
    let server =
        Server::start(&["--byte-rate-limit", "10", "--byte-rate-burst", "1000", "--rate-limit", "0"]);
    let mut client = Client::connect(&server).await;
    let echo = json!({"type": "echo", "id": 1, "data": "x".repeat(600)});
    assert_eq!(client.request(&echo).await["type"], "echo");
    let refused = client.request(&echo).await;
    check_error(&refused, "rate_limited");
    let wait = refused["data"]["retry_after_ms"].as_u64().unwrap();
    assert!((1..=60_000).contains(&wait), "{refused}");
    assert_eq!(client.request(&json!({"type": "ping"})).await["type"], "pong", "small bodies fit");
    for _ in 0..30 {
        // The server may have closed the connection before the last ones.
        let _ = client.socket.send(Message::text(echo.to_string())).await;
    }
    assert_eq!(client.closed().await.0, 1008);
}

/// Uses a token with 157 groups, which is larger than 8 KiB.
#[tokio::test]
async fn long_tokens_are_accepted_in_the_handshake_and_in_messages() {
    let issuer = Issuer::new(SECRET);
    let groups: Vec<_> = (0..157).map(|n| format!("6f1c2d3e-0000-4000-8000-{n:012}")).collect();
    let mut long = claims("ada", HOUR);
    long["groups"] = json!(groups);
    let token = issuer.token(&long);
    assert!(token.len() > 8192, "{}", token.len());
    let server = server_for(&issuer, &[]);
    let client = Client::connect_with(with_token(&server, &token)).await.expect("it is accepted");
    drop(client);
    let mut client = Client::connect(&server).await;
    assert_eq!(client.request(&authenticate(&token)).await["type"], "authenticated");

    let server = server_for(&issuer, &["--max-token-bytes", "8192"]);
    let lines = ["Connection: Upgrade", &format!("Authorization: Bearer {token}")];
    let response = handshake(&server, "/", &lines).await;
    check_refused(&response, "over the limit");
    assert!(
        response.json()["error"]["message"].as_str().unwrap().contains("max_token_bytes"),
        "{response:?}"
    );
}

#[tokio::test]
async fn the_token_rate_limit_is_configurable() {
    let issuer = Issuer::new(SECRET);
    for (rate, refused) in [("1", true), ("0", false)] {
        let server = server_for(&issuer, &["--rate-limit", "0", "--token-rate-limit", rate]);
        let mut client = Client::connect(&server).await;
        let mut limited = false;
        for _ in 0..60 {
            limited = client.request(&authenticate("nonsense")).await["data"]["code"] == "rate_limited";
            if limited {
                break;
            }
        }
        assert_eq!(limited, refused, "{rate}");
    }
}

/// Uses a JWKS with a byte order mark, base64 padding and leading zeros, as some issuers write it.
#[tokio::test]
async fn keys_in_other_forms_verify_tokens() {
    use base64::Engine;
    use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
    let text = std::fs::read_to_string(jwks_file()).unwrap();
    let mut set: Value = serde_json::from_str(&text).unwrap();
    for key in set["keys"].as_array_mut().unwrap() {
        for field in ["n", "e", "x", "y"] {
            if let Some(text) = key[field].as_str() {
                let bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
                key[field] = URL_SAFE.encode([&[0], &*bytes].concat()).into();
            }
        }
    }
    let directory = TemporaryDir::new();
    let file = directory.write("jwks.json", &format!("\u{feff}{set}"));
    let server = Server::start(&["--auth-jwks-file", file.to_str().unwrap(), "--auth-audience", "hub"]);
    let mut good = claims("ada", HOUR);
    good["aud"] = "hub".into();
    for (file, algorithm) in [
        ("jwt-rsa.key", Algorithm::RS256),
        ("jwt-p256.key", Algorithm::ES256),
        ("jwt-p384.key", Algorithm::ES384),
        ("jwt-ed25519.key", Algorithm::EdDSA),
    ] {
        let token = signed(file, algorithm, None, &good);
        assert!(Client::connect_with(with_token(&server, &token)).await.is_ok(), "{algorithm:?}");
    }
}

#[test]
fn config_check_warns_about_unusual_keys_and_rejects_unusable_ones() {
    let directory = TemporaryDir::new();
    let check = |flag: &str, name: &str, text: &str| {
        let file = directory.write(name, text);
        let finished = run(&["config", "check", flag, file.to_str().unwrap()], &[]);
        (finished.code, finished.stderr, file.display().to_string())
    };
    for (text, seen) in [
        (format!("\u{feff}{SECRET}\n"), "starts with a byte order mark"),
        (format!("{SECRET} \n"), "starts or ends with blanks"),
        (format!("{SECRET}\n\n"), "several line ends"),
    ] {
        let (code, printed, file) = check("--auth-secret-file", "secret", &text);
        assert_eq!(code, Some(0), "{printed}");
        assert!(printed.contains(&format!("{file}: the secret")) && printed.contains(seen), "{printed}");
        assert!(!printed.contains(SECRET), "{printed}");
    }
    for text in [SECRET.to_owned(), format!("{SECRET}\n"), format!("{SECRET}\r\n")] {
        let (code, printed, _) = check("--auth-secret-file", "secret", &text);
        assert_eq!((code, &*printed), (Some(0), ""));
    }
    let number =
        |byte: u8| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, [byte; 32]);
    let off_curve =
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "main", "x": number(7), "y": number(9)}]});
    let (code, printed, file) = check("--auth-jwks-file", "jwks.json", &off_curve.to_string());
    assert_eq!(code, Some(2), "{printed}");
    assert!(
        printed.contains(&file)
            && printed.contains("key 1 (kid \"main\"): x and y are not a point of its curve"),
        "{printed}"
    );
}
