//! Handles: what one caller of `subscribe` gets of a subscription.

use std::sync::Arc;
use std::time::Duration;

use super::queue::EventQueue;
use crate::{Gap, Message, Position, SubscriptionState};

/// Identifies a handle of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(pub(super) u64);

/// A message or a gap that waits for kept messages.
#[derive(Debug)]
enum Pending {
    Message {
        message: Message,
        /// The offset before it.
        before: u64,
    },
    Gap {
        gap: Gap,
        /// The epoch before it.
        epoch: Option<Arc<str>>,
    },
    /// Own messages after the offset `before` are skipped.
    Skipped { position: Position, before: u64 },
}

/// Kept messages that a handle reads before it gets live ones.
#[derive(Debug, Default)]
pub(super) struct Joining {
    /// The request that is on its way.
    pub(super) request: Option<u64>,
    /// Time of the next attempt.
    pub(super) retry_at: Option<Duration>,
    /// Number of messages that are still wanted.
    pub(super) wanted: u32,
    /// Offset from which the next request reads; `None` for the first.
    pub(super) next: Option<u64>,
    /// Live messages and gaps since the handle joined.
    pending: Vec<Pending>,
    pending_bytes: usize,
    overflowed: bool,
}

impl Joining {
    pub(super) fn new(wanted: u32) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Appends what waits. After more than `max_bytes`, everything is dropped, and asked for again
    /// when there is room.
    fn push(&mut self, pending: Pending, max_bytes: usize) {
        self.pending_bytes += match &pending {
            Pending::Message { message, .. } => message.bytes,
            Pending::Gap { .. } | Pending::Skipped { .. } => 64,
        };
        self.overflowed |= self.pending_bytes > max_bytes;
        if !self.overflowed {
            self.pending.push(pending);
        }
    }
}

/// The answer of the server to a `subscribe` with a position.
pub(super) struct Outcome<'a> {
    pub(super) topic: &'a Arc<str>,
    pub(super) asked: Option<&'a Position>,
    /// The reason why messages were missed.
    pub(super) missed: Option<&'a Arc<str>>,
    /// The position before the messages that follow.
    pub(super) position: Option<&'a Position>,
}

/// A handle with its queue and its position.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) id: HandleId,
    topic: Arc<str>,
    pub(super) queue: EventQueue,
    /// Position of the last event in the queue.
    pub(super) position: Option<Position>,
    /// Number of messages that the application asked for.
    pub(super) history: u32,
    /// Number of replayed messages that another handle asked for.
    pub(super) skip: u64,
    pub(super) joining: Option<Joining>,
    /// The next message may show that messages before it were not kept.
    has_joined: bool,
    /// The queue was full, so messages after `position` are dropped until it has room.
    pub(super) full: bool,
    /// The first `subscribed` has come.
    pub(super) ready: bool,
    /// The application was told that events wait.
    pub(super) is_woken: bool,
    live: bool,
    recovered: Option<bool>,
    reason: Option<Arc<str>>,
    max_queue_bytes: usize,
}

impl Handle {
    pub(super) fn new(
        id: HandleId,
        topic: Arc<str>,
        history: u32,
        position: Option<Position>,
        max_queue_bytes: usize,
    ) -> Self {
        Self {
            id,
            topic,
            queue: EventQueue::new(max_queue_bytes),
            position,
            history,
            skip: 0,
            joining: None,
            has_joined: false,
            full: false,
            ready: false,
            is_woken: false,
            live: false,
            recovered: None,
            reason: None,
            max_queue_bytes,
        }
    }

    /// Appends a message that follows the handle's position. Drops it if the handle has it already,
    /// or if the queue is full. `before` is the offset before it.
    pub(super) fn receive(&mut self, message: &Message, before: u64) {
        if let Some(joining) = &mut self.joining {
            joining.push(Pending::Message { message: message.clone(), before }, self.max_queue_bytes);
            return;
        }
        let Some(position) = &message.position else {
            self.position = None;
            if !self.queue.push_message(message.clone()) {
                self.tell_dropped(&message.topic);
            }
            return;
        };
        // A new epoch comes with a gap, so a message of another one is older than the position.
        let is_duplicate =
            self.position.as_ref().is_some_and(|at| at.epoch != position.epoch || at.covers(position));
        if self.full || is_duplicate {
            return;
        }
        if std::mem::take(&mut self.has_joined) {
            self.tell_trimmed(&Position { offset: before, ..position.clone() });
        }
        if self.skip > 0 {
            self.skip -= 1;
        } else if !self.queue.push_message(message.clone()) {
            // A handle without a position cannot recover what is dropped.
            match self.position {
                Some(_) => self.full = true,
                None => self.tell_dropped(&message.topic),
            }
            return;
        }
        self.position = Some(position.clone());
    }

    /// Appends a message of a pattern, which cannot be recovered.
    pub(super) fn receive_by_pattern(&mut self, message: &Message) {
        if !self.queue.push_message(message.clone()) {
            self.tell_dropped(&message.topic);
        }
    }

    fn tell_dropped(&mut self, topic: &Arc<str>) {
        let topic = Arc::clone(topic);
        self.queue.push_gap(Gap { topic, from: None, to: None, reason: "dropped".into(), position: None });
    }

    /// Appends a gap, and moves to its end. `epoch` is that of the subscription before the gap.
    pub(super) fn receive_gap(&mut self, gap: &Gap, epoch: Option<&Arc<str>>) {
        if let Some(joining) = &mut self.joining {
            let pending = Pending::Gap { gap: gap.clone(), epoch: epoch.cloned() };
            joining.push(pending, self.max_queue_bytes);
            return;
        }
        // A handle that read kept messages may be ahead of the subscription. Until that reaches
        // the handle's epoch, gaps are older. A history that is emptied keeps its offsets, so a
        // gap that leads on is newer.
        let is_older = match (&self.position, &gap.position) {
            (Some(at), Some(to)) if at.epoch != to.epoch => {
                let is_ahead = epoch.is_some_and(|epoch| *epoch != at.epoch);
                gap.from.is_some() || is_ahead && to.offset < at.offset
            }
            (Some(at), Some(to)) => at.covers(to),
            _ => false,
        };
        // Messages dropped of an earlier epoch never come again, so the gap of a new one is not dropped.
        if self.full && &*gap.reason != "epoch" || is_older {
            return;
        }
        let mut gap = gap.clone();
        if let Some(at) = &self.position {
            gap.from = gap.from.map(|from| from.max(at.offset + 1));
        }
        self.position.clone_from(&gap.position);
        if self.skip_gap(&mut gap) {
            return;
        }
        if !self.live && self.recovered == Some(true) && !gap.is_by_policy() {
            (self.recovered, self.reason) = (Some(false), Some(Arc::clone(&gap.reason)));
        }
        self.queue.push_gap(gap);
    }

    /// Takes messages off a gap that another handle asked for. Returns `true` if none is left.
    fn skip_gap(&mut self, gap: &mut Gap) -> bool {
        let (Some(from), Some(to), true) = (gap.from, gap.to, self.skip > 0 && !gap.is_by_policy()) else {
            return false;
        };
        let skipped = self.skip.min(to.saturating_add(1).saturating_sub(from));
        self.skip -= skipped;
        let from = from.saturating_add(skipped);
        gap.from = Some(from);
        from > to
    }

    /// Moves the position over offsets after `before`, without an event.
    pub(super) fn move_to(&mut self, position: &Position, before: u64) {
        if let Some(joining) = &mut self.joining {
            joining.push(Pending::Skipped { position: position.clone(), before }, self.max_queue_bytes);
            return;
        }
        if self.full || self.position.as_ref().is_some_and(|at| at.covers(position)) {
            return;
        }
        if std::mem::take(&mut self.has_joined) {
            self.tell_trimmed(&Position { offset: before, ..position.clone() });
        }
        self.position = Some(position.clone());
    }

    /// Takes what the server says about recovery from the position `asked`. Tells a gap if messages
    /// were missed.
    pub(super) fn on_subscribed(&mut self, outcome: &Outcome<'_>) {
        let Outcome { topic, asked, missed, position } = *outcome;
        let covers = match (&self.position, position) {
            (Some(at), Some(to)) => at.covers(to) && self.position.as_ref() != asked,
            _ => false,
        };
        let Some(reason) = missed.filter(|reason| !covers || ***reason == *"ahead") else {
            if self.recovered.is_none() {
                self.recovered = Some(true);
            }
            match (&mut self.position, position) {
                (Some(at), Some(to)) if at.epoch == to.epoch => {}
                // Offsets go on under a new epoch.
                (Some(at), Some(to)) if asked.is_some_and(|asked| asked.epoch == at.epoch) => {
                    at.epoch = Arc::clone(&to.epoch);
                }
                // The others were asked for. This handle was in an earlier stream.
                (Some(_), Some(to)) if !self.full => {
                    self.on_epoch_left(&"epoch".into(), to);
                }
                (at @ None, Some(to)) => *at = Some(to.clone()),
                _ => {}
            }
            return;
        };
        if self.full && position.is_some() {
            // The gap is told when there is room again.
            return;
        }
        self.full = false;
        self.recovered = Some(false);
        self.reason = Some(Arc::clone(reason));
        let range = match (&self.position, position) {
            (Some(at), Some(to)) if at.epoch == to.epoch && at.offset < to.offset => {
                Some((at.offset + 1, to.offset))
            }
            _ => None,
        };
        self.push_gap(topic, range, Arc::clone(reason), position);
    }

    /// Tells a gap to a position of another epoch, from which the handle recovers.
    pub(super) fn on_epoch_left(&mut self, reason: &Arc<str>, to: &Position) {
        (self.recovered, self.reason) = (Some(false), Some(Arc::clone(reason)));
        let topic = Arc::clone(&self.topic);
        self.push_gap(&topic, None, Arc::clone(reason), Some(to));
    }

    fn push_gap(
        &mut self,
        topic: &Arc<str>,
        range: Option<(u64, u64)>,
        reason: Arc<str>,
        to: Option<&Position>,
    ) {
        self.position = to.cloned();
        let (from, to) = (range.map(|range| range.0), range.map(|range| range.1));
        let (topic, position) = (Arc::clone(topic), self.position.clone());
        self.queue.push_gap(Gap { topic, from, to, reason, position });
    }

    /// Appends `live`, unless the handle is live or reads kept messages first.
    pub(super) fn on_live(&mut self) {
        if self.live || self.joining.is_some() {
            return;
        }
        self.live = true;
        self.skip = 0;
        let (recovered, reason) = (self.recovered.take(), self.reason.take());
        self.queue.push_state(SubscriptionState::Live { recovered, reason });
    }

    /// Appends `recovering`, if the handle was live.
    pub(super) fn on_recovering(&mut self) {
        self.has_joined = false;
        // A handle that has some kept messages recovers the rest from its position.
        let has_none = self.position.is_none();
        self.joining = self.joining.take().filter(|_| has_none).map(|_| Joining::new(self.history));
        if std::mem::take(&mut self.live) {
            self.queue.push_state(SubscriptionState::Recovering);
        }
    }

    /// Takes kept messages, in ascending order. Returns `true` if more are to be read.
    pub(super) fn on_history(
        &mut self,
        messages: &[Message],
        next: Option<u64>,
        newest: Option<Position>,
    ) -> bool {
        let Some(mut joining) = self.joining.take() else { return false };
        // A history that was emptied between two answers goes on in another epoch. Then the gap is
        // among what waits.
        let epoch =
            |position: &Option<Position>| position.as_ref().map(|position| Arc::clone(&position.epoch));
        let first = epoch(&self.position);
        let is_other = |position: &Option<Position>| position.is_some() && epoch(position) != first;
        let is_renewed = first.is_some()
            && (is_other(&newest) || messages.iter().any(|message| is_other(&message.position)));
        if !is_renewed {
            for message in messages {
                let before =
                    message.position.as_ref().map_or(0, |position| position.offset.saturating_sub(1));
                self.has_joined = true;
                self.receive(message, before);
            }
        }
        joining.wanted = joining.wanted.saturating_sub(messages.len().try_into().unwrap_or(u32::MAX));
        if joining.wanted > 0 && next.is_some() && !messages.is_empty() && !is_renewed {
            (joining.next, joining.request) = (next, None);
            self.joining = Some(joining);
            return true;
        }
        if self.position.is_none() {
            self.position.clone_from(&newest);
        }
        self.has_joined = true;
        // Events before the epoch of the kept messages, or before an event that these cover, are older
        // than these. They can lack a position, if the topic was without history meanwhile.
        let current = epoch(&self.position);
        let is_covered = |position: &Position| self.position.as_ref().is_some_and(|at| at.covers(position));
        let start = joining.pending.iter().rposition(|pending| match pending {
            Pending::Gap { gap, .. } => {
                gap.from.is_none() && current.is_some() && epoch(&gap.position) == current
                    || gap.position.as_ref().is_some_and(is_covered)
            }
            Pending::Message { message, .. } => message.position.as_ref().is_some_and(is_covered),
            Pending::Skipped { position, .. } => is_covered(position),
        });
        for pending in joining.pending.iter().skip(start.map_or(0, |start| start + 1)) {
            match pending {
                Pending::Message { message, before } => self.receive(message, *before),
                Pending::Gap { gap, epoch } => self.receive_gap(gap, epoch.as_ref()),
                Pending::Skipped { position, before } => {
                    // Only gaps lead to another epoch.
                    if self.position.as_ref().is_none_or(|at| at.epoch == position.epoch) {
                        self.move_to(position, *before);
                    }
                }
            }
        }
        match (joining.overflowed, &self.position) {
            (true, Some(_)) => self.full = true,
            // Without a position, what was dropped does not come again.
            (true, None) => self.tell_dropped(&Arc::clone(&self.topic)),
            (false, _) => {}
        }
        false
    }

    /// Tells a gap up to an offset, if the handle is in the same stream and before it.
    fn tell_trimmed(&mut self, to: &Position) {
        if let Some(at) = &self.position
            && at.epoch == to.epoch
            && at.offset < to.offset
            && !self.full
        {
            let (from, to) = (Some(at.offset + 1), to.clone());
            let (topic, reason) = (Arc::clone(&self.topic), "trimmed".into());
            self.queue.push_gap(Gap { topic, from, to: Some(to.offset), reason, position: Some(to.clone()) });
            self.position = Some(to);
        }
    }

    /// Returns `true` if dropped messages can be asked for again.
    pub(super) fn wants_more(&self) -> bool {
        self.full && self.queue.is_half_free() && self.joining.is_none()
    }
}
