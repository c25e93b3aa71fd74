//! Messages and reads of the store, applied to the streams of this node and pushed to subscribers.

use std::sync::Arc;
use std::time::Instant;

use deeperhub_cluster::{Message, ResetWhen, StorePosition, StoredEnvelope, StreamRange};
use deeperhub_history::{
    Cursor, Delivery as DeliveryPolicy, MirrorStep, ReadRequest, Seconds, StoredMessage, StreamId, StreamRead,
};
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::{EncodedDelivery, ServerMessage, StreamMessage};
use deeperhub_protocol::{ClientId, Epoch, GapReason, Position, Topic};
use deeperhub_router::{Reach, TopicView};

use super::push::Push;
use crate::connection_id::ConnectionId;
use crate::delivery::Sequenced;
use crate::hub::Hub;
use crate::metrics::MirrorMetrics;
use crate::planted::planted;
use crate::stream_counts::StreamContent;
use crate::streams::{HubPublisher, KeptStream, LiveEffect, Remains, StreamStripe};
use crate::trace::ActiveSpan;

/// Consequences of a read of the store.
#[derive(Debug, Default)]
pub(super) struct ReadOutcome {
    /// The next read, if one is needed.
    pub(super) next: Option<ReadRequest>,
    /// The new stream that the store must start before, and latest position that this node knows,
    /// if the store has lost messages.
    pub(super) reset: Option<(StorePosition, ResetWhen)>,
    /// `true` if the stream is whole, or there is none any more.
    pub(super) is_settled: bool,
}

impl Hub {
    /// Returns a message of the store as streams keep it, with its epoch. Returns `None` for other
    /// messages.
    fn stored_message(&self, message: &Message<'_>) -> Option<(u64, StoredMessage<KeptFrame>)> {
        let Message::Stored { position, previous, time, excludes_publisher, topic, from, trace, payload } =
            message
        else {
            return None;
        };
        let unsealed = StreamMessage {
            topic: topic.as_str(),
            message: *payload,
            from: from.as_ref(),
            time: *time,
            traceparent: trace.traceparent.as_deref(),
            tracestate: trace.tracestate.as_deref(),
        }
        .encode();
        let unsealed = if *excludes_publisher { unsealed.excluding_publisher() } else { unsealed };
        let prev = Some(*previous).filter(|previous| previous + 1 != position.offset);
        let prev = prev.filter(|_| !planted!(PrevNotSealed));
        let frame = unsealed.seal(Epoch::from_bits(position.epoch), position.offset, prev).keep();
        let stored = StoredMessage {
            offset: position.offset,
            prev: *previous,
            bytes: self.streams.charge(frame.len()),
            message: frame,
            at: self.streams.clock.seconds_of_unix_ms(*time),
            is_duplicate: false,
        };
        Some((position.epoch, stored))
    }

    /// Returns the connection that is excluded from a message, if it is one of this node.
    fn excluded_connection(&self, frame: &KeptFrame) -> Option<ConnectionId> {
        let from = EncodedDelivery::parse(frame.as_bytes())?.from().and_then(ClientId::parse)?;
        if frame.is_for(&from) { None } else { self.connection_id(&from) }
    }

    /// Applies a message that the store sent to all nodes which follow the topic. `origin` is the node
    /// that published it, and `source` the source number of its publisher. `is_copy` says that the
    /// message came before. Wake-ups of `publisher` are deferred.
    pub(crate) fn apply_stored(
        &self,
        publisher: &mut HubPublisher,
        (origin, message): (&str, &Message<'_>),
        source: Option<u64>,
        is_copy: bool,
    ) {
        let (Some((epoch, stored)), Message::Stored { topic: name, payload, trace, .. }) =
            (self.stored_message(message), message)
        else {
            return;
        };
        let Some(store) = &self.streams.cluster else { return };
        let at = self.streams.clock.now();
        let now = self.streams.clock.seconds(at);
        let mut remains = Remains::default();
        let excluded = self.excluded_connection(&stored.message);
        // As for other messages, the publisher's node alone records the fan-out.
        let is_recorded = origin == self.node_id && self.config.tracer.is_recording();
        let span = if is_recorded { ActiveSpan::resumed(trace, at).map(Box::new) } else { None };
        let prepare = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let (id, begun) = match stripe.find(kept) {
                Some(id) => (Some(id), None),
                None => self.open_followed((topic, kept, stripe), now, &mut remains).unzip(),
            };
            let frame = stored.message.clone();
            // Without history, a message has no position. Subscribers that were here before the stream
            // are told their position when it is whole.
            let unordered = |is_plain: bool| {
                let is_plain = is_plain && !planted!(EarlyPositionTold);
                let frame = is_plain.then(|| plain_frame(message)).flatten().unwrap_or(frame);
                let (observed, reach) = (self.observed(topic.name()), Reach::Matching);
                Some(Push { frame, excluded, sequenced: None, observed, at, reach, span: None })
                    .filter(|_| !is_copy)
            };
            let effect = id.and_then(|id| Some((id, stripe.on_live(id, epoch, stored)?)));
            let (push, read) = match effect {
                // The topic is followed by patterns only, or has no history here.
                None => (unordered(topic.subscribers() > 0 || self.streams.rule(name).is_none()), None),
                Some((id, LiveEffect::Unordered(read))) => {
                    (unordered(stripe.has_early_subscribers(id)), read)
                }
                Some((_, LiveEffect::Rewritten(known))) => {
                    store.report_rewritten(Arc::clone(topic.name()), known);
                    (None, None)
                }
                Some((_, LiveEffect::Nothing(read))) => {
                    if read.is_some() {
                        store.mirror_metrics.holes.inc();
                    }
                    (None, read)
                }
                Some((id, LiveEffect::Step(step))) => {
                    count_told(&store.mirror_metrics, &step);
                    let push = self.apply_step((topic, stripe), id, step, (at, now), &mut remains);
                    (push.map(|push| Push { excluded, ..push }), None)
                }
            };
            let read = begun.flatten().or(read).map(|read| (Arc::clone(topic.name()), read));
            (push.map(|push| Push { span, ..push }.into_outgoing()), read)
        };
        let (published, read) = publisher.publish_kept(name, source, prepare);
        self.streams.finish(&self.router, remains, now);
        if let Some((topic, read)) = read {
            store.queue_read(topic, read);
        }
        self.watchers.wake(name.as_str());
        if origin != self.node_id {
            // This node counts its own messages when they are published.
            self.top.publish(name.as_str(), published.subscribers, payload.as_str().len());
        }
    }

    /// Opens the stream of a topic that has subscribers and no stream: its rule is newer than their
    /// subscriptions. Also returns the read that it needs.
    pub(super) fn open_followed(
        &self,
        (topic, kept, stripe): (TopicView<'_>, &mut KeptStream, &mut StreamStripe),
        now: Seconds,
        remains: &mut Remains,
    ) -> Option<(StreamId, Option<ReadRequest>)> {
        if topic.subscribers() == 0 || planted!(LateRuleIgnored) {
            return None;
        }
        let parsed = Topic::parse(&**topic.name()).ok()?;
        let (budget, rule) = self.streams.rule(&parsed)?;
        let id = stripe.find_or_open(topic, kept, (&budget, rule), now, remains).ok()?;
        Some((id, stripe.begin_read(id)))
    }

    /// Returns the name of a topic if sent messages are observed.
    fn observed(&self, topic: &Arc<str>) -> Option<Arc<str>> {
        self.bus.is_observed(deeperhub_events::EventKind::MessageSent).then(|| Arc::clone(topic))
    }

    /// Applies a step of a mirror. Returns what subscribers get.
    pub(super) fn apply_step(
        &self,
        (topic, stripe): (TopicView<'_>, &mut StreamStripe),
        id: StreamId,
        step: MirrorStep<KeptFrame>,
        (at, now): (Instant, Seconds),
        remains: &mut Remains,
    ) -> Option<Push> {
        let stream = stripe.table.get(id)?;
        let before = Cursor::new(stream.epoch(), stream.newest());
        let rules = stripe.table.budget().rules();
        let policy = stripe.table.rule(id).and_then(|rule| Some(rules.get(rule)?.policy()));
        let may_suspend = policy.is_some_and(|policy| policy.delivery() != DeliveryPolicy::Close);
        let name = topic.name();
        let gap = |from, epoch, offset, reason| {
            let frame = self.gap_frame(name, from, (epoch, offset), reason, at);
            (frame, before, StreamContent::Gap(reason), Reach::Topic)
        };
        let pushed = match &step {
            MirrorStep::NewEpoch { .. } if planted!(ResetNotTold) => None,
            MirrorStep::Missing { .. } if planted!(MissingNotTold) => None,
            MirrorStep::NewEpoch { epoch, after } => {
                Some(gap(None, Epoch::from_bits(*epoch), *after, GapReason::Epoch))
            }
            MirrorStep::Missing { from, to, reason } => Some(gap(Some(*from), before.epoch(), *to, *reason)),
            MirrorStep::Duplicate { .. } => None,
            MirrorStep::Message { message, prev } => {
                let before = Cursor::new(before.epoch(), *prev);
                Some((message.message.clone(), before, StreamContent::Message, Reach::Matching))
            }
        };
        let applied = stripe.table.apply(id, now, &mut remains.evicted, step)?;
        remains.is_over_budget |= applied.is_over_budget;
        let (frame, before, content, reach) = pushed?;
        let (topic, rule_changes) = (Arc::clone(name), stripe.rule_changes);
        let sequenced = Sequenced { topic, before, may_suspend, content, is_mirrored: true, rule_changes };
        let observed = self.observed(name).filter(|_| content == StreamContent::Message);
        Some(Push { frame, excluded: None, sequenced: Some(sequenced), observed, at, reach, span: None })
    }

    fn gap_frame(
        &self,
        topic: &str,
        from: Option<u64>,
        (epoch, offset): (Epoch, u64),
        reason: GapReason,
        at: Instant,
    ) -> KeptFrame {
        let position = Position { epoch, offset, time: self.streams.look_ms(at) };
        ServerMessage::Gap { topic, from, position, reason }.to_frame().keep()
    }

    /// Returns what tells subscribers their position, if they were here before the topic's stream.
    /// `end` is where rules have ended the stream before it. Live subscribers that have a position of
    /// that stream stand there.
    fn first_push(
        &self,
        (topic, stripe): (TopicView<'_>, &StreamStripe),
        ((epoch, offset), end): ((Epoch, u64), Option<Cursor>),
        at: Instant,
    ) -> Push {
        let name = topic.name();
        let (before, content) = match end.filter(|end| end.epoch() == epoch) {
            // Subscribers may have got some of these messages without their positions.
            Some(end) if end.offset() < offset => (Some(end), StreamContent::Gap(GapReason::Lost)),
            Some(end) => (Some(end), StreamContent::Position),
            None => (None, StreamContent::Gap(GapReason::Epoch)),
        };
        let from = before.map(|end| end.offset() + 1);
        let frame = match content {
            StreamContent::Gap(reason) => self.gap_frame(name, from, (epoch, offset), reason, at),
            _ => {
                let position = Position { epoch, offset, time: self.streams.look_ms(at) };
                ServerMessage::Position { topic: name, position }.to_frame().keep()
            }
        };
        let sequenced = Sequenced {
            topic: Arc::clone(name),
            before: before.unwrap_or(Cursor::new(epoch, offset)),
            // A replay could not tell a gap of unknown length, so a full queue does not refuse it.
            may_suspend: before.is_some(),
            content,
            is_mirrored: true,
            rule_changes: stripe.rule_changes,
        };
        let (sequenced, reach) = (Some(sequenced), Reach::Topic);
        Push { frame, excluded: None, sequenced, observed: None, at, reach, span: None }
    }

    /// Applies the answer of a read.
    pub(super) fn apply_read(
        &self,
        topic: &Topic<'_>,
        request: ReadRequest,
        range: Option<StreamRange>,
    ) -> ReadOutcome {
        let at = self.streams.clock.now();
        let now = self.streams.clock.seconds(at);
        let answer = range.map(|range| (self.stream_read(request, &range), range));
        let Some(store) = &self.streams.cluster else { return ReadOutcome::default() };
        let metrics = &store.mirror_metrics;
        let mut remains = Remains::default();
        let prepare = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let mut pushes = Vec::new();
            let mut outcome = ReadOutcome::default();
            let Some(id) = stripe.find(kept) else {
                outcome.is_settled = true;
                return (pushes, outcome);
            };
            let Some((mut answer, range)) = answer else {
                stripe.on_read_failed(id, request.number);
                return (pushes, outcome);
            };
            if range.whole.is_some()
                && let Some(stream) = stripe.table.get(id)
            {
                self.chain_first((stream.epoch(), stream.live_offset()), &range, &mut answer);
            }
            if stripe.is_rewritten(id, answer.epoch, &answer.messages) && !planted!(RewriteUnread) {
                stripe.on_read_failed(id, request.number);
                let reset = |known| (known, ResetWhen::StoreHasRewritten);
                outcome.reset = stripe.known_of(id).map(reset);
                return (pushes, outcome);
            }
            let Some((result, is_told)) = stripe.on_read(id, request.number, answer, &metrics.warm) else {
                return (pushes, outcome);
            };
            for step in result.steps {
                if is_told {
                    count_told(metrics, &step);
                    metrics.healed.add(matches!(step, MirrorStep::Message { .. }).into());
                }
                let push = self.apply_step((topic, stripe), id, step, (at, now), &mut remains);
                if let Some(push) = push.filter(|_| is_told) {
                    let excluded = self.excluded_connection(&push.frame);
                    pushes.push(Push { excluded, ..push }.into_outgoing());
                }
            }
            if let Some(place) = stripe.take_early_subscribers(id).filter(|_| topic.subscribers() > 0) {
                pushes.push(self.first_push((topic, stripe), place, at).into_outgoing());
            }
            outcome.next = result.next;
            let reset = |known| (known, ResetWhen::StoreIsBehind);
            outcome.reset = stripe.known_of(id).filter(|_| result.is_behind).map(reset);
            outcome.is_settled = stripe.is_settled(id);
            (pushes, outcome)
        };
        let outcome = self.router.publish_each_kept(topic, None, prepare);
        self.streams.finish(&self.router, remains, now);
        self.watchers.wake(topic.as_str());
        outcome
    }

    /// Returns the answer of the store in the terms of a mirror.
    fn stream_read(&self, request: ReadRequest, range: &StreamRange) -> StreamRead<KeptFrame> {
        let Some(top) = range.top else {
            return StreamRead { epoch: 0, top: 0, floor: 0, whole_to: 0, messages: Vec::new() };
        };
        let messages: Vec<_> =
            range.messages.iter().filter_map(|envelope| self.stored_envelope(envelope)).collect();
        let asked_after = request.after.filter(|after| after.epoch == top.epoch).map(|after| after.offset);
        let (floor, whole_to) = match (range.whole, asked_after) {
            (Some(whole), _) => (whole.after, whole.to),
            // Messages that are missing before the oldest one have left the store.
            (None, Some(_)) => ((range.oldest.max(1) - 1).min(top.offset), 0),
            // Messages before the first one are of no interest.
            (None, None) => (messages.first().map_or(top.offset, |first| first.offset - 1), 0),
        };
        let floor = floor.max(asked_after.unwrap_or(0));
        StreamRead { epoch: top.epoch, top: top.offset, floor, whole_to, messages }
    }

    /// Lets the first message of an answer follow the one that subscribers have. The store does not tell
    /// what was before it, and they were not told of the offsets without messages that the stream has
    /// passed since.
    fn chain_first(
        &self,
        (epoch, offset): (Epoch, u64),
        range: &StreamRange,
        answer: &mut StreamRead<KeptFrame>,
    ) {
        let (Some(envelope), Some(first)) = (range.messages.first(), answer.messages.first_mut()) else {
            return;
        };
        if epoch != Epoch::from_bits(answer.epoch) || first.prev <= offset {
            return;
        }
        let Ok(mut envelope) = envelope.envelope() else { return };
        if let Message::Stored { previous, .. } = &mut envelope.message {
            *previous = offset;
        }
        if let Some((_, stored)) = self.stored_message(&envelope.message)
            && stored.offset == first.offset
        {
            (first.message, first.bytes) = (stored.message, stored.bytes);
        }
    }

    /// Returns a message of a read as streams keep it.
    pub(super) fn stored_envelope(&self, envelope: &StoredEnvelope) -> Option<StoredMessage<KeptFrame>> {
        // Each envelope was checked when it was read.
        let envelope = envelope.envelope().ok()?;
        self.stored_message(&envelope.message).map(|(_, stored)| stored)
    }
}

/// Counts what a step tells the subscribers besides messages.
fn count_told(metrics: &MirrorMetrics, step: &MirrorStep<KeptFrame>) {
    match step {
        MirrorStep::NewEpoch { .. } => metrics.new_epochs.inc(),
        MirrorStep::Missing { from, to, .. } => metrics.lost.add(to.saturating_sub(*from) + 1),
        MirrorStep::Message { .. } | MirrorStep::Duplicate { .. } => {}
    }
}

/// Returns a message of the store as subscribers of a topic without history get it.
fn plain_frame(message: &Message<'_>) -> Option<KeptFrame> {
    let Message::Stored { topic, from, trace, payload, .. } = message else { return None };
    let message = ServerMessage::Message {
        topic: topic.as_str(),
        message: *payload,
        from: from.as_ref(),
        position: None,
        prev: None,
        traceparent: trace.traceparent.as_deref(),
        tracestate: trace.tracestate.as_deref(),
    };
    Some(message.to_frame().keep())
}

#[cfg(test)]
mod tests;
