//! History on disk: what a restart keeps, and what is read from the disk.

use serde_json::{Value, json};

use crate::support::{Client, Server, TemporaryDir, free_port, http, metric, text, wait_for};

/// A folder for the history, and a port that stays the same over restarts.
pub(crate) struct Disk {
    folder: TemporaryDir,
    port: String,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self { folder: TemporaryDir::new(), port: free_port().to_string() }
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path("history")
    }

    /// Starts a server on the folder.
    pub(crate) fn start(&self, flags: &[&str]) -> Server {
        let path = self.path();
        let store = ["--history-store", "disk", "--history-dir", text(&path), "--port", &self.port];
        let rest = ["--rate-limit", "0", "--drain-timeout", "1s"];
        Server::start(&[&store[..], &rest, flags].concat())
    }
}

/// Stops a server in good order.
fn stop(mut server: Server) {
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.stderr());
}

/// Kills a server.
pub(crate) fn kill(mut server: Server) {
    server.signal("KILL");
    server.wait();
}

/// Publishes the numbers `from..=to` over the API. Returns the answer to the last one.
pub(crate) async fn publish(server: &Server, topic: &str, from: u64, to: u64) -> Value {
    let mut last = Value::Null;
    for number in from..=to {
        let path = format!("POST /v1/topics/{topic}/messages");
        let answer = http(server.api(), &path, &[], &number.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        last = answer.json();
    }
    last
}

pub(crate) fn position(data: &Value) -> Value {
    json!({ "epoch": data["epoch"], "offset": data["offset"], "time": data["time"] })
}

pub(crate) fn subscribe(topic: &str, more: Value) -> Value {
    let mut data = json!({ "topic": topic });
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "type": "subscribe", "id": 1, "data": data })
}

/// Receives the messages `from..=to`, whose payloads are their offsets.
async fn receive_numbers(client: &mut Client, from: u64, to: u64) -> Value {
    let mut last = Value::Null;
    for number in from..=to {
        last = client.receive().await;
        let data = &last["data"];
        assert_eq!((&last["type"], &data["offset"]), (&json!("message"), &json!(number)), "{last}");
        assert_eq!((&data["message"], data.get("prev")), (&json!(number), None), "{last}");
    }
    last
}

/// Reads all messages of a topic over the API, page by page, as their payloads.
pub(crate) async fn history(server: &Server, topic: &str, order: &str) -> Vec<Value> {
    let (mut messages, mut from) = (Vec::new(), String::new());
    loop {
        let path = format!("GET /v1/topics/{topic}/messages?limit=1000&order={order}{from}");
        let page = http(server.api(), &path, &[], "").await;
        assert_eq!(page.status, 200, "{}", page.body);
        let page = page.json();
        messages.extend(page["messages"].as_array().unwrap().iter().cloned());
        match page.get("next").and_then(Value::as_u64) {
            Some(next) => from = format!("&from={next}"),
            None => return messages,
        }
    }
}

pub(crate) fn offsets(messages: &[Value]) -> Vec<u64> {
    messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect()
}

const RULE: &str = "feed.>: history=10000 ttl=1h";
const WAITING_RULE: &str = "feed.>: history=10000 ttl=1h ack=disk";

#[tokio::test]
async fn a_clean_stop_keeps_epochs_and_messages() {
    let disk = Disk::new();
    let server = disk.start(&["--topic", RULE]);
    let mut client = Client::connect(&server).await;
    let quiet = client.request(&subscribe("feed.quiet", json!({}))).await;
    let start = client.request(&subscribe("feed.1", json!({}))).await;
    publish(&server, "feed.1", 1, 20).await;
    let seen = receive_numbers(&mut client, 1, 10).await;
    stop(server);

    let server = disk.start(&["--topic", RULE]);
    let mut client = Client::connect(&server).await;
    let recover = json!({ "recover": position(&seen["data"]) });
    let resumed = client.request(&subscribe("feed.1", recover)).await;
    let data = &resumed["data"];
    assert_eq!((&data["recovered"], &data["replay"]), (&json!(true), &json!(10)), "{resumed}");
    assert_eq!(data["epoch"], start["data"]["epoch"]);
    let last = receive_numbers(&mut client, 11, 20).await;
    assert_eq!(last["data"]["epoch"], start["data"]["epoch"]);
    // A topic without messages keeps its epoch, too.
    let recover = json!({ "recover": position(&quiet["data"]) });
    assert_eq!(client.request(&subscribe("feed.quiet", recover)).await["data"]["recovered"], true);
    assert_eq!(publish(&server, "feed.1", 21, 21).await["offset"], 21);
    receive_numbers(&mut client, 21, 21).await;
    stop(server);
}

#[tokio::test]
async fn a_client_that_saw_no_more_than_the_disk_is_recovered_after_a_kill() {
    let disk = Disk::new();
    // Only what waits for the disk is written before the kill.
    let rules = ["--topic", "feed.memory: history=100", "--topic", WAITING_RULE, "--history-sync", "1h"];
    let server = disk.start(&rules);
    let mut client = Client::connect(&server).await;
    client.request(&subscribe("feed.disk", json!({}))).await;
    let disk_epoch = publish(&server, "feed.disk", 1, 5).await["epoch"].clone();
    let on_disk = receive_numbers(&mut client, 1, 5).await;
    // These are still in memory when the process ends.
    client.request(&subscribe("feed.memory", json!({}))).await;
    publish(&server, "feed.memory", 1, 3).await;
    let in_memory = receive_numbers(&mut client, 1, 3).await;
    kill(server);

    let server = disk.start(&rules);
    let mut client = Client::connect(&server).await;
    let recover = json!({ "recover": { "epoch": disk_epoch, "offset": 2 } });
    let resumed = client.request(&subscribe("feed.disk", recover)).await;
    assert_eq!(resumed["data"]["recovered"], true, "{resumed}");
    assert_ne!(resumed["data"]["epoch"], disk_epoch);
    let replayed = receive_numbers(&mut client, 3, 5).await;
    assert_eq!(replayed["data"]["epoch"], resumed["data"]["epoch"]);
    assert_eq!(replayed["data"]["time"], on_disk["data"]["time"]);
    let recover = json!({ "recover": position(&in_memory["data"]) });
    let resumed = client.request(&subscribe("feed.memory", recover)).await;
    let data = &resumed["data"];
    assert_eq!((&data["recovered"], &data["reason"]), (&json!(false), &json!("epoch")), "{resumed}");
    // Offsets of the disk go on.
    assert_eq!(publish(&server, "feed.disk", 6, 6).await["offset"], 6);
}

/// Publishes more messages than the memory may hold. Their payloads are their offsets.
async fn publish_many(server: &Server, topic: &str, count: u64) {
    let mut publisher = Client::connect(server).await;
    for number in 1..=count {
        let data = json!({ "topic": topic, "message": number });
        publisher.send(&json!({ "type": "publish", "data": data })).await;
    }
    assert_eq!(publisher.request(&json!({ "type": "ping" })).await["type"], "pong");
}

/// Checks that all messages of a topic can be recovered, read and followed.
async fn check_all_are_there(server: &Server, topic: &str, epoch: &Value, count: u64) {
    let all = Vec::from_iter(1..=count);
    let mut client = Client::connect(server).await;
    let recover = json!({ "recover": { "epoch": epoch, "offset": 0 } });
    let resumed = client.request(&subscribe(topic, recover)).await;
    let data = &resumed["data"];
    assert_eq!((&data["recovered"], &data["replay"]), (&json!(true), &json!(count)), "{resumed}");
    receive_numbers(&mut client, 1, count).await;
    // Live again.
    let pong = client.request(&json!({ "type": "ping" })).await;
    assert_eq!(pong["type"], "pong");

    assert_eq!(offsets(&history(server, topic, "asc").await), all);
    let mut descending = offsets(&history(server, topic, "desc").await);
    descending.reverse();
    assert_eq!(descending, all);
    let request = json!({ "type": "history", "id": 9, "data": { "topic": topic, "from": 5, "limit": 10 } });
    let page = client.request(&request).await;
    assert_eq!((&page["type"], &page["id"]), (&json!("history"), &json!(9)), "{page}");
    assert_eq!(offsets(page["data"]["messages"].as_array().unwrap()), Vec::from_iter(5..=14));
    assert_eq!(page["data"]["next"], 15);

    let info = http(server.api(), &format!("GET /v1/topics/{topic}"), &[], "").await.json();
    assert_eq!((&info["history"]["oldest"], &info["history"]["messages"]), (&json!(1), &json!(count)));
    let mut last = Client::connect(server).await;
    let started = last.request(&subscribe(topic, json!({ "history": count - 1 }))).await;
    assert_eq!(started["data"]["replay"], count - 1);
    receive_numbers(&mut last, 2, count).await;
}

#[tokio::test]
async fn messages_that_do_not_fit_into_memory_come_from_the_disk() {
    const MESSAGES: u64 = 3000;
    let disk = Disk::new();
    let flags = ["--topic", RULE, "--history-bytes", "100000", "--workers", "2"];
    let server = disk.start(&flags);
    let mut client = Client::connect(&server).await;
    let start = client.request(&subscribe("feed.1", json!({}))).await;
    let epoch = start["data"]["epoch"].clone();
    publish_many(&server, "feed.1", MESSAGES).await;
    receive_numbers(&mut client, 1, MESSAGES).await;
    assert!(metric(&server, "deeperhub_history_messages").await < MESSAGES / 2);
    check_all_are_there(&server, "feed.1", &epoch, MESSAGES).await;
    assert!(metric(&server, "deeperhub_store_reads_total{result=\"ok\"}").await > 0);
    assert_eq!(metric(&server, "deeperhub_store_reads_total{result=\"failed\"}").await, 0);
    stop(server);

    // After a start, what the memory has no room for is found on the disk, too.
    let server = disk.start(&flags);
    assert!(metric(&server, "deeperhub_history_messages").await < MESSAGES / 2);
    check_all_are_there(&server, "feed.1", &epoch, MESSAGES).await;
    kill(server);
    let server = disk.start(&[&flags[..2], &["--history-bytes", "1000"]].concat());
    check_all_are_there(&server, "feed.1", &epoch, MESSAGES).await;
    assert!(http(server.api(), "GET /health/ready", &[], "").await.status == 200);
}

#[tokio::test]
async fn the_limits_of_a_rule_hold_on_the_disk() {
    let disk = Disk::new();
    let rule = "feed.>: history=50 ttl=1h";
    let flags = ["--topic", rule, "--history-bytes", "2000"];
    let server = disk.start(&flags);
    publish_many(&server, "feed.1", 200).await;
    let last_50 = Vec::from_iter(151..=200);
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), last_50);
    let mut client = Client::connect(&server).await;
    let info = http(server.api(), "GET /v1/topics/feed.1", &[], "").await.json();
    let recover = json!({ "recover": { "epoch": info["history"]["epoch"], "offset": 149 } });
    let trimmed = client.request(&subscribe("feed.1", recover)).await;
    assert_eq!(trimmed["data"]["reason"], "trimmed", "{trimmed}");
    stop(server);
    let server = disk.start(&flags);
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), last_50);
    stop(server);
    // A shorter rule holds for what is on the disk.
    let server = disk.start(&["--topic", "feed.>: history=7 ttl=1h"]);
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), Vec::from_iter(194..=200));
}

#[tokio::test]
async fn an_emptied_history_stays_empty_after_a_kill() {
    let disk = Disk::new();
    let server = disk.start(&["--topic", RULE, "--history-sync", "1h"]);
    let before = publish(&server, "feed.1", 1, 10).await;
    let deleted = http(server.api(), "DELETE /v1/topics/feed.1/messages", &[], "").await;
    assert_eq!(deleted.status, 204, "{}", deleted.body);
    kill(server);
    let server = disk.start(&["--topic", RULE]);
    assert_eq!(history(&server, "feed.1", "asc").await, [] as [Value; 0]);
    let after = publish(&server, "feed.1", 11, 11).await;
    assert_eq!(after["offset"], 11, "no offset is given twice");
    assert_ne!(after["epoch"], before["epoch"]);
}

#[tokio::test]
async fn topics_that_no_rule_keeps_any_more_are_removed() {
    let disk = Disk::new();
    let server = disk.start(&["--topic", RULE]);
    let before = publish(&server, "feed.1", 1, 3).await;
    publish(&server, "feed.2", 1, 3).await;
    stop(server);
    let server = disk.start(&["--topic", "feed.2: history=10 ttl=1h"]);
    assert_eq!(history(&server, "feed.1", "asc").await, [] as [Value; 0]);
    assert_eq!(history(&server, "feed.2", "asc").await.len(), 3);
    stop(server);
    let server = disk.start(&["--topic", RULE]);
    assert_eq!(history(&server, "feed.1", "asc").await, [] as [Value; 0]);
    let after = publish(&server, "feed.1", 1, 1).await;
    assert_eq!(after["offset"], 1);
    assert_ne!(after["epoch"], before["epoch"]);
}

#[tokio::test]
async fn messages_expire_while_the_server_is_away() {
    let disk = Disk::new();
    let flags = ["--topic", "feed.>: history=10 ttl=2s"];
    let server = disk.start(&flags);
    publish(&server, "feed.1", 1, 3).await;
    stop(server);
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let server = disk.start(&flags);
    assert_eq!(history(&server, "feed.1", "asc").await, [] as [Value; 0]);
    assert_eq!(publish(&server, "feed.1", 4, 4).await["offset"], 4);
}

#[tokio::test]
async fn a_publisher_that_waits_for_the_disk_delays_nobody() {
    let disk = Disk::new();
    let server = disk.start(&["--topic", WAITING_RULE, "--history-sync", "1h", "--workers", "1"]);
    let mut client = Client::connect(&server).await;
    for number in 1..=20 {
        let data = json!({ "topic": "feed.1", "message": number });
        client.send(&json!({ "type": "publish", "id": number, "data": data })).await;
    }
    client.send(&json!({ "type": "ping", "id": "last" })).await;
    let (mut published, mut has_pong) = (Vec::new(), false);
    while published.len() < 20 || !has_pong {
        let reply = client.receive().await;
        match reply["type"].as_str() {
            Some("pong") => has_pong = true,
            Some("published") => {
                assert_eq!(reply["id"], reply["data"]["offset"], "{reply}");
                published.push(reply["id"].as_u64().unwrap());
            }
            _ => panic!("{reply}"),
        }
    }
    assert_eq!(published, Vec::from_iter(1..=20), "answers keep their order");
    // A batch waits once for all of its messages.
    let calls: Vec<_> = (0..20).map(|_| json!({ "publish": { "topic": "feed.1", "message": 1 } })).collect();
    let batch = http(server.api(), "POST /v1/batch", &[], &json!({ "calls": calls }).to_string()).await;
    let results = batch.json()["results"].as_array().cloned().unwrap_or_default();
    assert!(results.len() == 20 && results.iter().all(|result| result["status"] == 200), "{}", batch.body);
    assert_eq!(metric(&server, "deeperhub_store_appends_total{result=\"ok\"}").await, 40);
    assert!(metric(&server, "deeperhub_store_append_seconds_count").await >= 20);
    kill(server);
    let server = disk.start(&["--topic", WAITING_RULE]);
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), Vec::from_iter(1..=40));
}

#[tokio::test]
async fn a_tail_continues_over_a_restart_from_the_disk() {
    let disk = Disk::new();
    let flags = ["--topic", RULE, "--history-bytes", "3000"];
    let server = disk.start(&flags);
    publish_many(&server, "feed.1", 300).await;
    stop(server);
    let server = disk.start(&flags);
    let api = server.api();
    let lines = wait_for("the events", async {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        let mut stream = tokio::net::TcpStream::connect(api).await.unwrap();
        let request = format!("GET /v1/topics/feed.1/tail?from=-250 HTTP/1.1\r\nHost: {api}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut lines, mut read) = (BufReader::new(stream).lines(), Vec::new());
        while read.len() < 250 {
            let line = lines.next_line().await.unwrap().expect("the stream goes on");
            read.extend(
                line.strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data).ok()),
            );
        }
        read
    })
    .await;
    assert_eq!(offsets(&lines), Vec::from_iter(51..=300));
}

#[tokio::test]
async fn what_the_limit_of_the_disk_has_dropped_is_told_before() {
    let disk = Disk::new();
    let rule = "feed.>: history=100000 history_bytes=100MiB ttl=1h";
    let limits = ["--history-bytes", "50000", "--history-disk-bytes", "1MiB"];
    let server = disk.start(&[&["--topic", rule][..], &limits].concat());
    let mut publisher = Client::connect(&server).await;
    let pad = "x".repeat(1000);
    let mut count = 0_u64;
    for _ in 0..5 {
        for _ in 0..500 {
            count += 1;
            let data = json!({ "topic": "feed.1", "message": pad });
            publisher.send(&json!({ "type": "publish", "data": data })).await;
        }
        assert_eq!(publisher.request(&json!({ "type": "ping" })).await["type"], "pong");
        // Ages are counted in seconds, and messages of a dropped second count as dropped.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    assert!(metric(&server, "deeperhub_store_bytes").await <= (1 << 20) + (1 << 19));
    let info = http(server.api(), "GET /v1/topics/feed.1", &[], "").await.json();
    let (epoch, oldest) = (&info["history"]["epoch"], info["history"]["oldest"].as_u64().unwrap());
    let in_memory = metric(&server, "deeperhub_history_messages").await;
    assert!(oldest > 1 && count + 1 - oldest > in_memory, "{oldest} of {count}, {in_memory} in memory");
    let mut client = Client::connect(&server).await;
    let recover = json!({ "recover": { "epoch": epoch, "offset": 0 } });
    let trimmed = client.request(&subscribe("feed.1", recover)).await;
    assert_eq!(trimmed["data"]["reason"], "trimmed", "{trimmed}");
    let mut client = Client::connect(&server).await;
    let recover = json!({ "recover": { "epoch": epoch, "offset": oldest - 1 } });
    let resumed = client.request(&subscribe("feed.1", recover)).await;
    assert_eq!(resumed["data"]["replay"], count + 1 - oldest, "{resumed}");
    for offset in oldest..=count {
        let message = client.receive().await;
        assert_eq!((&message["type"], &message["data"]["offset"]), (&json!("message"), &json!(offset)));
    }
}
