//! The server API.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Client, Server, http, wait_for};

#[tokio::test]
async fn a_backend_publishes_sends_and_broadcasts() {
    let server = Server::start(&["--workers", "2"]);
    let mut clients = [Client::connect(&server).await, Client::connect(&server).await];
    let topic = json!({"type": "subscribe", "data": {"topic": "a/b"}});
    clients[0].request(&topic).await;

    let response = http(server.api(), "POST /v1/topics/a%2Fb/messages", &[], "{\"n\" : 1}").await;
    assert_eq!((response.status, response.json()), (200, json!({"subscribers": 1})));
    let delivery = json!({"type": "message", "data": {"topic": "a/b", "message": {"n": 1}}});
    assert_eq!(clients[0].receive().await, delivery);

    let message = r#"{"type":"hello","data":1}"#;
    let path = format!("POST /v1/clients/{}/messages", clients[1].id());
    assert_eq!(http(server.api(), &path, &[], message).await.status, 200);
    assert_eq!(clients[1].receive().await, json!({"type": "hello", "data": 1}));

    let response = http(server.api(), "POST /v1/broadcast", &[], message).await;
    assert_eq!((response.status, response.json()), (200, json!({"clients": 2})));
    for client in &mut clients {
        assert_eq!(client.receive().await["type"], "hello");
    }
    let response = http(server.api(), "POST /v1/users/nobody/messages", &[], message).await;
    assert_eq!(response.json(), json!({"clients": 0}));
}

#[tokio::test]
async fn clients_are_listed_in_pages_and_disconnected() {
    let server = Server::start(&["--workers", "2"]);
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::connect(&server).await);
    }
    let mut listed = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = http(server.api(), &format!("GET /v1/clients?limit=2{cursor}"), &[], "").await.json();
        listed.extend(
            page["clients"].as_array().unwrap().iter().map(|c| c["client_id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut expected: Vec<_> = clients.iter().map(|client| client.id().to_owned()).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);

    let path = format!("/v1/clients/{}", clients[0].id());
    let one = http(server.api(), &format!("GET {path}"), &[], "").await;
    let one = one.json();
    let facts = json!([one["client_id"], one["user"], one["subscriptions"]]);
    assert_eq!(facts, json!([clients[0].id(), null, []]), "{one}");
    assert_eq!(http(server.api(), &format!("DELETE {path}"), &[], "").await.status, 200);
    let (code, _, goodbye) = clients[0].closed().await;
    let farewell = json!({
        "code": 4003, "reason": "disconnected by the server API", "reconnect": false, "retry_after_ms": 0,
    });
    assert_eq!((code, &goodbye.unwrap()["data"]), (4003, &farewell));
    let gone = http(server.api(), &format!("GET {path}"), &[], "").await;
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (404, &json!("client_not_found")));
}

/// Each client may have 32 KiB of names, so a limit on the number of clients does not bound a
/// response.
#[tokio::test]
async fn a_page_of_clients_is_bounded_in_bytes() {
    let server = Server::start(&["--workers", "2", "--rate-limit", "0"]);
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = Client::connect(&server).await;
        for number in 0..100 {
            let topic = format!("{number}.{}", "x".repeat(240));
            client.send(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        }
        clients.push(client);
    }
    for client in &mut clients {
        for _ in 0..100 {
            client.receive().await;
        }
    }
    let (mut listed, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let response = http(server.api(), &format!("GET /v1/clients?limit=1000{cursor}"), &[], "").await;
        assert!(response.body.len() < 700_000, "{}", response.body.len());
        pages += 1;
        let page = response.json();
        for client in page["clients"].as_array().unwrap() {
            assert_eq!(client["subscriptions"].as_array().unwrap().len(), 100);
            listed.push(client["client_id"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    listed.sort();
    let mut expected: Vec<_> = clients.iter().map(|client| client.id().to_owned()).collect();
    expected.sort();
    assert_eq!((listed, pages >= 2), (expected, true));
}

#[tokio::test]
async fn topics_are_listed_with_their_subscribers() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    for topic in ["a", "b.*"] {
        client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
    }
    let list = http(server.api(), "GET /v1/topics", &[], "").await.json();
    let mut topics = list["topics"].as_array().unwrap().clone();
    topics.sort_by_key(|topic| topic["topic"].to_string());
    assert_eq!(topics, [json!({"topic": "a", "subscribers": 1}), json!({"topic": "b.*", "subscribers": 1})]);
    let none = http(server.api(), "GET /v1/topics/c", &[], "").await.json();
    assert_eq!(none, json!({"topic": "c", "subscribers": 0}));
}

#[tokio::test]
async fn errors_are_json_with_a_code() {
    let server = Server::start(&["--max-message-bytes", "50"]);
    let long = format!("\"{}\"", "x".repeat(60));
    for (request, body, status, code) in [
        ("GET /nothing", "", 404, "not_found"),
        ("GET /v1/broadcast", "", 405, "method_not_allowed"),
        ("POST /v1/topics/a/messages", "{", 400, "invalid_json"),
        ("POST /v1/topics/a.*/messages", "1", 400, "invalid_topic"),
        ("POST /v1/topics/%FF/messages", "1", 400, "invalid_topic"),
        ("GET /v1/topics/%FF", "", 400, "invalid_topic"),
        ("POST /v1/broadcast", "{\"no\":\"type\"}", 400, "invalid_message"),
        ("POST /v1/topics/a/messages", long.as_str(), 413, "message_too_big"),
        ("GET /v1/clients?limit=0", "", 400, "invalid_message"),
        ("GET /v1/clients?cursor=x", "", 400, "invalid_message"),
        ("GET /v1/events?types=nonsense", "", 400, "invalid_message"),
        ("DELETE /v1/clients/nobody", "", 404, "client_not_found"),
    ] {
        let response = http(server.api(), request, &[], body).await;
        let error = &response.json()["error"];
        assert_eq!(
            (response.status, error["code"].as_str()),
            (status, Some(code)),
            "{request}: {response:?}"
        );
        assert!(error["message"].is_string());
        if let Some((_, query)) = request.split_once('?') {
            assert_eq!(error["field"].as_str(), query.split('=').next(), "{request}: {response:?}");
        }
        if status == 405 {
            assert!(response.header("allow").is_some_and(|allow| allow.contains("POST")), "{response:?}");
        }
    }
}

#[tokio::test]
async fn every_call_except_health_needs_the_configured_key() {
    let server = Server::start(&["--api-key", "secret-key"]);
    let refused = http(server.api(), "GET /v1/clients", &[], "").await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (401, Some("unauthorized")));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let wrong = http(server.api(), "GET /metrics", &["Authorization: Bearer secret-kez"], "").await;
    assert_eq!(wrong.status, 401);
    let right = http(server.api(), "GET /v1/clients", &["Authorization: Bearer secret-key"], "").await;
    assert_eq!(right.status, 200);
    assert_eq!(http(server.api(), "GET /health/ready", &[], "").await.status, 200);
}

#[tokio::test]
async fn a_web_page_of_another_host_is_refused() {
    let server = Server::start(&["--allowed-origin", "https://app.example.com"]);
    // A page from another server on this machine is not a backend either.
    for origin in ["https://evil.example.org", "http://localhost:3000", "http://127.0.0.1:1", "null"] {
        let response = http(server.api(), "GET /v1/clients", &[&format!("Origin: {origin}")], "").await;
        let error = (response.status, response.json()["error"]["code"].as_str().map(str::to_owned));
        assert_eq!(error, (403, Some("origin_not_allowed".to_owned())), "{origin}");
    }
    for origin in ["https://app.example.com".to_owned(), format!("http://{}", server.api())] {
        let response = http(server.api(), "GET /v1/clients", &[&format!("Origin: {origin}")], "").await;
        assert_eq!(response.status, 200, "{origin}");
    }
    for (origin, allowed) in [
        ("https://evil.example.org", false),
        ("https://app.example.com", true),
        ("http://localhost:3000", true),
    ] {
        let mut request = server.url("/ws").into_client_request().unwrap();
        request.headers_mut().insert("origin", origin.parse().unwrap());
        assert_eq!(Client::connect_with(request).await.is_ok(), allowed, "{origin}");
    }
}

/// Sends one request with the given `Host` and returns the response's status and body.
async fn with_host(server: &Server, request: &str, host: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.api()).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = String::new();
    wait_for("a response", stream.read_to_string(&mut response)).await.unwrap();
    (response[9..12].parse().unwrap(), response)
}

/// A page under a name rebound to this machine sends that name as `Host`, and no `Origin` with a
/// GET.
#[tokio::test]
async fn pages_with_dns_rebinding_are_refused_without_a_key() {
    let server = Server::start(&["--allowed-origin", "https://app.example.com"]);
    let own = "Origin: http://evil.example:8081\r\n";
    for (request, headers) in [
        ("GET /v1/clients", ""),
        ("GET /v1/events", ""),
        ("GET /metrics", own),
        ("DELETE /v1/users/a", own),
        ("GET http://evil.example:8081/v1/clients", ""),
    ] {
        let (status, response) = with_host(&server, request, "evil.example:8081", headers).await;
        assert!(status == 403 && response.contains("\"origin_not_allowed\""), "{request}: {response}");
    }
    let (status, response) =
        with_host(&server, "GET http://evil.example/v1/clients", &server.api().to_string(), "").await;
    assert_eq!(status, 403, "{response}");
    for host in ["localhost:8081", "127.0.0.1", "[::1]:8081", "hub", "hub.internal:8081", "app.example.com"] {
        let (status, response) = with_host(&server, "GET /v1/clients", host, "").await;
        assert_eq!(status, 200, "{host}: {response}");
    }
    // Load balancer probes may send any `Host`.
    assert_eq!(with_host(&server, "GET /health/live", "hub.example.com", "").await.0, 200);

    // If a key is required, the `Host` does not matter.
    let server = Server::start(&["--api-key", "the-key-of-the-api"]);
    let key = "Authorization: Bearer the-key-of-the-api\r\n";
    assert_eq!(with_host(&server, "GET /v1/clients", "hub.example.com", key).await.0, 200);
    assert_eq!(with_host(&server, "GET /v1/clients", "hub.example.com", "").await.0, 401);
}

#[tokio::test]
async fn calls_and_messages_are_counted() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "echo", "data": 1})).await;
    client.request(&json!({"type": "nonsense"})).await;
    let text = http(server.api(), "GET /metrics", &[], "").await.body;
    for line in [
        "deeperhub_connections_active 1",
        "deeperhub_messages_received_total{type=\"echo\"} 1",
        "deeperhub_messages_sent_total{type=\"echo\"} 1",
        "deeperhub_errors_total{code=\"unknown_type\"} 1",
        "deeperhub_message_size_bytes_count 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
}

#[tokio::test]
async fn a_body_is_json_regardless_of_its_content_type() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "a"}})).await;
    for kind in [
        "",
        "Content-Type: application/json",
        "Content-Type: application/json; charset=utf-8",
        "Content-Type: text/plain",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Type: nonsense",
    ] {
        let headers: Vec<_> = [kind].into_iter().filter(|kind| !kind.is_empty()).collect();
        let response = http(server.api(), "POST /v1/topics/a/messages", &headers, "[1.0, \"\\u00e9\"]").await;
        assert_eq!((response.status, response.json()), (200, json!({"subscribers": 1})), "{kind}");
        assert!(client.receive_text().await.contains("\"message\":[1.0, \"\\u00e9\"]"), "{kind}");
        for call in ["POST /v1/broadcast", "POST /v1/users/u/messages"] {
            assert_eq!(http(server.api(), call, &headers, "{\"type\":\"x\"}").await.status, 200, "{call}");
        }
        assert_eq!(client.receive().await, json!({"type": "x"}));
        let batch = r#"{"calls":[{"topic":{"topic":"a"}}]}"#;
        assert_eq!(http(server.api(), "POST /v1/batch", &headers, batch).await.status, 200, "{kind}");
    }
}

#[tokio::test]
async fn topics_in_paths_are_percent_encoded() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    for (path, topic) in [
        ("a%2Fb", "a/b"),
        ("c%2fd", "c/d"),
        ("100%25", "100%"),
        ("%25FF", "%FF"),
        ("caf%C3%A9", "café"),
        ("café", "café"),
        ("a+b", "a+b"),
        ("%3F%23%26=", "?#&="),
        ("%F0%9F%A6%80.x", "🦀.x"),
        ("..", ".."),
    ] {
        let subscribed = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        let response = http(server.api(), &format!("POST /v1/topics/{path}/messages"), &[], "1").await;
        let shown = http(server.api(), &format!("GET /v1/topics/{path}"), &[], "").await;
        if subscribed["type"] == "error" {
            assert_eq!((response.status, shown.status), (400, 400), "{path}");
            continue;
        }
        assert_eq!((response.status, response.json()), (200, json!({"subscribers": 1})), "{path}");
        assert_eq!(client.receive().await["data"]["topic"], topic);
        assert_eq!(shown.json(), json!({"topic": topic, "subscribers": 1}), "{path}");
        let ended = format!("DELETE /v1/clients/{}/subscriptions/{path}", client.id());
        assert_eq!(http(server.api(), &ended, &[], "").await.json(), json!({"unsubscribed": true}), "{path}");
        assert_eq!(client.receive().await, json!({"type": "unsubscribed", "data": {"topic": topic}}));
    }
    // Percent-encoded bytes that are not UTF-8 are the caller's error anywhere in the request.
    for (request, body) in [
        ("POST /v1/topics/%C3/messages", "1"),
        ("GET /v1/topics/a%80b", ""),
        ("POST /v1/users/%FF/messages", "{\"type\":\"x\"}"),
        ("DELETE /v1/users/%FF", ""),
        ("DELETE /v1/users/%FF/subscriptions/a", ""),
        ("DELETE /v1/users/u/subscriptions/%FF", ""),
        ("POST /v1/clients/%FF/messages", "{\"type\":\"x\"}"),
        ("GET /v1/clients/%FF", ""),
        ("GET /v1/clients?cursor=%FF", ""),
        ("GET /v1/events?types=%FF", ""),
    ] {
        let response = http(server.api(), request, &[], body).await;
        let code = response.json()["error"]["code"].as_str().map(str::to_owned);
        let is_told =
            code.as_deref().is_some_and(|code| ["invalid_topic", "invalid_message"].contains(&code));
        assert!(response.status == 400 && is_told, "{request}: {response:?}");
    }
}
