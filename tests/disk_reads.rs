//! Clients whose messages are read from the disk, while the disk answers and while it hangs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::disk_history::{Disk, history, offsets, publish, subscribe};
use crate::support::{Client, http, metric, text, wait_for};

fn history_message(id: u64, topic: &str, more: &Value) -> Value {
    let mut data = json!({ "topic": topic, "limit": 10 });
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "type": "history", "id": id, "data": data })
}

#[tokio::test]
async fn replies_keep_their_order_while_messages_are_read_from_the_disk() {
    let disk = Disk::new();
    let rule = "feed.>: history=10000 ttl=1h";
    let server = disk.start(&["--topic", rule, "--history-bytes", "3000", "--workers", "1"]);
    publish(&server, "feed.1", 1, 40).await;
    assert!(metric(&server, "deeperhub_history_messages").await < 30);
    let mut client = Client::connect(&server).await;
    // The next messages are there while the first read takes place.
    let messages = [
        history_message(1, "feed.1", &json!({ "from": 1 })),
        json!({ "type": "ping", "id": 2 }),
        json!({ "type": "publish", "id": 3, "data": { "topic": "feed.1", "message": 41 } }),
        history_message(4, "feed.1", &json!({ "from": 12, "order": "desc" })),
        json!({ "type": "nothing", "id": 5 }),
        subscribe("feed.1", json!({ "history": 40 })),
        json!({ "type": "echo", "id": 7, "data": 1 }),
        json!({ "type": "unsubscribe", "id": 8, "data": { "topic": "feed.1" } }),
        history_message(9, "feed.1", &json!({ "from": -1 })),
        json!({ "type": "ping", "id": 10 }),
    ];
    for message in &messages {
        client.send(message).await;
    }
    let mut replies = Vec::new();
    while replies.len() < messages.len() {
        let reply = client.receive().await;
        // Between replies and deliveries there is no order.
        if reply["type"] != "message" {
            replies.push(reply);
        }
    }
    let types = |replies: &[Value]| replies.iter().map(|reply| reply["type"].clone()).collect::<Vec<_>>();
    let expected = [
        "history",
        "pong",
        "published",
        "history",
        "error",
        "subscribed",
        "echo",
        "unsubscribed",
        "history",
        "pong",
    ];
    assert_eq!(types(&replies), expected);
    let messages = |reply: &Value| offsets(reply["data"]["messages"].as_array().unwrap());
    assert_eq!(messages(&replies[0]), Vec::from_iter(1..=10));
    assert_eq!(messages(&replies[3]), Vec::from_iter((3..=12).rev()));
    assert_eq!(messages(&replies[8]), [41]);
}

/// Returns the file with the oldest messages in a folder.
fn oldest_segment(folder: &Path) -> PathBuf {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    entries.filter(is_segment).min().unwrap()
}

#[tokio::test]
async fn clients_are_told_when_the_disk_hangs() {
    let disk = Disk::new();
    let rule = "feed.>: history=100000 history_bytes=100MiB ttl=1h";
    let limits = ["--history-bytes", "50000", "--history-disk-bytes", "2MiB"];
    let server = disk.start(&[&["--topic", rule][..], &limits].concat());
    let mut publisher = Client::connect(&server).await;
    let pad = "x".repeat(1000);
    for _ in 0..600 {
        let data = json!({ "topic": "feed.1", "message": pad });
        publisher.send(&json!({ "type": "publish", "data": data })).await;
    }
    assert_eq!(publisher.request(&json!({ "type": "ping" })).await["type"], "pong");
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), Vec::from_iter(1..=600));

    // Opening a pipe without a writer hangs.
    let segment = oldest_segment(&disk.path());
    let moved = disk.path().with_file_name("moved");
    std::fs::rename(&segment, &moved).unwrap();
    assert!(Command::new("mkfifo").arg(text(&segment)).status().expect("mkfifo runs").success());
    let (mut asking, mut behind) = (Client::connect(&server).await, Client::connect(&server).await);
    asking.send(&history_message(1, "feed.1", &json!({ "from": 1 }))).await;
    asking.send(&json!({ "type": "ping", "id": 2 })).await;
    let epoch = http(server.api(), "GET /v1/topics/feed.1", &[], "").await.json()["history"]["epoch"].clone();
    let recover = json!({ "recover": { "epoch": epoch, "offset": 0 } });
    let subscribed = behind.request(&subscribe("feed.1", recover)).await;
    assert_eq!(subscribed["data"]["replay"], 600, "{subscribed}");
    // The hub goes on.
    let data = json!({ "topic": "feed.1", "message": 601 });
    let published = publisher.request(&json!({ "type": "publish", "id": 3, "data": data })).await;
    assert_eq!(published["data"]["offset"], 601, "{published}");

    let refused = asking.receive().await;
    let data = &refused["data"];
    assert_eq!((&refused["id"], &data["code"]), (&json!(1), &json!("unavailable")), "{refused}");
    assert_eq!((&data["topic"], &data["retry_after_ms"]), (&json!("feed.1"), &json!(1000)));
    assert_eq!(asking.receive().await["type"], "pong");
    let (mut position, mut lost) = (0, 0);
    while position < 601 {
        let told = behind.receive().await;
        let data = &told["data"];
        if told["type"] == "gap" {
            assert_eq!((&data["reason"], &data["from"]), (&json!("lost"), &json!(position + 1)), "{told}");
            lost += data["to"].as_u64().unwrap() - position;
            position = data["to"].as_u64().unwrap();
        } else {
            assert_eq!(data["offset"], position + 1, "{told}");
            position += 1;
        }
    }
    assert!((1..600).contains(&lost), "{lost} messages are lost");

    // The pipe's end fails the read that hangs, and then the file is back.
    drop(std::fs::File::options().write(true).open(&segment).unwrap());
    std::fs::rename(&moved, &segment).unwrap();
    wait_for("the disk to answer", async {
        loop {
            let reply = asking.request(&history_message(4, "feed.1", &json!({ "from": 1 }))).await;
            if reply["type"] == "history" {
                return assert_eq!(reply["data"]["messages"][0]["offset"], 1, "{reply}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}
