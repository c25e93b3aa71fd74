//! One step of a replay: some messages of one subscription.

use std::sync::Arc;
use std::time::Instant;

use deeperhub_history::{Cursor, Delivery, Gap, Step};
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::message::{EncodedDelivery, HistoryOrder, ServerMessage};
use deeperhub_protocol::{ClientId, CloseCode, CloseReason, GapReason, Topic};
use deeperhub_router::DeliveryState;

use super::items::{Item, StepItems};
use super::{Outlet, Phase, Replay, Replays};
use crate::planted::planted;
use crate::stream_counts::StreamContent;
use crate::streams::{
    CurrentStream, HubShard, KeptStream, ReadRequest, Remains, StreamRouter, StreamStripe, Streams,
};

/// Maximum bytes of one step. Other connections of the worker get their steps in between.
const BYTES_PER_STEP: usize = 64 * 1024;

/// Maximum messages of one step, which bounds the time under the lock.
const MESSAGES_PER_STEP: usize = 256;

/// Result of a step.
#[derive(Debug)]
pub(super) enum StepEnd {
    /// The subscriber is at the newest message that is not its own, and its subscription is live.
    Live { newest: u64 },
    /// There are more messages.
    Behind,
    /// The next messages are not in memory. Another thread reads them.
    Stored(Box<ReadRequest>),
    /// The topic's delivery is by sample.
    Sampled(std::time::Duration),
    /// The subscriber has missed a message, and the topic's delivery is `close`.
    Missed,
    /// The topic has no history any more, and the subscription is live.
    NoStream,
}

impl Replays {
    /// Sends some messages of one of a connection's replays. Returns the bytes that were sent.
    pub(super) fn step(
        &mut self,
        key: ConnectionKey,
        (streams, router, shard): (&Streams, &StreamRouter, &mut HubShard),
        now: Instant,
        outlet: &mut impl Outlet,
    ) -> usize {
        let Some(queued) = outlet.queued_bytes(key) else {
            // The session's end removes the replays.
            return 0;
        };
        let max_queued = outlet.max_queue_bytes() / 4;
        if queued > max_queued {
            self.wait(key, outlet);
            return 0;
        }
        let Some(client_id) = outlet.client_id(key) else { return 0 };
        let Some(connection) = self.connections.get_mut(&key) else { return 0 };
        let is_replaying = |replay: &Replay| replay.phase == Phase::Replaying;
        let Some(index) = connection.replays.iter().position(is_replaying) else { return 0 };
        let Some(replay) = connection.replays.get_mut(index) else { return 0 };
        let topic = Arc::clone(&replay.topic);
        let Ok(parsed) = Topic::parse(&*topic) else { return 0 };

        let max_bytes = BYTES_PER_STEP.min(max_queued.saturating_sub(queued));
        let mut remains = Remains::default();
        let items = &mut self.items.items;
        let seconds = streams.clock.seconds(now);
        let (mut rule_changes, mut stream_end) = (0, None);
        let advance =
            |_: deeperhub_router::TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
                (rule_changes, stream_end) = (stripe.rule_changes, stripe.end(kept));
                collect(replay, &client_id, max_bytes, items, || stripe.current(kept, seconds, &mut remains))
            };
        let end = shard.resume_at(key, &parsed, advance);
        streams.finish(router, remains, seconds);
        let Some(end) = end else {
            // The subscription has ended.
            self.items.items.clear();
            self.end(key, &topic);
            self.continue_soon(key);
            return 0;
        };
        let has_others = shard.count_matches(key, &parsed) > 1;
        if matches!(end, StepEnd::NoStream) {
            self.items.items.extend(stream_end.and_then(|end| lost_rest(replay.cursor, end)));
        }
        let cursor = replay.cursor;
        if let StepEnd::Live { newest } = end
            && newest > cursor.offset()
        {
            // The last messages are the subscriber's own. It may have published them before it
            // subscribed, so it need not remember their offsets.
            self.items.push(Item::Position(Cursor::new(cursor.epoch(), newest)));
        }
        // Several topics of one connection take turns.
        connection.replays.rotate_left(1);
        let sent = self.send_items(key, &topic, streams.look_ms(now), outlet);
        match end {
            StepEnd::Behind => self.continue_soon(key),
            StepEnd::Stored(request) => {
                self.read_stored(key, &topic, *request, (streams, shard));
                self.continue_soon(key);
            }
            StepEnd::Missed => {
                self.end(key, &topic);
                outlet.close(key, CloseReason::new(CloseCode::SlowConsumer, "reads too slowly"));
            }
            StepEnd::Sampled(every) => {
                self.begin(key, topic, cursor, Delivery::Sample { every }, now);
                self.continue_soon(key);
            }
            StepEnd::Live { .. } => {
                self.resume(key, &topic, has_others, (router, shard));
                self.continue_soon(key);
            }
            StepEnd::NoStream if has_others => {
                let until = router.inbox_position(shard.id());
                self.detach(key, &topic, Phase::Detached { until, rule_changes });
                self.continue_soon(key);
            }
            StepEnd::NoStream => {
                self.end(key, &topic);
                self.continue_soon(key);
            }
        }
        sent
    }

    /// Notes that the stream of a replay was removed.
    fn detach(&mut self, key: ConnectionKey, name: &Arc<str>, phase: Phase) {
        let replays =
            self.connections.get_mut(&key).into_iter().flat_map(|connection| &mut connection.replays);
        for replay in replays.filter(|replay| replay.topic == *name && replay.phase == Phase::Replaying) {
            self.behind -= 1;
            replay.phase = phase;
            self.lingering.push((key, Arc::clone(name)));
        }
    }

    /// Ends the replays of which no more messages are queued.
    pub(super) fn end_lingering(&mut self, shard: &HubShard) {
        for (key, topic) in std::mem::take(&mut self.lingering) {
            match self.find(key, &topic).map(|replay| replay.phase) {
                Some(Phase::Resumed(until) | Phase::Detached { until, .. }) if shard.has_delivered(until) => {
                    self.end(key, &topic);
                }
                Some(_) => self.lingering.push((key, topic)),
                None => {}
            }
        }
    }

    /// Ends a replay whose subscription is live or has ended. If another subscription of the client
    /// matches the topic (`has_others`), messages of before can still be queued for it.
    pub(super) fn resume(
        &mut self,
        key: ConnectionKey,
        name: &str,
        has_others: bool,
        (router, shard): (&StreamRouter, &HubShard),
    ) {
        if !has_others {
            return self.end(key, name);
        }
        let until = router.inbox_position(shard.id());
        let replays =
            self.connections.get_mut(&key).into_iter().flat_map(|connection| &mut connection.replays);
        for replay in replays.filter(|replay| *replay.topic == *name) {
            match replay.phase {
                Phase::Replaying | Phase::Reading { .. } => self.behind -= 1,
                Phase::Sampled => self.samples.remove(key, &replay.topic),
                Phase::Resumed(_) | Phase::Detached { .. } => continue,
            }
            replay.phase = Phase::Resumed(until);
            self.lingering.push((key, Arc::clone(&replay.topic)));
        }
    }

    /// Sends the collected items to a connection. Returns their bytes.
    pub(super) fn send_items(
        &mut self,
        key: ConnectionKey,
        topic: &Arc<str>,
        time_ms: u64,
        outlet: &mut impl Outlet,
    ) -> usize {
        let StepItems { items, buffer } = &mut self.items;
        let sends_single_frames = outlet.sends_single_frames(key);
        let (mut bytes, count) = (0, items.len());
        for item in items.drain(..) {
            let changed = match &item {
                // Frames of sparse streams mostly have the right `prev` already.
                Item::Message { frame, prev: Some(prev) } if !frame.ends_with_prev(*prev) => {
                    self.counts.count(StreamContent::Message);
                    EncodedDelivery::parse(frame.as_bytes()).and_then(|delivery| delivery.with_prev(*prev))
                }
                Item::Message { .. } => {
                    self.counts.count(StreamContent::Message);
                    None
                }
                Item::Gap(gap) => {
                    self.counts.count(StreamContent::Gap(gap.reason));
                    let Gap { from, reason, .. } = *gap;
                    let position = gap.position(time_ms);
                    Some(ServerMessage::Gap { topic, from, position, reason }.to_frame())
                }
                Item::Position(cursor) => {
                    self.counts.count(StreamContent::Position);
                    let position = cursor.position(time_ms);
                    Some(ServerMessage::Position { topic, position }.to_frame())
                }
            };
            match (changed, item) {
                (Some(frame), _) if sends_single_frames => {
                    bytes += frame.len();
                    outlet.send(key, topic, &frame);
                }
                (None, Item::Message { frame, .. }) if sends_single_frames => {
                    bytes += frame.len();
                    outlet.send(key, topic, &frame.to_frame());
                }
                (Some(frame), _) => buffer.extend_from_slice(frame.as_bytes()),
                (None, Item::Message { frame, .. }) => buffer.extend_from_slice(frame.as_bytes()),
                (None, Item::Gap(_) | Item::Position(_)) => {}
            }
        }
        if !buffer.is_empty() {
            bytes += buffer.len();
            outlet.send_encoded(key, buffer, count);
            buffer.clear();
            buffer.shrink_to(2 * BYTES_PER_STEP);
        }
        bytes
    }
}

/// Returns the gap of a subscriber whose stream was removed at `end`, if it has not passed the end.
fn lost_rest(cursor: Cursor, end: Cursor) -> Option<Item> {
    let (epoch, to) = (end.epoch(), end.offset());
    let gap = if cursor.epoch() == epoch {
        let from = Some(cursor.offset() + 1);
        (cursor.offset() < to).then_some(Gap { epoch, from, to, reason: GapReason::Lost })
    } else {
        Some(Gap { epoch, from: None, to, reason: GapReason::Epoch })
    };
    gap.filter(|_| !planted!(LostNotTold)).map(Item::Gap)
}

/// Collects messages and gaps for a subscriber, at most `max_bytes` but at least one message.
/// `current` returns the stream. Returns the state of the subscription and the result of the step.
fn collect<'s>(
    replay: &mut Replay,
    client_id: &ClientId,
    max_bytes: usize,
    items: &mut Vec<Item>,
    current: impl FnOnce() -> Option<CurrentStream<'s>>,
) -> (DeliveryState, StepEnd) {
    let Some(current) = current() else { return (DeliveryState::Live, StepEnd::NoStream) };
    let CurrentStream { stream, delivery, oldest, name } = current;
    if let Delivery::Sample { every } = delivery {
        return (DeliveryState::Suspended, StepEnd::Sampled(every));
    }
    // In a new epoch, a gap tells all that was before.
    if let Some(offset) = replay.lost_before.take()
        && replay.cursor.epoch() == stream.epoch()
    {
        items.extend(replay.cursor.skip_lost(offset).map(Item::Gap));
    }
    let mut bytes = 0;
    while items.len() < MESSAGES_PER_STEP && (bytes < max_bytes || items.is_empty()) {
        match replay.cursor.advance_within(stream, oldest, delivery, |frame| {
            frame.is_for(client_id) || planted!(OwnReplayed)
        }) {
            None => break,
            Some(Step::Message { prev, message, .. }) => {
                bytes += message.len();
                items.push(Item::Message { frame: message.clone(), prev });
            }
            Some(Step::Gap(Gap { reason: GapReason::Trimmed, .. })) if planted!(GapNotTold) => {}
            Some(Step::Gap(Gap { reason: GapReason::Epoch, .. })) if planted!(EpochNotTold) => {}
            Some(Step::Gap(gap)) => items.push(Item::Gap(gap)),
            Some(Step::Close) => return (DeliveryState::Suspended, StepEnd::Missed),
            Some(Step::Stored { from, to }) => {
                let Some(disk_stream) = name.disk else {
                    items.extend(replay.cursor.skip_lost(to + 1).map(Item::Gap));
                    continue;
                };
                let request = ReadRequest {
                    stream: disk_stream,
                    topic: Arc::clone(&name.topic),
                    epoch: stream.epoch(),
                    from,
                    order: HistoryOrder::Ascending,
                    limit: usize::try_from(to - from + 1).unwrap_or(usize::MAX).min(MESSAGES_PER_STEP),
                    max_bytes: max_bytes.saturating_sub(bytes).max(1),
                };
                return (DeliveryState::Suspended, StepEnd::Stored(Box::new(request)));
            }
        }
    }
    let ends_early = planted!(ReplayEndsEarly) && replay.cursor.messages_left(stream, oldest, delivery) == 1;
    if replay.cursor.is_behind(stream) && !ends_early {
        let is_live = planted!(LiveBeforeReplayEnds);
        (if is_live { DeliveryState::Live } else { DeliveryState::Suspended }, StepEnd::Behind)
    } else {
        (DeliveryState::Live, StepEnd::Live { newest: stream.newest() })
    }
}
