//! Messages of the client.

use serde_json::Value;

use crate::failure::{Failure, Result, ensure};
use crate::topic::Topic;

/// A message of the client.
#[derive(Clone)]
pub(crate) struct Received {
    pub(crate) kind: String,
    pub(crate) id: Option<Value>,
    pub(crate) data: Value,
    /// Length of the text in bytes.
    pub(crate) length: usize,
}

/// A `subscribe` of the client, with one entry per topic.
pub(crate) struct Subscribe {
    pub(crate) id: Option<Value>,
    /// Whether it has `topics` instead of `topic`.
    pub(crate) is_list: bool,
    pub(crate) entries: Vec<Value>,
    pub(crate) length: usize,
}

impl Subscribe {
    /// Takes a message as a subscribe.
    pub(crate) fn new(received: Received) -> Result<Self> {
        let list = received.data["topics"].as_array().cloned();
        let is_list = list.is_some();
        let entries = list.unwrap_or_else(|| vec![received.data.clone()]);
        for entry in &entries {
            ensure(entry["topic"].is_string(), || {
                format!("a subscribe has an entry without topic: {entry}")
            })?;
        }
        Ok(Self { id: received.id, is_list, entries, length: received.length })
    }

    /// Returns the names of the topics, sorted.
    pub(crate) fn topics(&self) -> Vec<&str> {
        let mut topics: Vec<&str> = self.entries.iter().filter_map(|entry| entry["topic"].as_str()).collect();
        topics.sort_unstable();
        topics
    }

    /// Returns the entry of a topic.
    pub(crate) fn entry(&self, topic: &str) -> Result<&Value> {
        self.entries.iter().find(|entry| entry["topic"] == topic).ok_or_else(|| {
            Failure::new(format!("the subscribe has no entry for {topic}: {:?}", self.topics()))
        })
    }

    /// Expects that a topic is recovered from a position, exactly as it was given.
    pub(crate) fn expect_recover(&self, topic: &Topic, offset: u64) -> Result {
        let entry = self.entry(topic.name)?;
        let expected = topic.position(offset);
        let keys = ["epoch", "offset", "time"];
        ensure(keys.iter().all(|key| entry["recover"][key] == expected[key]), || {
            format!("expected a subscribe with recover {expected}, but the client sent {entry}")
        })
    }

    /// Expects that a topic is subscribed without a position.
    pub(crate) fn expect_no_recover(&self, topic: &str) -> Result {
        let entry = self.entry(topic)?;
        ensure(entry.get("recover").is_none_or(Value::is_null), || {
            format!("expected a subscribe without recover, but the client sent {entry}")
        })
    }
}
