//! Checks of what each connection is sent.

use std::collections::{BTreeMap, BTreeSet};

use deeperhub_history::Delivery;
use deeperhub_protocol::message::{SubscribeRequest, SubscriptionStart};
use deeperhub_protocol::{NotRecovered, Subscription, Topic};

use super::log::{Look, TopicLog};
use super::socket::Content;
use super::subscription::{Position, ReplayView, SubscriptionView};
use super::topics::{PATTERNS, TOPICS};

/// The messages and gaps of one topic that a connection was told.
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

/// The frames that one connection was told.
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
                let log = &self.topics[*topic];
                let look = log.look;
                if look.is_none() {
                    view.by_pattern = None;
                }
                if let Some(subscription) = &mut view.subscription {
                    // Without room at the change of rules, a publish opens the stream later.
                    let opened = look.filter(|look| look.newest == 0 && subscription.is_detached);
                    subscription.gap_before = opened.and_then(|look| log.number(look.epoch));
                    subscription.is_detached |= look.is_none();
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
            gap_before: None,
            is_overlapping: has_pattern,
            replay,
        });
        Ok(())
    }

    /// Checks a frame that was sent to a connection.
    pub(super) fn on_sent(&mut self, serial: u64, topic: usize, content: &Content) -> Result<(), String> {
        let step = self.step;
        let Some(log) = self.topics.get(topic) else { return Ok(()) };
        let connection = self.connections.get_mut(&serial).ok_or("the connection has no view")?;
        let has_pattern = connection.matches(topic);
        let view = connection.views.entry(topic).or_default();
        match *content {
            Content::Subscribed { .. } | Content::Unsubscribed | Content::Other => Ok(()),
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
            Content::Position { place: (epoch, offset) } => {
                let epoch = log.number(epoch).ok_or("an unknown epoch")?;
                let subscription = view.subscription.as_mut().ok_or("a position without a subscription")?;
                subscription.on_position((epoch, offset), log, (serial, step))
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
