//! The connection that publishes, and appends to streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::{Client, HeaderMap, Subscriber};
use deeperhub_protocol::Topic;
use futures_util::StreamExt;
use tracing::warn;

use super::client::{confirm, with_causes};
use super::identity::identity;
use super::jetstream::{Ack, ApiError, Store, StreamNames, stored_time};
use crate::broker::Shared;
use crate::envelope::Header;
use crate::link::LinkError;
use crate::metrics::Dropped;
use crate::names::Names;
use crate::queue::{Destination, Outbound};
use crate::store::{AppendError, AppendOutcome, AppendTarget, Appended, StreamRule, unix_ms};

/// Time before messages are sent again that no leader of their stream took.
const RETRY_TIME: Duration = Duration::from_millis(100);

pub(crate) struct Sender {
    client: Client,
    names: Names,
    shared: Arc<Shared>,
    /// Number of this connection to the broker.
    link: u64,
    /// Made for the first append, so that nodes without streams do without it.
    streams: Option<Streams>,
}

/// What appends need.
struct Streams {
    store: Store,
    inbox: String,
    acks: Subscriber,
    /// Number of the attempt to append, so that late acknowledgements are told apart.
    attempt: u64,
}

/// An append of a batch that has no outcome yet.
struct Open<'b> {
    target: &'b AppendTarget,
    outbound: &'b Outbound,
    topic: &'b str,
    rule: &'b StreamRule,
    names: StreamNames,
}

/// What happened to an append.
enum Answer {
    Done(Result<Appended, AppendError>),
    Again,
}

impl From<ApiError> for LinkError {
    fn from(error: ApiError) -> Self {
        Self::new(error)
    }
}

impl Sender {
    pub(super) const fn new(client: Client, names: Names, shared: Arc<Shared>, link: u64) -> Self {
        Self { client, names, shared, link, streams: None }
    }

    /// Sends a batch, and returns the outcomes of its appends. The server recognizes appends that it
    /// got before, and nodes recognize other messages.
    pub(crate) async fn send(&mut self, batch: &[Outbound]) -> Result<Vec<AppendOutcome>, LinkError> {
        let is_append = |outbound: &Outbound| matches!(outbound.to, Destination::Append(_));
        if batch.iter().any(is_append) {
            return self.send_appends(batch).await;
        }
        for outbound in batch {
            self.publish(outbound).await?;
        }
        confirm(&self.client, &self.names).await?;
        Ok(Vec::new())
    }

    /// Publishes an envelope that is no append.
    async fn publish(&self, outbound: &Outbound) -> Result<(), LinkError> {
        let subject = match &outbound.to {
            Destination::Topic { start, len } => {
                let topic = outbound.envelope.get(*start..start + len).unwrap_or_default();
                self.names.topic(&String::from_utf8_lossy(topic))
            }
            Destination::Node(node) => self.names.node(node),
            // Callers pass no appends.
            Destination::All | Destination::Append(_) => self.names.broadcast(),
        };
        match self.client.publish(subject, outbound.envelope.clone()).await {
            Ok(()) => Ok(()),
            // The message was queued while a server with a larger limit was connected.
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                self.shared.metrics.dropped(Dropped::TooLarge, 1);
                let bytes = outbound.envelope.len();
                warn!(bytes, "Queued message dropped: exceeds the new server's max_payload");
                Ok(())
            }
            Err(error) => Err(LinkError(with_causes(&error))),
        }
    }

    /// Sends a batch with appends. Each has an answer of its own, so that a message that the server
    /// refuses does not hold up the others.
    async fn send_appends(&mut self, batch: &[Outbound]) -> Result<Vec<AppendOutcome>, LinkError> {
        let rules = self.shared.stream_rules.get();
        let mut streams = match self.streams.take() {
            Some(streams) => streams,
            None => Streams::new(&self.client, &self.names, &self.shared, self.link).await?,
        };
        let mut outcomes = Vec::new();
        let mut open = streams.prepare(batch, &rules, &mut outcomes).await?;
        let mut has_plain = false;
        let mut is_first = true;
        while is_first || !open.is_empty() {
            if !is_first {
                tokio::time::sleep(RETRY_TIME).await;
                streams.find_again(&open).await?;
            }
            let highest = streams.highest(&open);
            streams.attempt += 1;
            // Appends and other messages keep their order on the way to the server.
            let mut appends = open.iter().enumerate().peekable();
            let mut sent = 0;
            let mut unsent = BTreeMap::new();
            for outbound in batch {
                if let Some((index, append)) =
                    appends.next_if(|(_, append)| std::ptr::eq(append.outbound, outbound))
                {
                    match streams.append(&self.client, index, append).await? {
                        None => sent += 1,
                        Some(error) => drop(unsent.insert(index, Answer::Done(Err(error)))),
                    }
                } else if is_first && !matches!(outbound.to, Destination::Append(_)) {
                    has_plain = true;
                    self.publish(outbound).await?;
                }
            }
            let mut answers = streams.receive(&open, sent, &highest).await?;
            answers.append(&mut unsent);
            let mut again = Vec::new();
            for (index, append) in open.into_iter().enumerate() {
                match answers.remove(&index) {
                    Some(Answer::Done(outcome)) => outcomes.push((append.target.number, outcome)),
                    Some(Answer::Again) | None => again.push(append),
                }
            }
            open = again;
            is_first = false;
        }
        if has_plain {
            confirm(&self.client, &self.names).await?;
        }
        self.streams = Some(streams);
        Ok(outcomes)
    }
}

impl Streams {
    async fn new(client: &Client, names: &Names, shared: &Arc<Shared>, link: u64) -> Result<Self, LinkError> {
        let random = getrandom::u64().unwrap_or(link);
        let inbox = format!("{}.p{random:x}", names.inbox(&shared.node));
        let acks = client.subscribe(format!("{inbox}.*.*")).await.map_err(LinkError::new)?;
        let store = Store::new(Arc::clone(shared), client.clone(), link, 'e').await?;
        Ok(Self { store, inbox, acks, attempt: 0 })
    }

    /// Finds the streams of a batch. Appends that have none get their outcomes.
    async fn prepare<'b>(
        &mut self,
        batch: &'b [Outbound],
        rules: &'b [StreamRule],
        outcomes: &mut Vec<AppendOutcome>,
    ) -> Result<Vec<Open<'b>>, LinkError> {
        let mut open = Vec::new();
        let mut found: BTreeMap<&str, Result<StreamNames, ApiError>> = BTreeMap::new();
        for outbound in batch {
            let Destination::Append(target) = &outbound.to else { continue };
            let topic = outbound.envelope.get(target.topic..target.topic + target.topic_len);
            let topic = topic.and_then(|topic| std::str::from_utf8(topic).ok()).unwrap_or_default();
            let rule = Topic::parse(topic).ok().and_then(|topic| crate::store::find_rule(rules, &topic));
            let Some(rule) = rule else {
                let error = AppendError::Refused(format!("no rule keeps messages of {topic}"));
                outcomes.push((target.number, Err(error)));
                continue;
            };
            let pattern = rule.pattern.as_str();
            if !found.contains_key(pattern) {
                found.insert(pattern, self.store.ensure(rule).await);
            }
            let names = match found.get(pattern) {
                Some(Ok(names)) => names.clone(),
                Some(Err(error)) if error.is_of_connection() || error.is_transient() => {
                    return Err(error.clone().into());
                }
                Some(Err(error)) => {
                    outcomes.push((target.number, Err(AppendError::Refused(error.to_string()))));
                    continue;
                }
                None => continue,
            };
            self.store.compare_epoch(&names, topic, target.known).await?;
            open.push(Open { target, outbound, topic, rule, names });
        }
        Ok(open)
    }

    /// Looks for the streams again that did not take messages.
    async fn find_again(&mut self, open: &[Open<'_>]) -> Result<(), LinkError> {
        let mut rules: Vec<_> = open.iter().map(|append| append.rule).collect();
        rules.dedup();
        for rule in rules {
            match self.store.ensure(rule).await {
                Err(error) if !error.is_transient() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the highest known sequence of each stream. An append gets a higher one.
    fn highest(&self, open: &[Open<'_>]) -> BTreeMap<String, u64> {
        let mut highest = BTreeMap::new();
        for append in open {
            if !highest.contains_key(&append.names.token) {
                highest.insert(append.names.token.clone(), self.store.highest(&append.names));
            }
        }
        highest
    }

    /// Sends an append. Returns an error if the message is too large for the server.
    async fn append(
        &self,
        client: &Client,
        index: usize,
        append: &Open<'_>,
    ) -> Result<Option<AppendError>, LinkError> {
        let Open { target, outbound, topic, names, .. } = append;
        let (stream, epoch) = self.store.stream_of(names, topic);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", stream.as_str());
        headers.insert("Nats-Msg-Id", identity(target, &outbound.envelope, topic, epoch).as_str());
        let reply = format!("{}.{}.{index}", self.inbox, self.attempt);
        let subject = names.message(topic);
        let sent =
            client.publish_with_reply_and_headers(subject, reply, headers, outbound.envelope.clone()).await;
        match sent {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let bytes = outbound.envelope.len();
                let limit = client.max_payload();
                let reason = format!("{bytes} bytes and headers exceed the server's max_payload of {limit}");
                Ok(Some(AppendError::Refused(reason)))
            }
            Err(error) => Err(LinkError(with_causes(&error))),
        }
    }

    /// Receives the answers to an attempt.
    async fn receive(
        &mut self,
        open: &[Open<'_>],
        sent: usize,
        highest: &BTreeMap<String, u64>,
    ) -> Result<BTreeMap<usize, Answer>, LinkError> {
        let mut answers = BTreeMap::new();
        // Rules whose streams gave a sequence again.
        let mut lost: Vec<&StreamNames> = Vec::new();
        while answers.len() < sent {
            let Some(message) = self.acks.next().await else {
                return Err(LinkError::new("the connection was lost"));
            };
            let mut levels = message.subject.rsplit('.');
            let index = levels.next().and_then(|index| index.parse::<usize>().ok());
            let attempt = levels.next().and_then(|attempt| attempt.parse::<u64>().ok());
            let Some((index, append)) = index
                .filter(|_| attempt == Some(self.attempt))
                .and_then(|index| Some((index, open.get(index)?)))
            else {
                continue;
            };
            let answer = match Ack::parse(&message) {
                Ok(ack) => {
                    let known = highest.get(&append.names.token).copied().unwrap_or_default();
                    if !ack.is_duplicate && ack.sequence <= known {
                        lost.push(&append.names);
                    }
                    Answer::Done(Ok(self.appended(append, &ack).await?))
                }
                Err(error) if error.is_transient() || error.is_of_other_stream() => {
                    self.store.forget(&append.names);
                    Answer::Again
                }
                Err(error) => Answer::Done(Err(AppendError::Refused(error.to_string()))),
            };
            answers.insert(index, answer);
        }
        lost.dedup();
        for names in lost {
            // What the stream took now is at positions that nodes know of other messages.
            self.store.replace(names).await?;
            for (index, append) in open.iter().enumerate() {
                if append.names == *names {
                    answers.insert(index, Answer::Again);
                }
            }
        }
        Ok(answers)
    }

    /// Returns the place of a message that the stream has.
    async fn appended(&self, append: &Open<'_>, ack: &Ack) -> Result<Appended, LinkError> {
        let Open { target, outbound, topic, .. } = append;
        let position = self.store.position(&append.names, ack, topic);
        let own = stored_time(&outbound.envelope).unwrap_or_else(unix_ms);
        if !ack.is_duplicate {
            return Ok(Appended { position, time: own, is_repeat: false });
        }
        let first = match self.store.message(&ack.stream, ack.sequence).await {
            Ok(first) => first,
            Err(error) if error.is_of_connection() => return Err(error.into()),
            Err(_) => None,
        };
        let Some(first) = first else {
            // The stream's limits have removed it.
            return Ok(Appended { position, time: own, is_repeat: target.once.is_some() });
        };
        let is_same = match (Header::parse(&first.payload), Header::parse(&outbound.envelope)) {
            (Ok(first), Ok(own)) => first == own,
            _ => false,
        };
        Ok(Appended { position, time: stored_time(&first.payload).unwrap_or(own), is_repeat: !is_same })
    }
}
