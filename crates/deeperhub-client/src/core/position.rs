//! The position of a subscription, and what a delivery means for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::wire::Delivery;
use crate::{Gap, Message, Position};

/// Number of own messages that are remembered until the position has passed them.
const MAX_OWN: usize = 4096;

/// A delivery, a `gap` or a `position`.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Message { message: Message, prev: Option<u64> },
    Gap(Gap),
    Position(Position),
}

impl Item {
    /// Returns the offset before a message, as sent to the topic's subscribers.
    pub(super) fn before(message: &Message, prev: Option<u64>) -> u64 {
        prev.unwrap_or_else(|| {
            message.position.as_ref().map_or(0, |position| position.offset.saturating_sub(1))
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.bytes,
            Self::Gap(_) | Self::Position(_) => 64,
        }
    }
}

/// The meaning of an item for a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The item is next.
    Next,
    /// The item, or a later one, was received before.
    Duplicate,
    /// The item is this client's own message, which excludes its publisher.
    Own,
    /// Items before this one are missing.
    Hole,
}

/// The position up to which a subscription has received messages.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// `None` for a topic without history, and for a pattern.
    pub(super) position: Option<Position>,
    /// Own messages that exclude their publisher, with their times. They fill holes.
    own: BTreeMap<(Arc<str>, u64), u64>,
    /// Items that wait for the answer to an own publish, which may fill the hole before them.
    held: VecDeque<Item>,
    held_bytes: usize,
    /// Items were dropped instead of held.
    overflowed: bool,
}

impl Chain {
    /// Judges an item. It does not move the position.
    pub(super) fn judge(&self, item: &Item) -> Verdict {
        let (position, before) = match item {
            Item::Message { message, prev } => match &message.position {
                Some(position) => (position, Item::before(message, *prev)),
                None => return Verdict::Next,
            },
            Item::Gap(gap) => match (&gap.position, gap.from) {
                // A new epoch has no first missing offset.
                (Some(position), Some(from)) => (position, from.saturating_sub(1)),
                _ => return Verdict::Next,
            },
            Item::Position(position) => {
                // The answers to own publishes can have moved the position further.
                let is_passed = self.position.as_ref().is_some_and(|at| at.covers(position));
                return if is_passed { Verdict::Duplicate } else { Verdict::Next };
            }
        };
        let Some(at) = &self.position else { return Verdict::Next };
        if matches!(item, Item::Message { .. }) && before <= at.offset && self.is_own(position) {
            return Verdict::Own;
        }
        if position.epoch != at.epoch {
            Verdict::Hole
        } else if position.offset <= at.offset {
            Verdict::Duplicate
        } else if before > at.offset {
            Verdict::Hole
        } else {
            Verdict::Next
        }
    }

    fn is_own(&self, position: &Position) -> bool {
        !self.own.is_empty() && self.own.contains_key(&(Arc::clone(&position.epoch), position.offset))
    }

    /// Remembers the position of an own message that excludes its publisher.
    pub(super) fn add_own(&mut self, position: &Position) {
        self.own.insert((Arc::clone(&position.epoch), position.offset), position.time);
        if self.own.len() > MAX_OWN {
            self.own.pop_first();
        }
    }

    /// Returns `true` if the next message is an own one.
    pub(super) fn is_before_own(&self) -> bool {
        let next = |at: &Position| (Arc::clone(&at.epoch), at.offset + 1);
        !self.own.is_empty() && self.position.as_ref().is_some_and(|at| self.own.contains_key(&next(at)))
    }

    /// Moves the position over own messages that come next.
    pub(super) fn skip_own(&mut self) {
        let Some(position) = &mut self.position else { return };
        while let Some(&time) = self.own.get(&(Arc::clone(&position.epoch), position.offset + 1)) {
            (position.offset, position.time) = (position.offset + 1, time);
        }
    }

    /// Forgets own messages up to `oldest`, the lowest position from which messages may come again.
    pub(super) fn forget_own(&mut self, oldest: &Position) {
        if !self.own.is_empty() {
            self.own.retain(|(epoch, offset), _| *epoch != oldest.epoch || *offset > oldest.offset);
        }
    }

    /// Holds an item back. Drops all held items if they have more than `max_bytes`.
    pub(super) fn hold(&mut self, item: Item, max_bytes: usize) {
        self.held_bytes += item.bytes();
        if self.overflowed || self.held_bytes > max_bytes {
            self.overflowed = true;
            self.held.clear();
        } else {
            self.held.push_back(item);
        }
    }

    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty() || self.overflowed
    }

    /// Takes what was held back. The second value is `true` if items were dropped.
    pub(super) fn release(&mut self) -> (VecDeque<Item>, bool) {
        self.held_bytes = 0;
        (std::mem::take(&mut self.held), std::mem::take(&mut self.overflowed))
    }
}

/// Returns the item of a `message`, `gap` or `position`.
pub(super) fn item_of(
    kind: &str,
    data: &Delivery<'_>,
    topic: &Arc<str>,
    near: Option<&Position>,
    bytes: usize,
) -> Option<Item> {
    match kind {
        "message" => Some(Item::Message { message: data.to_message(topic, near, bytes)?, prev: data.prev }),
        "gap" => {
            let position = data.position(near);
            Some(Item::Gap(Gap {
                topic: Arc::clone(topic),
                from: data.first_missing(),
                to: data.to.filter(|_| data.first_missing().is_some()),
                reason: data.reason.as_deref().unwrap_or("lost").into(),
                position,
            }))
        }
        _ => data.position(near).map(Item::Position),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    fn at(epoch: &str, offset: u64) -> Position {
        Position { epoch: epoch.into(), offset, time: 1 }
    }

    fn message(position: Option<Position>, prev: Option<u64>) -> Item {
        let payload = Arc::from(RawValue::from_string("1".to_owned()).expect("it is JSON"));
        let message = Message { topic: "t".into(), from: None, position, payload, bytes: 10 };
        Item::Message { message, prev }
    }

    fn chain(offset: u64) -> Chain {
        Chain { position: Some(at("a", offset)), ..Chain::default() }
    }

    #[test]
    fn one_comparison_tells_duplicates_and_holes() {
        for (offset, prev, verdict) in [
            (5, None, Verdict::Duplicate),
            (4, None, Verdict::Duplicate),
            (6, None, Verdict::Next),
            (7, None, Verdict::Hole),
            (9, Some(5), Verdict::Next),
            (9, Some(3), Verdict::Next),
            (9, Some(6), Verdict::Hole),
        ] {
            let item = message(Some(at("a", offset)), prev);
            assert_eq!(chain(5).judge(&item), verdict, "{offset} after {prev:?}");
        }
        assert_eq!(chain(5).judge(&message(Some(at("b", 6)), None)), Verdict::Hole);
        assert_eq!(chain(5).judge(&message(None, None)), Verdict::Next);
        assert_eq!(Chain::default().judge(&message(Some(at("b", 6)), None)), Verdict::Next);
    }

    #[test]
    fn own_messages_fill_holes_and_are_dropped() {
        let mut chain = chain(5);
        chain.add_own(&at("a", 7));
        assert_eq!(chain.judge(&message(Some(at("a", 8)), None)), Verdict::Hole);
        chain.add_own(&at("a", 6));
        chain.skip_own();
        assert_eq!(chain.position, Some(at("a", 7)));
        assert_eq!(chain.judge(&message(Some(at("a", 8)), None)), Verdict::Next);
        chain.add_own(&at("a", 9));
        assert_eq!(chain.judge(&message(Some(at("a", 9)), Some(7))), Verdict::Own);
        chain.forget_own(&at("a", 9));
        assert_eq!(chain.judge(&message(Some(at("a", 9)), Some(7))), Verdict::Next);
    }

    #[test]
    fn a_position_never_leads_back_in_its_epoch() {
        for (position, verdict) in [
            (at("a", 4), Verdict::Duplicate),
            (at("a", 5), Verdict::Duplicate),
            (at("a", 9), Verdict::Next),
            (at("b", 4), Verdict::Next),
        ] {
            assert_eq!(chain(5).judge(&Item::Position(position.clone())), verdict, "{position:?}");
        }
    }

    #[test]
    fn held_items_are_bounded() {
        let mut chain = chain(5);
        for offset in 7..9 {
            chain.hold(message(Some(at("a", offset)), None), 20);
        }
        assert_eq!(chain.release().0.len(), 2);
        for offset in 7..100 {
            chain.hold(message(Some(at("a", offset)), None), 20);
        }
        let (held, overflowed) = chain.release();
        assert!(held.is_empty() && overflowed && !chain.is_holding());
    }
}
