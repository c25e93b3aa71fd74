//! Readers of a trial, see [`super::journals`], and the connection of those that speak the protocol
//! themselves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deeperhub_client::{Error, Event, Hub};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::journals::{Content, Journal, Position, Shared};
use super::publishers::options;

/// Longest silence before a raw reader connects anew, to the next node if the balancer says so.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest silence before a raw publisher regards its connection as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the position in the data of a message.
pub(super) fn position(data: &Value) -> Option<Position> {
    Some((data["epoch"].as_str()?.to_owned(), data["offset"].as_u64()?))
}

/// A connection that may break at any time.
pub(super) struct Connection(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Connection {
    /// Connects. Returns `None`, after a pause, if no node is there.
    pub(super) async fn open(url: &str) -> Option<Self> {
        let connected = tokio::time::timeout(READ_TIMEOUT, connect_async(url)).await;
        if let Ok(Ok((socket, _))) = connected {
            return Some(Self(socket));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        None
    }

    pub(super) async fn send(&mut self, message: &Value) -> Option<()> {
        let text = Message::text(message.to_string());
        tokio::time::timeout(ANSWER_TIMEOUT, self.0.send(text)).await.ok()?.ok()
    }

    /// Receives a message. Returns `None` if the connection has ended.
    pub(super) async fn receive(&mut self) -> Option<Value> {
        self.receive_within(ANSWER_TIMEOUT).await
    }

    async fn receive_within(&mut self, time: Duration) -> Option<Value> {
        loop {
            match tokio::time::timeout(time, self.0.next()).await.ok()??.ok()? {
                Message::Text(text) => return serde_json::from_str(&text).ok(),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }
}

/// A reader of a topic.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) url: String,
    pub(super) topic: String,
}

impl Reader {
    /// Reads with the Rust client until the end of the trial.
    pub(super) async fn read_with_client(self, name: String) -> Journal {
        let hub = Hub::new(&self.url, options()).expect("the URL is good");
        let mut errors = hub.errors();
        let mut subscription =
            hub.subscribe(&*self.topic).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut journal = Journal::new(name);
        journal.begin_segment(None, None);
        self.shared.reading.fetch_add(1, Ordering::SeqCst);
        loop {
            let event = subscription.next().await.expect("the subscription stays");
            // The client heals holes that nobody told. The server must leave none.
            while let Some(Some(error)) = errors.next().now_or_never() {
                assert_ne!(error.code(), Error::HOLE, "{error}");
            }
            let at = |position: &deeperhub_client::Position| (position.epoch.to_string(), position.offset);
            match event {
                Event::Message(message) => {
                    let text: String = message.message().expect("messages are texts");
                    let position = message.position.as_ref().expect("the topic has history");
                    let Some(content) = Content::parse(&text) else { break };
                    journal.message(at(position), content);
                }
                Event::Gap(gap) => journal.begin_segment(gap.position.as_ref().map(at), Some(&gap.reason)),
                _ => {}
            }
        }
        hub.close().await;
        journal
    }

    /// Reads over many connections until the end of the trial.
    pub(super) async fn read(self, name: String, seed: u64) -> Journal {
        let (mut journal, mut random) = (Journal::new(name), fastrand::Rng::with_seed(seed));
        loop {
            let Some(connection) = Connection::open(&self.url).await else { continue };
            if self.read_connection(connection, &mut journal, random.u64(..400)).await {
                return journal;
            }
        }
    }

    /// Reads at most `limit` messages of one connection. Returns `true` at the end of the trial.
    async fn read_connection(&self, mut connection: Connection, journal: &mut Journal, limit: u64) -> bool {
        let mut data = json!({"topic": self.topic});
        if let Some((epoch, offset)) = journal.position() {
            data["recover"] = json!({"epoch": epoch, "offset": offset});
        }
        if connection.send(&json!({"type": "subscribe", "id": 1, "data": data})).await.is_none() {
            return false;
        }
        let mut left = limit;
        while left > 0 {
            let Some(message) = connection.receive_within(READ_TIMEOUT).await else { return false };
            let data = &message["data"];
            match message["type"].as_str() {
                Some("subscribed") => self.on_subscribed(data, journal),
                Some("message") => {
                    let text = data["message"].as_str().expect("messages are texts");
                    let Some(content) = Content::parse(text) else { return true };
                    journal.message(position(data).expect("the topic has history"), content);
                    left -= 1;
                }
                Some("gap") => {
                    let newest = journal.position().expect("a gap is after a position").1;
                    assert!(data["from"].is_null() || data["from"] == newest + 1, "{message} after {newest}");
                    journal.begin_segment(position(data), data["reason"].as_str());
                }
                Some("error") => {
                    assert_eq!(data["code"], "unavailable", "{message}");
                    assert!(data["retry_after_ms"].as_u64() > Some(0), "{message}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    return false;
                }
                _ => {}
            }
        }
        false
    }

    fn on_subscribed(&self, data: &Value, journal: &mut Journal) {
        let position = position(data);
        assert!(position.is_some(), "{data}");
        match journal.position() {
            None => {
                journal.begin_segment(position, None);
                self.shared.reading.fetch_add(1, Ordering::SeqCst);
            }
            Some(_) if data["recovered"] == false => journal.begin_segment(position, data["reason"].as_str()),
            known => assert_eq!((&data["recovered"], position), (&json!(true), known), "{data}"),
        }
    }
}
