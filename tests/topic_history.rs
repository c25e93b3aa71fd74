//! History of topics over the server API: pages, state, positions of publishes, and streams.

use std::collections::HashSet;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::{Client, Response, Server, http, metric, wait_for};

/// An open stream of server-sent events.
struct Events(BufReader<TcpStream>);

/// An event: its name, ID and data.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

impl Events {
    async fn open(server: &Server, path: &str, headers: &[&str]) -> Self {
        let mut socket = TcpStream::connect(server.api()).await.unwrap();
        // A response to HTTP/1.0 has no chunks.
        let mut request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n");
        headers.iter().for_each(|header| request += &format!("{header}\r\n"));
        socket.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
        let mut events = Self(BufReader::new(socket));
        let status = events.line().await.unwrap();
        assert!(status.ends_with(" 200 OK"), "{status}");
        while events.line().await.is_some_and(|line| !line.is_empty()) {}
        events
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = wait_for("a line of a stream", self.0.read_line(&mut line)).await.unwrap();
        (length > 0).then(|| line.trim_end().to_owned())
    }

    /// Returns the next event, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        let (mut name, mut id, mut data) = (String::new(), String::new(), Vec::new());
        loop {
            let line = self.line().await?;
            let (field, value) = line.split_once(": ").unwrap_or((&line, ""));
            match field {
                "event" => name = value.to_owned(),
                "id" => id = value.to_owned(),
                "data" => data.push(value.to_owned()),
                "" if !(name.is_empty() && id.is_empty() && data.is_empty()) => {
                    let data = data.join("\n");
                    let data =
                        if data.is_empty() { Value::Null } else { serde_json::from_str(&data).unwrap() };
                    return Some(Event { name, id, data });
                }
                _ => {}
            }
        }
    }

    /// Returns the offsets and payloads of the next messages.
    async fn messages(&mut self, count: usize) -> Vec<(u64, Value)> {
        let mut messages = Vec::new();
        for _ in 0..count {
            let event = self.next().await.expect("the stream is open");
            assert_eq!(event.name, "message", "{event:?}");
            let offset = &event.data["offset"];
            assert_eq!(event.id, format!("{}:{offset}", event.data["epoch"].as_str().unwrap()));
            messages.push((offset.as_u64().unwrap(), event.data["message"].clone()));
        }
        messages
    }
}

async fn call(server: &Server, request: &str) -> Response {
    http(server.api(), request, &[], "").await
}

async fn publish(server: &Server, topic: &str, body: &str) -> Value {
    let response = http(server.api(), &format!("POST /v1/topics/{topic}/messages"), &[], body).await;
    assert_eq!(response.status, 200, "{response:?}");
    response.json()
}

async fn publish_numbers(server: &Server, topic: &str, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        publish(server, topic, &number.to_string()).await;
    }
}

/// Reads pages from the first to the last. Returns the offsets of each page.
async fn pages(server: &Server, topic: &str, query: &str) -> Vec<Vec<u64>> {
    let (mut pages, mut from) = (Vec::new(), String::new());
    loop {
        let response = call(server, &format!("GET /v1/topics/{topic}/messages?{query}{from}")).await;
        assert_eq!(response.status, 200, "{response:?}");
        let page = response.json();
        let messages = page["messages"].as_array().unwrap();
        pages.push(messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect());
        match page["next"].as_u64() {
            Some(next) => from = format!("&from={next}"),
            None => return pages,
        }
    }
}

fn numbered(range: std::ops::RangeInclusive<u64>) -> Vec<(u64, Value)> {
    range.map(|number| (number, json!(number))).collect()
}

#[tokio::test]
async fn kept_messages_are_read_in_pages_in_both_orders() {
    let server = Server::start(&["--topic", "chat.>: history=20"]);
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "chat.1"}})).await;
    let body = r#"{"b" : 1.0,  "a":"\u00e9"}"#;
    publish(&server, "chat.1", body).await;
    let delivery = client.receive_text().await;
    let page = call(&server, "GET /v1/topics/chat.1/messages").await;
    let data = delivery.strip_prefix(r#"{"type":"message","data":"#).and_then(|text| text.strip_suffix('}'));
    let data = data.expect("a delivery");
    assert!(data.contains(body) && page.body.contains(&format!("\"messages\":[{data}]")), "{page:?}");
    let (page, delivery): (_, Value) = (page.json(), serde_json::from_str(data).unwrap());
    assert_eq!((&page["topic"], &page["offset"], page.get("next")), (&json!("chat.1"), &json!(1), None));
    assert_eq!(page["epoch"], delivery["epoch"]);
    assert!(page["time"].as_u64() >= delivery["time"].as_u64(), "{page}");

    publish_numbers(&server, "chat.1", 2..=25).await;
    let all: Vec<u64> = (6..=25).collect();
    for limit in [1, 3, 7, 20, 1000] {
        let read = pages(&server, "chat.1", &format!("limit={limit}")).await;
        assert!(read.iter().all(|page| page.len() <= limit), "{read:?}");
        assert_eq!(read.concat(), all, "limit {limit}");
        let mut read = pages(&server, "chat.1", &format!("limit={limit}&order=desc")).await.concat();
        read.reverse();
        assert_eq!(read, all, "limit {limit}");
    }
    for (query, expected) in [
        ("from=24", &[24, 25][..]),
        ("from=-2&order=asc", &[24, 25]),
        ("from=0&limit=2", &[6, 7]),
        ("from=26", &[]),
        ("from=18446744073709551615", &[]),
        ("from=7&order=desc", &[7, 6]),
        ("from=-19&order=desc", &[7, 6]),
        ("from=-9223372036854775808&limit=1", &[6]),
        ("from=18446744073709551615&order=desc&limit=1", &[25]),
        ("from=25&from=%2D1&x=y", &[25]),
    ] {
        let page = call(&server, &format!("GET /v1/topics/chat.1/messages?{query}")).await.json();
        let messages = page["messages"].as_array().unwrap();
        let offsets: Vec<_> = messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect();
        assert_eq!(offsets, expected, "{query}: {page}");
    }
    // Without a rule, and before the first use.
    for topic in ["other", "chat.2"] {
        let page = call(&server, &format!("GET /v1/topics/{topic}/messages")).await.json();
        assert_eq!(page, json!({"topic": topic, "messages": []}));
    }
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes() {
    let server = Server::start(&["--topic", "long: history=100 history_bytes=64MiB"]);
    for length in [30_000, 65_000, 10, 30_000, 40_000, 65_534, 20_000, 20_000, 20_000] {
        publish(&server, "long", &format!("\"{}\"", "x".repeat(length))).await;
    }
    for order in ["asc", "desc"] {
        let read = pages(&server, "long", &format!("limit=1000&order={order}")).await;
        let mut offsets = read.concat();
        offsets.sort_unstable();
        assert_eq!(offsets, (1..=9).collect::<Vec<_>>(), "{read:?}");
        assert!(read.contains(&vec![6]), "the longest message is a page of its own: {read:?}");
        assert!((5..9).contains(&read.len()) && read.iter().all(|page| !page.is_empty()), "{read:?}");
    }
    let page = call(&server, "GET /v1/topics/long/messages?limit=1000").await;
    assert!(page.body.len() < 70_000, "{}", page.body.len());
}

#[tokio::test]
async fn an_emptied_history_continues_in_a_new_epoch() {
    let server = Server::start(&["--topic", "chat.>: history=10"]);
    publish_numbers(&server, "chat.1", 1..=3).await;
    let state = call(&server, "GET /v1/topics/chat.1").await.json();
    let history = &state["history"];
    assert_eq!((&state["topic"], &state["subscribers"]), (&json!("chat.1"), &json!(0)));
    assert_eq!(
        (&history["offset"], &history["messages"], &history["oldest"]),
        (&json!(3), &json!(3), &json!(1))
    );
    assert!(history["bytes"].as_u64().is_some_and(|bytes| bytes > 300), "{state}");
    let epoch = history["epoch"].as_str().unwrap().to_owned();
    assert_eq!(call(&server, "GET /v1/topics/chat.1?scope=cluster").await.json()["history"], *history);
    let batch = r#"{"calls":[{"topic":{"topic":"chat.1"}}]}"#;
    let batch = http(server.api(), "POST /v1/batch", &[], batch).await.json();
    assert_eq!(batch["results"][0]["body"], state);

    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "chat.1"}})).await;
    let mut events = Events::open(&server, "/v1/topics/chat.1/tail", &[]).await;
    assert_eq!(events.next().await.unwrap().id, format!("{epoch}:3"));
    let response = call(&server, "DELETE /v1/topics/chat.1/messages").await;
    assert_eq!((response.status, response.body.as_str()), (204, ""), "{response:?}");
    let gap = client.receive().await;
    assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("gap"), &json!("epoch")));
    let event = events.next().await.unwrap();
    let new_epoch = gap["data"]["epoch"].as_str().unwrap();
    assert_eq!((event.name.as_str(), event.id), ("gap", format!("{new_epoch}:3")));
    let keys = |data: &Value| data.as_object().unwrap().keys().cloned().collect::<HashSet<_>>();
    assert_eq!(keys(&event.data), keys(&gap["data"]));
    for key in ["topic", "epoch", "offset", "reason"] {
        assert_eq!(event.data[key], gap["data"][key], "{key}");
    }

    let history = call(&server, "GET /v1/topics/chat.1").await.json()["history"].clone();
    assert_eq!(history, json!({"epoch": new_epoch, "offset": 3, "messages": 0, "bytes": 0, "oldest": null}));
    let page = call(&server, "GET /v1/topics/chat.1/messages").await.json();
    assert_eq!((&page["epoch"], &page["messages"]), (&json!(new_epoch), &json!([])));
    assert_ne!(new_epoch, epoch);
    publish_numbers(&server, "chat.1", 4..=4).await;
    assert_eq!(events.messages(1).await, numbered(4..=4));
    // Nothing was kept.
    for topic in ["chat.2", "other"] {
        assert_eq!(
            call(&server, &format!("DELETE /v1/topics/{topic}/messages")).await.status,
            204,
            "{topic}"
        );
        let state = call(&server, &format!("GET /v1/topics/{topic}")).await.json();
        assert_eq!(state, json!({"topic": topic, "subscribers": 0}));
    }
    assert_eq!(call(&server, "GET /v1/topics/chat.*").await.json().get("history"), None);
}

#[tokio::test]
async fn a_publish_answers_its_position() {
    let server =
        Server::start(&["--topic", "chat.>: history=10", "--topic", "few.>: history=10 max_streams=1"]);
    let first = publish(&server, "chat.1", "1").await;
    assert_eq!((&first["subscribers"], &first["offset"]), (&json!(0), &json!(1)));
    let epoch = first["epoch"].as_str().unwrap();
    assert!(
        epoch.len() == 8 && first["time"].as_u64().is_some_and(|time| time > 1_600_000_000_000),
        "{first}"
    );
    assert_eq!(publish(&server, "other", "1").await, json!({"subscribers": 0}));

    let publish_once = async |body: &str| {
        let key = ["Idempotency-Key: k"];
        http(server.api(), "POST /v1/topics/chat.1/messages", &key, body).await
    };
    let (once, again) = (publish_once("2").await, publish_once("2").await);
    assert_eq!((once.status, once.json()["offset"].as_u64()), (200, Some(2)));
    assert_eq!((again.header("idempotency-replayed"), again.json()), (Some("true"), once.json()));

    let batch = r#"{"calls":[
        {"publish":{"topic":"chat.1","message":3}},
        {"publish":{"topic":"chat.1","message":3,"idempotency_key":"b"}},
        {"publish":{"topic":"chat.1","message":3,"idempotency_key":"b"}},
        {"publish":{"topic":"other","message":3}}
    ]}"#;
    let batch = http(server.api(), "POST /v1/batch", &[], batch).await.json();
    let bodies: Vec<_> = batch["results"].as_array().unwrap().iter().map(|result| &result["body"]).collect();
    assert_eq!((&bodies[0]["offset"], &bodies[0]["epoch"]), (&json!(3), &json!(epoch)));
    assert_eq!((&bodies[1]["offset"], bodies[1]), (&json!(4), bodies[2]));
    assert_eq!(bodies[3], &json!({"subscribers": 0}));

    // The rule's only stream has a subscriber.
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "few.1"}})).await;
    let refused = http(server.api(), "POST /v1/topics/few.2/messages", &[], "1").await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("too_many_topics")));
    assert_eq!(refused.header("retry-after"), Some("10"));
    let refused = call(&server, "GET /v1/topics/few.2/tail").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("10")), "{refused:?}");
    let batch = r#"{"calls":[{"publish":{"topic":"few.2","message":1}}]}"#;
    let batch = http(server.api(), "POST /v1/batch", &[], batch).await.json();
    assert_eq!(batch["results"][0]["status"], 429);
}

#[tokio::test]
async fn a_stream_continues_after_the_last_event() {
    let server = Server::start(&["--topic", "chat.>: history=5", "--max-event-streams", "3"]);
    publish_numbers(&server, "chat.1", 1..=4).await;
    let path = "/v1/topics/chat.1/tail";
    let mut events = Events::open(&server, &format!("{path}?from=-2"), &[]).await;
    let first = events.next().await.unwrap();
    let (epoch, offset) = first.id.split_once(':').unwrap();
    assert_eq!((first.name.as_str(), offset, &first.data), ("", "2", &Value::Null), "only the position");
    assert_eq!(events.messages(2).await, numbered(3..=4));
    publish(&server, "chat.1", "5").await;
    assert_eq!(events.messages(1).await, numbered(5..=5));
    // It is no subscriber.
    assert_eq!(publish(&server, "chat.1", "6").await["subscribers"], 0);
    assert_eq!(call(&server, "GET /v1/topics").await.json(), json!({"topics": []}));
    drop(events);

    let continued = async |from: &str, id: &str| {
        let header = format!("Last-Event-ID: {id}");
        let headers = if id.is_empty() { &[][..] } else { &[header.as_str()] };
        Events::open(&server, &format!("{path}?{from}"), headers).await
    };
    let id = format!("{epoch}:5");
    for (from, header) in [("from=-2", id.as_str()), (&format!("from={id}"), "")] {
        let mut events = continued(from, header).await;
        assert_eq!(events.next().await.unwrap().id, id);
        assert_eq!(events.messages(1).await, numbered(6..=6));
    }

    // Positions that are not good.
    publish_numbers(&server, "chat.1", 7..=12).await;
    let mut events = continued("", &id).await;
    let gap = events.next().await.unwrap();
    assert_eq!((gap.name.as_str(), gap.id), ("gap", format!("{epoch}:7")));
    let (from, to, reason) = (&gap.data["from"], &gap.data["to"], &gap.data["reason"]);
    assert_eq!((from, to, reason, &gap.data["offset"]), (&json!(6), &json!(7), &json!("trimmed"), &json!(7)));
    assert_eq!(events.messages(5).await, numbered(8..=12));
    drop(events);
    for (id, start, kept) in [("00000000:9".to_owned(), 7, 5), (format!("{epoch}:13"), 12, 0)] {
        let mut events = continued("", &id).await;
        let gap = events.next().await.unwrap();
        assert_eq!((gap.name.as_str(), gap.id), ("gap", format!("{epoch}:{start}")), "{id}");
        assert_eq!((&gap.data["reason"], gap.data.get("from")), (&json!("epoch"), None), "{id}");
        assert_eq!(events.messages(kept).await, numbered(start + 1..=start + kept as u64));
    }

    wait_for("the streams to end", async {
        while metric(&server, "deeperhub_api_event_streams").await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let streams = [continued("", "").await, continued("", "").await, continued("", "").await];
    let refused = call(&server, &format!("GET {path}")).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("too_many_observers")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(streams);
}

#[tokio::test]
async fn a_stream_ends_when_the_server_stops() {
    let mut server = Server::start(&["--topic", "chat: history=5", "--drain-timeout", "1s"]);
    let mut events = Events::open(&server, "/v1/topics/chat/tail", &[]).await;
    assert!(events.next().await.is_some());
    publish_numbers(&server, "chat", 1..=2).await;
    assert_eq!(events.messages(2).await, numbered(1..=2));
    server.signal("TERM");
    assert_eq!(events.next().await, None);
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn line_breaks_in_a_payload_arrive_as_line_feeds() {
    let server = Server::start(&["--topic", "chat: history=5"]);
    publish(&server, "chat", "{\"a\":\n1,\r\n\"b\": \"x\\ny\",\r\"c\":[]}").await;
    let mut events = Events::open(&server, "/v1/topics/chat/tail?from=-1", &[]).await;
    events.next().await.unwrap();
    assert_eq!(events.messages(1).await, [(1, json!({"a": 1, "b": "x\ny", "c": []}))]);
}

#[tokio::test]
async fn invalid_requests_name_what_is_wrong() {
    let server = Server::start(&["--topic", "chat.>: history=5"]);
    let (messages, tail) = ("GET /v1/topics/chat.1/messages", "GET /v1/topics/chat.1/tail");
    for (request, header, status, code, field) in [
        (&*format!("{messages}?from="), "", 400, "invalid_message", "from"),
        (&format!("{messages}?from=1.5"), "", 400, "invalid_message", "from"),
        (&format!("{messages}?from=%2B1"), "", 400, "invalid_message", "from"),
        (&format!("{messages}?from=-9223372036854775809"), "", 400, "invalid_message", "from"),
        (&format!("{messages}?from=18446744073709551616"), "", 400, "invalid_message", "from"),
        (&format!("{messages}?limit=0"), "", 400, "invalid_message", "limit"),
        (&format!("{messages}?limit=1001"), "", 400, "invalid_message", "limit"),
        (&format!("{messages}?limit=ten"), "", 400, "invalid_message", "limit"),
        (&format!("{messages}?order=ASC"), "", 400, "invalid_message", "order"),
        (&format!("{messages}?order=%FF"), "", 400, "invalid_message", "query"),
        ("GET /v1/topics/chat.*/messages", "", 400, "invalid_topic", "topic"),
        ("GET /v1/topics/%FF/messages", "", 400, "invalid_topic", "topic"),
        ("GET /v1/topics/a..b/messages", "", 400, "invalid_topic", "topic"),
        ("GET /v1/topics/$canary.0/messages", "", 400, "invalid_topic", "topic"),
        ("DELETE /v1/topics/chat.%3E/messages", "", 400, "invalid_topic", "topic"),
        ("DELETE /v1/topics/a%20b/messages", "", 400, "invalid_topic", "topic"),
        ("GET /v1/topics/chat.%3E/tail", "", 400, "invalid_topic", "topic"),
        ("GET /v1/topics/%FF/tail", "", 400, "invalid_topic", "topic"),
        ("GET /v1/topics/other/tail", "", 404, "no_history", ""),
        (&format!("{tail}?from=10"), "", 400, "invalid_message", "from"),
        (&format!("{tail}?from=-0"), "", 400, "invalid_message", "from"),
        (&format!("{tail}?from=k3J9aQx2"), "", 400, "invalid_message", "from"),
        (&format!("{tail}?from=k3J9aQx2:x"), "", 400, "invalid_message", "from"),
        (tail, "Last-Event-ID: -1", 400, "invalid_message", "last-event-id"),
        (
            tail,
            "Last-Event-ID: k3J9aQx2:1\r\nLast-Event-ID: k3J9aQx2:2",
            400,
            "invalid_message",
            "last-event-id",
        ),
        ("PUT /v1/topics/chat.1/messages", "", 405, "method_not_allowed", ""),
        ("POST /v1/topics/chat.1/tail", "", 405, "method_not_allowed", ""),
        ("GET /v1/topics/chat.1/tails", "", 404, "not_found", ""),
    ] {
        let headers: Vec<_> = [header].into_iter().filter(|header| !header.is_empty()).collect();
        let response = http(server.api(), request, &headers, "").await;
        let error = &response.json()["error"];
        let found = (response.status, error["code"].as_str(), error["field"].as_str());
        assert_eq!(found, (status, Some(code), Some(field).filter(|field| !field.is_empty())), "{request}");
        if status == 404 && code == "no_history" {
            assert!(error["message"].as_str().unwrap().contains("--topic"), "{error}");
        }
    }
    let allowed = async |path: &str| {
        let response = http(server.api(), &format!("PATCH {path}"), &[], "").await;
        let allow = response.header("allow").unwrap_or_default().to_owned();
        allow.split(',').map(|method| method.trim().to_owned()).collect::<HashSet<_>>()
    };
    let methods =
        |methods: &[&str]| methods.iter().map(|method| (*method).to_owned()).collect::<HashSet<_>>();
    assert_eq!(allowed("/v1/topics/a/messages").await, methods(&["GET", "HEAD", "POST", "DELETE"]));
    assert_eq!(allowed("/v1/topics/a/tail").await, methods(&["GET", "HEAD"]));
    for path in ["messages", "tail"] {
        let head = call(&server, &format!("HEAD /v1/topics/chat.1/{path}")).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
    assert_eq!(metric(&server, "deeperhub_api_event_streams").await, 0);
}

#[tokio::test]
async fn every_call_needs_the_key() {
    let server = Server::start(&["--topic", "chat: history=5", "--api-key", "the-key-of-the-api"]);
    let key = "Authorization: Bearer the-key-of-the-api";
    for (request, status) in [
        ("GET /v1/topics/chat/messages", 200),
        ("DELETE /v1/topics/chat/messages", 204),
        ("HEAD /v1/topics/chat/tail", 200),
    ] {
        assert_eq!(call(&server, request).await.status, 401, "{request}");
        let wrong = http(server.api(), request, &["Authorization: Bearer other"], "").await;
        assert_eq!(wrong.status, 401, "{request}");
        assert_eq!(http(server.api(), request, &[key], "").await.status, status, "{request}");
        let foreign = http(server.api(), request, &[key, "Origin: https://evil.example"], "").await;
        assert_eq!(foreign.status, 403, "{request}");
    }
    let mut events = Events::open(&server, "/v1/topics/chat/tail", &[key]).await;
    assert!(events.next().await.is_some());
}

#[tokio::test]
async fn backends_cannot_send_messages_of_the_servers_types() {
    let server = Server::start(&[]);
    let client = Client::connect(&server).await;
    for kind in ["gap", "position", "history", "presence", "message", "subscribed"] {
        let body = json!({"type": kind, "data": {}}).to_string();
        let path = format!("POST /v1/clients/{}/messages", client.id());
        for request in [path.as_str(), "POST /v1/broadcast", "POST /v1/users/ada/messages"] {
            let response = http(server.api(), request, &[], &body).await;
            let error = &response.json()["error"];
            let found = (response.status, error["code"].as_str(), error["field"].as_str());
            assert_eq!(found, (400, Some("invalid_message"), Some("type")), "{request} {kind}");
        }
    }
}

#[tokio::test]
async fn subscriptions_that_are_behind_are_counted() {
    let feed = "feed: history=100000 history_bytes=256MiB";
    let server = Server::start(&["--topic", feed, "--max-queue-bytes", "262144"]);
    let stats = async || call(&server, "GET /v1/stats").await.json()["history"].clone();
    assert_eq!(stats().await, json!({"streams": 0, "messages": 0, "bytes": 0, "behind": 0}));
    // This client does not read.
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "feed"}})).await;
    call(&server, "GET /v1/top").await;
    let body = format!("\"{}\"", "x".repeat(60_000));
    let mut published = 0;
    wait_for("a subscription that is behind", async {
        while stats().await["behind"] == 0 {
            publish(&server, "feed", &body).await;
            published += 1;
        }
    })
    .await;
    let history = stats().await;
    let bytes = history["bytes"].as_u64().unwrap();
    assert_eq!((&history["streams"], &history["messages"]), (&json!(1), &json!(published)));
    assert!(bytes >= published * 60_000, "{history}");
    let sums = call(&server, "GET /v1/stats?scope=cluster").await.json();
    assert_eq!((&sums["history"]["messages"], &sums["history"]["behind"]), (&json!(published), &json!(1)));
    let top = call(&server, "GET /v1/top").await.json();
    assert_eq!(
        (&top["topics"][0]["topic"], &top["topics"][0]["behind"]),
        (&json!("feed"), &json!(1)),
        "{top}"
    );
    for _ in 0..published {
        assert_eq!(client.receive().await["type"], "message");
    }
    wait_for("no subscription that is behind", async {
        while stats().await["behind"] != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Replayed messages are events like live ones.
#[tokio::test]
async fn replayed_messages_are_events() {
    let server = Server::start(&["--topic", "chat: history=5"]);
    publish_numbers(&server, "chat", 1..=3).await;
    let mut events = Events::open(&server, "/v1/events?types=websocket_message_sent", &[]).await;
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "chat", "history": 2}})).await;
    let mut sent = Vec::new();
    while sent.len() < 2 {
        let event = events.next().await.unwrap();
        if event.data["message_type"] == "message" {
            assert_eq!(
                (&event.data["client_id"], &event.data["topic"]),
                (&json!(client.id()), &json!("chat"))
            );
            sent.push(event);
        }
    }
}
