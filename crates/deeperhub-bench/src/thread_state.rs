//! State that the connections of one thread share: buffers, sequence trackers, counters.

use deeperhub_protocol::deflate::Inflater;

use crate::counters::{Counters, ReceiverStream};
use crate::frame::MaskingKeys;
use crate::handshake::Handshake;
use crate::message_encoder::MessageEncoder;
use crate::plan::{MeasurementWindow, Plan};
use crate::recovery::{TopicRecovery, position_in};
use crate::scenario::{Role, Scenario};
use crate::sequence_tracker::{Arrival, SequenceTracker};
use crate::shared_state::SharedState;
use crate::stamp::{Stamp, StampFinder};

/// State that the connections of one thread share.
#[derive(Debug)]
pub(crate) struct ThreadState<'r> {
    pub(crate) plan: &'r Plan,
    pub(crate) shared: &'r SharedState,
    pub(crate) handshake: &'r Handshake,
    pub(crate) thread: usize,
    /// Buffer that all sockets are read into.
    pub(crate) input: Vec<u8>,
    /// Buffer of frames for the next write.
    pub(crate) output: Vec<u8>,
    pub(crate) inflater: Inflater,
    pub(crate) keys: MaskingKeys,
    pub(crate) finder: StampFinder,
    pub(crate) encoder: MessageEncoder,
    pub(crate) counters: Counters,
    pub(crate) window: MeasurementWindow,
    /// Time at which sending ends.
    pub(crate) send_until: u64,
    /// For each receiver, one tracker per stream of its topic.
    trackers: Vec<SequenceTracker>,
    /// For each tracker of `recover`, what its client knows of the topic.
    topic_recoveries: Vec<TopicRecovery>,
    /// Next sequence number of each stream that this thread sends.
    sequences: Vec<u64>,
    /// Deliveries of each publisher's messages that are not in [`SharedState`] yet.
    deliveries_by_publisher: Vec<u32>,
    /// Publishers with an entry over 0 in `deliveries_by_publisher`.
    publishers_with_deliveries: Vec<u32>,
    pending: PendingCounts,
}

/// Counts that are not in [`SharedState`] yet.
#[derive(Debug, Default)]
struct PendingCounts {
    sent: u64,
    expected: u64,
    delivered: u64,
}

/// Initial size of the read buffer, about the size of a socket's receive buffer. At least half of
/// it is free for each read.
pub(crate) const READ_BUFFER_BYTES: usize = 256 * 1024;

impl<'r> ThreadState<'r> {
    pub(crate) fn new(
        plan: &'r Plan,
        shared: &'r SharedState,
        handshake: &'r Handshake,
        thread: usize,
        run_id: u32,
    ) -> Self {
        let mut keys = MaskingKeys::new(u64::from(run_id) << 16 ^ thread as u64 ^ 0x5851_F42D_4C95_7F2D);
        let encoder = MessageEncoder::new(plan, run_id, &mut keys);
        Self {
            plan,
            shared,
            handshake,
            thread,
            input: vec![0; READ_BUFFER_BYTES],
            output: Vec::new(),
            inflater: Inflater::new(),
            keys,
            finder: StampFinder::new(),
            encoder,
            counters: Counters::default(),
            window: MeasurementWindow { from: u64::MAX, to: u64::MAX },
            send_until: 0,
            trackers: Vec::new(),
            topic_recoveries: Vec::new(),
            sequences: if plan.scenario.has_messages() { vec![0; plan.streams()] } else { Vec::new() },
            deliveries_by_publisher: vec![0; plan.publishers],
            publishers_with_deliveries: Vec::new(),
            pending: PendingCounts::default(),
        }
    }

    /// Adds the trackers of one receiver and returns the index of the first one.
    pub(crate) fn add_trackers(&mut self) -> usize {
        let at = self.trackers.len();
        self.trackers.resize_with(at + self.plan.streams_of_topic(), SequenceTracker::default);
        at
    }

    /// Adds the trackers of one returning client and returns the index of the first one.
    pub(crate) fn add_recovery_trackers(&mut self) -> usize {
        let at = self.trackers.len();
        let end = at + self.plan.topics_of_returning_client();
        self.trackers.resize_with(end, SequenceTracker::default);
        self.topic_recoveries.resize_with(end, TopicRecovery::default);
        at
    }

    /// Returns what a returning client knows of its topics, in the order of its topics.
    pub(crate) fn topic_recoveries(&mut self, first: usize) -> &mut [TopicRecovery] {
        let end = first + self.plan.topics_of_returning_client();
        self.topic_recoveries.get_mut(first..end).unwrap_or_default()
    }

    /// Returns the summaries of a returning client's streams. Messages that the server told it does
    /// not send count as received.
    pub(crate) fn recovery_summaries(&self, receiver: Receiver) -> impl Iterator<Item = ReceiverStream> {
        let at = receiver.first_tracker..;
        let trackers = self.trackers.get(at.clone()).unwrap_or_default();
        let recoveries = self.topic_recoveries.get(at).unwrap_or_default();
        let streams = self.plan.topics_from(receiver.topic);
        streams.zip(trackers.iter().zip(recoveries)).map(move |(stream, (tracker, recovery))| {
            let mut summary = tracker.summary();
            summary.received += recovery.told();
            ReceiverStream { stream, summary, end: recovery.end(tracker) }
        })
    }

    /// Records a message that arrived at a returning client. Returns `true` if it belongs to the
    /// replay.
    #[inline]
    pub(crate) fn record_recoverable(&mut self, receiver: Receiver, stamp: Stamp, message: &[u8]) -> bool {
        let topics = self.plan.topics as u32;
        // The topics of a client are consecutive, and each topic has one stream.
        let offset = (stamp.stream + topics).saturating_sub(receiver.topic) % topics;
        let is_own = stamp.stream < topics && (offset as usize) < self.plan.topics_of_returning_client();
        let at = receiver.first_tracker + offset as usize;
        let (true, Some(tracker), Some(recovery)) =
            (is_own, self.trackers.get_mut(at), self.topic_recoveries.get_mut(at))
        else {
            self.counters.misdelivered += 1;
            return false;
        };
        let (is_replayed, skipped) = recovery.on_message(stamp.sequence, tracker, position_in(message));
        let is_new = tracker.record(stamp.sequence) != Arrival::Duplicate;
        self.pending.delivered += u64::from(is_new);
        self.counters.recovery.replayed += u64::from(is_replayed);
        self.skip(skipped);
        is_replayed
    }

    /// Counts messages that the server told it does not send, and stops waiting for them.
    pub(crate) fn skip(&mut self, messages: u64) {
        if messages > 0 {
            self.counters.recovery.skipped += messages;
            self.cancel_expected(messages);
        }
    }

    /// Returns the trackers of a receiver of `topic` with their streams, starting at index `first`.
    pub(crate) fn trackers(&self, first: usize, topic: u32) -> impl Iterator<Item = (u32, &SequenceTracker)> {
        let plan = self.plan;
        let streams = match plan.scenario {
            // Each echo connection has its own stream, with the connection's number.
            Scenario::Echo => topic..topic + 1,
            _ => 0..plan.streams() as u32,
        };
        let step = if plan.scenario == Scenario::Echo { 1 } else { plan.topics };
        let first_stream = if plan.scenario == Scenario::Echo { 0 } else { topic as usize };
        let trackers = self.trackers.get(first..).unwrap_or_default();
        streams.skip(first_stream).step_by(step).zip(trackers).take(plan.streams_of_topic())
    }

    /// Appends a message to the output and counts it.
    #[inline]
    pub(crate) fn write_message(&mut self, stream: u32, topic: u32, time: u64, now: u64, deliveries: u64) {
        let Some(next) = self.sequences.get_mut(stream as usize) else { return };
        let stamp = Stamp { stream, sequence: *next, time };
        *next += 1;
        self.encoder.write(&mut self.output, topic, stamp);
        self.pending.sent += 1;
        self.pending.expected += deliveries;
        self.counters.sent += 1;
        self.counters.sent_measured += u64::from(self.window.contains(now));
    }

    /// Records a message that arrived.
    #[inline]
    pub(crate) fn record_delivery(&mut self, receiver: Receiver, stamp: Stamp, now: u64) {
        let publishers = self.plan.publishers as u32;
        let publisher = match receiver.role {
            Role::Echo => None,
            _ => stamp.stream.checked_rem(publishers),
        };
        let Some(offset) = self.tracker_offset(receiver, stamp.stream) else {
            self.counters.misdelivered += 1;
            return;
        };
        let Some(tracker) = self.trackers.get_mut(receiver.first_tracker + offset) else { return };
        if tracker.record(stamp.sequence) == Arrival::Duplicate {
            return;
        }
        if receiver.role == Role::SlowReader {
            self.counters.slow_received += 1;
            return;
        }
        self.pending.delivered += 1;
        if self.window.contains(stamp.time) {
            self.counters.latency.record(now.saturating_sub(stamp.time));
        }
        if let Some(publisher) = publisher
            && let Some(deliveries) = self.deliveries_by_publisher.get_mut(publisher as usize)
        {
            if *deliveries == 0 {
                self.publishers_with_deliveries.push(publisher);
            }
            *deliveries += 1;
        }
    }

    /// Returns the index of a stream among the receiver's trackers, or `None` if the stream goes to
    /// another topic.
    #[inline]
    fn tracker_offset(&self, receiver: Receiver, stream: u32) -> Option<usize> {
        if receiver.role == Role::Echo {
            return (stream == receiver.topic).then_some(0);
        }
        let topics = self.plan.topics as u32;
        let (slot, topic) = if topics == 1 { (stream, 0) } else { (stream / topics, stream % topics) };
        (topic == receiver.topic && (stream as usize) < self.plan.streams()).then_some(slot as usize)
    }

    /// Counts the deliveries of one read, which are those since `delivered_before`. In the measured
    /// time, also adds them and the bytes of the read to the rates.
    #[inline]
    pub(crate) fn count_read(&mut self, bytes: usize, delivered_before: u64, now: u64) {
        let delivered = self.pending.delivered - delivered_before;
        if delivered == 0 {
            return;
        }
        self.counters.delivered += delivered;
        self.counters.last_delivered = now;
        if self.window.contains(now) {
            self.counters.delivered_measured += delivered;
            self.counters.bytes_measured += bytes as u64;
        }
    }

    /// Returns the deliveries since the last [`Self::flush_counts`].
    #[inline]
    pub(crate) fn pending_deliveries(&self) -> u64 {
        self.pending.delivered
    }

    /// Stops waiting for the deliveries of a message that the server rejected.
    pub(crate) fn cancel_expected(&mut self, deliveries: u64) {
        // The shared count of expected deliveries only grows, so the missing ones count as
        // delivered.
        self.shared.delivered.fetch_add(deliveries, std::sync::atomic::Ordering::AcqRel);
    }

    /// Adds the pending counts to the shared state.
    pub(crate) fn flush_counts(&mut self) {
        use std::sync::atomic::Ordering::AcqRel;

        let PendingCounts { sent, expected, delivered } = std::mem::take(&mut self.pending);
        if sent > 0 {
            self.shared.sent.fetch_add(sent, AcqRel);
            self.shared.expected.fetch_add(expected, AcqRel);
        }
        if delivered > 0 {
            self.shared.delivered.fetch_add(delivered, AcqRel);
        }
        while let Some(publisher) = self.publishers_with_deliveries.pop() {
            if let Some(deliveries) = self.deliveries_by_publisher.get_mut(publisher as usize) {
                let deliveries = u64::from(std::mem::take(deliveries));
                self.shared.add_delivered(publisher as usize, deliveries, self.thread);
            }
        }
    }

    /// Returns the counters.
    pub(crate) fn into_counters(mut self) -> Counters {
        self.counters.sequences = std::mem::take(&mut self.sequences);
        self.counters
    }
}

/// The receiver of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Receiver {
    pub(crate) role: Role,
    /// Topic of the receiver; in `echo` its stream.
    pub(crate) topic: u32,
    /// Index of the first of its trackers.
    pub(crate) first_tracker: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    /// Returns the streams of a receiver's trackers, in order.
    fn streams(flags: &str, topic: u32) -> Vec<u32> {
        let plan = plan(flags);
        let (shared, handshake) = (SharedState::new(&plan), Handshake::new(&plan, ""));
        let mut state = ThreadState::new(&plan, &shared, &handshake, 0, 1);
        state.add_trackers();
        let at = state.add_trackers();
        let streams: Vec<_> = state.trackers(at, topic).map(|(stream, _)| stream).collect();
        let receiver = |topic| Receiver {
            role: if plan.scenario == Scenario::Echo { Role::Echo } else { Role::Subscriber },
            topic,
            first_tracker: at,
        };
        for (slot, stream) in streams.iter().enumerate() {
            assert_eq!(state.tracker_offset(receiver(topic), *stream), Some(slot));
            assert_eq!(state.tracker_offset(receiver(topic + 1), *stream), None);
        }
        assert_eq!(state.tracker_offset(receiver(topic), plan.streams() as u32 + topic), None);
        streams
    }

    #[test]
    fn a_receiver_has_a_tracker_for_each_stream_of_its_topic() {
        assert_eq!(streams("fanout --publishers 3", 0), [0, 1, 2]);
        assert_eq!(streams("topics --topics 10 --publishers 3", 7), [7]);
        assert_eq!(streams("topics --topics 2 --publishers 5", 0), [0, 2, 4]);
        assert_eq!(streams("topics --topics 2 --publishers 5", 1), [1, 3]);
        assert_eq!(streams("echo --connections 9", 4), [4]);
    }
}
