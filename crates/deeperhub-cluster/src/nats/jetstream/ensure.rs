//! Creates the streams of rules, and compares them with what the node knows.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::{info, warn};

use super::super::client::Client;
use super::super::request::Message;
use super::api::{Api, ApiError, Exchanges, NAME_IN_USE, NOT_FOUND, OVERLAPS, unexpected};
use super::config;
use super::known::{MessageTime, RuleStream};
use super::names::StreamNames;
use super::source::direct;
use crate::broker::Shared;
use crate::names::Names;
use crate::store::{KeepingRule, unix_ms};

/// Attempts to find or create a stream, while other nodes create or delete it.
const MAX_ATTEMPTS: usize = 8;

/// Time before the next attempt.
const RETRY_TIME: Duration = Duration::from_millis(50);

/// Age from which on a stream of a single server is used. The server first looks for others with the
/// same subjects, and then makes the files of a new stream. So nodes that create one at the same time
/// can all succeed.
const SETTLE_TIME_MS: u64 = 300;

/// One connection's access to streams.
pub(crate) struct Store {
    pub(super) shared: Arc<Shared>,
    pub(super) api: Api,
    pub(super) exchanges: Exchanges,
    /// Number of the node's connection to the broker.
    link: u64,
}

/// State of a stream at a look.
#[derive(Debug, Clone)]
pub(super) struct StreamInfo {
    pub(super) config: Value,
    pub(super) newest: u64,
    /// Time of the message with the newest sequence; `None` if there was none yet.
    newest_time: Option<MessageTime>,
    pub(super) created_ms: u64,
    /// Time of the server.
    pub(super) time_ms: u64,
    /// `true` if no replica is late, as far as the leader knows.
    pub(super) is_level: bool,
    /// `true` if a cluster of servers has agreed on the stream.
    is_agreed: bool,
}

impl StreamInfo {
    fn parse(answer: &Value) -> Option<Self> {
        let time = |key: &str| answer.get(key).and_then(Value::as_str).and_then(super::time::parse_ms);
        let replicas = answer.pointer("/cluster/replicas").and_then(Value::as_array);
        let is_level = |replica: &Value| replica.get("current").and_then(Value::as_bool) == Some(true);
        Some(Self {
            config: answer.get("config")?.clone(),
            newest: answer.pointer("/state/last_seq")?.as_u64()?,
            newest_time: answer
                .pointer("/state/last_ts")
                .and_then(Value::as_str)
                .filter(|text| super::time::parse_ms(text).is_some())
                .map(MessageTime::new),
            created_ms: time("created").unwrap_or_default(),
            time_ms: time("ts").unwrap_or_else(unix_ms),
            is_level: replicas.is_none_or(|replicas| replicas.iter().all(is_level)),
            is_agreed: answer.get("cluster").is_some(),
        })
    }

    /// Returns the time until no other stream can appear that was created at the same time.
    fn settle_time(&self) -> Duration {
        let age_ms = self.time_ms.saturating_sub(self.created_ms);
        let rest_ms = SETTLE_TIME_MS.saturating_sub(age_ms);
        Duration::from_millis(if self.is_agreed { 0 } else { rest_ms })
    }

    /// Notes the newest message. A stream that loses it gives its sequence to a message of another time.
    pub(super) fn note(&self, known: &mut RuleStream) {
        match self.newest_time {
            Some(time) => known.see_message(self.newest, time),
            None => known.see(self.newest),
        }
    }

    /// Returns a number of the settings; 0 for none.
    pub(super) fn number(&self, key: &str) -> u64 {
        self.config.get(key).and_then(Value::as_u64).unwrap_or_default()
    }
}

impl Store {
    /// `link` is the number of the node's connection to the broker, and `kind` tells the node's
    /// connections of that number apart.
    pub(crate) fn new(shared: Arc<Shared>, client: Client, link: u64, kind: char) -> Result<Self, ApiError> {
        let inbox = Names::new(shared.config.prefix.clone(), '.').inbox(&shared.node);
        // Answers to an earlier connection of this name must not be taken for those to this one.
        let random = getrandom::u64().unwrap_or(link);
        let exchanges = Exchanges::new(client.clone(), format!("{inbox}.{kind}{random:x}"))?;
        Ok(Self { shared, api: Api::new(client), exchanges, link })
    }

    /// Returns what the node knows of a rule's stream.
    pub(super) fn known<R>(&self, names: &StreamNames, look: impl FnOnce(&mut RuleStream) -> R) -> R {
        self.shared.jetstream.with(&names.token, look)
    }

    /// Returns the name of a rule's stream.
    pub(crate) fn stream(&self, names: &StreamNames) -> String {
        names.stream(self.known(names, |known| known.epoch))
    }

    /// Lets the next [`ensure`](Self::ensure) look for the stream again.
    pub(crate) fn forget(&self, names: &StreamNames) {
        self.known(names, |known| known.checked_for = 0);
    }

    /// Makes sure that a rule has a stream, and that the stream has all that the node knows of.
    /// Does nothing if this connection has done it already.
    pub(crate) async fn ensure(&mut self, rule: KeepingRule<'_>) -> Result<StreamNames, ApiError> {
        let KeepingRule { name, limits } = rule;
        let names = StreamNames::new(&self.shared.config.prefix, name);
        let (messages, age_ms) = (u64::from(limits.messages), limits.ttl_ms());
        let link = self.link;
        if self.known(&names, |known| known.checked_for == link && known.wanted == (messages, age_ms)) {
            return Ok(names);
        }
        let wanted = config::wanted(&names, &limits, &self.shared.config, name);
        for attempt in 0..MAX_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(RETRY_TIME).await;
            }
            let Some(epoch) = self.find(&names).await? else {
                self.create(&names, &wanted).await?;
                continue;
            };
            let Some(info) = self.compare(&names, epoch, &wanted).await? else { continue };
            self.known(&names, |known| {
                info.note(known);
                known.checked_for = link;
                known.wanted = (messages, age_ms);
            });
            return Ok(names);
        }
        Err(ApiError::Refused {
            status: 503,
            code: 0,
            description: format!("the stream of {name} is created and deleted by others"),
        })
    }

    /// Creates the stream of a rule if it has none.
    pub(crate) async fn create_missing(&self, rule: KeepingRule<'_>) -> Result<(), ApiError> {
        let KeepingRule { name, limits } = rule;
        let names = StreamNames::new(&self.shared.config.prefix, name);
        if self.find(&names).await?.is_none() {
            self.create(&names, &config::wanted(&names, &limits, &self.shared.config, name)).await?;
        }
        Ok(())
    }

    /// Returns the epoch of the rule's stream, if there is one. If nodes have created several at the same
    /// time, the one with the largest epoch stays.
    async fn find(&self, names: &StreamNames) -> Result<Option<u64>, ApiError> {
        let answer = self.api.call("STREAM.NAMES", &json!({ "subject": names.all() })).await?;
        let streams = answer.get("streams").and_then(Value::as_array);
        let mut epochs = Vec::new();
        for stream in streams.into_iter().flatten().filter_map(Value::as_str) {
            match names.epoch(stream) {
                Some(epoch) => epochs.push(epoch),
                None => {
                    let subjects = names.all();
                    let description = format!("the stream {stream} has the subjects {subjects}; remove it");
                    return Err(ApiError::Refused { status: 400, code: OVERLAPS, description });
                }
            }
        }
        epochs.sort_unstable();
        let largest = epochs.pop();
        for epoch in epochs {
            let stream = names.stream(epoch);
            info!(stream, "Stream removed that another node has also created");
            self.remove(&stream).await?;
        }
        Ok(largest)
    }

    /// Creates a stream whose epoch is larger than all that this node knows, unless another node was
    /// faster.
    async fn create(&self, names: &StreamNames, wanted: &Value) -> Result<(), ApiError> {
        let epoch = unix_ms().max(self.shared.jetstream.largest_epoch(&names.token) + 1);
        let stream = names.stream(epoch);
        let mut request = wanted.clone();
        if let Some(request) = request.as_object_mut() {
            request.insert("name".to_owned(), json!(stream));
        }
        match self.api.call(&format!("STREAM.CREATE.{stream}"), &request).await {
            Ok(_) => info!(stream, "Stream created"),
            Err(error) if error.is(OVERLAPS) || error.is(NAME_IN_USE) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Compares a stream with what the node knows, and with the settings of its rule. Returns `None`
    /// if another look is needed: it does not exist, was created just now, or was deleted because it has
    /// lost messages.
    async fn compare(
        &mut self,
        names: &StreamNames,
        epoch: u64,
        wanted: &Value,
    ) -> Result<Option<StreamInfo>, ApiError> {
        let stream = names.stream(epoch);
        // Live messages that come after the look do not count.
        let before = self.known(names, |known| known.clone());
        let Some(mut info) = self.info(&stream).await? else { return Ok(None) };
        let settle_time = info.settle_time();
        if !settle_time.is_zero() {
            tokio::time::sleep(settle_time).await;
            return Ok(None);
        }
        let marks = self.marks(names, epoch).await?;
        if self.has_lost(names, epoch, &before, info.newest).await?
            || self.has_lost_mark(names, epoch, &before, &marks).await?
        {
            self.delete(&stream).await?;
            return Ok(None);
        }
        self.known(names, |known| {
            if known.epoch < epoch {
                known.begin(epoch);
            }
            marks.iter().for_each(|(topic, mark)| known.see_mark(topic, *mark));
        });
        let (differing, update) = config::compare(wanted, &info.config);
        if !differing.is_empty() {
            let differing = differing.join("; ");
            warn!(stream, %differing, is_updated = update.is_some(), "Stream has other settings");
        }
        if let Some(mut update) = update {
            let raises_limits = config::raises_limits(&info.config, &update);
            if raises_limits {
                config::set_whole_after(&mut update, info.newest);
            }
            info = self.update(&stream, &update).await?;
            // The smaller limits have also removed messages since the look.
            if raises_limits && info.newest > config::whole_after(&info.config) {
                config::set_whole_after(&mut update, info.newest);
                info = self.update(&stream, &update).await?;
            }
        }
        Ok(Some(info))
    }

    /// Changes the settings of a stream.
    async fn update(&self, stream: &str, update: &Value) -> Result<StreamInfo, ApiError> {
        let answer = self.api.call(&format!("STREAM.UPDATE.{stream}"), update).await?;
        StreamInfo::parse(&answer).ok_or_else(unexpected)
    }

    /// Returns `true` if a stream lacks messages that the node knew before a look, which found this
    /// newest sequence.
    async fn has_lost(
        &mut self,
        names: &StreamNames,
        epoch: u64,
        before: &RuleStream,
        newest: u64,
    ) -> Result<bool, ApiError> {
        if before.epoch != epoch {
            return Ok(before.epoch > epoch);
        }
        if newest < before.highest {
            return Ok(true);
        }
        let stream = names.stream(epoch);
        let newest_got = before.last.map_or(0, |(sequence, _)| sequence);
        // If the newest known message is there, so are those before it.
        if let Some((sequence, identity)) = &before.last_append
            && *sequence > newest_got
            && let Some(message) = self.api.message(&stream, *sequence).await?
        {
            return Ok(header(&message, "Nats-Msg-Id") != Some(&**identity));
        }
        let Some((sequence, time)) = before.last else { return Ok(false) };
        if let Some(message) = self.api.message(&stream, sequence).await? {
            return Ok(header(&message, "Nats-Time-Stamp").is_some_and(|own| MessageTime::new(own) != time));
        }
        // The limits of the stream may have removed it, or the message that has taken its place. But
        // no earlier sequence has a later time.
        let request = json!({ "start_time": time.as_str(), "next_by_subj": names.all(), "batch": 1 });
        let answer = self.exchanges.run(&[direct(&stream, request, true)]).await?.pop().unwrap_or_default();
        let is_later = |message: &Message| {
            let time_of = header(message, "Nats-Time-Stamp").map(MessageTime::new);
            number(message, "Nats-Sequence").is_some_and(|first| first < sequence) && time_of != Some(time)
        };
        Ok(answer.first().is_some_and(is_later))
    }

    /// Deletes a stream, so that one with a larger epoch takes its place.
    pub(super) async fn delete(&self, stream: &str) -> Result<(), ApiError> {
        warn!(stream, "Stream lost messages; a new epoch begins");
        self.remove(stream).await
    }

    /// Deletes a stream if it exists.
    async fn remove(&self, stream: &str) -> Result<(), ApiError> {
        match self.api.call(&format!("STREAM.DELETE.{stream}"), &Value::Null).await {
            Err(error) if !error.is(NOT_FOUND) => Err(error),
            _ => Ok(()),
        }
    }

    /// Looks at a stream. Returns `None` if it does not exist.
    pub(super) async fn info(&self, stream: &str) -> Result<Option<StreamInfo>, ApiError> {
        match self.api.call(&format!("STREAM.INFO.{stream}"), &Value::Null).await {
            Ok(answer) => StreamInfo::parse(&answer).map(Some).ok_or_else(unexpected),
            Err(error) if error.is(NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns a header of a message.
pub(super) fn header<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    message.headers().last(name)
}

/// Returns a header with a number.
pub(super) fn number(message: &Message, name: &str) -> Option<u64> {
    header(message, name)?.parse().ok()
}
