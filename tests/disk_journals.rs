//! Clients that lose their connections while the server is killed and started again on the same
//! folder. Their journals are compared with what the publishers were told and what the disk has.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::disk_history::{Disk, history, kill, position};
use crate::support::{Server, wait_for};

const RULE: &str = "feed.>: history=1000000 history_bytes=200MiB ttl=1h ack=disk";

/// Times that the server is killed.
const KILLS: u64 = 6;

/// Number of readers.
const READERS: u64 = 3;

/// Connections of each reader.
const RECONNECTS: u64 = 100;

/// Messages that a publisher sends before it waits for the answers.
const BURST: u64 = 25;

/// State of the test that all tasks share.
#[derive(Default)]
struct Shared {
    published: AtomicU64,
    /// Readers that have reconnected often enough.
    readers_done: AtomicU64,
    /// `true` when the server is killed no more, and the publishers may end.
    is_over: AtomicBool,
    /// `true` when the publishers have ended.
    is_silent: AtomicBool,
}

/// A connection that may break at any time.
struct Connection(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Connection {
    /// Connects, and tries again while the server is away.
    async fn open(url: &str) -> Self {
        wait_for("a connection", async {
            loop {
                if let Ok((socket, _)) = connect_async(url).await {
                    return Self(socket);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    /// Sends a message. Returns `None` if the connection is broken.
    async fn send(&mut self, message: &Value) -> Option<()> {
        wait_for("sending", self.0.send(Message::text(message.to_string()))).await.ok()
    }

    /// Receives a message. Returns `None` if the connection is broken, or if none comes for a while.
    async fn receive(&mut self) -> Option<Value> {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(2), self.0.next()).await.ok()?;
            match next?.ok()? {
                Message::Text(text) => return serde_json::from_str(&text).ok(),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }
}

/// Publishes numbers until the test is over. Returns the place of each number that was acknowledged.
async fn publish(shared: &Shared, url: &str, topic: &str) -> BTreeMap<u64, (String, u64)> {
    let (mut acknowledged, mut number) = (BTreeMap::new(), 0);
    while !shared.is_over.load(Ordering::SeqCst) {
        let mut connection = Connection::open(url).await;
        'connected: while !shared.is_over.load(Ordering::SeqCst) {
            let burst = number + 1..=number + BURST;
            number += BURST;
            let mut left = 0;
            for number in burst {
                let data = json!({ "topic": topic, "message": number });
                let message = json!({ "type": "publish", "id": number, "data": data });
                if connection.send(&message).await.is_none() {
                    break 'connected;
                }
                left += 1;
            }
            while left > 0 {
                let Some(reply) = connection.receive().await else { break 'connected };
                let (id, data) = (reply["id"].as_u64(), &reply["data"]);
                match reply["type"].as_str() {
                    Some("published") => {
                        let place =
                            (data["epoch"].as_str().unwrap().to_owned(), data["offset"].as_u64().unwrap());
                        assert_eq!(acknowledged.insert(id.unwrap(), place), None, "answered twice: {reply}");
                        shared.published.fetch_add(1, Ordering::SeqCst);
                        left -= 1;
                    }
                    Some("error") => {
                        assert_eq!(data["code"], "unavailable", "{reply}");
                        left -= 1;
                    }
                    _ => {}
                }
            }
        }
    }
    acknowledged
}

/// One reader's knowledge of one topic.
#[derive(Default)]
struct Journal {
    position: Value,
    /// Messages by offset, since the last hole that the reader was told.
    messages: BTreeMap<u64, u64>,
    holes: u64,
    recovered: u64,
}

impl Journal {
    fn note_start(&mut self, data: &Value) {
        if self.position.is_null() || data["recovered"] == false {
            if !self.position.is_null() {
                // The reader saw a message that the disk does not have.
                assert_eq!(data["reason"], "epoch", "{data}");
                self.holes += 1;
            }
            self.messages.clear();
        } else {
            assert_eq!(
                (&data["recovered"], &data["offset"]),
                (&json!(true), &self.position["offset"]),
                "{data}"
            );
            self.recovered += 1;
        }
        self.position = position(data);
    }

    fn note_message(&mut self, data: &Value) {
        let (offset, last) = (data["offset"].as_u64().unwrap(), self.position["offset"].as_u64().unwrap());
        assert_eq!((offset, data.get("prev")), (last + 1, None), "{data}");
        assert_eq!(data["epoch"], self.position["epoch"], "{data}");
        self.messages.insert(offset, data["message"].as_u64().unwrap());
        self.position = position(data);
    }
}

/// Follows a topic over many connections, until it has all that was published.
async fn follow(shared: &Shared, url: &str, topic: &str, seed: u64) -> Journal {
    let (mut journal, mut random) = (Journal::default(), seed);
    let mut connections = 0;
    loop {
        connections += 1;
        if connections == RECONNECTS {
            shared.readers_done.fetch_add(1, Ordering::SeqCst);
        }
        let is_last = connections > RECONNECTS && shared.is_silent.load(Ordering::SeqCst);
        let mut connection = Connection::open(url).await;
        let mut data = json!({ "topic": topic });
        if !journal.position.is_null() {
            data["recover"] = journal.position.clone();
        }
        if connection.send(&json!({ "type": "subscribe", "id": 1, "data": data })).await.is_none() {
            continue;
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut left = if is_last { u64::MAX } else { (random >> 33) % 100 };
        while left > 0 {
            // Nothing more comes when all publishers have ended.
            let Some(message) = connection.receive().await else { break };
            match message["type"].as_str() {
                Some("subscribed") => journal.note_start(&message["data"]),
                Some("message") => {
                    journal.note_message(&message["data"]);
                    left -= 1;
                }
                Some("welcome") => {}
                _ => panic!("{message}"),
            }
        }
        if is_last {
            return journal;
        }
    }
}

/// Kills the server several times while messages are published.
async fn kill_often(shared: &Shared, disk: &Disk, flags: &[&str], mut server: Server) -> Server {
    for _ in 0..KILLS {
        let before = shared.published.load(Ordering::SeqCst);
        wait_for("messages", async {
            while shared.published.load(Ordering::SeqCst) < before + 200 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        tokio::task::block_in_place(|| kill(server));
        server = tokio::task::block_in_place(|| disk.start(flags));
    }
    wait_for_long(async {
        while shared.readers_done.load(Ordering::SeqCst) < READERS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    shared.is_over.store(true, Ordering::SeqCst);
    server
}

/// Waits for something that takes longer than one step of a test.
async fn wait_for_long<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(180), future).await.expect("the test ends in time")
}

async fn check_journals(flags: &[&str]) {
    let disk = Disk::new();
    let flags = [&["--topic", RULE], flags].concat();
    let server = disk.start(&flags);
    let (url, shared) = (server.url("/"), Shared::default());
    let topics = ["feed.1", "feed.2"];
    let publishers = async {
        let acknowledged = tokio::join!(publish(&shared, &url, topics[0]), publish(&shared, &url, topics[1]));
        shared.is_silent.store(true, Ordering::SeqCst);
        acknowledged
    };
    let readers = async {
        let follow = |topic, seed| follow(&shared, &url, topic, seed);
        tokio::join!(follow(topics[0], 1), follow(topics[1], 2), follow(topics[0], 3))
    };
    let everything = async { tokio::join!(kill_often(&shared, &disk, &flags, server), publishers, readers) };
    let (server, acknowledged, readers) = wait_for_long(everything).await;

    let mut on_disk = BTreeMap::new();
    for (topic, acknowledged) in topics.iter().zip([acknowledged.0, acknowledged.1]) {
        let (mut numbers, mut places) = (BTreeMap::new(), BTreeMap::new());
        for message in history(&server, topic, "asc").await {
            let (offset, number) =
                (message["offset"].as_u64().unwrap(), message["message"].as_u64().unwrap());
            assert_eq!(numbers.insert(number, offset), None, "{message} is stored twice");
            places.insert(offset, number);
        }
        let (first, last) = (places.first_key_value().unwrap(), places.last_key_value().unwrap());
        assert_eq!((*first.0, last.0 - first.0 + 1), (1, places.len() as u64), "offsets are dense");
        for (number, (epoch, offset)) in &acknowledged {
            assert_eq!(numbers.get(number), Some(offset), "{number} of {epoch} was acknowledged");
        }
        assert!(acknowledged.len() as u64 >= 200, "{}", acknowledged.len());
        on_disk.insert(*topic, places);
    }
    let mut recovered = 0;
    for (topic, journal) in [topics[0], topics[1], topics[0]].iter().zip([readers.0, readers.1, readers.2]) {
        let (places, last) = (&on_disk[topic], journal.position["offset"].as_u64().unwrap());
        assert_eq!(Some(&last), places.keys().next_back(), "the reader has all of {topic}");
        let first = journal.messages.keys().next().copied().unwrap_or(last + 1);
        let expected: BTreeMap<_, _> =
            places.range(first..).map(|(offset, number)| (*offset, *number)).collect();
        assert_eq!(journal.messages, expected, "{topic} after {} holes", journal.holes);
        recovered += journal.recovered;
    }
    assert!(recovered >= RECONNECTS, "{recovered}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_what_it_acknowledged() {
    check_journals(&["--workers", "2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_with_little_memory_keeps_what_it_acknowledged() {
    check_journals(&["--workers", "2", "--history-bytes", "20000", "--history-sync", "always"]).await;
}
