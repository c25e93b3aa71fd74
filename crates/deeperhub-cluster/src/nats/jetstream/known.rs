//! Knowledge of a node about the streams of JetStream.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::names::parse_stream;
use crate::store::StorePosition;

/// Knowledge about each rule's stream. It outlives connections, so that a stream that lost
/// messages meanwhile is noticed.
#[derive(Debug, Default)]
pub(crate) struct Known {
    inner: Mutex<HashMap<Box<str>, RuleStream>>,
    links: AtomicU64,
    /// Running servers that have proved that they keep streams.
    proved: Mutex<Vec<String>>,
}

/// Knowledge about the stream of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RuleStream {
    /// Epoch of the stream; 0 if none is known.
    pub(crate) epoch: u64,
    /// The highest sequence that the node has seen.
    pub(crate) highest: u64,
    /// Sequence and time of the newest message that the node has got or looked at. They identify it.
    pub(crate) last: Option<(u64, MessageTime)>,
    /// Sequence and identity of the newest message that the node has appended. Its time is not told.
    pub(crate) last_append: Option<(u64, Box<str>)>,
    /// Marks of cleared topics: the epoch of the topic, and the sequence after which it holds.
    pub(crate) marks: HashMap<Box<str>, Mark>,
    /// Number of the connection for which the stream was compared with this; 0 for none.
    pub(crate) checked_for: u64,
    /// Messages of a topic and their age in milliseconds, as the rule wanted them at that time.
    pub(crate) wanted: (u64, u64),
    /// Newest sequence and time of the last look at positions, for streams with replicas.
    pub(crate) last_look: Option<(u64, u64)>,
}

/// The time of a message, as the server writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageTime([u8; 32]);

impl MessageTime {
    pub(crate) fn new(text: &str) -> Self {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        Self(bytes)
    }

    /// Returns the time as the server wrote it.
    pub(crate) fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

/// The last clearing of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) epoch: u64,
    /// Sequence of the mark, or of the message that told it.
    pub(crate) after: u64,
}

impl RuleStream {
    /// Returns the epoch of a topic, and the sequence after which it holds.
    pub(crate) fn epoch_of(&self, topic: &str) -> (u64, u64) {
        match self.marks.get(topic) {
            Some(mark) if mark.epoch > self.epoch => (mark.epoch, mark.after),
            _ => (self.epoch, 0),
        }
    }

    /// Returns the sequence of a topic's message before another one; 0 if that was before the topic's
    /// epoch.
    pub(crate) fn previous(&self, topic: &str, sequence: u64) -> u64 {
        if sequence > self.epoch_of(topic).1 { sequence } else { 0 }
    }

    /// Returns the position of a topic's message in the stream.
    pub(crate) fn position(&self, topic: &str, sequence: u64) -> StorePosition {
        let (epoch, after) = self.epoch_of(topic);
        let epoch = if sequence > after { epoch } else { self.epoch };
        StorePosition { epoch, offset: sequence }
    }

    /// Notes a sequence of the stream.
    pub(crate) fn see(&mut self, sequence: u64) {
        self.highest = self.highest.max(sequence);
    }

    /// Notes a message that the server sent.
    pub(crate) fn see_message(&mut self, sequence: u64, time: MessageTime) {
        self.see(sequence);
        if self.last.as_ref().is_none_or(|(last, _)| *last < sequence) {
            self.last = Some((sequence, time));
        }
    }

    /// Notes a message that the stream took from this node.
    pub(crate) fn see_append(&mut self, sequence: u64, identity: &str) {
        self.see(sequence);
        if self.last_append.as_ref().is_none_or(|(last, _)| *last < sequence) {
            self.last_append = Some((sequence, identity.into()));
        }
    }

    /// Notes a live message of a connection. A stream that was not compared on this connection may
    /// have lost messages. A message that it gives in their place must not hide this.
    pub(crate) fn see_live(&mut self, sequence: u64, time: &str, link: u64) {
        if self.checked_for != link {
            return;
        }
        // A mark that the clearing node tells has no time of the server.
        if time.is_empty() {
            self.see(sequence);
        } else {
            self.see_message(sequence, MessageTime::new(time));
        }
    }

    /// Notes a mark, or the message that told it to followers, if it is later than what is known.
    pub(crate) fn see_mark(&mut self, topic: &str, mark: Mark) {
        match self.marks.get_mut(topic) {
            Some(known) if (known.epoch, known.after) >= (mark.epoch, mark.after) => {}
            Some(known) => *known = mark,
            None => drop(self.marks.insert(topic.into(), mark)),
        }
    }

    /// Notes that the rule has a stream of another epoch.
    pub(crate) fn begin(&mut self, epoch: u64) {
        *self = Self { epoch, ..Self::default() };
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, RuleStream>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of the present connection to the broker; 0 before the first one.
    pub(crate) fn link(&self) -> u64 {
        self.links.load(Ordering::Relaxed)
    }

    /// Returns the number of a new connection to the broker, from 1 on.
    pub(crate) fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Lets the next use of each stream compare it again. A new connection may lead to a server that has
    /// lost messages, also if the node's other connections go on.
    pub(crate) fn forget_checks(&self) {
        self.lock().values_mut().for_each(|stream| stream.checked_for = 0);
    }

    /// Returns `true` if a running server has proved that it keeps streams.
    pub(crate) fn is_proved(&self, server: &str) -> bool {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == server)
    }

    /// Notes that a running server has proved that it keeps streams.
    pub(crate) fn prove(&self, server: String) {
        let mut proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        if proved.len() >= MAX_PROVED {
            proved.remove(0);
        }
        proved.push(server);
    }

    /// Calls `change` with what is known of the stream of a rule.
    pub(crate) fn with<R>(&self, token: &str, change: impl FnOnce(&mut RuleStream) -> R) -> R {
        let mut inner = self.lock();
        if !inner.contains_key(token) {
            inner.insert(token.into(), RuleStream::default());
        }
        change(inner.entry(token.into()).or_default())
    }

    /// Returns the largest known epoch of a rule: of its stream, or of a cleared topic.
    pub(crate) fn largest_epoch(&self, token: &str) -> u64 {
        self.with(token, |known| known.marks.values().map(|mark| mark.epoch).fold(known.epoch, u64::max))
    }

    /// Calls `change` with the stream that the server named. Returns `None` if the name is not one
    /// of this hub's streams, or that of an older stream of its rule. If it is later, it replaces
    /// the known one.
    pub(crate) fn with_stream<R>(
        &self,
        prefix: &str,
        stream: &str,
        change: impl FnOnce(&mut RuleStream) -> R,
    ) -> Option<R> {
        let (token, epoch) = parse_stream(prefix, stream)?;
        let mut inner = self.lock();
        if !inner.contains_key(token) {
            // Only rules of this node and its peers have streams, so there are few.
            if inner.len() >= MAX_STREAMS {
                return None;
            }
            inner.insert(token.into(), RuleStream::default());
        }
        let known = inner.get_mut(token)?;
        if known.epoch > epoch {
            return None;
        }
        if known.epoch < epoch {
            known.begin(epoch);
        }
        Some(change(known))
    }
}

/// Maximum number of servers that are remembered as proved.
const MAX_PROVED: usize = 16;

/// Maximum number of streams that are remembered.
const MAX_STREAMS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_stream_replaces_what_is_known() {
        let known = Known::default();
        let see = |stream: &str, sequence| {
            known.with_stream("hub", stream, |stream| {
                stream.see(sequence);
                (stream.epoch, stream.highest)
            })
        };
        assert_eq!(see("hub_h_a-1_100", 5), Some((100, 5)));
        assert_eq!(see("hub_h_a-1_100", 3), Some((100, 5)));
        assert_eq!(see("hub_h_a-1_101", 2), Some((101, 2)));
        assert_eq!(see("hub_h_a-1_100", 9), None);
        assert_eq!(see("hub_h_b-1_7", 9), Some((7, 9)));
        assert_eq!(see("other_h_a-1_200", 9), None);
        assert_eq!(known.with("a-1", |stream| stream.highest), 2);
    }

    #[test]
    fn a_mark_gives_later_messages_of_its_topic_an_epoch() {
        let mut stream = RuleStream { epoch: 100, ..RuleStream::default() };
        stream.see_mark("t", Mark { epoch: 150, after: 10 });
        stream.see_mark("t", Mark { epoch: 140, after: 12 });
        let position = |topic, sequence| stream.position(topic, sequence);
        assert_eq!(position("t", 11), StorePosition { epoch: 150, offset: 11 });
        assert_eq!(position("t", 10), StorePosition { epoch: 100, offset: 10 });
        assert_eq!(position("u", 11), StorePosition { epoch: 100, offset: 11 });
        assert_eq!((stream.previous("t", 10), stream.previous("t", 11), stream.previous("u", 5)), (0, 11, 5));
        assert_eq!(stream.highest, 0);
    }

    #[test]
    fn live_messages_count_after_the_stream_was_compared() {
        let mut stream = RuleStream { epoch: 100, checked_for: 1, ..RuleStream::default() };
        stream.see_live(5, "a", 1);
        // On the next connection, the server may have lost messages.
        stream.see_live(9, "b", 2);
        assert_eq!((stream.highest, stream.last), (5, Some((5, MessageTime::new("a")))));
        stream.checked_for = 2;
        stream.see_live(9, "b", 2);
        assert_eq!((stream.highest, stream.last), (9, Some((9, MessageTime::new("b")))));
    }
}
