//! Recognizes copies of messages that the store sent.

use deeperhub_cluster::StorePosition;

/// Topics that are remembered. Copies of a message come right after one another.
const SLOTS: usize = 2048;

/// The newest positions of the topics that had messages last.
///
/// Several subscriptions of a node at its broker can match one message, for example those for two
/// patterns. The mirror of a topic drops copies itself, but a topic that only patterns follow has
/// none.
#[derive(Debug)]
pub(super) struct RecentPositions(Box<[Slot]>);

#[derive(Debug, Clone, Copy)]
struct Slot {
    topic: u64,
    position: StorePosition,
}

impl RecentPositions {
    pub(super) fn new() -> Self {
        let empty = Slot { topic: 0, position: StorePosition { epoch: 0, offset: 0 } };
        Self(vec![empty; SLOTS].into())
    }

    /// Returns `true` if a message is no copy of an earlier one. `topic` is the hash of its topic.
    pub(super) fn is_new(&mut self, topic: u64, position: StorePosition) -> bool {
        let Some(slot) = self.0.get_mut(topic as usize % SLOTS) else { return true };
        let is_copy = slot.topic == topic
            && slot.position.epoch == position.epoch
            && slot.position.offset >= position.offset;
        if !is_copy {
            *slot = Slot { topic, position };
        }
        !is_copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_topic_are_recognized() {
        let mut recent = RecentPositions::new();
        let position = |epoch, offset| StorePosition { epoch, offset };
        for (topic, epoch, offset, is_new) in [
            (5, 1, 1, true),
            (5, 1, 1, false),
            (6, 1, 1, true),
            (5, 1, 2, true),
            (5, 1, 1, false),
            // Another stream of the topic.
            (5, 2, 1, true),
            (5, 2, 1, false),
            // Another topic in the same place.
            (5 + SLOTS as u64, 2, 1, true),
            (5, 2, 1, true),
        ] {
            assert_eq!(recent.is_new(topic, position(epoch, offset)), is_new, "{topic} {epoch} {offset}");
        }
    }
}
