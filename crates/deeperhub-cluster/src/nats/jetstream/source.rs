//! Streams that reads come from, and what a look at them tells.

use std::collections::BTreeMap;

use deeperhub_protocol::Topic;
use serde_json::{Value, json};

use super::api::{ApiError, Call};
use super::config;
use super::ensure::{Store, StreamInfo, number};
use super::names::StreamNames;
use super::range::Look;
use super::time::format_ms;
use crate::store::{KeepingRule, StreamRead, StreamRule, find_rule};

/// Largest difference of the clocks of servers, and delay of an expiry.
const AGE_MARGIN_MS: u64 = 5000;

/// A stream that an exchange reads from.
pub(super) struct Source {
    pub(super) names: StreamNames,
    pub(super) stream: String,
    pub(super) info: StreamInfo,
    pub(super) look: Look,
    max_age_ms: u64,
    pub(super) replicas: u64,
}

/// The source of each topic, as an index, and the sources. A topic without a rule has none.
pub(super) type Sources = (Vec<Option<usize>>, Vec<Result<Source, ApiError>>);

/// Returns the error for a topic without a stream.
pub(super) fn no_rule(topic: &Topic<'_>) -> ApiError {
    let description = format!("no rule keeps messages of {topic}");
    ApiError::Refused { status: 404, code: 0, description }
}

/// Returns a call of a read.
pub(super) fn direct(stream: &str, request: Value, is_batch: bool) -> Call {
    Call { subject: format!("$JS.API.DIRECT.GET.{stream}"), request, is_batch }
}

impl Store {
    /// Looks at the streams of the rules of topics. Fails those of a rule that the server refuses.
    pub(super) async fn sources(
        &mut self,
        rules: &[StreamRule],
        topics: impl Iterator<Item = &Topic<'static>>,
    ) -> Result<Sources, ApiError> {
        let mut of_rule = BTreeMap::new();
        let (mut indices, mut sources) = (Vec::new(), Vec::new());
        for topic in topics {
            let Some(rule) = find_rule(rules, topic.as_str()) else {
                indices.push(None);
                continue;
            };
            if !of_rule.contains_key(rule.name) {
                let source = self.source(rule).await;
                if let Err(error) = &source
                    && error.is_of_connection()
                {
                    return Err(error.clone());
                }
                of_rule.insert(rule.name, sources.len());
                sources.push(source);
            }
            indices.push(of_rule.get(rule.name).copied());
        }
        Ok((indices, sources))
    }

    async fn source(&mut self, rule: KeepingRule<'_>) -> Result<Source, ApiError> {
        for _ in 0..2 {
            let names = self.ensure(rule).await?;
            let stream = self.stream(&names);
            let Some(info) = self.info(&stream).await? else {
                // Another node has begun a new epoch, or the server has lost the stream.
                self.forget(&names);
                continue;
            };
            // Another node may have changed the limits since this one has compared them.
            let look = Look {
                newest: info.newest,
                young_after: config::whole_after(&info.config),
                max_messages: info.number("max_msgs_per_subject").max(1),
                time_ms: info.time_ms,
            };
            let (max_age_ms, replicas) =
                (info.number("max_age") / 1_000_000, info.number("num_replicas").max(1));
            return Ok(Source { names, stream, info, look, max_age_ms, replicas });
        }
        let description = format!("the stream of {} is not there", rule.name);
        Err(ApiError::Refused { status: 503, code: 0, description })
    }

    /// Looks up which messages are young, and the marks of topics that are read from their start.
    pub(super) async fn look(
        &mut self,
        reads: &[&StreamRead],
        indices: &[Option<usize>],
        sources: &mut [Result<Source, ApiError>],
    ) -> Result<(), ApiError> {
        let (mut calls, mut kinds) = (Vec::new(), Vec::new());
        for (number, source) in sources.iter().enumerate() {
            let Ok(source) = source else { continue };
            let margin = AGE_MARGIN_MS.min(source.max_age_ms / 2);
            let young_from = source.look.time_ms.saturating_sub(source.max_age_ms.saturating_sub(margin));
            if source.info.created_ms < young_from {
                let start = format_ms(young_from);
                let request = json!({ "start_time": start, "next_by_subj": source.names.all(), "batch": 1 });
                calls.push(direct(&source.stream, request, true));
                kinds.push((number, true));
            }
            let of_source = reads.iter().zip(indices).filter(|(_, index)| **index == Some(number));
            let epoch =
                |read: &StreamRead| self.known(&source.names, |known| known.epoch_of(read.topic.as_str()).0);
            let from_start =
                of_source.filter(|(read, _)| read.after.is_none_or(|after| after.epoch != epoch(read)));
            let marks: Vec<_> = from_start.map(|(read, _)| source.names.mark(read.topic.as_str())).collect();
            if !marks.is_empty() {
                let request = json!({ "batch": marks.len(), "multi_last": marks });
                calls.push(direct(&source.stream, request, true));
                kinds.push((number, false));
            }
        }
        if calls.is_empty() {
            return Ok(());
        }
        let answers = self.exchanges.run(&calls).await?;
        for ((index, is_age), answer) in kinds.into_iter().zip(answers) {
            let Some(Ok(source)) = sources.get_mut(index) else { continue };
            if is_age {
                let first = answer.first().and_then(|first| number(first, "Nats-Sequence"));
                let young_after = first.map_or(source.look.newest, |first| first.saturating_sub(1));
                source.look.young_after = source.look.young_after.max(young_after);
            } else {
                let names = source.names.clone();
                for message in &answer {
                    self.note_mark(&names, message);
                }
            }
        }
        Ok(())
    }
}
