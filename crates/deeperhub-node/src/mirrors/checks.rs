//! Comparisons of mirrors with the newest positions of the store.
//!
//! A lost last message shows in nothing that comes later. Topics that are followed and quiet are
//! therefore looked up from time to time, and all topics after the broker was away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deeperhub_cluster::{
    MAX_TOPS, ResetStream, ResetWhen, StorePosition, StreamLimits, StreamProgress, StreamRead, StreamTop,
};
use deeperhub_history::{RuleId, StreamId};
use deeperhub_protocol::Topic;

use crate::hub::Hub;
use crate::streams::{ClusterStore, StreamStripe, TopCheck};

/// Time before another attempt after the store did not answer.
const RETRY_TIME: Duration = Duration::from_millis(500);

/// Time after which what was under way at the first look has arrived.
const SECOND_LOOK_TIME: Duration = Duration::from_secs(1);

/// Time between looks at so many topics as one exchange has. At most 2,000 topics are looked up in a
/// second.
const LOOK_INTERVAL: Duration = Duration::from_millis(256);

/// A followed topic, and its rule.
pub(super) type FollowedTopic = (Topic<'static>, RuleId);

impl Hub {
    /// Returns the followed topics for which `wants` returns `true`.
    fn followed_topics(
        &self,
        mut wants: impl FnMut(&mut StreamStripe, StreamId) -> bool,
    ) -> Vec<FollowedTopic> {
        let mut topics = Vec::new();
        for stripe in self.router.stripes() {
            self.router.visit_kept(stripe, |topic, kept, stripe| {
                let Some(id) = stripe.find(kept) else { return };
                let is_followed = topic.subscribers() > 0 || stripe.has_watchers(id);
                if is_followed
                    && wants(stripe, id)
                    && let (Some(rule), Ok(topic)) =
                        (stripe.table.rule(id), Topic::parse(topic.name().to_string()))
                {
                    topics.push((topic, rule));
                }
            });
        }
        topics
    }

    /// Tells all mirrors that the broker is away, before a message of the next connection comes. The
    /// thread that reads the store learns of it later, and lets them be checked then.
    pub(crate) fn on_store_away(&self) {
        let Some(store) = &self.streams.cluster else { return };
        self.followed_topics(|stripe, id| {
            stripe.on_disconnected(id);
            store.is_checked.store(false, Ordering::Release);
            false
        });
    }

    /// Tells all mirrors that the broker is away. Returns the followed topics.
    pub(super) fn disconnect_mirrors(&self) -> Vec<FollowedTopic> {
        self.followed_topics(|stripe, id| {
            stripe.on_disconnected(id);
            true
        })
    }

    /// Compares the mirror of a topic with the newest position of the store.
    pub(super) fn check_top(&self, topic: &Topic<'_>, top: StorePosition) -> TopCheck {
        self.router.update_kept(topic, |_, kept, stripe| match stripe.find(kept) {
            Some(id) => stripe.on_top(id, top.epoch, top.offset),
            None => TopCheck::InSync,
        })
    }

    /// Notes that the store has started a new stream of a topic.
    pub(crate) fn on_stream_reset(&self, topic: &Topic<'_>, epoch: u64) {
        let Some(store) = &self.streams.cluster else { return };
        if let TopCheck::Read { read, .. } = self.check_top(topic, StorePosition { epoch, offset: 0 }) {
            store.queue_read(topic.as_str().into(), read);
        }
    }
}

/// Logs what the store's server lacks for streams.
pub(super) async fn check_server(store: &ClusterStore) {
    match store.broker.check_store().await {
        Ok(findings) => {
            for finding in findings {
                if finding.is_error() {
                    tracing::error!(%finding, "Broker cannot keep history");
                } else {
                    tracing::warn!(%finding, "Broker may lose history");
                }
            }
        }
        // The connection of the node reports this.
        Err(error) => tracing::debug!(%error, "Broker not checked"),
    }
}

/// Looks up the topics that are followed and had no message since the last look.
pub(super) async fn check_quiet_topics(hub: &Hub, store: &ClusterStore) {
    let topics = hub.followed_topics(StreamStripe::needs_check);
    let topics = check_topics(hub, store, topics, LOOK_INTERVAL).await;
    if !topics.is_empty() {
        hub.streams.clock.sleep(SECOND_LOOK_TIME).await;
        check_topics(hub, store, topics, LOOK_INTERVAL).await;
    }
}

/// Checks all followed topics after the broker was away. The node is ready afterwards.
pub(super) async fn check_after_reconnect(hub: &Hub, store: &ClusterStore, topics: Vec<FollowedTopic>) {
    let Some(first) = topics.first() else { return };
    // From here on, each message of a followed topic reaches this node.
    while !is_following(hub, store, first).await {
        hub.streams.clock.sleep(RETRY_TIME).await;
    }
    for (topic, _) in &topics {
        let read = hub.router.update_kept(topic, |_, kept, stripe| stripe.retry_read(stripe.find(kept)?));
        if let Some(read) = read {
            store.queue_read(topic.as_str().into(), read);
        }
    }
    let mut topics = topics;
    while !topics.is_empty() {
        topics = check_topics(hub, store, topics, Duration::ZERO).await;
        if !topics.is_empty() {
            hub.streams.clock.sleep(RETRY_TIME).await;
        }
    }
    store.is_checked.store(true, Ordering::Release);
}

/// Waits until the broker has confirmed all subscriptions of this node. Returns `false` if the store
/// could not be read.
async fn is_following(hub: &Hub, store: &ClusterStore, (topic, rule): &FollowedTopic) -> bool {
    // The topic may have lost its rule.
    let Some(limits) = limits_of(hub, store, *rule) else { return true };
    let read =
        StreamRead { topic: topic.clone(), after: None, messages: 1, limits, creates: false, follows: true };
    match store.broker.read_streams(vec![read]) {
        Ok(reply) => reply.await.is_ok_and(|ranges| ranges.iter().all(Result::is_ok)),
        Err(_) => false,
    }
}

/// Looks up the newest positions of topics. Returns those that need another look, or for which the
/// store did not answer.
async fn check_topics(
    hub: &Hub,
    store: &ClusterStore,
    mut topics: Vec<FollowedTopic>,
    pause: Duration,
) -> Vec<FollowedTopic> {
    let mut again = Vec::new();
    // The store remembers the positions as long as the rule says.
    topics.sort_by_key(|(_, rule)| *rule);
    for of_rule in topics.chunk_by(|(_, one), (_, other)| one == other) {
        let remember = of_rule.first().and_then(|(_, rule)| limits_of(hub, store, *rule));
        for part in of_rule.chunks(MAX_TOPS) {
            let names = part.iter().map(|(topic, _)| topic.clone()).collect();
            let tops = match store.broker.read_tops(names, remember) {
                Ok(reply) => reply.await,
                Err(error) => Err(error),
            };
            let Ok(tops) = tops else {
                again.extend_from_slice(part);
                continue;
            };
            store.mirror_metrics.checks.add(part.len() as u64);
            for (followed, top) in part.iter().zip(tops) {
                if on_top(hub, store, &followed.0, top).await {
                    again.push(followed.clone());
                }
            }
            if part.len() == MAX_TOPS {
                hub.streams.clock.sleep(pause).await;
            }
        }
    }
    again
}

/// Handles the store's newest position. Returns `true` if another look is needed.
async fn on_top(hub: &Hub, store: &ClusterStore, topic: &Topic<'_>, top: StreamTop) -> bool {
    let known = hub.router.update_kept(topic, |_, kept, stripe| stripe.known_position(kept));
    match hub.check_top(topic, comparable(&top, known)) {
        TopCheck::InSync => {
            if let (Some(position), Some(StreamProgress { vouched: offset @ 1.., .. })) =
                (top.position, top.progress)
            {
                hub.vouch(topic, StorePosition { epoch: position.epoch, offset });
            }
        }
        TopCheck::Differs => return true,
        TopCheck::Read { read, is_hole } => {
            if is_hole {
                store.mirror_metrics.holes.inc();
            }
            store.queue_read(topic.as_str().into(), read);
        }
        TopCheck::Behind(known) => {
            reset(hub, store, topic.as_str(), (known, ResetWhen::StoreIsBehind)).await;
        }
    }
    false
}

/// Returns the top of a topic in terms of what this node knows. A topic of JetStream shares its
/// stream with others, and messages that have reached their age are not missing.
fn comparable(top: &StreamTop, known: Option<StorePosition>) -> StorePosition {
    let position = top.position.unwrap_or(StorePosition { epoch: 0, offset: 0 });
    match (top.progress, known) {
        (Some(progress), Some(known)) if known.epoch == position.epoch => {
            let offset = position.offset.max(known.offset.min(progress.newest));
            StorePosition { offset, ..position }
        }
        _ => position,
    }
}

/// Lets the store start a new stream of a topic if a condition holds. `known` is what this node knows.
pub(super) async fn reset(
    hub: &Hub,
    store: &ClusterStore,
    topic: &str,
    (known, when): (StorePosition, ResetWhen),
) {
    let Ok(topic) = Topic::parse(topic.to_owned()) else { return };
    let rule = hub.streams.rule(&topic).map(|(_, rule)| rule);
    let Some(limits) = rule.and_then(|rule| limits_of(hub, store, rule)) else { return };
    let reset = ResetStream { topic: topic.clone(), known: Some(known), limits, when };
    let position = match store.broker.reset_stream(reset) {
        Ok(reply) => reply.await,
        Err(error) => Err(error),
    };
    match position {
        // The message to all nodes can be lost, so this answer counts, too.
        Ok(position) => {
            if let TopCheck::Read { read, .. } = hub.check_top(&topic, position) {
                store.queue_read(topic.as_str().into(), read);
            }
        }
        // The next check tries again.
        Err(error) => tracing::debug!(topic = topic.as_str(), %error, "Stream not reset"),
    }
}

/// Returns the limits of a rule's streams in the store, if the rule still keeps messages.
pub(super) fn limits_of(hub: &Hub, store: &ClusterStore, rule: RuleId) -> Option<StreamLimits> {
    let limits = hub.limits.load();
    let policy = limits.history.rules.get(rule)?.policy();
    policy.keeps_history().then(|| store.limits_of(policy))
}

/// Empties the stream of a topic in the store. Returns `false` if the store did not confirm it.
pub(crate) async fn clear(hub: &Hub, store: &Arc<ClusterStore>, topic: &Topic<'_>) -> bool {
    let Some(rule) = hub.streams.rule(topic).map(|(_, rule)| rule) else { return true };
    let Some(limits) = limits_of(hub, store, rule) else { return true };
    let topic = topic.clone().into_owned();
    let known = hub.router.update_kept(&topic, |_, kept, stripe| stripe.known_position(kept));
    let reset = ResetStream { topic: topic.clone(), known, limits, when: ResetWhen::Always };
    let Ok(reply) = store.broker.reset_stream(reset) else { return false };
    let Ok(position) = reply.await else { return false };
    if let TopCheck::Read { read, .. } = hub.check_top(&topic, position) {
        store.queue_read(topic.as_str().into(), read);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_other_topics_and_expired_ones_are_no_difference() {
        let at = |offset| StorePosition { epoch: 9, offset };
        let top = |offset, newest| StreamTop {
            position: Some(at(offset)),
            progress: Some(StreamProgress { newest, vouched: newest }),
            time: 0,
        };
        // The newest message of the topic has expired, or the node knows that there is none.
        assert_eq!(comparable(&top(0, 100), Some(at(70))), at(70));
        // The node lacks a message.
        assert_eq!(comparable(&top(80, 100), Some(at(70))), at(80));
        // The store lost messages.
        assert_eq!(comparable(&top(0, 60), Some(at(70))), at(60));
        // Another epoch, and a store whose topics have their own offsets.
        assert_eq!(comparable(&top(3, 5), Some(StorePosition { epoch: 8, offset: 70 })), at(3));
        assert_eq!(comparable(&StreamTop { progress: None, ..top(3, 5) }, Some(at(70))), at(3));
    }
}
