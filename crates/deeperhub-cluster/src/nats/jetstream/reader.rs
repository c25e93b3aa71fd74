//! The connection for reads of streams. It is opened for the first request, so that nodes without
//! streams do without it, and large answers delay no messages.

use std::sync::Arc;
use std::time::Duration;

use deeperhub_protocol::Topic;
use serde_json::{Value, json};
use tracing::warn;
use url::Url;

use super::super::connect_client;
use super::super::request::Message;
use super::api::{ApiError, Call};
use super::ensure::{Store, header, number};
use super::range::{self, Plan, pending};
use super::source::{Source, direct, no_rule};
use crate::broker::Shared;
use crate::store::{ReadError, Request, StreamRange, StreamRead, StreamRule, find_rule};

/// Sum of the bytes of the messages that one read returns. The last message may exceed it.
const MAX_READ_BYTES: usize = 256 << 10;

/// Attempts to read from a replica that is not late, and the time between two.
const REPLICA_ATTEMPTS: usize = 50;
const REPLICA_RETRY_TIME: Duration = Duration::from_millis(20);

/// Maximum number of looks for the first of the last messages.
const MAX_SEEKS: usize = 64;

/// Reading part.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    server: Url,
    /// Number of the node's connection to the broker.
    link: u64,
    store: Option<Store>,
}

type Outcome = Result<StreamRange, ReadError>;

impl Reader {
    pub(crate) const fn new(shared: Arc<Shared>, server: Url, link: u64) -> Self {
        Self { shared, server, link, store: None }
    }

    /// Creates the streams of all rules, and compares those that exist with the rules.
    pub(crate) async fn prepare(&mut self) {
        let rules = self.shared.stream_rules.get();
        if rules.iter().all(|rule| rule.limits.is_none()) {
            return;
        }
        let mut store = match self.connect().await {
            Ok(store) => store,
            Err(error) => return warn!(%error, "Streams not prepared"),
        };
        for rule in rules.iter() {
            match store.ensure(rule).await {
                Ok(_) => {}
                Err(error) if error.is_of_connection() => return warn!(%error, "Streams not prepared"),
                Err(error) => warn!(rule = %rule.pattern, %error, "Stream not prepared"),
            }
        }
        self.store = Some(store);
    }

    /// Answers requests. If the connection fails, the rest of them fails, and the next call makes a
    /// new one.
    pub(crate) async fn answer(&mut self, requests: Vec<Request>) {
        let mut store = match self.connect().await {
            Ok(store) => store,
            Err(error) => {
                let error = ReadError::Lost(error.to_string());
                return requests.into_iter().for_each(|request| request.fail(error.clone()));
            }
        };
        let rules = self.shared.stream_rules.get();
        let reads: Vec<_> = requests
            .iter()
            .flat_map(|request| match request {
                Request::Streams { reads, .. } => &reads[..],
                _ => &[],
            })
            .collect();
        let mut failed = None;
        let mut ranges = match store.read_all(&rules, &reads).await {
            Ok(ranges) => ranges,
            Err(error) => {
                failed = Some(error);
                Vec::new()
            }
        }
        .into_iter();
        // The requesters may have gone.
        for request in requests {
            if let Some(error) = &failed {
                request.fail(error.clone().into());
                continue;
            }
            match request {
                Request::Streams { reads, reply } => {
                    drop(reply.send(Ok(ranges.by_ref().take(reads.len()).collect())));
                }
                Request::Tops { topics, reply, .. } => {
                    let tops = store.tops(&rules, &topics).await;
                    failed = tops.as_ref().err().filter(|error| error.is_of_connection()).cloned();
                    drop(reply.send(tops.map_err(ReadError::from)));
                }
                Request::Reset { reset, reply, .. } => {
                    let position = match find_rule(&rules, &reset.topic) {
                        Some(rule) => store.reset(rule, &reset).await,
                        None => Err(no_rule(&reset.topic)),
                    };
                    failed = position.as_ref().err().filter(|error| error.is_of_connection()).cloned();
                    drop(reply.send(position.map_err(ReadError::from)));
                }
            }
        }
        if failed.is_none() {
            self.store = Some(store);
        }
    }

    /// Answers the server's pings. Returns when the connection is lost.
    pub(crate) async fn keep_alive(&mut self) {
        match &self.store {
            Some(store) => store.api.client().lost().await,
            None => std::future::pending().await,
        };
        self.store = None;
    }

    async fn connect(&mut self) -> Result<Store, ApiError> {
        if let Some(store) = self.store.take() {
            return Ok(store);
        }
        let lost = |error: crate::link::LinkError| ApiError::Lost(error.to_string());
        let (config, node) = (&self.shared.config, &self.shared.node);
        let client = connect_client(config, node, &self.server).await.map_err(lost)?;
        Store::new(Arc::clone(&self.shared), client, self.link, 'r')
    }
}

impl Store {
    /// Reads messages. The outcomes have the order of the reads.
    async fn read_all(
        &mut self,
        rules: &[StreamRule],
        reads: &[&StreamRead],
    ) -> Result<Vec<Outcome>, ApiError> {
        if reads.is_empty() {
            return Ok(Vec::new());
        }
        let (indices, mut sources) = self.sources(rules, reads.iter().map(|read| &read.topic)).await?;
        self.look(reads, &indices, &mut sources).await?;
        let source_of = |index: usize| -> Result<&Source, ApiError> {
            match indices.get(index).copied().flatten().and_then(|source| sources.get(source)) {
                Some(source) => source.as_ref().map_err(Clone::clone),
                None => Err(no_rule(&reads[index].topic)),
            }
        };
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(reads.len());
        let mut plans = Vec::new();
        for (index, read) in reads.iter().enumerate() {
            match source_of(index) {
                Ok(source) => {
                    plans.push((index, *read, source, self.plan(read, source)));
                    outcomes.push(Err(ReadError::TimedOut));
                }
                Err(error) => outcomes.push(Err(error.into())),
            }
        }
        self.seek_last(&mut plans).await?;
        for attempt in 0..REPLICA_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(REPLICA_RETRY_TIME).await;
            }
            let calls: Vec<_> =
                plans.iter().map(|(_, read, source, plan)| read_call(read, source, plan)).collect();
            let answers = self.exchanges.run(&calls).await?;
            let newest = self.newest_of_leader(&plans).await?;
            let mut late = Vec::new();
            for ((job, answer), newest) in plans.into_iter().zip(answers).zip(newest) {
                let (index, read, source, plan) = job;
                let parsed = range::parse(read, plan, source.look, &answer);
                let has_rest = pending(&answer).is_ok_and(|pending| pending > 0);
                if let Ok(parsed) = &parsed
                    && !has_rest
                    && newest > parsed.last.max(plan.start.saturating_sub(1))
                {
                    late.push(job);
                    continue;
                }
                if let Some(outcome) = outcomes.get_mut(index) {
                    *outcome = parsed.map(|parsed| self.note(source, &read.topic, &answer, parsed));
                }
            }
            if late.is_empty() {
                break;
            }
            plans = late;
        }
        Ok(outcomes)
    }

    /// Notes what an answer tells about the stream.
    fn note(
        &self,
        source: &Source,
        topic: &Topic<'_>,
        answer: &[Message],
        parsed: range::Answer,
    ) -> StreamRange {
        self.known(&source.names, |known| {
            known.see(source.info.newest);
            let newest = answer.iter().rev().find(|message| message.headers().status().is_none());
            if let Some((sequence, time)) = newest
                .and_then(|last| Some((number(last, "Nats-Sequence")?, header(last, "Nats-Time-Stamp")?)))
            {
                known.see_message(sequence, time);
            }
            if let Some((epoch, after)) = parsed.mark {
                known.see_mark(topic.as_str(), super::known::Mark { epoch, after });
            }
        });
        parsed.range
    }

    fn plan(&self, read: &StreamRead, source: &Source) -> Plan {
        let (epoch, base) = self.known(&source.names, |known| known.epoch_of(read.topic.as_str()));
        let after = read.after.filter(|after| after.epoch == epoch).map(|after| after.offset.max(base));
        Plan { epoch, base, after, start: after.unwrap_or(base).saturating_add(1), kept: None }
    }

    /// Finds the first of the last messages for the reads that do not want all.
    async fn seek_last(&mut self, plans: &mut [(usize, &StreamRead, &Source, Plan)]) -> Result<(), ApiError> {
        let wants_part = |(_, read, source, plan): &&mut (usize, &StreamRead, &Source, Plan)| {
            plan.after.is_none() && u64::from(read.messages) < source.look.max_messages
        };
        let mut parts: Vec<_> = plans.iter_mut().filter(wants_part).collect();
        let calls: Vec<_> =
            parts.iter().map(|(_, read, source, plan)| probe(read, source, plan.start)).collect();
        if calls.is_empty() {
            return Ok(());
        }
        let answers = self.exchanges.run(&calls).await?;
        for ((_, read, source, plan), answer) in parts.iter_mut().zip(answers) {
            let Some((first, count)) = counted(&answer) else { continue };
            plan.kept = Some((count, first));
            let wanted = u64::from(read.messages);
            if count > wanted {
                plan.start = self.seek(read, source, (first, wanted)).await?;
            }
        }
        Ok(())
    }

    /// Returns a sequence from which on the topic has `wanted` messages. `low` has more.
    async fn seek(
        &mut self,
        read: &StreamRead,
        source: &Source,
        (mut low, wanted): (u64, u64),
    ) -> Result<u64, ApiError> {
        let mut high = source.look.newest + 1;
        for _ in 0..MAX_SEEKS {
            if high <= low + 1 {
                break;
            }
            let middle = low + (high - low) / 2;
            let answer = self.exchanges.run(&[probe(read, source, middle)]).await?;
            match answer.first().and_then(|answer| counted(answer)) {
                Some((_, count)) if count == wanted => return Ok(middle),
                Some((sequence, count)) if count > wanted => low = sequence,
                _ => high = middle,
            }
        }
        // Without a message that is wanted, nothing is read.
        Ok(high)
    }

    /// Returns the newest sequence of each topic at the leader; 0 if it does not matter.
    async fn newest_of_leader(
        &mut self,
        plans: &[(usize, &StreamRead, &Source, Plan)],
    ) -> Result<Vec<u64>, ApiError> {
        let mut newest = vec![0; plans.len()];
        let mut asked = Vec::new();
        let mut calls = Vec::new();
        for (index, (_, read, source, _)) in plans.iter().enumerate() {
            if source.replicas > 1 {
                asked.push(index);
                calls.push(Call {
                    subject: format!("$JS.API.STREAM.MSG.GET.{}", source.stream),
                    request: json!({ "last_by_subj": source.names.message(read.topic.as_str()) }),
                    is_batch: false,
                });
            }
        }
        if calls.is_empty() {
            return Ok(newest);
        }
        for (index, answer) in asked.into_iter().zip(self.exchanges.run(&calls).await?) {
            let answer =
                answer.first().and_then(|answer| serde_json::from_slice::<Value>(&answer.payload).ok());
            let sequence = answer.as_ref().and_then(|answer| answer.pointer("/message/seq")?.as_u64());
            if let (Some(newest), Some(sequence)) = (newest.get_mut(index), sequence) {
                *newest = sequence;
            }
        }
        Ok(newest)
    }
}

/// Returns the call that reads messages.
fn read_call(read: &StreamRead, source: &Source, plan: &Plan) -> Call {
    let request = json!({
        "seq": plan.start,
        "next_by_subj": source.names.message(read.topic.as_str()),
        // A batch of 0 is none.
        "batch": read.messages.max(1),
        "max_bytes": MAX_READ_BYTES,
    });
    direct(&source.stream, request, true)
}

/// Returns the call that reads one message, with the number of those that follow.
fn probe(read: &StreamRead, source: &Source, start: u64) -> Call {
    let subject = source.names.message(read.topic.as_str());
    direct(&source.stream, json!({ "seq": start, "next_by_subj": subject, "batch": 1 }), true)
}

/// Returns the sequence of the message that a probe has found, and how many there are from it on.
fn counted(answer: &[Message]) -> Option<(u64, u64)> {
    let first = answer.first().filter(|first| first.headers().status().is_none())?;
    Some((number(first, "Nats-Sequence")?, number(first, "Nats-Num-Pending").unwrap_or_default() + 1))
}
