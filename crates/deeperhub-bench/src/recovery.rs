//! A client of `recover`: its positions by topic, and the counts of all returns.

use std::collections::BTreeMap;

use deeperhub_protocol::{Epoch, Position};
use memchr::memmem;
use serde::Deserialize;

use crate::counters::{DurationHistogram, count};
use crate::sequence_tracker::SequenceTracker;

/// One topic of a returning client. It outlives the client's connections.
#[derive(Debug, Default)]
pub(crate) struct TopicRecovery {
    /// Position of the last message, or the one that the server told.
    pub(crate) position: Option<Position>,
    /// Messages of the replay that have not arrived.
    replay_left: u64,
    /// Messages that the server told it does not send.
    told: u64,
    /// `true` if the next message tells how many were skipped: the server has moved the client to
    /// another position and said so.
    has_moved: bool,
}

impl TopicRecovery {
    /// Starts at the server's answer to a `subscribe`. Returns the number of messages to replay.
    pub(crate) fn start(&mut self, entry: &SubscribedEntry) -> u64 {
        self.position = entry.position.get();
        self.replay_left = entry.replay;
        self.has_moved |= entry.recovered == Some(false);
        entry.replay
    }

    /// Records a message. Returns `true` if it is one of the replay, and the number of messages
    /// before it that the server told it does not send.
    pub(crate) fn on_message(
        &mut self,
        sequence: u64,
        tracker: &SequenceTracker,
        position: Option<Position>,
    ) -> (bool, u64) {
        if position.is_some() {
            self.position = position;
        }
        let skipped = if self.has_moved { sequence.saturating_sub(tracker.next()) } else { 0 };
        self.has_moved = false;
        self.told += skipped;
        let is_replayed = self.replay_left > 0;
        self.replay_left = self.replay_left.saturating_sub(1);
        (is_replayed, skipped)
    }

    /// Records a `gap` or a `position` of the server. Returns the number of messages that it covers.
    pub(crate) fn on_gap(&mut self, gap: &ToldGap) -> u64 {
        let position = gap.position.get();
        let skipped = match (gap.from, position) {
            (Some(from), Some(position)) => (position.offset + 1).saturating_sub(from),
            _ => 0,
        };
        // Without a first offset, a new epoch has begun. The next message tells what was skipped.
        self.has_moved |= gap.reason.is_some() && gap.from.is_none();
        self.position = position.or(self.position);
        self.told += skipped;
        skipped
    }

    /// Returns the number of messages that the server told it does not send.
    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// Returns the sequence number from which no message is awaited: the server has moved the
    /// client to another position, and no message has followed.
    pub(crate) fn end(&self, tracker: &SequenceTracker) -> Option<u64> {
        self.has_moved.then(|| tracker.next())
    }
}

/// The keys of a position, which stand together or not at all.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct PositionKeys {
    epoch: Option<String>,
    offset: Option<u64>,
    time: Option<u64>,
}

impl PositionKeys {
    fn get(&self) -> Option<Position> {
        Some(Position {
            epoch: Epoch::parse(self.epoch.as_deref()?)?,
            offset: self.offset?,
            time: self.time?,
        })
    }
}

/// An entry of the `subscribed` with `topics`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct SubscribedEntry {
    #[serde(flatten)]
    pub(crate) position: PositionKeys,
    /// Missing if the client asked for no recovery.
    pub(crate) recovered: Option<bool>,
    pub(crate) reason: Option<String>,
    /// Messages that come before the live ones.
    #[serde(default)]
    pub(crate) replay: u64,
    pub(crate) error: Option<EntryError>,
}

impl SubscribedEntry {
    /// Returns `true` if the topic has a history.
    pub(crate) fn has_history(&self) -> bool {
        self.position.get().is_some()
    }
}

/// The error of one entry.
#[derive(Debug, Deserialize)]
pub(crate) struct EntryError {
    pub(crate) code: String,
}

/// The `data` of a `gap` or a `position`.
#[derive(Debug, Deserialize)]
pub(crate) struct ToldGap {
    pub(crate) topic: String,
    #[serde(flatten)]
    position: PositionKeys,
    /// First offset of the gap. Missing if a new epoch has begun, and in a `position`.
    from: Option<u64>,
    /// Missing in a `position`.
    pub(crate) reason: Option<String>,
}

/// A message of the server whose `data` has the type `D`.
#[derive(Debug, Deserialize)]
pub(crate) struct WithData<D> {
    pub(crate) data: D,
}

/// The `data` of a `subscribed` with `topics`.
#[derive(Debug, Deserialize)]
pub(crate) struct SubscribedList {
    pub(crate) topics: Vec<SubscribedEntry>,
}

/// Returns the position in a delivery. The keys of the position stand at its end, after the payload.
pub(crate) fn position_in(message: &[u8]) -> Option<Position> {
    let start = memmem::rfind(message, br#","time":"#)?;
    let (time, rest) = split_number(message.get(start + br#","time":"#.len()..)?)?;
    let rest = rest.strip_prefix(br#","epoch":""#)?;
    let (epoch, rest) = rest.split_at_checked(Epoch::BYTES)?;
    let (offset, _) = split_number(rest.strip_prefix(br#"","offset":"#)?)?;
    Some(Position { epoch: Epoch::parse(std::str::from_utf8(epoch).ok()?)?, offset, time })
}

fn split_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

/// Counts of the clients that return, of one thread or of all.
#[derive(Debug, Default)]
pub(crate) struct RecoveryCounters {
    /// Clients that were subscribed again.
    pub(crate) returned: u64,
    /// Clients that got all messages that were kept when they subscribed again.
    pub(crate) live: u64,
    /// Clients that the server or the network closed after they had opened.
    pub(crate) ended: u64,
    /// Subscriptions whose position was good.
    pub(crate) recovered: u64,
    /// Subscriptions whose position was not good, by reason.
    pub(crate) not_recovered: BTreeMap<String, u64>,
    /// Messages of replays.
    pub(crate) replayed: u64,
    /// Gaps that the server told.
    pub(crate) gaps: u64,
    /// Messages in gaps, and between a position that was not good and the next message.
    pub(crate) skipped: u64,
    /// Time from the due time of a return until the client is live.
    pub(crate) live_times: DurationHistogram,
}

impl RecoveryCounters {
    /// Counts the answer to one subscription of a client that returns.
    pub(crate) fn count_answer(&mut self, entry: &SubscribedEntry) {
        match entry.recovered {
            Some(true) => self.recovered += 1,
            Some(false) => {
                count(&mut self.not_recovered, entry.reason.as_deref().unwrap_or("without_reason"), 1);
            }
            None => count(&mut self.not_recovered, "not_answered", 1),
        }
    }

    /// Adds the counts of another thread.
    pub(crate) fn add(&mut self, other: &Self) {
        // Destructured without `..`, so that the compiler reports a field that is missing here.
        let Self { returned, live, ended, recovered, not_recovered, replayed, gaps, skipped, live_times } =
            other;
        self.returned += returned;
        self.live += live;
        self.ended += ended;
        self.recovered += recovered;
        self.replayed += replayed;
        self.gaps += gaps;
        self.skipped += skipped;
        self.live_times.add(live_times);
        for (reason, n) in not_recovered {
            count(&mut self.not_recovered, reason, *n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(offset: u64) -> Position {
        Position { epoch: Epoch::from_bits(7), offset, time: 1000 + offset }
    }

    fn entry(json: &str) -> SubscribedEntry {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_position_of_a_delivery_is_found() {
        let with = |rest: &str| {
            let text = format!(
                r#"{{"type":"message","data":{{"topic":"t","message":"x","from":"n-1","time":1005,"epoch":"00000007",{rest}"#
            );
            position_in(text.as_bytes())
        };
        assert_eq!(with(r#""offset":5}}"#), Some(position(5)));
        assert_eq!(with(r#""offset":5,"prev":2}}"#), Some(position(5)));
        assert_eq!(with(r#""offset":}}"#), None);
        assert_eq!(position_in(br#"{"type":"message","data":{"topic":"t","message":"x"}}"#), None);
    }

    #[test]
    fn a_recovered_topic_counts_its_replay() {
        let (mut topic, mut tracker) = (TopicRecovery::default(), SequenceTracker::default());
        let answer = r#"{"topic":"t","time":1,"epoch":"00000007","offset":41,"recovered":true,"replay":2}"#;
        assert_eq!(topic.start(&entry(answer)), 2);
        assert_eq!(topic.position, Some(Position { time: 1, ..position(41) }));
        let mut receive = |sequence| {
            let received = topic.on_message(sequence, &tracker, Some(position(sequence + 42)));
            tracker.record(sequence);
            received
        };
        assert_eq!([receive(0), receive(1), receive(2)], [(true, 0), (true, 0), (false, 0)]);
        assert_eq!((topic.position, topic.told(), topic.end(&tracker)), (Some(position(44)), 0, None));
    }

    #[test]
    fn messages_between_a_bad_position_and_the_next_message_are_told() {
        let (mut topic, mut tracker) = (TopicRecovery::default(), SequenceTracker::default());
        tracker.record(0);
        let answer = entry(
            r#"{"topic":"t","time":1,"epoch":"00000007","offset":9,"recovered":false,"reason":"trimmed"}"#,
        );
        assert_eq!((topic.start(&answer), topic.told(), topic.end(&tracker)), (0, 0, Some(1)));
        assert_eq!(topic.on_message(6, &tracker, None), (false, 5));
        tracker.record(6);
        assert_eq!((topic.told(), topic.end(&tracker)), (5, None));

        let mut counters = RecoveryCounters::default();
        counters.count_answer(&answer);
        let mut all = RecoveryCounters::default();
        all.add(&counters);
        all.add(&counters);
        assert_eq!(all.not_recovered, BTreeMap::from([("trimmed".to_owned(), 2)]));
    }

    #[test]
    fn gaps_move_the_position() {
        let (mut topic, tracker) = (TopicRecovery::default(), SequenceTracker::default());
        let gap = |json: &str| serde_json::from_str::<ToldGap>(json).unwrap();
        let trimmed =
            r#"{"topic":"t","time":1057,"epoch":"00000007","from":43,"offset":57,"reason":"trimmed"}"#;
        assert_eq!((topic.on_gap(&gap(trimmed)), topic.position), (15, Some(position(57))));
        let quiet = r#"{"topic":"t","time":1060,"epoch":"00000007","offset":60}"#;
        assert_eq!((topic.on_gap(&gap(quiet)), topic.position), (0, Some(position(60))));
        assert_eq!((topic.told(), topic.end(&tracker)), (15, None));
        let cleared = r#"{"topic":"t","time":1000,"epoch":"00000008","offset":0,"reason":"epoch"}"#;
        assert_eq!((topic.on_gap(&gap(cleared)), topic.told(), topic.end(&tracker)), (0, 15, Some(0)));
    }

    #[test]
    fn topics_without_history_have_no_position() {
        assert!(!entry(r#"{"topic":"t"}"#).has_history());
        assert!(entry(r#"{"topic":"t","time":1,"epoch":"00000007","offset":0}"#).has_history());
        let refused = entry(r#"{"topic":"t","error":{"code":"forbidden","message":"no"}}"#);
        assert_eq!(refused.error.map(|error| error.code).as_deref(), Some("forbidden"));
    }
}
