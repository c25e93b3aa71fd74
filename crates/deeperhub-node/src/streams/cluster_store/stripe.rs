//! Operations on the mirrors of a stripe.

use std::time::{Duration, Instant};

use deeperhub_cluster::StorePosition;
use deeperhub_history::{
    CheckResult, Cursor, LiveResult, ReadRequest, StoredMessage, Stream, StreamId, SubscribeCheck,
};
use deeperhub_metrics::Gauge;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::{Epoch, Topic};

use super::mirror::{LiveEffect, Readiness, TopCheck, TopicMirror, is_other};
use crate::metrics::GaugeUnit;
use crate::planted::planted;
use crate::streams::{KeptStream, StreamRouter, StreamStripe, Streams};

/// Bytes of the messages of a topic that wait for a read of the store.
const MAX_PENDING_BYTES: usize = 4 << 20;

impl StreamStripe {
    /// Calls `update` with the mirror of a stream. Returns `None` without a mirror.
    fn with_mirror<R>(
        &mut self,
        id: StreamId,
        update: impl FnOnce(&mut TopicMirror, &Stream<KeptFrame>) -> R,
    ) -> Option<R> {
        let mut mirror = self.table.name_mut(id)?.mirror.take()?;
        let output = self.table.get(id).map(|stream| update(&mut mirror, stream));
        self.table.name_mut(id)?.mirror = Some(mirror);
        output
    }

    /// Returns the latest position of a topic that the mirror has heard of.
    pub(crate) fn known_position(&self, kept: &KeptStream) -> Option<StorePosition> {
        self.table.name(self.find(kept)?)?.mirror.as_ref()?.known()
    }

    /// Returns `false` if the cluster's store must be read before the stream can answer a client.
    pub(crate) fn is_ready(&self, id: StreamId, position: Option<(Epoch, u64)>) -> bool {
        let (Some(name), Some(stream)) = (self.table.name(id), self.table.get(id)) else { return true };
        planted!(ColdAnswered) || name.mirror.as_ref().is_none_or(|mirror| mirror.answers(stream, position))
    }

    /// Handles a live message.
    pub(crate) fn on_live(
        &mut self,
        id: StreamId,
        epoch: u64,
        message: StoredMessage<KeptFrame>,
    ) -> Option<LiveEffect> {
        self.with_mirror(id, |topic, stream| {
            if topic.mirror.is_cold() {
                return LiveEffect::Unordered(None);
            }
            match topic.mirror.on_live(stream, epoch, message, MAX_PENDING_BYTES) {
                LiveResult::Waits(read) if !topic.is_warm() => LiveEffect::Unordered(read),
                LiveResult::Waits(read) => LiveEffect::Nothing(read),
                LiveResult::Duplicate(message) => {
                    let kept = stream.message(message.offset);
                    let is_other = kept.is_some_and(|kept| is_other(kept, &message.message));
                    match topic.known().filter(|_| is_other) {
                        Some(known) => LiveEffect::Rewritten(known),
                        None => LiveEffect::Nothing(None),
                    }
                }
                LiveResult::Ignored => LiveEffect::Nothing(None),
                LiveResult::Apply(step) => LiveEffect::Step(step),
            }
        })
    }

    /// Returns `true` if the topic had subscribers before its stream, which is not whole yet.
    pub(crate) fn has_early_subscribers(&self, id: StreamId) -> bool {
        let mirror = self.table.name(id).and_then(|name| name.mirror.as_ref());
        mirror.is_some_and(|mirror| mirror.has_early_subscribers && !mirror.is_warm())
    }

    /// Returns the position of a stream that is whole for the first time, if its subscribers are to be
    /// told. Also returns where rules have ended the stream before it.
    pub(crate) fn take_early_subscribers(&mut self, id: StreamId) -> Option<((Epoch, u64), Option<Cursor>)> {
        let take = |topic: &mut TopicMirror, stream: &Stream<KeptFrame>| {
            if !topic.is_warm() {
                return None;
            }
            let end = topic.end.take();
            let is_told = std::mem::take(&mut topic.has_early_subscribers);
            is_told.then(|| ((stream.epoch(), stream.newest()), end))
        };
        self.with_mirror(id, take).flatten()
    }

    /// Handles the answer of a read. Also returns `true` if subscribers get the messages: those of
    /// the first read are older than any subscription. `warm` counts the streams that are whole.
    pub(crate) fn on_read(
        &mut self,
        id: StreamId,
        number: u32,
        answer: deeperhub_history::StreamRead<KeptFrame>,
        warm: &Gauge,
    ) -> Option<(deeperhub_history::ReadResult<KeptFrame>, bool)> {
        self.with_mirror(id, |topic, stream| {
            let was_warm = topic.is_warm();
            let result = topic.mirror.on_read(stream, number, answer);
            if !was_warm && topic.mirror.is_settled() {
                topic.warm = Some(GaugeUnit::new(warm));
            }
            (result, was_warm && !planted!(HealedNotTold))
        })
    }

    /// Returns `true` if a read shows that the store has given the newest offset of a stream again,
    /// to another message. The read has begun with the message at that offset.
    pub(crate) fn is_rewritten(
        &self,
        id: StreamId,
        epoch: u64,
        messages: &[StoredMessage<KeptFrame>],
    ) -> bool {
        let (Some(stream), Some(first)) = (self.table.get(id), messages.first()) else { return false };
        stream.epoch() == Epoch::from_bits(epoch)
            && stream.message(first.offset).is_some_and(|kept| is_other(kept, &first.message))
    }

    /// Returns the latest known position of a stream.
    pub(crate) fn known_of(&mut self, id: StreamId) -> Option<StorePosition> {
        self.with_mirror(id, |topic, _| topic.known()).flatten()
    }

    /// Returns `true` if the stream is whole.
    pub(crate) fn is_settled(&mut self, id: StreamId) -> bool {
        self.with_mirror(id, |topic, _| topic.mirror.is_settled()) == Some(true)
    }

    /// Notes that a read has failed.
    pub(crate) fn on_read_failed(&mut self, id: StreamId, number: u32) {
        self.with_mirror(id, |topic, _| topic.mirror.on_read_failed(number));
    }

    /// Notes that the broker is away.
    pub(crate) fn on_disconnected(&mut self, id: StreamId) {
        self.with_mirror(id, |topic, _| topic.mirror.on_disconnected());
    }

    /// Returns the read that a topic needs, which is followed or will be before the read is done.
    pub(crate) fn begin_read(&mut self, id: StreamId) -> Option<ReadRequest> {
        self.with_mirror(id, |topic, stream| topic.mirror.on_followed(stream)).flatten()
    }

    /// Returns the read that a followed topic needs, after one has failed.
    pub(crate) fn retry_read(&mut self, id: StreamId) -> Option<ReadRequest> {
        let retry = |topic: &mut TopicMirror, stream: &_| {
            if topic.mirror.is_cold() { None } else { topic.mirror.on_followed(stream) }
        };
        self.with_mirror(id, retry).flatten()
    }

    /// Compares a mirror with the newest position of the store.
    pub(crate) fn on_top(&mut self, id: StreamId, epoch: u64, top: u64) -> TopCheck {
        let check = self.with_mirror(id, |topic, stream| match topic.mirror.on_top(stream, epoch, top) {
            CheckResult::Read(Some(read)) => {
                let own = Some(StorePosition { epoch, offset: top });
                TopCheck::Read { read, is_hole: topic.known() != own || stream.newest() != top }
            }
            CheckResult::Behind => topic.known().map_or(TopCheck::InSync, TopCheck::Behind),
            CheckResult::Differs => TopCheck::Differs,
            CheckResult::InSync | CheckResult::Read(None) => TopCheck::InSync,
        });
        check.unwrap_or(TopCheck::InSync)
    }

    /// Notes that a topic has no message up to a position. Returns the step that moves its stream.
    pub(crate) fn on_vouched(
        &mut self,
        id: StreamId,
        vouched: StorePosition,
    ) -> Option<deeperhub_history::MirrorStep<KeptFrame>> {
        let step = |topic: &mut TopicMirror, stream: &_| {
            let step = topic.mirror.on_vouched(stream, vouched.epoch, vouched.offset)?;
            // The next check must not take it for a message.
            topic.checked = Some(vouched.offset);
            topic.is_untold = true;
            Some(step)
        };
        self.with_mirror(id, step).flatten()
    }

    /// Returns `true` if the subscribers of a quiet topic were told no position for `interval`, and there
    /// is a new one. Starts the next interval then.
    pub(crate) fn is_telling_due(&mut self, id: StreamId, now: Instant, interval: Duration) -> bool {
        let is_due = self.with_mirror(id, |topic, _| {
            let since = *topic.told_at.get_or_insert(now);
            let is_due = topic.is_untold && now.saturating_duration_since(since) >= interval;
            if is_due {
                (topic.told_at, topic.is_untold) = (Some(now), false);
            }
            is_due
        });
        is_due == Some(true)
    }

    /// Returns `true` if the top of a topic is to be looked up: it is followed, and had no message
    /// since the last look, or may have lost some while the store was away.
    pub(crate) fn needs_check(&mut self, id: StreamId) -> bool {
        let needs_check = self.with_mirror(id, |topic, stream| {
            let newest = stream.newest();
            let is_quiet = topic.checked.replace(newest) == Some(newest);
            if !is_quiet {
                // The newest message has told the position.
                (topic.told_at, topic.is_untold) = (None, false);
            }
            topic.is_warm() && (is_quiet || topic.mirror.is_unchecked() || !topic.mirror.is_settled())
        });
        needs_check == Some(true)
    }

    /// Adds or removes a subscriber in this process. Returns the number of them.
    pub(crate) fn change_watchers(&mut self, id: StreamId, is_added: bool, has_subscribers: bool) -> u32 {
        let change = |topic: &mut TopicMirror, _: &_| {
            topic.watchers = if is_added { topic.watchers + 1 } else { topic.watchers.saturating_sub(1) };
            if !is_added {
                topic.on_followed(has_subscribers);
            }
            topic.watchers
        };
        self.with_mirror(id, change).unwrap_or(0)
    }

    /// Returns `true` if subscribers in this process follow a topic.
    pub(crate) fn has_watchers(&self, id: StreamId) -> bool {
        let mirror = self.table.name(id).and_then(|name| name.mirror.as_ref());
        mirror.is_some_and(|mirror| mirror.watchers > 0)
    }

    /// Decides whether a stream can answer a client now.
    fn on_subscribe(&mut self, id: StreamId, position: Option<(Epoch, u64)>) -> Readiness {
        let check = self.with_mirror(id, |topic, stream| match topic.mirror.on_subscribe(stream, position) {
            SubscribeCheck::Ready if topic.is_warm() => Readiness::Ready,
            SubscribeCheck::Ready | SubscribeCheck::Follow => Readiness::Waits(None),
            SubscribeCheck::Wait(read) => Readiness::Waits(read),
        });
        check.unwrap_or(Readiness::Ready)
    }
}

impl Streams {
    /// Decides whether a client can subscribe to a topic now, or the cluster's store must be read
    /// first. `position` is where the client wants to continue.
    pub(crate) fn readiness(
        &self,
        router: &StreamRouter,
        topic: &Topic<'_>,
        position: Option<(Epoch, u64)>,
    ) -> Readiness {
        if self.cluster.is_none() || self.rule(topic).is_none() {
            return Readiness::Ready;
        }
        router.update_kept(topic, |_, kept, stripe| match stripe.find(kept) {
            Some(id) => stripe.on_subscribe(id, position),
            None => Readiness::Waits(None),
        })
    }
}
