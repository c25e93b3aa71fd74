//! The logs that applications compare their events with.

use std::collections::BTreeSet;

use deeperhub_client::Position;

/// Number of an epoch, and an offset in it. Later epochs have larger numbers.
pub(in super::super) type Place = (u64, u64);

/// The messages of a topic, as they were published.
pub(in super::super) trait Log {
    /// Returns the place of a position that a client was told.
    fn place(&self, position: &Position) -> Result<Place, String>;

    /// Notes that a client was told a place.
    fn note_told(&mut self, _place: Place) {}

    /// Returns `true` if the message with a number was at a place.
    fn has(&self, place: Place, number: u64) -> bool;

    /// Returns `true` if offsets of an epoch were given twice, because a store has lost messages.
    fn is_forked(&self, _epoch: u64) -> bool {
        false
    }

    /// Returns `true` if a message was published twice in an epoch.
    fn is_repeated(&self, _epoch: u64, _number: u64) -> bool {
        false
    }

    /// Returns the last offset at which a gap of an epoch can end, if there is one.
    fn last_of_gap(&self, epoch: u64) -> Option<u64>;

    /// Returns `true` if no position of an epoch may be refused.
    fn has_only_good_positions(&self, _epoch: u64) -> bool {
        // A gap that joins several has the reason of the first one, so that the reason tells nothing.
        false
    }

    /// Returns the first message after a place and before an offset that is no own one.
    fn first_between(&self, after: Place, until: u64, own: &BTreeSet<u64>) -> Option<u64>;

    /// Returns the number of messages after a place and before an offset.
    fn count_between(&self, after: Place, until: u64) -> usize;

    /// Returns `true` if the topic has no history now, or had none lately.
    fn may_lack_positions(&self) -> bool;

    /// Returns `true` if messages without a position keep the order of their publisher.
    fn keeps_order_without_history(&self) -> bool;

    /// Returns `true` if a client whose topic is not lossless knows the newest position in the end.
    fn tells_newest_position(&self) -> bool;
}
