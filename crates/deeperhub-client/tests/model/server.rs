//! A hub in memory that may lose, repeat and refuse.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

/// A stored message.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) offset: u64,
    from: String,
    pub(crate) body: u64,
    exclude_self: bool,
}

/// The history of a topic.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    epoch: u64,
    pub(crate) newest: u64,
    kept: VecDeque<Stored>,
    /// All messages that were ever stored, by epoch and offset.
    pub(crate) journal: BTreeMap<(String, u64), Stored>,
    once: BTreeMap<String, u64>,
}

impl Stream {
    pub(crate) fn epoch(&self) -> String {
        format!("epoch{:03}", self.epoch)
    }

    fn position(&self, offset: u64) -> Value {
        json!({"epoch": self.epoch(), "offset": offset, "time": offset})
    }
}

#[derive(Debug, Default)]
pub(crate) struct Server {
    pub(crate) streams: BTreeMap<String, Stream>,
    subscribed: Vec<String>,
    client_id: String,
    connections: u32,
    is_connected: bool,
    /// Messages of the client that were not read.
    pub(crate) inbox: VecDeque<String>,
    /// Messages to the client that have not arrived.
    pub(crate) outbox: VecDeque<String>,
    /// Answers the next subscribe or publish with `unavailable`.
    pub(crate) is_unavailable: bool,
    /// A history was emptied, so that a repeated publish may be stored again.
    pub(crate) forgot_once: bool,
    /// Number of bodies that a client's publish stored, by body.
    pub(crate) client_bodies: BTreeMap<u64, u32>,
}

/// Merges the keys of two objects.
fn merge(mut into: Value, from: Value) -> Value {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
    into
}

impl Server {
    pub(crate) fn connect(&mut self) {
        self.cut();
        self.connections += 1;
        self.client_id = format!("c{}", self.connections);
        self.is_connected = true;
        let data = json!({"client_id": self.client_id, "limits": {"max_message_bytes": 65536}});
        self.send("welcome", None, data);
    }

    /// Loses everything that is on its way.
    pub(crate) fn cut(&mut self) {
        self.subscribed.clear();
        self.inbox.clear();
        self.outbox.clear();
        self.is_connected = false;
    }

    fn send(&mut self, kind: &str, id: Option<&Value>, data: Value) {
        let mut message = json!({"type": kind, "data": data});
        if let Some(id) = id {
            message["id"] = id.clone();
        }
        self.outbox.push_back(message.to_string());
    }

    fn stream(&mut self, topic: &str) -> &mut Stream {
        self.streams.entry(topic.to_owned()).or_default()
    }

    /// Stores a message and delivers it. Returns its offset.
    pub(crate) fn publish(&mut self, topic: &str, body: u64, from: &str, exclude_self: bool) -> u64 {
        let stream = self.stream(topic);
        stream.newest += 1;
        let stored = Stored { offset: stream.newest, from: from.to_owned(), body, exclude_self };
        stream.kept.push_back(stored.clone());
        let key = (stream.epoch(), stored.offset);
        stream.journal.insert(key, stored.clone());
        if self.subscribed.iter().any(|other| other == topic) && !(exclude_self && from == self.client_id) {
            let data = self.delivery(topic, &stored);
            self.send("message", None, data);
        }
        stored.offset
    }

    fn delivery(&mut self, topic: &str, stored: &Stored) -> Value {
        let position = self.stream(topic).position(stored.offset);
        merge(json!({"topic": topic, "message": stored.body, "from": stored.from}), position)
    }

    /// Forgets the oldest messages.
    pub(crate) fn trim(&mut self, topic: &str, keep: usize) {
        let stream = self.stream(topic);
        let surplus = stream.kept.len().saturating_sub(keep);
        stream.kept.drain(..surplus);
    }

    /// Empties a history: counting goes on in a new epoch.
    pub(crate) fn renew(&mut self, topic: &str) {
        self.forgot_once = true;
        let stream = self.stream(topic);
        stream.kept.clear();
        stream.once.clear();
        stream.epoch += 1;
        let position = stream.position(stream.newest);
        if self.subscribed.iter().any(|other| other == topic) {
            let gap = merge(json!({"topic": topic, "reason": "epoch"}), position);
            self.send("gap", None, gap);
        }
    }

    /// Loses one delivery, which is a fault that a client must notice.
    pub(crate) fn lose_delivery(&mut self) {
        if let Some(index) = self.outbox.iter().position(|text| text.contains("\"type\":\"message\"")) {
            self.outbox.remove(index);
        }
    }

    /// Repeats the next message to the client.
    pub(crate) fn repeat(&mut self) {
        if let Some(text) = self.outbox.front().filter(|text| text.contains("\"type\":\"message\"")).cloned()
        {
            self.outbox.push_front(text);
        }
    }

    /// Reads one message of the client.
    pub(crate) fn read(&mut self) {
        let Some(text) = self.inbox.pop_front() else { return };
        let message: Value = serde_json::from_str(&text).expect("the client sends JSON");
        let (id, data) = (&message["id"], &message["data"]);
        match message["type"].as_str().expect("it has a type") {
            "subscribe" => self.on_subscribe(id, data),
            "unsubscribe" => {
                let topic = data["topic"].as_str().expect("it has a topic");
                self.subscribed.retain(|other| other != topic);
                self.send("unsubscribed", Some(id), json!({"topic": topic}));
            }
            "publish" => self.on_publish(id, data),
            "history" => self.on_history(id, data),
            "ping" => self.send("pong", None, json!({})),
            other => panic!("the client sent {other}"),
        }
    }

    fn on_subscribe(&mut self, id: &Value, data: &Value) {
        let is_unavailable = std::mem::take(&mut self.is_unavailable);
        let entries = data["topics"].as_array().cloned();
        let mut replies = Vec::new();
        let mut deliveries = Vec::new();
        for entry in entries.as_deref().unwrap_or(std::slice::from_ref(data)) {
            let topic = entry["topic"].as_str().expect("it has a topic");
            if is_unavailable {
                let error = json!({"code": "unavailable", "message": "later", "retry_after_ms": 100});
                replies.push(json!({"topic": topic, "error": error}));
                continue;
            }
            assert!(!self.subscribed.iter().any(|other| other == topic), "{topic} is subscribed to twice");
            self.subscribed.push(topic.to_owned());
            let (reply, replay) = self.subscribed(topic, entry);
            replies.push(reply);
            for stored in replay {
                let delivery = self.delivery(topic, &stored);
                deliveries.push(delivery);
            }
        }
        match entries {
            Some(_) => self.send("subscribed", Some(id), json!({"topics": replies})),
            None if is_unavailable => {
                let error = replies[0]["error"].clone();
                self.send("error", Some(id), error);
            }
            None => self.send("subscribed", Some(id), replies.remove(0)),
        }
        for delivery in deliveries {
            self.send("message", None, delivery);
        }
    }

    fn subscribed(&mut self, topic: &str, entry: &Value) -> (Value, Vec<Stored>) {
        let stream = self.stream(topic);
        let (recover, history) = (&entry["recover"], entry["history"].as_u64().unwrap_or(0));
        let oldest = stream.kept.front().map_or(stream.newest + 1, |stored| stored.offset);
        let reason = match recover["offset"].as_u64() {
            None => None,
            Some(_) if recover["epoch"] != *stream.epoch() => Some("epoch"),
            Some(offset) if offset > stream.newest => Some("ahead"),
            Some(offset) if offset + 1 < oldest => Some("trimmed"),
            Some(offset) => {
                let replay: Vec<Stored> =
                    stream.kept.iter().filter(|stored| stored.offset > offset).cloned().collect();
                let told = json!({"topic": topic, "recovered": true, "replay": replay.len()});
                return (merge(told, stream.position(offset)), replay);
            }
        };
        let start = stream.kept.len().saturating_sub(usize::try_from(history).expect("it is small"));
        let replay: Vec<Stored> = stream.kept.range(start..).cloned().collect();
        let before = replay.first().map_or(stream.newest, |stored| stored.offset - 1);
        let mut reply = merge(json!({"topic": topic, "replay": replay.len()}), stream.position(before));
        if let Some(reason) = reason {
            reply = merge(reply, json!({"recovered": false, "reason": reason}));
        }
        (reply, replay)
    }

    fn on_publish(&mut self, id: &Value, data: &Value) {
        let (topic, once) =
            (data["topic"].as_str().expect("it has a topic"), data["once"].as_str().expect("once"));
        if std::mem::take(&mut self.is_unavailable) {
            let error = json!({"code": "unavailable", "message": "later", "retry_after_ms": 100});
            self.send("error", Some(id), error);
            return;
        }
        let offset = match self.stream(topic).once.get(once) {
            Some(&offset) => offset,
            None => {
                let body = data["message"].as_u64().expect("it is a number");
                *self.client_bodies.entry(body).or_default() += 1;
                let client_id = self.client_id.clone();
                let offset = self.publish(topic, body, &client_id, data["exclude_self"] == true);
                self.stream(topic).once.insert(once.to_owned(), offset);
                offset
            }
        };
        let position = self.stream(topic).position(offset);
        self.send("published", Some(id), merge(json!({"topic": topic, "subscribers": 1}), position));
    }

    fn on_history(&mut self, id: &Value, data: &Value) {
        let topic = data["topic"].as_str().expect("it has a topic");
        let limit = usize::try_from(data["limit"].as_u64().expect("it has a limit")).expect("it is small");
        let stream = self.stream(topic);
        let from = match data["from"].as_i64().expect("it has a from") {
            from if from < 0 => stream.newest.saturating_sub(from.unsigned_abs() - 1),
            from => from.unsigned_abs(),
        };
        // Two messages an answer, so that reads have pages.
        let found: Vec<Stored> = stream.kept.iter().filter(|stored| stored.offset >= from).cloned().collect();
        let page: Vec<Stored> = found.iter().take(limit.min(2)).cloned().collect();
        let next = found.get(page.len()).map(|stored| stored.offset);
        let mut reply = merge(json!({"topic": topic}), stream.position(stream.newest));
        reply["messages"] = page.iter().map(|stored| self.delivery(topic, stored)).collect();
        if let Some(next) = next {
            reply["next"] = json!(next);
        }
        self.send("history", Some(id), reply);
    }

    /// Returns `true` if the client must not get a message: it excludes its publisher.
    pub(crate) fn is_excluded(stored: &Stored) -> bool {
        stored.exclude_self
    }
}
