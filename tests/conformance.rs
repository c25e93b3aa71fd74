//! Real traffic against the schemas that the program prints.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Client, Issuer, Server, TemporaryDir, from_now, http, python_bin, run, run_peer, script, with_token,
};

/// Recorded messages, one JSON object per line.
#[derive(Debug, Default)]
struct Traffic(String);

impl Traffic {
    fn note(&mut self, entry: &Value) {
        self.0.push_str(&format!("{entry}\n"));
    }

    async fn send(&mut self, client: &mut Client, message: &Value) {
        self.note(&json!({"side": "client", "text": message.to_string()}));
        client.send(message).await;
    }

    /// Receives and records messages up to one of the given type.
    async fn receive(&mut self, client: &mut Client, kind: &str) -> Value {
        loop {
            let text = client.receive_text().await;
            let message: Value = serde_json::from_str(&text).expect("a message is JSON");
            self.note(&json!({"side": "server", "text": text}));
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Sends a message that violates the schema, without recording it, and records the error.
    async fn send_invalid(&mut self, client: &mut Client, message: &Value, code: &str) {
        client.send(message).await;
        assert_eq!(self.receive(client, "error").await["data"]["code"], code);
    }

    /// Makes one call and records it; `path` is an instance of `template`.
    async fn call(&mut self, server: &Server, template: &str, path: &str, body: &str) -> Value {
        self.call_with(server, template, path, &["Authorization: Bearer key"], body).await
    }

    async fn call_with(
        &mut self,
        server: &Server,
        template: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> Value {
        let method = template.split(' ').next().expect("a call has a method");
        let response = http(server.api(), &format!("{method} {path}"), headers, body).await;
        self.note(&json!({
            "call": template,
            "status": response.status,
            "type": response.header("content-type"),
            "body": response.body,
        }));
        response.json()
    }
}

/// Exchanges every client message and every reply.
async fn messages(traffic: &mut Traffic, server: &Server, issuer: &Issuer) {
    let token = |user: &str| {
        let grants = json!({"subscribe": ["a", "a.>", "b", "kept.>"], "publish": [">"]});
        let exp = from_now(Duration::from_secs(3600));
        issuer.token(&json!({"sub": user, "exp": exp, "deeperhub": grants}))
    };
    let mut client = Client::connect(server).await;
    traffic.note(&json!({"side": "server", "text": client.welcome.to_string()}));
    traffic.send_invalid(&mut client, &json!({"type": "ping", "id": "early"}), "unauthorized").await;
    let login = json!({"type": "authenticate", "id": 1, "data": {"token": token("ann")}});
    traffic.send(&mut client, &login).await;
    traffic.receive(&mut client, "authenticated").await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let meta = json!({"traceparent": trace, "tracestate": "a=1", "other": 1});
    for (message, reply) in [
        (json!({"type": "echo", "id": "é", "data": [1, {"a": null}]}), "echo"),
        (json!({"type": "echo", "data": null}), "echo"),
        (json!({"type": "subscribe", "id": u64::MAX, "data": {"topic": "a.>"}}), "subscribed"),
        (json!({"type": "subscribe", "data": {"topic": "a"}}), "subscribed"),
        (
            json!({"type": "publish", "id": 0, "data": {"topic": "a.b", "message": 1}, "meta": meta}),
            "message",
        ),
        (json!({"type": "publish", "id": 2, "data": {"topic": "a", "message": {}}}), "message"),
        (
            json!({"type": "publish", "id": 2, "data": {"topic": "z", "message": 1, "exclude_self": true}}),
            "published",
        ),
        (json!({"type": "unsubscribe", "data": {"topic": "a"}}), "unsubscribed"),
        (json!({"type": "subscribe", "id": 5, "data": {"topic": "kept.a", "history": 1}}), "subscribed"),
        (
            json!({"type": "publish", "id": 6, "data": {"topic": "kept.a", "message": 1, "once": "x"}}),
            "published",
        ),
        (
            json!({"type": "subscribe", "data": {"topics": [
                {"topic": "kept.b", "recover": {"epoch": "k3J9aQx2", "offset": 1, "time": null, "partial": true}},
                {"topic": "forbidden"},
            ]}}),
            "subscribed",
        ),
        (
            json!({"type": "history", "id": 7, "data": {"topic": "kept.a", "from": -1, "order": "desc"}}),
            "history",
        ),
        (json!({"type": "history", "data": {"topic": "a"}}), "history"),
        (json!({"type": "ping", "id": 3}), "pong"),
        (json!({"type": "ping"}), "pong"),
    ] {
        traffic.send(&mut client, &message).await;
        traffic.receive(&mut client, reply).await;
    }
    for (message, code) in [
        (json!({"type": "subscribe", "id": 4, "data": {"topic": "a..b"}}), "invalid_topic"),
        (json!({"type": "subscribe", "data": {"topic": "forbidden"}}), "forbidden"),
        (json!({"type": "authenticate", "data": {"token": "x"}}), "token_invalid"),
        (json!({"type": "nonsense"}), "unknown_type"),
        (json!({"type": "history", "data": {"topic": "kept.a", "limit": 0}}), "invalid_message"),
        (json!({"type": "publish", "data": {"topic": "a"}}), "invalid_message"),
        (json!([]), "invalid_message"),
    ] {
        traffic.send_invalid(&mut client, &message, code).await;
    }
    client.send_text("{").await;
    traffic.receive(&mut client, "error").await;

    api(traffic, server, &mut client).await;
    // Messages caused by the calls.
    traffic.receive(&mut client, "gap").await;
    traffic.receive(&mut client, "hello").await;
    let goodbye = traffic.receive(&mut client, "goodbye").await;
    assert_eq!(goodbye["data"]["code"], 4003);
    let mut late = Client::connect_with(with_token(server, &token("late"))).await.expect("a good token");
    traffic.note(&json!({"side": "server", "text": late.welcome.to_string()}));
    for n in 0..80 {
        late.send(&json!({"type": "ping", "id": n})).await;
    }
    let limited = traffic.receive(&mut late, "error").await;
    assert_eq!(limited["data"]["code"], "rate_limited");
}

/// Makes every call of the server API, some with errors.
async fn api(traffic: &mut Traffic, server: &Server, client: &mut Client) {
    let id = client.id().to_owned();
    let hello = r#"{"type":"hello","data":1}"#;
    for (template, path, body) in [
        ("POST /v1/topics/{topic}/messages", "/v1/topics/a.b/messages", "1"),
        ("POST /v1/topics/{topic}/messages", "/v1/topics/a..b/messages", "1"),
        ("POST /v1/topics/{topic}/messages", "/v1/topics/a/messages", "{"),
        ("POST /v1/topics/{topic}/messages", "/v1/topics/kept.a/messages", "[1.0]"),
        ("GET /v1/topics/{topic}/messages", "/v1/topics/kept.a/messages?limit=1", ""),
        ("GET /v1/topics/{topic}/messages", "/v1/topics/a/messages", ""),
        ("GET /v1/topics/{topic}/messages", "/v1/topics/kept.a/messages?limit=x", ""),
        ("GET /v1/topics/{topic}", "/v1/topics/kept.a", ""),
        ("GET /v1/topics/{topic}/tail", "/v1/topics/a/tail", ""),
        ("GET /v1/topics/{topic}/tail", "/v1/topics/kept.a/tail?from=x", ""),
        ("DELETE /v1/topics/{topic}/messages", "/v1/topics/kept.a/messages", ""),
        ("DELETE /v1/topics/{topic}/messages", "/v1/topics/a.*/messages", ""),
        ("POST /v1/clients/{client_id}/messages", &format!("/v1/clients/{id}/messages"), hello),
        ("POST /v1/clients/{client_id}/messages", &format!("/v1/clients/{id}/messages"), "[]"),
        ("POST /v1/clients/{client_id}/messages", "/v1/clients/nobody/messages", hello),
        ("POST /v1/users/{user}/messages", "/v1/users/ann/messages", hello),
        ("POST /v1/broadcast", "/v1/broadcast", hello),
        (
            "POST /v1/batch",
            "/v1/batch",
            r#"{"calls":[{"topic":{"topic":"a"}},{"client":{"client_id":"x"}}]}"#,
        ),
        ("POST /v1/batch", "/v1/batch", r#"{"calls":[]}"#),
        ("GET /v1/clients", "/v1/clients", ""),
        ("GET /v1/clients", "/v1/clients?scope=cluster&limit=1", ""),
        ("GET /v1/clients", "/v1/clients?limit=x", ""),
        ("GET /v1/clients", "/v1/clients?search=ann", ""),
        ("GET /v1/clients/{client_id}", &format!("/v1/clients/{id}"), ""),
        ("GET /v1/clients/{client_id}", "/v1/clients/nobody", ""),
        ("GET /v1/topics", "/v1/topics?limit=1", ""),
        ("GET /v1/topics", "/v1/topics?scope=cluster", ""),
        ("GET /v1/topics", "/v1/topics?cursor=x", ""),
        ("GET /v1/topics", "/v1/topics?prefix=a", ""),
        ("GET /v1/topics", "/v1/topics?match=a.*", ""),
        ("GET /v1/topics", "/v1/topics?match=a..b", ""),
        ("GET /v1/topics/{topic}", "/v1/topics/a.b", ""),
        ("GET /v1/topics/{topic}", "/v1/topics/a.%3E?scope=cluster", ""),
        ("GET /v1/topics/{topic}", "/v1/topics/%FF", ""),
        ("GET /v1/nodes", "/v1/nodes", ""),
        ("GET /v1/stats", "/v1/stats", ""),
        ("GET /v1/stats", "/v1/stats?scope=cluster", ""),
        ("GET /v1/stats", "/v1/stats?scope=world", ""),
        ("GET /v1/stats/samples", "/v1/stats/samples", ""),
        ("GET /v1/stats/samples", "/v1/stats/samples?after=x", ""),
        ("GET /v1/top", "/v1/top", ""),
        ("GET /v1/top", "/v1/top?limit=0", ""),
        ("GET /v1/events", "/v1/events?types=nonsense", ""),
        ("GET /metrics", "/metrics", ""),
        ("GET /health/live", "/health/live", ""),
        ("GET /health/ready", "/health/ready", ""),
        ("GET /openapi.json", "/openapi.json", ""),
        ("GET /deeperhub.js", "/deeperhub.js", ""),
        (
            "DELETE /v1/clients/{client_id}/subscriptions/{topic}",
            &format!("/v1/clients/{id}/subscriptions/a.%3E"),
            "",
        ),
        ("DELETE /v1/users/{user}/subscriptions/{topic}", "/v1/users/ann/subscriptions/b", ""),
        ("DELETE /v1/users/{user}/subscriptions/{topic}", "/v1/users/ann/subscriptions/..", ""),
        ("DELETE /v1/clients/{client_id}", "/v1/clients/nobody", ""),
        ("DELETE /v1/clients/{client_id}", &format!("/v1/clients/{id}"), ""),
        ("DELETE /v1/users/{user}", "/v1/users/ann", ""),
        ("DELETE /v1/topics/{topic}/subscriptions", "/v1/topics/a.%3E/subscriptions", ""),
        ("DELETE /v1/topics/{topic}/subscriptions", "/v1/topics/a..b/subscriptions", ""),
        ("DELETE /v1/clients", "/v1/clients", ""),
    ] {
        traffic.call(server, template, path, body).await;
    }
    let large = format!("\"{}\"", "x".repeat(70_000));
    let publish = "POST /v1/topics/{topic}/messages";
    traffic.call(server, publish, "/v1/topics/a/messages", &large).await;
    traffic.call_with(server, publish, "/v1/topics/a/messages", &[], "1").await;
    let foreign = ["Authorization: Bearer key", "Origin: https://evil.example.org"];
    traffic.call_with(server, publish, "/v1/topics/a/messages", &foreign, "1").await;
    let keyed = ["Authorization: Bearer key", "Idempotency-Key: k"];
    for body in ["1", "1", "2"] {
        traffic.call_with(server, publish, "/v1/topics/a/messages", &keyed, body).await;
    }
}

/// Records the beginning of an event stream, which has no end.
async fn events(traffic: &mut Traffic, server: &Server, template: &str, path: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tokio::net::TcpStream::connect(server.api()).await.expect("the API listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it takes a request");
    let mut head = String::new();
    while !head.contains("\r\n\r\n") {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).await.expect("it answers");
        head.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: "));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    traffic.note(&json!({"call": template, "status": 200, "type": kind, "body": ""}));
}

#[tokio::test]
async fn messages_and_responses_match_their_schemas() {
    let python = python_bin().join("python");
    let issuer = Issuer::new("a secret of at least thirty-two bytes");
    let secret = issuer.file();
    let flags = [
        "--auth-secret-file",
        &secret,
        "--auth-required",
        "--api-key",
        "key",
        "--rate-burst",
        "40",
        "--topic",
        "kept.>: history=5",
    ];
    let server = Server::start(&flags);
    let mut traffic = Traffic::default();
    for (template, path) in
        [("GET /v1/events", "/v1/events"), ("GET /v1/topics/{topic}/tail", "/v1/topics/kept.a/tail")]
    {
        events(&mut traffic, &server, template, path).await;
    }
    messages(&mut traffic, &server, &issuer).await;

    let files = TemporaryDir::new();
    let described = |what: &str| {
        let finished = run(&["schema", what], &[]);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        files.write(&format!("{what}.json"), &finished.stdout)
    };
    let (messages, openapi) = (described("messages"), described("openapi"));
    let traffic = files.write("traffic", &traffic.0);
    let finished = run_peer(python, [script("conformance.py"), messages, openapi, traffic]);
    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
}
