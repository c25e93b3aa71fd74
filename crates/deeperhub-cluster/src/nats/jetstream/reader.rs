//! The connection for reads of streams. It is opened for the first request, so that nodes without
//! streams do without it, and large answers delay no messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_protocol::Topic;
use serde_json::{Value, json};
use tracing::warn;
use url::Url;

use super::super::connect_client;
use super::api::{ApiError, Call};
use super::ensure::{Store, number};
use super::range::{self, Brought, Plan};
use super::source::{Source, direct, no_rule};
use crate::broker::Shared;
use crate::store::{MAX_READS, ReadError, Request, StreamRange, StreamRead, StreamRule, find_rule};

/// Sum of the bytes of the messages that one read returns. The last message may exceed it.
pub(super) const MAX_READ_BYTES: usize = 256 << 10;

/// Maximum number of reads that are taken together. The server answers looks for as many marks.
const MAX_TOGETHER: usize = 1024;

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

pub(super) type Outcome = Result<StreamRange, ReadError>;

impl Reader {
    pub(crate) const fn new(shared: Arc<Shared>, server: Url, link: u64) -> Self {
        Self { shared, server, link, store: None }
    }

    /// Creates the streams of all rules, and compares those that exist with the rules.
    pub(crate) async fn prepare(&mut self) {
        let rules = self.shared.stream_rules.get();
        let keeping: Vec<_> = rules.iter().filter_map(StreamRule::keeping).collect();
        if keeping.is_empty() {
            return;
        }
        let mut store = match self.connect().await {
            Ok(store) => store,
            Err(error) => return warn!(%error, "Streams not prepared"),
        };
        // New streams settle at the same time. The second look tells errors.
        for rule in &keeping {
            let _ = store.create_missing(*rule).await;
        }
        for rule in keeping {
            match store.ensure(rule).await {
                Ok(_) => {}
                Err(error) if error.is_of_connection() => return warn!(%error, "Streams not prepared"),
                Err(error) => warn!(rule = rule.name, %error, "Stream not prepared"),
            }
        }
        self.store = Some(store);
    }

    /// Answers requests. If the connection fails, the rest of them fails, and the next call makes a
    /// new one.
    pub(crate) async fn answer(&mut self, mut requests: Vec<Request>) {
        self.take_more(&mut requests);
        let mut store = match self.connect().await {
            Ok(store) => store,
            Err(error) => return fail_all(requests, &ReadError::Lost(error.to_string())),
        };
        let rules = self.shared.stream_rules.get();
        let reads: Vec<_> = requests.iter().flat_map(reads_of).collect();
        let mut outcomes = match store.sweep(&rules, &reads).await {
            Ok(outcomes) => outcomes.into_iter(),
            Err(error) => return fail_all(requests, &error.into()),
        };
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let mut part = Vec::new();
            let mut count = 0;
            while let Some(request) =
                requests.next_if(|next| part.is_empty() || count + reads_of(next).len() <= MAX_READS)
            {
                count += reads_of(&request).len();
                part.push(request);
            }
            let outcomes = outcomes.by_ref().take(count).collect();
            if let Err(error) = store.answer_part(&rules, part, outcomes).await {
                return fail_all(requests, &error.into());
            }
        }
        self.store = Some(store);
    }

    /// Takes more requests if many wait, because one pass over a stream can serve many reads.
    fn take_more(&self, requests: &mut Vec<Request>) {
        let queue = &self.shared.requests_to_store;
        let mut count = requests.iter().map(|request| reads_of(request).len()).sum::<usize>();
        while count <= MAX_TOGETHER - MAX_READS {
            let more = queue.take(self.shared.interests.confirmed(), Instant::now());
            if more.is_empty() {
                return;
            }
            count += more.iter().map(|request| reads_of(request).len()).sum::<usize>();
            requests.extend(more);
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
        self.shared.jetstream.forget_checks();
        Store::new(Arc::clone(&self.shared), client, self.link, 'r')
    }
}

fn reads_of(request: &Request) -> &[StreamRead] {
    match request {
        Request::Streams { reads, .. } => reads,
        _ => &[],
    }
}

fn fail_all(requests: impl IntoIterator<Item = Request>, error: &ReadError) {
    requests.into_iter().for_each(|request| request.fail(error.clone()));
}

impl Store {
    /// Answers requests. `outcomes` are those of their reads, as far as they are known. An error of
    /// the connection is also returned.
    async fn answer_part(
        &mut self,
        rules: &[StreamRule],
        requests: Vec<Request>,
        mut outcomes: Vec<Option<Outcome>>,
    ) -> Result<(), ApiError> {
        let reads: Vec<_> = requests.iter().flat_map(reads_of).collect();
        let open = outcomes.iter_mut().zip(&reads).filter(|(outcome, _)| outcome.is_none());
        let (open, reads): (Vec<_>, Vec<_>) = open.map(|(outcome, read)| (outcome, *read)).unzip();
        let read = match self.read_all(rules, &reads).await {
            Ok(read) => read,
            Err(error) => {
                fail_all(requests, &error.clone().into());
                return if error.is_of_connection() { Err(error) } else { Ok(()) };
            }
        };
        open.into_iter().zip(read).for_each(|(outcome, read)| *outcome = Some(read));
        let mut outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(ReadError::TimedOut)));
        let mut failed = None;
        // The requesters may have gone.
        for request in requests {
            if let Some(error) = &failed {
                request.fail(ApiError::clone(error).into());
                continue;
            }
            match request {
                Request::Streams { reads, reply } => {
                    drop(reply.send(Ok(outcomes.by_ref().take(reads.len()).collect())));
                }
                Request::Tops { topics, reply, .. } => {
                    let tops = self.tops(rules, &topics).await;
                    failed = tops.as_ref().err().filter(|error| error.is_of_connection()).cloned();
                    drop(reply.send(tops.map_err(ReadError::from)));
                }
                Request::Reset { reset, reply, .. } => {
                    let position = match find_rule(rules, reset.topic.as_str()) {
                        Some(rule) => self.reset(rule, &reset).await,
                        None => Err(no_rule(&reset.topic)),
                    };
                    failed = position.as_ref().err().filter(|error| error.is_of_connection()).cloned();
                    drop(reply.send(position.map_err(ReadError::from)));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reads messages. The outcomes have the order of the reads.
    async fn read_all(
        &mut self,
        rules: &[StreamRule],
        reads: &[&StreamRead],
    ) -> Result<Vec<Outcome>, ApiError> {
        if reads.is_empty() {
            return Ok(Vec::new());
        }
        // Also after a pass, which takes seconds: a look tells only for seconds which messages are young.
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
                let result = Brought::parse(&answer).map(|brought| {
                    let range = range::range(read, plan, source.look, &brought);
                    (brought, range)
                });
                if let Ok((brought, answer)) = &result
                    && brought.pending == 0
                    && newest > answer.last.max(plan.start.saturating_sub(1))
                {
                    late.push(job);
                    continue;
                }
                if let Some(outcome) = outcomes.get_mut(index) {
                    *outcome =
                        result.map(|(brought, answer)| self.note(source, &read.topic, &brought, answer));
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
    pub(super) fn note(
        &self,
        source: &Source,
        topic: &Topic<'_>,
        brought: &Brought,
        parsed: range::Answer,
    ) -> StreamRange {
        self.known(&source.names, |known| {
            source.info.note(known);
            if let (Some((sequence, _)), Some(time)) = (brought.messages.last(), brought.time) {
                known.see_message(*sequence, time);
            }
            if let Some((epoch, after)) = parsed.mark {
                known.see_mark(topic.as_str(), super::known::Mark { epoch, after });
            }
        });
        parsed.range
    }

    pub(super) fn plan(&self, read: &StreamRead, source: &Source) -> Plan {
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
    pub(super) async fn newest_of_leader(
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
fn counted(answer: &[super::super::request::Message]) -> Option<(u64, u64)> {
    let first = answer.first().filter(|first| first.headers().status().is_none())?;
    Some((number(first, "Nats-Sequence")?, number(first, "Nats-Num-Pending").unwrap_or_default() + 1))
}
