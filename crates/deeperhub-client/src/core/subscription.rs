//! A subscription on the wire, which several handles may share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_types::{Subscription as TopicOrPattern, Topic, TopicPattern};

use super::backoff::Backoff;
use super::handle::{Handle, HandleId, Joining, Outcome};
use super::position::{Chain, Item, Verdict};
use super::wire::Delivery;
use crate::{Position, SubscriptionState};

/// Topics of which a pattern remembers the newest position.
const MAX_SEEN_TOPICS: usize = 1024;

/// The state of a subscription at the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// To be asked for with the next `subscribe`.
    Idle,
    /// To be asked for again at this time.
    Retry(Duration),
    /// Asked for with the message of this id.
    Asked(u64),
    Subscribed,
}

/// Facts that decide about a delivery.
pub(super) struct Context<'a> {
    /// A publish to the topic that excludes its publisher is unanswered.
    pub(super) awaits_own: bool,
    /// The client's IDs, of earlier connections too.
    pub(super) client_ids: &'a [Arc<str>],
    pub(super) max_queue_bytes: usize,
}

/// The consequence of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Flow {
    Continue,
    /// Messages are missing, and nobody told.
    Hole,
    /// Messages that were held back were too many, and are to be asked for again.
    Dropped,
}

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) topic: Arc<str>,
    pub(super) pattern: Option<TopicPattern<'static>>,
    pub(super) wire: Wire,
    /// The server has an earlier subscription, which must end first.
    pub(super) must_unsubscribe: bool,
    pub(super) chain: Chain,
    pub(super) handles: Vec<Handle>,
    pub(super) backoff: Backoff,
    /// A hole was met, and no message has come since.
    pub(super) met_hole: bool,
    /// The position that was asked for.
    asked: Option<Position>,
    /// Number of messages that come before live ones.
    replay: u64,
    live: bool,
    /// The newest position of topics that a pattern matches.
    seen: HashMap<Arc<str>, Position>,
}

impl Subscription {
    pub(super) fn new(topic: Arc<str>) -> Self {
        let pattern = match TopicOrPattern::parse(&*topic) {
            Ok(TopicOrPattern::Pattern(pattern)) => Some(pattern.into_owned()),
            // The server says what is wrong with an invalid topic.
            _ => None,
        };
        Self {
            topic,
            pattern,
            wire: Wire::Idle,
            must_unsubscribe: false,
            chain: Chain::default(),
            handles: Vec::new(),
            backoff: Backoff::default(),
            met_hole: false,
            asked: None,
            replay: 0,
            live: false,
            seen: HashMap::new(),
        }
    }

    /// Returns `true` if the pattern matches a topic.
    pub(super) fn matches(&self, topic: &str) -> bool {
        self.pattern
            .as_ref()
            .is_some_and(|pattern| Topic::parse(topic).is_ok_and(|topic| pattern.matches(&topic)))
    }

    /// Adds a handle. Returns `true` if it is ready at once.
    pub(super) fn add(&mut self, mut handle: Handle) -> bool {
        let is_ready = self.wire == Wire::Subscribed;
        let is_asked = !matches!(self.wire, Wire::Idle | Wire::Retry(_));
        let is_first = self.handles.iter().all(|other| !other.ready);
        if handle.history > 0 && self.pattern.is_none() && (!is_first || is_asked) {
            handle.position = None;
            handle.joining = Some(Joining::new(handle.history));
        } else if is_ready {
            handle.position.clone_from(&self.chain.position);
            handle.skip = self.replay;
        } else if !is_first || is_asked {
            handle.position = None;
        }
        if is_ready {
            handle.ready = true;
            if self.live {
                handle.on_live();
            }
        }
        self.handles.push(handle);
        is_ready
    }

    /// Returns the position and the number of messages to ask for.
    pub(super) fn entry(&mut self) -> (Option<Position>, Option<u32>) {
        self.asked = self.oldest_position().cloned();
        for handle in &mut self.handles {
            handle.full = handle.full && !handle.queue.is_half_free();
        }
        let history =
            self.handles.iter().filter(|handle| handle.joining.is_none()).map(|handle| handle.history);
        (self.asked.clone(), history.max().filter(|&history| history > 0))
    }

    /// Returns the position before the first message that a handle misses. Handles without room
    /// count only if none has room.
    fn oldest_position(&self) -> Option<&Position> {
        let of = |with_room: bool| {
            self.handles
                .iter()
                .filter(move |handle| !with_room || !handle.full || handle.queue.is_half_free())
                .filter_map(|handle| handle.position.as_ref())
                .reduce(|oldest, position| match &self.chain.position {
                    // A handle that is behind by an epoch asks for that epoch.
                    Some(at) if at.epoch == oldest.epoch && at.epoch != position.epoch => position,
                    _ if oldest.epoch == position.epoch && position.offset < oldest.offset => position,
                    _ => oldest,
                })
        };
        of(true).or_else(|| of(false))
    }

    /// Takes the entry of a `subscribed`. Returns `false` if the topic is to be asked for again, for
    /// handles that could not recover with this answer.
    #[must_use]
    pub(super) fn on_subscribed(&mut self, entry: &Delivery<'_>) -> bool {
        let position = entry.position(self.asked.as_ref());
        let reason: Arc<str> = entry.reason.as_deref().unwrap_or("no_history").into();
        let recovered = entry.recovered;
        if recovered == Some(false) && self.leave_epoch(position.as_ref(), &reason) {
            return false;
        }
        self.wire = Wire::Subscribed;
        self.backoff.reset();
        self.replay = entry.replay.unwrap_or(0);
        let replay = self.replay;
        for handle in &mut self.handles {
            let is_new = !std::mem::replace(&mut handle.ready, true);
            handle.skip = 0;
            if handle.joining.is_some() {
                continue;
            }
            match recovered {
                Some(true) if is_new && handle.position.is_none() => {
                    // The handle joins others, which the replay is for.
                    handle.position.clone_from(&position);
                    handle.skip = replay;
                }
                None if is_new => {
                    handle.position.clone_from(&position);
                    handle.skip = replay.saturating_sub(handle.history.into());
                }
                _ if is_new && handle.position.is_none() => handle.position.clone_from(&position),
                _ => handle.on_subscribed(&Outcome {
                    topic: &self.topic,
                    asked: self.asked.as_ref(),
                    missed: (recovered != Some(true)).then_some(&reason),
                    position: position.as_ref(),
                }),
            }
        }
        self.chain.position = position;
        let _ = self.chain.release();
        self.skip_own();
        self.check_live();
        true
    }

    /// Handles a server that refuses the position of an earlier epoch while other handles can recover
    /// in the present one. The handles of earlier epochs are told a gap, and join the others. Returns
    /// `false` if no other handle is behind.
    fn leave_epoch(&mut self, newest: Option<&Position>, reason: &Arc<str>) -> bool {
        let (Some(asked), Some(newest)) = (&self.asked, newest) else { return false };
        if asked.epoch == newest.epoch {
            return false;
        }
        let behind = (self.handles.iter().filter(|handle| !handle.full))
            .filter_map(|handle| handle.position.as_ref())
            .filter(|at| at.epoch == newest.epoch && at.offset < newest.offset);
        let Some(oldest) = behind.min_by_key(|at| at.offset).cloned() else { return false };
        for handle in self.handles.iter_mut().filter(|handle| !handle.full) {
            if handle.position.as_ref().is_some_and(|at| at.epoch != newest.epoch) {
                handle.on_epoch_left(reason, &oldest);
            }
        }
        true
    }

    /// Makes the handles live if nothing comes before live messages.
    fn check_live(&mut self) {
        if self.replay == 0 && self.wire == Wire::Subscribed {
            self.live = true;
            for handle in &mut self.handles {
                handle.on_live();
            }
        }
    }

    /// Takes a delivery, a `gap` or a `position` of the topic.
    pub(super) fn receive(&mut self, item: Item, context: &Context<'_>) -> Flow {
        if self.chain.is_holding() {
            self.chain.hold(item, context.max_queue_bytes);
            return Flow::Continue;
        }
        let verdict = self.chain.judge(&item);
        let may_be_own = context.awaits_own
            && match &item {
                Item::Message { message, .. } => {
                    verdict == Verdict::Next
                        && message.position.is_some()
                        // This connection's own message does not come, so only those of earlier ones.
                        && message.from.as_ref().is_some_and(|from| {
                            context.client_ids.split_last().is_some_and(|(_, earlier)| earlier.contains(from))
                        })
                }
                _ => false,
            };
        match verdict {
            Verdict::Duplicate => return Flow::Continue,
            Verdict::Hole if !context.awaits_own => return Flow::Hole,
            Verdict::Hole => {
                self.chain.hold(item, context.max_queue_bytes);
                return Flow::Continue;
            }
            _ if may_be_own => {
                self.chain.hold(item, context.max_queue_bytes);
                return Flow::Continue;
            }
            Verdict::Own => {
                if let Item::Message { message, .. } = &item
                    && let Some(position) = &message.position
                    && !self.chain.position.as_ref().is_some_and(|at| at.covers(position))
                {
                    self.move_to(Some(position.clone()));
                }
                self.count_replayed(1);
            }
            Verdict::Next => self.accept(item),
        }
        self.skip_own();
        self.met_hole = false;
        Flow::Continue
    }

    fn accept(&mut self, item: Item) {
        match item {
            Item::Message { message, prev } => {
                let before = Item::before(&message, prev);
                self.chain.position.clone_from(&message.position);
                for handle in &mut self.handles {
                    handle.receive(&message, before);
                }
                self.count_replayed(1);
            }
            Item::Gap(gap) => {
                let skipped = match (&self.chain.position, gap.to) {
                    (Some(at), Some(to)) => to.saturating_sub(at.offset),
                    _ => 0,
                };
                let before = std::mem::replace(&mut self.chain.position, gap.position.clone());
                let epoch = before.as_ref().map(|before| &before.epoch);
                for handle in &mut self.handles {
                    handle.receive_gap(&gap, epoch);
                }
                match &*gap.reason {
                    // These policies count only what they send.
                    "dropped" | "conflated" => {}
                    "epoch" => self.count_replayed(u64::MAX),
                    _ => self.count_replayed(skipped),
                }
            }
            Item::Position(position) => self.move_to(Some(position)),
        }
    }

    fn move_to(&mut self, position: Option<Position>) {
        let before = std::mem::replace(&mut self.chain.position, position);
        self.handles_follow(before.as_ref());
    }

    /// Moves over own messages that come next.
    fn skip_own(&mut self) {
        if self.chain.is_before_own() {
            let before = self.chain.position.clone();
            self.chain.skip_own();
            self.handles_follow(before.as_ref());
        }
    }

    /// Moves the handles that were at `before` to the position. Others still wait for messages.
    fn handles_follow(&mut self, before: Option<&Position>) {
        let Some(position) = &self.chain.position else { return };
        for handle in &mut self.handles {
            let is_there = match (&handle.position, before) {
                (Some(at), Some(before)) => at.covers(before),
                (_, None) => true,
                (None, Some(_)) => false,
            };
            if is_there || handle.joining.is_some() {
                handle.move_to(position, before.map_or(position.offset, |before| before.offset));
            }
        }
    }

    fn count_replayed(&mut self, messages: u64) {
        if self.replay > 0 {
            self.replay = self.replay.saturating_sub(messages);
            self.check_live();
        }
    }

    /// Remembers an own message that excludes its publisher.
    pub(super) fn add_own(&mut self, position: &Position) {
        self.chain.add_own(position);
        self.skip_own();
        // Else messages may come again from an earlier position that was asked for, or are to come.
        let is_there = |at: &Position| at.epoch == position.epoch;
        let may_lag = |handle: &Handle| {
            handle.joining.is_some() || handle.position.as_ref().is_some_and(|at| !is_there(at))
        };
        if self.live
            && !self.handles.iter().any(may_lag)
            && let Some(at) = self.chain.position.clone().filter(is_there)
        {
            let positions = self.handles.iter().filter_map(|handle| handle.position.as_ref());
            if let Some(oldest) = positions.chain([&at]).min_by_key(|at| at.offset) {
                self.chain.forget_own(oldest);
            }
        }
    }

    /// Takes what was held back for an own publish, which is answered now.
    pub(super) fn release_held(&mut self, context: &Context<'_>) -> Flow {
        if !self.chain.is_holding() {
            return Flow::Continue;
        }
        let (held, overflowed) = self.chain.release();
        for item in held {
            if self.receive(item, context) == Flow::Hole {
                return Flow::Hole;
            }
        }
        if overflowed { Flow::Dropped } else { Flow::Continue }
    }

    /// Takes a message that the pattern matches.
    pub(super) fn receive_by_pattern(&mut self, item: &Item) {
        let Item::Message { message, .. } = item else { return };
        if let Some(position) = &message.position {
            match self.seen.get_mut(&*message.topic) {
                Some(at) if at.covers(position) => return,
                Some(at) => *at = position.clone(),
                None => {
                    if self.seen.len() >= MAX_SEEN_TOPICS {
                        self.seen.clear();
                    }
                    self.seen.insert(Arc::clone(&message.topic), position.clone());
                }
            }
        }
        for handle in &mut self.handles {
            handle.receive_by_pattern(message);
        }
    }

    /// Leaves the live state: the connection is lost, or the topic is subscribed to anew.
    pub(super) fn on_recovering(&mut self) {
        (self.wire, self.live, self.replay) = (Wire::Idle, false, 0);
        let _ = self.chain.release();
        for handle in &mut self.handles {
            handle.on_recovering();
        }
    }

    /// Ends all handles.
    pub(super) fn end(&mut self, reason: &Arc<str>) {
        for handle in &mut self.handles {
            handle.queue.push_state(SubscriptionState::Ended { reason: Arc::clone(reason) });
        }
    }

    /// Makes a handle live that has read kept messages.
    pub(super) fn on_joined(&mut self, id: HandleId) {
        let Some(handle) = self.handles.iter_mut().find(|handle| handle.id == id) else { return };
        if self.live {
            handle.on_live();
        }
    }
}
