//! Checks of what each connection is sent.

use std::collections::{BTreeMap, BTreeSet};

use deeperhub_history::Delivery;
use deeperhub_protocol::message::{SubscribeRequest, SubscriptionStart};
use deeperhub_protocol::{GapReason, NotRecovered, Subscription, Topic};

use super::log::{Look, TopicLog};
use super::socket::Content;
use super::topics::{PATTERNS, TOPICS};

/// An epoch's number and an offset.
type Position = (usize, u64);

/// What a connection was told about one topic.
#[derive(Debug, Default)]
struct View {
    /// The subscription to exactly this topic.
    subscription: Option<SubscriptionView>,
    /// The last message.
    last: Option<Position>,
    /// The last message, while only patterns of the connection match the topic.
    by_pattern: Option<Position>,
    /// The last message without a position.
    last_number: u64,
}

#[derive(Debug)]
struct SubscriptionView {
    /// Where the client stands; `None` if the topic had no history.
    position: Option<Position>,
    /// Step in which the position last moved.
    moved_at: usize,
    /// `true` if the stream of the position was removed by new rules.
    is_detached: bool,
    /// `true` if a pattern matched the topic when the subscription was made.
    is_overlapping: bool,
    replay: Option<ReplayView>,
}

/// A replay that `subscribed` has announced.
#[derive(Debug, Clone, Copy)]
struct ReplayView {
    announced: u64,
    sent: u64,
    /// Number of the connection's own excluded messages.
    own: u64,
    until: Position,
    began_at: usize,
}

/// What one connection was told.
#[derive(Debug, Default)]
pub(super) struct ConnectionView {
    patterns: BTreeSet<usize>,
    views: BTreeMap<usize, View>,
}

/// Everything that was published and sent.
#[derive(Debug)]
pub(super) struct Oracle {
    pub(super) topics: Vec<TopicLog>,
    /// Connections by serial.
    pub(super) connections: BTreeMap<u64, ConnectionView>,
    pub(super) step: usize,
}

/// Returns `true` if a pattern of [`PATTERNS`] matches a topic of [`TOPICS`].
pub(super) fn matches(pattern: usize, topic: usize) -> bool {
    let topic = Topic::parse(TOPICS[topic]).unwrap();
    Subscription::parse(PATTERNS[pattern]).unwrap().matches(&topic)
}

impl ConnectionView {
    fn matches(&self, topic: usize) -> bool {
        self.patterns.iter().any(|pattern| matches(*pattern, topic))
    }

    pub(super) fn on_pattern(&mut self, pattern: usize, is_subscribed: bool) {
        let has_changed =
            if is_subscribed { self.patterns.insert(pattern) } else { self.patterns.remove(&pattern) };
        if has_changed {
            for (_, view) in self.views.iter_mut().filter(|(topic, _)| matches(pattern, **topic)) {
                view.by_pattern = None;
                // Messages that were on their way by the pattern do not come any more.
                if let Some(subscription) = &mut view.subscription
                    && subscription.is_overlapping
                    && !is_subscribed
                {
                    subscription.position = None;
                }
            }
        }
    }

    /// Ends the subscription to a topic.
    pub(super) fn on_unsubscribed(&mut self, topic: usize) {
        if let Some(view) = self.views.get_mut(&topic) {
            view.subscription = None;
            view.by_pattern = None;
        }
    }
}

impl Oracle {
    pub(super) fn new() -> Self {
        let topics = TOPICS.iter().map(|_| TopicLog::default()).collect();
        Self { topics, connections: BTreeMap::new(), step: 0 }
    }

    /// Notes that the streams of some topics were removed by new rules.
    pub(super) fn on_rules_changed(&mut self) {
        for connection in self.connections.values_mut() {
            for (topic, view) in &mut connection.views {
                if self.topics[*topic].look.is_none() {
                    view.by_pattern = None;
                    if let Some(subscription) = &mut view.subscription {
                        subscription.is_detached = true;
                    }
                }
            }
        }
    }

    /// Checks the reply to a subscribe. `before` is the connection's state before it.
    pub(super) fn on_subscribed(
        &mut self,
        serial: u64,
        (topic, request): (usize, &SubscribeRequest<'_>),
        (is_new, start): (bool, &SubscriptionStart),
    ) -> Result<(), String> {
        let log = &self.topics[topic];
        let connection = self.connections.entry(serial).or_default();
        let has_pattern = connection.matches(topic);
        let view = connection.views.entry(topic).or_default();
        let position = match start.position {
            None => None,
            Some(position) => Some((log.number(position.epoch).ok_or("an unknown epoch")?, position.offset)),
        };
        if position.is_some() != log.look.is_some() {
            return Err(format!("the position is {position:?} with the stream {:?}", log.look));
        }
        if is_new == view.subscription.is_some() {
            return Err(format!("the subscription is new: {is_new}"));
        }
        let place = |position: Option<Position>| {
            position.map(|(epoch, offset)| (epoch, log.epochs[epoch].after_own(offset, serial)))
        };
        if let Some(subscription) = &mut view.subscription {
            if start.recovery.is_some() || start.replay > 0 {
                return Err(format!("a second subscribe recovers: {start:?}"));
            }
            // Messages of an earlier stream can wait for a pattern.
            let is_earlier = has_pattern && position < subscription.position && {
                position.map(|(epoch, _)| epoch) != subscription.position.map(|(epoch, _)| epoch)
            };
            if !subscription.is_detached
                && !is_earlier
                && subscription.position.is_some()
                && place(subscription.position) != place(position)
            {
                let own = subscription.position;
                return Err(format!("a second subscribe is answered with {position:?} at {own:?}"));
            }
            return Ok(());
        }
        let mut replay = None;
        if let (Some(look), Some(position)) = (log.look, position) {
            let expected = expected_start(&look, has_pattern, request);
            let actual = (start.recovery, position.1, start.replay);
            if has_pattern {
                let is_same_stream = view.by_pattern.is_some_and(|(epoch, _)| epoch == position.0);
                if is_same_stream && place(view.by_pattern) != place(Some(position)) {
                    return Err(format!(
                        "the position is {position:?} at {:?} by a pattern",
                        view.by_pattern
                    ));
                }
                if (start.recovery, start.replay) != (expected.0, 0) {
                    return Err(format!("a subscribe starts with {actual:?}, not {expected:?}"));
                }
            } else if actual != expected || log.epochs[position.0].epoch != look.epoch {
                return Err(format!("a subscribe starts with {actual:?}, not {expected:?}"));
            }
            replay = (!has_pattern).then_some(ReplayView {
                announced: start.replay,
                sent: 0,
                own: log.epochs[position.0].count_own(position.1, serial),
                until: (position.0, look.newest),
                began_at: self.step,
            });
        }
        view.by_pattern = None;
        if !has_pattern {
            view.last = position;
        }
        view.subscription = Some(SubscriptionView {
            position,
            moved_at: self.step,
            is_detached: false,
            is_overlapping: has_pattern,
            replay,
        });
        Ok(())
    }

    /// Checks a frame that was sent to a connection.
    pub(super) fn on_sent(&mut self, serial: u64, topic: usize, content: &Content) -> Result<(), String> {
        let (step, log) = (self.step, &self.topics[topic]);
        let connection = self.connections.get_mut(&serial).ok_or("the connection has no view")?;
        let has_pattern = connection.matches(topic);
        let view = connection.views.entry(topic).or_default();
        match *content {
            Content::Subscribed { .. } | Content::Unsubscribed => Ok(()),
            _ if view.subscription.is_none() && !has_pattern => {
                Err("nothing is subscribed that matches".to_owned())
            }
            Content::Message { number, place: None, prev: _ } => {
                if number <= view.last_number {
                    return Err(format!("message {number} after {}", view.last_number));
                }
                view.last_number = number;
                (view.by_pattern, view.last) = (None, None);
                let has_stream = |subscription: &SubscriptionView| {
                    subscription.position.is_some() && !subscription.is_detached
                };
                if !has_pattern && view.subscription.as_ref().is_some_and(has_stream) {
                    return Err("a message has no position".to_owned());
                }
                Ok(())
            }
            Content::Message { number, place: Some((epoch, offset)), prev } => {
                let epoch = log.number(epoch).ok_or("an unknown epoch")?;
                let epoch_log = &log.epochs[epoch];
                let message = epoch_log.message(offset).ok_or("an unknown offset")?;
                if message.number != number {
                    return Err(format!("message {number} stands in place of {}", message.number));
                }
                if message.excluded == Some(serial) {
                    return Err("the publisher gets its own message".to_owned());
                }
                let position = (epoch, offset);
                if view.last.is_some_and(|last| last >= position) {
                    return Err(format!("{position:?} comes after {:?}", view.last));
                }
                view.last = Some(position);
                let is_of_pattern = |subscription: &SubscriptionView| {
                    let Some((own, _)) = subscription.position else { return false };
                    let may_be_late = || subscription.is_overlapping || !log.is_cleared_between(epoch, own);
                    has_pattern && own > epoch && may_be_late()
                };
                if view.subscription.as_ref().is_some_and(is_of_pattern) {
                    // A pattern delivers messages of an earlier epoch.
                    return Ok(());
                }
                if let Some(subscription) = &mut view.subscription {
                    return subscription.on_message(position, prev, log, (serial, step));
                }
                if let Some((before_epoch, before)) = view.by_pattern
                    && before_epoch == epoch
                    && epoch_log.after_own(before, serial) < offset - 1
                {
                    return Err(format!("a pattern delivers {offset} after {before}"));
                }
                view.by_pattern = Some(position);
                Ok(())
            }
            Content::Gap { place: (epoch, to), from, reason } => {
                let epoch = log.number(epoch).ok_or("an unknown epoch")?;
                let subscription = view.subscription.as_mut().ok_or("a gap without a subscription")?;
                subscription.on_gap((epoch, to), (from, reason), log, (serial, step))
            }
        }
    }

    /// Checks that all subscriptions have arrived, after publishes have stopped.
    pub(super) fn check_converged(&self) -> Result<(), String> {
        for (serial, connection) in &self.connections {
            for (topic, view) in &connection.views {
                let Some(subscription) = &view.subscription else { continue };
                let Some((epoch, offset)) = subscription.position else { continue };
                let log = &self.topics[*topic];
                let stands = log.epochs[epoch].after_own(offset, *serial);
                let Some(look) = log.look else {
                    subscription.check_end(log, *serial).map_err(|text| describe(*topic, *serial, &text))?;
                    continue;
                };
                let is_at_newest = log.epochs[epoch].epoch == look.epoch && stands == look.newest;
                if !is_at_newest && !subscription.is_detached {
                    let text = format!("the subscription stays at {:?} of {look:?}", (epoch, offset));
                    return Err(describe(*topic, *serial, &text));
                }
            }
        }
        Ok(())
    }
}

impl SubscriptionView {
    fn on_message(
        &mut self,
        position: Position,
        prev: Option<u64>,
        log: &TopicLog,
        (serial, step): (u64, usize),
    ) -> Result<(), String> {
        let (epoch, offset) = position;
        let epoch_log = &log.epochs[epoch];
        let is_earlier = log.look.is_none_or(|look| look.epoch != epoch_log.epoch);
        match self.position {
            Some((own_epoch, own)) if own_epoch == epoch => {
                let before = prev.unwrap_or(offset - 1);
                let stands = epoch_log.after_own(own, serial);
                if before >= offset || epoch_log.after_own(before, serial) != stands {
                    return Err(format!("{position:?} with the previous {before} is sent at {own}"));
                }
                let is_skip = epoch_log.after_own(before, serial) + 1 < offset;
                if is_skip && log.sampled_at < self.moved_at {
                    return Err(format!("{position:?} skips messages after {before}"));
                }
            }
            Some(own) if !self.is_detached => {
                return Err(format!("the new epoch of {position:?} is not told at {own:?}"));
            }
            Some(_) => {
                self.check_end(log, serial)?;
                self.is_detached = is_earlier;
            }
            None => self.is_detached = is_earlier,
        }
        if let Some(replay) = &mut self.replay
            && position <= replay.until
        {
            replay.sent += 1;
        }
        self.move_to(position, log, (serial, step))
    }

    fn on_gap(
        &mut self,
        (epoch, to): Position,
        (from, reason): (Option<u64>, GapReason),
        log: &TopicLog,
        (serial, step): (u64, usize),
    ) -> Result<(), String> {
        let epoch_log = &log.epochs[epoch];
        let Some((own_epoch, own)) = self.position else {
            // The topic had no history when the client subscribed.
            return match reason {
                GapReason::Lost => Ok(()),
                _ => self.move_to((epoch, to), log, (serial, step)),
            };
        };
        let look = log.look;
        let Some(from) = from else {
            let is_told_late = to == epoch_log.start;
            let skips_nothing = look.is_some_and(|look| match look.delivery {
                Delivery::Lossless | Delivery::Close => to < look.oldest,
                _ => to <= look.newest,
            });
            if reason != GapReason::Epoch || epoch <= own_epoch || !(is_told_late || skips_nothing) {
                return Err(format!("a gap to {:?} for {reason} at {:?}", (epoch, to), self.position));
            }
            self.is_detached = look.is_none_or(|look| look.epoch != epoch_log.epoch);
            return self.move_to((epoch, to), log, (serial, step));
        };
        if self.is_detached && epoch > own_epoch {
            self.check_end(log, serial)?;
            self.is_detached = false;
            return self.move_to((epoch, to), log, (serial, step));
        }
        let fits = epoch == own_epoch
            && from <= to
            && from > 0
            && epoch_log.after_own(from - 1, serial) == epoch_log.after_own(own, serial);
        let is_true = match (reason, look) {
            // Later messages may be unknown to the replay.
            (GapReason::Lost, None) => to <= epoch_log.newest(),
            (GapReason::Trimmed, Some(look)) => to < look.oldest,
            (GapReason::Dropped, Some(Look { delivery: Delivery::DropOldest { keep }, newest, .. })) => {
                to + u64::from(keep) == newest
            }
            (GapReason::Conflated, Some(Look { delivery: Delivery::Latest, newest, .. })) => {
                to < newest && epoch_log.after_own(to + 1, serial) == newest
            }
            _ => false,
        };
        if !fits || !is_true {
            return Err(format!("a gap from {from} to {to} for {reason} at {:?} of {look:?}", self.position));
        }
        self.move_to((epoch, to), log, (serial, step))?;
        if reason == GapReason::Lost {
            self.position = None;
        }
        Ok(())
    }

    fn move_to(
        &mut self,
        position: Position,
        log: &TopicLog,
        (serial, step): (u64, usize),
    ) -> Result<(), String> {
        (self.position, self.moved_at) = (Some(position), step);
        let stands = log.epochs[position.0].after_own(position.1, serial);
        if let Some(replay) = self.replay
            && (position.0, stands) >= replay.until
        {
            self.replay = None;
            // What happened meanwhile can have changed the number.
            let skips = log.look.is_none_or(|look| !matches!(look.delivery, Delivery::Lossless));
            let has_changed =
                log.changed_at >= replay.began_at || (skips && log.published_at >= replay.began_at);
            // Own excluded messages are announced, and `prev` bridges them.
            let fits = (replay.sent..=replay.sent + replay.own).contains(&replay.announced);
            if !has_changed && !fits {
                return Err(format!("a replay of {} sent {} messages", replay.announced, replay.sent));
            }
        }
        Ok(())
    }

    /// Checks that everything of a removed stream was told.
    fn check_end(&self, log: &TopicLog, serial: u64) -> Result<(), String> {
        let Some((epoch, offset)) = self.position else { return Ok(()) };
        let epoch_log = &log.epochs[epoch];
        // A subscriber by sample does not get each message anyway.
        if epoch_log.after_own(offset, serial) == epoch_log.newest() || log.sampled_at >= self.moved_at {
            return Ok(());
        }
        Err(format!("the end of epoch {epoch} is not told after {offset} of {}", epoch_log.newest()))
    }
}

/// Returns recovery, offset and replay of a subscribe.
fn expected_start(
    look: &Look,
    has_pattern: bool,
    request: &SubscribeRequest<'_>,
) -> (Option<Result<(), NotRecovered>>, u64, u64) {
    let Look { epoch, oldest, newest, delivery } = *look;
    let max = match delivery {
        Delivery::Lossless | Delivery::Close => u64::MAX,
        Delivery::DropOldest { keep } => u64::from(keep),
        Delivery::Latest | Delivery::Sample { .. } => 1,
    };
    let mut wanted = request.history;
    let mut recovery = None;
    if let Some(recover) = request.recover {
        let result = match recover.offset {
            _ if has_pattern => Err(NotRecovered::Overlap),
            _ if recover.epoch != Some(epoch) => Err(NotRecovered::Epoch),
            offset if offset > newest => Err(NotRecovered::Ahead),
            offset if offset + 1 < oldest => Err(NotRecovered::Trimmed),
            offset => return (Some(Ok(())), offset, (newest - offset).min(max)),
        };
        recovery = Some(result);
        if recover.partial {
            wanted = u64::MAX;
        }
    }
    let replay = if has_pattern { 0 } else { wanted.min(newest + 1 - oldest).min(max) };
    (recovery, newest - replay, replay)
}

/// Adds a topic and a connection to a text.
pub(super) fn describe(topic: usize, serial: u64, text: &str) -> String {
    format!("{} of connection {serial}: {text}", TOPICS.get(topic).unwrap_or(&"?"))
}
