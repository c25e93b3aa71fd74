//! New epochs: of a topic, and of a stream that has lost messages.

use serde_json::json;

use super::super::identity::own_identity;
use super::super::request::{Message, NO_RESPONDERS};
use super::api::{Ack, ApiError};
use super::ensure::Store;
use super::known::Mark;
use super::names::StreamNames;
use super::source::direct;
use crate::envelope::{Envelope, Message as Content, Origin};
use crate::names::Names;
use crate::store::{KeepingRule, ResetStream, ResetWhen, StorePosition, unix_ms};

impl Store {
    /// Begins a larger epoch of a topic, which has no messages before. `known_epoch` is the largest
    /// one that the node knows. Returns the position before the first message.
    pub(crate) async fn mark_topic(
        &self,
        names: &StreamNames,
        topic: &deeperhub_protocol::Topic<'_>,
        known_epoch: u64,
    ) -> Result<StorePosition, ApiError> {
        let (stream_epoch, present) =
            self.known(names, |known| (known.epoch, known.epoch_of(topic.as_str()).0));
        let time = unix_ms();
        let epoch = time.max(present.max(known_epoch) + 1);
        let origin = Origin { node: &self.shared.node, incarnation: self.shared.incarnation };
        let message = Content::StreamReset { epoch, time, topic: topic.borrow() };
        let sequence = self.shared.queue.next_sequence();
        let envelope = Envelope { origin, sequence, message }.write();
        let stream = names.stream(stream_epoch);
        let expected = ("Nats-Expected-Stream", stream.as_str());
        // The mark stays as long as the stream, whatever its limits.
        let mark = names.mark(topic.as_str());
        let ack = self.api.append(mark.clone(), envelope.clone(), &[expected, ("Nats-TTL", "never")]).await?;
        let after = ack.sequence;
        self.known(names, |known| known.see_mark(topic.as_str(), Mark { epoch, after }));
        // This one removes the messages, and tells those that follow the topic.
        let subject = names.message(topic.as_str());
        let identity = own_identity(origin.incarnation, sequence);
        let headers = [expected, ("Nats-Rollup", "sub"), ("Nats-Msg-Id", identity.as_str())];
        let ack = self.api.append(subject, envelope.clone(), &headers).await?;
        let after = ack.sequence;
        self.known(names, |known| {
            known.see_append(after, &identity);
            known.see_mark(topic.as_str(), Mark { epoch, after });
        });
        // The others learn the mark as if it had been republished.
        let after_text = after.to_string();
        let headers = [("Nats-Stream", stream.as_str()), ("Nats-Sequence", &after_text)];
        let broadcast = Names::new(self.shared.config.prefix.clone(), '.').broadcast();
        self.api.client().publish(&broadcast, None, &headers, &envelope)?;
        Ok(StorePosition { epoch, offset: after })
    }

    /// Answers a request for a new epoch.
    pub(super) async fn reset(
        &mut self,
        rule: KeepingRule<'_>,
        reset: &ResetStream,
    ) -> Result<StorePosition, ApiError> {
        let names = self.ensure(rule).await?;
        let topic = reset.topic.as_str();
        let known = reset.known.and_then(StorePosition::if_valid);
        let known_epoch = known.map_or(0, |known| known.epoch);
        let is_rewritten = reset.when == ResetWhen::StoreHasRewritten;
        if reset.when == ResetWhen::StoreIsBehind || is_rewritten {
            let Some(info) = self.info(&self.stream(&names)).await? else {
                self.forget(&names);
                self.ensure(rule).await?;
                return Ok(self.present(&names, topic, 0));
            };
            let present = self.present(&names, topic, info.newest);
            match known {
                Some(known) if known.epoch > present.epoch => {}
                Some(known)
                    if known.epoch == present.epoch && (known.offset > info.newest || is_rewritten) =>
                {
                    self.delete(&self.stream(&names)).await?;
                    self.forget(&names);
                    // The epoch of a new stream is larger than all that the node knows.
                    self.known(&names, |stream| stream.epoch = stream.epoch.max(known.epoch));
                    self.ensure(rule).await?;
                    return Ok(self.present(&names, topic, 0));
                }
                _ => return Ok(present),
            }
        }
        self.mark_topic(&names, &reset.topic, known_epoch).await
    }

    /// Returns the position of a topic whose stream has this newest sequence.
    fn present(&self, names: &StreamNames, topic: &str, newest: u64) -> StorePosition {
        let (epoch, after) = self.known(names, |known| known.epoch_of(topic));
        StorePosition { epoch, offset: newest.max(after) }
    }

    /// Compares a topic with the position that a node knows, before the node appends. A topic that
    /// the node knows in a larger epoch begins one.
    pub(crate) async fn compare_epoch(
        &self,
        names: &StreamNames,
        topic: &str,
        position: Option<StorePosition>,
    ) -> Result<(), ApiError> {
        let Some(position) = position else { return Ok(()) };
        let epoch = self.known(names, |known| {
            let (epoch, _) = known.epoch_of(topic);
            if epoch == position.epoch {
                known.see(position.offset);
            }
            epoch
        });
        if position.epoch > epoch
            && let Ok(topic) = deeperhub_protocol::Topic::parse(topic)
        {
            self.mark_topic(names, &topic, position.epoch).await?;
        }
        Ok(())
    }

    /// Replaces a stream that gives sequences again.
    pub(crate) async fn replace(&self, names: &StreamNames) -> Result<(), ApiError> {
        self.delete(&self.stream(names)).await?;
        self.forget(names);
        Ok(())
    }

    /// Returns the highest known sequence of a rule's stream.
    pub(crate) fn highest(&self, names: &StreamNames) -> u64 {
        self.known(names, |known| known.highest)
    }

    /// Returns the epoch of a topic.
    pub(crate) fn epoch_of(&self, names: &StreamNames, topic: &str) -> u64 {
        self.known(names, |known| known.epoch_of(topic).0)
    }

    /// Notes the sequence of an append, and returns its position.
    pub(crate) fn position(
        &self,
        names: &StreamNames,
        ack: &Ack,
        (topic, identity): (&str, &str),
    ) -> StorePosition {
        let prefix = &self.shared.config.prefix;
        let position = self.shared.jetstream.with_stream(prefix, &ack.stream, |known| {
            known.see_append(ack.sequence, identity);
            known.position(topic, ack.sequence)
        });
        // A stream that has been replaced meanwhile.
        let epoch = names.epoch(&ack.stream).unwrap_or_default();
        position.unwrap_or(StorePosition { epoch, offset: ack.sequence })
    }

    /// Reads the messages that acknowledgements name, in their order. Returns `None` for those that a
    /// stream does not have.
    pub(crate) async fn messages(&mut self, acks: &[&Ack]) -> Result<Vec<Option<Message>>, ApiError> {
        let call = |ack: &&Ack| direct(&ack.stream, json!({ "seq": ack.sequence }), false);
        let calls: Vec<_> = acks.iter().map(call).collect();
        let answers = self.exchanges.run(&calls).await?;
        let first = |answer: Vec<Message>| match answer.into_iter().next() {
            Some(message) if message.headers().status().is_none() => Ok(Some(message)),
            Some(message) if message.headers().status() == Some(NO_RESPONDERS) => Err(ApiError::NoResponders),
            _ => Ok(None),
        };
        answers.into_iter().map(first).collect()
    }
}
