//! The connection that publishes, and appends to streams.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::client::Client;
use super::identity::identity;
use super::jetstream::{Ack, ApiError, Store, StreamNames, stored_time};
use super::request::{Message, Subscription};
use super::wire::command;
use crate::batch::{Batch, Destination, Outbound};
use crate::broker::Shared;
use crate::envelope::Header;
use crate::link::{LinkError, Sent};
use crate::metrics::Dropped;
use crate::names::Names;
use crate::store::{AppendError, AppendOutcome, AppendTarget, Appended, KeepingRule, StreamRule, unix_ms};

/// Time before messages are sent again that no leader of their stream took.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// Maximum number of first messages that are read at once. Limits the memory that they take.
const MAX_FIRSTS: usize = 64;

pub(crate) struct Sender {
    client: Client,
    names: Names,
    /// Start of the subjects of topics.
    topics: String,
    shared: Arc<Shared>,
    /// Number of this connection to the broker.
    link: u64,
    /// Made for the first append, so that nodes without streams do without it.
    streams: Option<Streams>,
}

/// Needs of appends.
struct Streams {
    store: Store,
    inbox: String,
    acks: Subscription,
    /// Number of the attempt to append, so that late acknowledgements are told apart.
    attempt: u64,
    /// Start of the subjects of its acknowledgements.
    replies: String,
}

/// An append of a batch that has no outcome yet.
struct Open<'b> {
    target: &'b AppendTarget,
    outbound: Outbound<'b>,
    /// Its place in the batch.
    place: usize,
    topic: &'b str,
    rule: KeepingRule<'b>,
    names: Rc<StreamNames>,
    /// Identity in the last attempt.
    identity: String,
}

/// Result of an append.
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
    pub(super) fn new(client: Client, names: Names, shared: Arc<Shared>, link: u64) -> Self {
        let topics = names.topic("");
        Self { client, names, topics, shared, link, streams: None }
    }

    /// Sends a batch. One with appends is confirmed when this returns. The server recognizes appends
    /// that it got before, and nodes recognize other messages.
    pub(crate) async fn send(&mut self, batch: &Batch) -> Result<Sent, LinkError> {
        if batch.has_appends() {
            return self.send_appends(batch).await.map(Sent::Confirmed);
        }
        let mut too_large = 0;
        let number = self.client.write_and_ping(|out| {
            batch.iter().for_each(|outbound| too_large += self.append_publish(out, outbound));
        })?;
        self.count_too_large(too_large);
        Ok(Sent::Written(number))
    }

    /// Waits for a confirmation.
    pub(crate) async fn confirmed(&self, number: u64) -> Result<(), LinkError> {
        self.client.confirmed(number).await
    }

    /// Appends the operation for an envelope that is no append. Returns the number of messages that
    /// are too large for the server, which is 0 or 1.
    fn append_publish(&self, out: &mut Vec<u8>, Outbound { to, envelope }: Outbound<'_>) -> u64 {
        if envelope.len() > self.client.max_payload() {
            return 1;
        }
        match to {
            Destination::Topic { start, len } => {
                let topic = envelope.get(*start..start + len).unwrap_or_default();
                command::publish(out, &[self.topics.as_bytes(), topic], envelope);
            }
            Destination::Node(node) => command::publish(out, &[self.names.node(node).as_bytes()], envelope),
            // Callers pass no appends.
            Destination::All | Destination::Append(_) => {
                command::publish(out, &[self.names.broadcast().as_bytes()], envelope);
            }
        }
        0
    }

    /// Counts messages that were queued while a server with a larger limit was connected.
    fn count_too_large(&self, messages: u64) {
        if messages > 0 {
            self.shared.metrics.dropped(Dropped::TooLarge, messages);
            let max_payload = self.client.max_payload();
            warn!(messages, max_payload, "Queued messages dropped: too large for the new server");
        }
    }

    /// Sends a batch with appends. Each has an answer of its own, so that a message that the server
    /// refuses does not hold up the others.
    async fn send_appends(&mut self, batch: &Batch) -> Result<Vec<AppendOutcome>, LinkError> {
        let rules = self.shared.stream_rules.get();
        let mut streams = match self.streams.take() {
            Some(streams) => streams,
            None => Streams::new(&self.client, &self.names, &self.shared, self.link)?,
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
            streams.begin_attempt();
            let mut answers: Vec<Option<Answer>> = open.iter().map(|_| None).collect();
            let mut too_large = 0;
            // Appends and other messages keep their order on the way to the server. They are written
            // together.
            self.client.write(|out| {
                let mut appends = open.iter_mut().enumerate().peekable();
                let mut stream: Option<(&Rc<StreamNames>, String)> = None;
                for (place, outbound) in batch.iter().enumerate() {
                    if let Some((index, append)) = appends.next_if(|(_, append)| append.place == place) {
                        let name = match stream.take() {
                            Some((of, name)) if Rc::ptr_eq(of, &append.names) => name,
                            _ => streams.store.stream(&append.names),
                        };
                        let written = streams.append(out, &self.client, (index, append), &name);
                        stream = Some((&append.names, name));
                        if let (Err(error), Some(answer)) = (written, answers.get_mut(index)) {
                            *answer = Some(Answer::Done(Err(error)));
                        }
                    } else if is_first && !matches!(outbound.to, Destination::Append(_)) {
                        has_plain = true;
                        too_large += self.append_publish(out, outbound);
                    }
                }
            })?;
            self.count_too_large(too_large);
            streams.receive(&open, &mut answers, &highest).await?;
            let mut again = Vec::new();
            for (append, answer) in open.into_iter().zip(answers) {
                match answer {
                    Some(Answer::Done(outcome)) => outcomes.push((append.target.number, outcome)),
                    Some(Answer::Again) | None => again.push(append),
                }
            }
            open = again;
            is_first = false;
        }
        if has_plain {
            self.client.confirm().await?;
        }
        self.streams = Some(streams);
        Ok(outcomes)
    }
}

impl Streams {
    fn new(client: &Client, names: &Names, shared: &Arc<Shared>, link: u64) -> Result<Self, LinkError> {
        let random = getrandom::u64().unwrap_or(link);
        let inbox = format!("{}.p{random:x}", names.inbox(&shared.node));
        let acks = client.subscribe_owned(&format!("{inbox}.*.*"))?;
        let store = Store::new(Arc::clone(shared), client.clone(), link, 'e')?;
        Ok(Self { store, inbox, acks, attempt: 0, replies: String::new() })
    }

    fn begin_attempt(&mut self) {
        self.attempt += 1;
        self.replies = format!("{}.{}.", self.inbox, self.attempt);
    }

    /// Finds the streams of a batch. Appends that have none get their outcomes.
    async fn prepare<'b>(
        &mut self,
        batch: &'b Batch,
        rules: &'b [StreamRule],
        outcomes: &mut Vec<AppendOutcome>,
    ) -> Result<Vec<Open<'b>>, LinkError> {
        let mut open = Vec::new();
        let mut found: BTreeMap<&str, Result<Rc<StreamNames>, ApiError>> = BTreeMap::new();
        for (place, outbound) in batch.iter().enumerate() {
            let Destination::Append(target) = outbound.to else { continue };
            let topic = outbound.envelope.get(target.topic..target.topic + target.topic_len);
            let topic = topic.and_then(|topic| std::str::from_utf8(topic).ok()).unwrap_or_default();
            let rule = crate::store::find_rule(rules, topic);
            let Some(rule) = rule else {
                let error = AppendError::Refused(format!("no rule keeps messages of {topic}"));
                outcomes.push((target.number, Err(error)));
                continue;
            };
            if !found.contains_key(rule.name) {
                found.insert(rule.name, self.store.ensure(rule).await.map(Rc::new));
            }
            let names = match found.get(rule.name) {
                Some(Ok(names)) => Rc::clone(names),
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
            open.push(Open { target, outbound, place, topic, rule, names, identity: String::new() });
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

    /// Writes the operation of an append. Returns an error if the message is too large for the server.
    fn append(
        &self,
        out: &mut Vec<u8>,
        client: &Client,
        (index, append): (usize, &mut Open<'_>),
        stream: &str,
    ) -> Result<(), AppendError> {
        let epoch = self.store.epoch_of(&append.names, append.topic);
        append.identity = identity(append.target, append.outbound.envelope, append.topic, epoch);
        let Open { outbound, topic, names, identity, .. } = append;
        let headers = [("Nats-Expected-Stream", stream), ("Nats-Msg-Id", identity.as_str())];
        let max_payload = client.max_payload();
        if command::message_len(&headers, outbound.envelope) > max_payload {
            let bytes = outbound.envelope.len();
            let reason =
                format!("{bytes} bytes and headers exceed the server's max_payload of {max_payload}");
            return Err(AppendError::Refused(reason));
        }
        let subject = [names.message_start.as_bytes(), topic.as_bytes()];
        let reply = [&self.replies, index.to_string().as_str()].concat();
        command::publish_with(out, &subject, Some(&reply), &headers, outbound.envelope);
        Ok(())
    }

    /// Receives the missing answers to an attempt.
    async fn receive(
        &mut self,
        open: &[Open<'_>],
        answers: &mut [Option<Answer>],
        highest: &BTreeMap<String, u64>,
    ) -> Result<(), LinkError> {
        // Rules whose streams gave a sequence again.
        let mut lost: Vec<&StreamNames> = Vec::new();
        // Publishes with an identity that the stream had already.
        let mut known_before: Vec<(usize, Ack)> = Vec::new();
        let mut missing = answers.iter().filter(|answer| answer.is_none()).count();
        while missing > 0 {
            let message = self.acks.next().await?;
            let mut levels = message.subject().rsplit('.');
            let index = levels.next().and_then(|index| index.parse::<usize>().ok());
            let attempt = levels.next().and_then(|attempt| attempt.parse::<u64>().ok());
            let (Some(append), Some(place @ None)) = (
                index.filter(|_| attempt == Some(self.attempt)).and_then(|index| open.get(index)),
                index.and_then(|index| answers.get_mut(index)),
            ) else {
                continue;
            };
            let answer = match Ack::parse(&message) {
                Ok(ack) => {
                    let known = highest.get(&append.names.token).copied().unwrap_or_default();
                    if !ack.is_duplicate && ack.sequence <= known {
                        lost.push(&append.names);
                    }
                    let position = self.store.position(&append.names, &ack, (append.topic, &append.identity));
                    let time = stored_time(append.outbound.envelope).unwrap_or_else(unix_ms);
                    // Without `once`, only this node sends the identity, and always the same message.
                    if ack.is_duplicate && append.target.once.is_some() {
                        known_before.extend(index.map(|index| (index, ack)));
                    }
                    Answer::Done(Ok(Appended { position, time, is_repeat: false }))
                }
                Err(error) if error.is_transient() || error.is_of_other_stream() => {
                    self.store.forget(&append.names);
                    Answer::Again
                }
                Err(error) => Answer::Done(Err(AppendError::Refused(error.to_string()))),
            };
            *place = Some(answer);
            missing -= 1;
        }
        lost.dedup();
        for names in lost {
            // The stream took this at positions that nodes know of other messages.
            self.store.replace(names).await?;
            for (append, answer) in open.iter().zip(answers.iter_mut()) {
                if *append.names == *names {
                    *answer = Some(Answer::Again);
                }
            }
        }
        self.compare_with_first(open, answers, &known_before).await
    }

    /// Completes the answers to publishes with an identity that the stream had already: they get the
    /// time of the first message, which another publish may have brought. The first messages are read
    /// together, because a resent batch can have hundreds of them.
    async fn compare_with_first(
        &mut self,
        open: &[Open<'_>],
        answers: &mut [Option<Answer>],
        known: &[(usize, Ack)],
    ) -> Result<(), LinkError> {
        for known in known.chunks(MAX_FIRSTS) {
            let acks: Vec<_> = known.iter().map(|(_, ack)| ack).collect();
            let firsts = self.store.messages(&acks).await?;
            for ((index, _), first) in known.iter().zip(firsts) {
                if let (Some(append), Some(Some(Answer::Done(Ok(appended))))) =
                    (open.get(*index), answers.get_mut(*index))
                {
                    append.compare_with_first(appended, first.as_ref());
                }
            }
        }
        Ok(())
    }
}

impl Open<'_> {
    /// Takes over the time of the first message of the identity, and tells whether another publish
    /// brought it.
    fn compare_with_first(&self, appended: &mut Appended, first: Option<&Message>) {
        let Some(first) = first else {
            // The stream's limits have removed it. An earlier publish had another time. Whole seconds
            // are compared with no message.
            appended.time -= appended.time % 1000;
            appended.is_repeat = true;
            return;
        };
        let is_same = match (Header::parse(&first.payload), Header::parse(self.outbound.envelope)) {
            (Ok(first), Ok(own)) => first == own,
            _ => false,
        };
        appended.time = stored_time(&first.payload).unwrap_or(appended.time);
        appended.is_repeat = !is_same;
    }
}
