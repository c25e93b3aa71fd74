//! Looks at the newest positions of topics.

use std::collections::BTreeMap;

use deeperhub_protocol::Topic;
use serde_json::json;

use super::api::ApiError;
use super::ensure::{Store, header, number};
use super::range::pending;
use super::source::{Source, direct};
use crate::store::{ReadError, StorePosition, StreamProgress, StreamRule, StreamTop};

/// Time after which all replicas have a message, unless the leader calls one late.
const REPLICA_DELAY_MS: u64 = 2000;

impl Store {
    /// Looks up the newest positions of topics, in their order.
    pub(super) async fn tops(
        &mut self,
        rules: &[StreamRule],
        topics: &[Topic<'static>],
    ) -> Result<Vec<StreamTop>, ApiError> {
        let (indices, sources) = self.sources(rules, topics.iter()).await?;
        let mut newest = BTreeMap::new();
        let (mut calls, mut called) = (Vec::new(), Vec::new());
        for (number, source) in sources.iter().enumerate() {
            let source = source.as_ref().map_err(Clone::clone)?;
            self.known(&source.names, |known| source.info.note(known));
            let of_source = topics.iter().zip(&indices).filter(|(_, index)| **index == Some(number));
            let subjects: Vec<_> = of_source
                .map(|(topic, _)| topic.as_str())
                .flat_map(|topic| [source.names.message(topic), source.names.mark(topic)])
                .collect();
            let request = json!({ "batch": subjects.len(), "multi_last": subjects });
            calls.push(direct(&source.stream, request, true));
            called.push(source);
        }
        let answers = self.exchanges.run(&calls).await?;
        for (source, answer) in called.into_iter().zip(answers) {
            if let Err(ReadError::Refused(description)) = pending(&answer) {
                return Err(ApiError::Refused { status: 0, code: 0, description });
            }
            for message in &answer {
                let Some((topic, is_mark)) =
                    header(message, "Nats-Subject").and_then(|subject| source.names.topic(subject))
                else {
                    continue;
                };
                if is_mark {
                    self.note_mark(&source.names, message);
                } else if let Some(sequence) = number(message, "Nats-Sequence") {
                    newest.insert(topic.to_owned(), sequence);
                }
            }
        }
        let vouched: Vec<_> =
            sources.iter().map(|source| source.as_ref().map_or(0, |source| self.vouched(source))).collect();
        let tops = topics.iter().zip(&indices).map(|(topic, index)| {
            let source =
                index.and_then(|index| Some((sources.get(index)?.as_ref().ok()?, vouched.get(index)?)));
            let Some((source, vouched)) = source else {
                return StreamTop { position: None, progress: None, time: crate::store::unix_ms() };
            };
            let (epoch, base) = self.known(&source.names, |known| known.epoch_of(topic.as_str()));
            let offset = newest.get(topic.as_str()).copied().filter(|newest| *newest > base).unwrap_or(0);
            let vouched = if *vouched == 0 { 0 } else { (*vouched).max(offset) };
            StreamTop {
                position: Some(StorePosition { epoch, offset }),
                progress: Some(StreamProgress { newest: source.look.newest.max(offset), vouched }),
                time: source.look.time_ms,
            }
        });
        Ok(tops.collect())
    }

    /// Returns the sequence up to which a later answer has all messages.
    fn vouched(&self, source: &Source) -> u64 {
        let now = (source.look.newest, source.look.time_ms);
        if source.replicas <= 1 {
            return now.0;
        }
        // A replica may have answered that is late, but hardly by so much.
        self.known(&source.names, |known| match known.last_look {
            Some((newest, time)) if source.info.is_level && now.1 >= time + REPLICA_DELAY_MS => {
                known.last_look = Some(now);
                newest
            }
            Some(_) if source.info.is_level => 0,
            _ => {
                known.last_look = Some(now);
                0
            }
        })
    }
}
