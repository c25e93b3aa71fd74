//! Publishers of a trial, see [`super::journals`].

use std::collections::{BTreeMap, VecDeque};
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deeperhub_client::{Hub, Options};
use serde_json::json;

use super::journals::{Content, Sent, Shared};
use super::readers::{Connection, position};

/// Most publishes of a client that wait for their answers.
const MAX_UNANSWERED: usize = 4;

/// Messages that a raw publisher sends before it waits for the answers.
const BURST: u64 = 10;

/// Pause of a raw publisher after each burst, so that a trial takes little of the machine.
const PAUSE: Duration = Duration::from_millis(4);

/// Pause of a client after each message. Redis remembers 8,192 publishes of a user on a topic in two
/// minutes, and the clients of a trial are one user: so many would take three of them longer.
const CLIENT_PAUSE: Duration = Duration::from_millis(50);

/// Returns options of a client that comes back soon.
pub(super) fn options() -> Options {
    Options::default()
        .min_delay(Duration::from_millis(50))
        .max_delay(Duration::from_millis(500))
        .connect_timeout(Duration::from_secs(2))
}

/// A publisher of a topic.
#[derive(Clone)]
pub(super) struct Publisher {
    pub(super) shared: Arc<Shared>,
    pub(super) url: String,
    pub(super) topic: String,
}

impl Publisher {
    fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::SeqCst)
    }

    /// Publishes with the Rust client until the trial is over. Each publish is acknowledged in the
    /// end.
    pub(super) async fn publish_with_client(self, name: String) -> Sent {
        let hub = Hub::new(&self.url, options()).expect("the URL is good");
        let (mut sent, mut unanswered, mut number) = (Sent::default(), VecDeque::new(), 0);
        loop {
            if !self.is_over() {
                number += 1;
                let text = Content::text(&name, number);
                let content = Content::parse(&text).expect("it is a content");
                unanswered.push_back((content, hub.publish(&*self.topic, &text).into_future()));
                tokio::time::sleep(CLIENT_PAUSE).await;
            }
            if unanswered.len() > MAX_UNANSWERED || self.is_over() {
                let Some((content, publish)) = unanswered.pop_front() else { break };
                let published = publish.await.unwrap_or_else(|error| panic!("{name}: {error}"));
                let position = published.position.expect("the topic has history");
                sent.acknowledged.insert(content, (position.epoch.to_string(), position.offset));
                self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        }
        hub.close().await;
        sent
    }

    /// Publishes in bursts until the trial is over, and repeats nothing. Each connection is a publisher
    /// of its own: what it has sent can be on the way when the next one publishes.
    pub(super) async fn publish(self, name: String) -> Sent {
        let (mut sent, mut number) = (Sent::default(), 0);
        for connection in 0_u64.. {
            if self.is_over() {
                break;
            }
            let name = format!("{name}.{connection}");
            let Some(mut connection) = Connection::open(&self.url).await else { continue };
            while !self.is_over()
                && self.burst(&mut connection, &mut sent, &name, &mut number).await.is_some()
            {
                tokio::time::sleep(PAUSE).await;
            }
        }
        sent
    }

    /// Publishes a burst. Returns `None` if the connection has ended.
    async fn burst(
        &self,
        connection: &mut Connection,
        sent: &mut Sent,
        name: &str,
        number: &mut u64,
    ) -> Option<()> {
        let mut waiting = BTreeMap::new();
        let result = async {
            for _ in 0..BURST {
                *number += 1;
                let text = Content::text(name, *number);
                waiting.insert(*number, Content::parse(&text).expect("it is a content"));
                let data = json!({"topic": self.topic, "message": text});
                connection.send(&json!({"type": "publish", "id": *number, "data": data})).await?;
            }
            let mut was_refused = false;
            while !waiting.is_empty() {
                let reply = connection.receive().await?;
                let Some(content) = reply["id"].as_u64().and_then(|id| waiting.remove(&id)) else { continue };
                if reply["type"] == "published" {
                    let position = position(&reply["data"]).unwrap_or_else(|| panic!("{reply}"));
                    sent.acknowledged.insert(content, position);
                    self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
                } else {
                    assert_eq!(reply["data"]["code"], "unavailable", "{reply}");
                    assert!(reply["data"]["retry_after_ms"].as_u64() > Some(0), "{reply}");
                    sent.refused.insert(content);
                    self.shared.refused.fetch_add(1, Ordering::SeqCst);
                    was_refused = true;
                }
            }
            if was_refused {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Some(())
        }
        .await;
        sent.unanswered.extend(waiting.into_values());
        result
    }
}
