//! Where a subscription starts, and its end.

use std::sync::Arc;
use std::time::Instant;

use deeperhub_history::{self as history, Cursor, Start, SubscriptionScope, judge_within};
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::message::{SubscribeRequest, SubscriptionStart};
use deeperhub_protocol::{NotRecovered, Subscription, Topic};
use deeperhub_router::{DeliveryState, Subscribed, TopicView};

use super::Replays;
use crate::planted::planted;
use crate::streams::{
    CurrentStream, HubShard, KeptStream, NoStream, PublishRefusal, Remains, StreamRouter, StreamRule,
    StreamStripe, Streams,
};

/// Result of an attempt to subscribe under the lock of the topic.
type Attempt = Result<Judged, NoStream>;

/// How far a subscribe has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubscribeStep {
    /// The client asks for the subscription.
    Begin,
    /// The subscription has begun suspended, until the cluster's store was read.
    Resume,
}

/// Judgement of a subscribe.
struct Judged {
    start: Start,
    /// Time of the position at which it starts.
    time_ms: u64,
    scope: SubscriptionScope,
    topic: Arc<str>,
    delivery: history::Delivery,
    state: DeliveryState,
}

impl Replays {
    /// Subscribes a client to a topic or pattern. Returns where the subscription starts.
    ///
    /// # Errors
    ///
    /// Returns [`PublishRefusal`] if the topic should have a stream and cannot. The client is then
    /// not subscribed.
    pub(crate) fn subscribe(
        &mut self,
        key: ConnectionKey,
        request: &SubscribeRequest<'_>,
        step: SubscribeStep,
        (streams, router, shard): (&Streams, &StreamRouter, &mut HubShard),
        now: Instant,
    ) -> Result<(Subscribed, SubscriptionStart), PublishRefusal> {
        let subscription = &request.subscription;
        let not_recovered = |reason| SubscriptionStart {
            recovery: request.recover.map(|_| Err(reason)),
            ..SubscriptionStart::default()
        };
        let (subscribed, start) = match subscription {
            Subscription::Pattern(_) => {
                (shard.subscribe(key, subscription), not_recovered(NotRecovered::Pattern))
            }
            Subscription::Topic(topic) => match streams.rule(topic) {
                Some(rule) => {
                    self.follow(key, (request, step), (topic, &rule), (streams, router, shard), now)?
                }
                None if step == SubscribeStep::Resume => {
                    // The rules have changed meanwhile.
                    shard.resume_at(key, topic, |_, _, _| (DeliveryState::Live, ()));
                    (Subscribed::New, not_recovered(NotRecovered::NoHistory))
                }
                None => (shard.subscribe(key, subscription), not_recovered(NotRecovered::NoHistory)),
            },
        };
        Ok(match subscribed {
            Subscribed::New => (subscribed, start),
            // A second subscribe to the same topic changes nothing, so it recovers nothing.
            Subscribed::Already => (subscribed, SubscriptionStart { recovery: None, replay: 0, ..start }),
        })
    }

    /// Subscribes a client to a topic with history.
    fn follow(
        &mut self,
        key: ConnectionKey,
        (request, step): (&SubscribeRequest<'_>, SubscribeStep),
        (parsed, rule): (&Topic<'_>, &StreamRule),
        (streams, router, shard): (&Streams, &StreamRouter, &mut HubShard),
        now: Instant,
    ) -> Result<(Subscribed, SubscriptionStart), PublishRefusal> {
        let attempted = streams.with_room(router, || {
            let parts = (streams, router, &mut *shard);
            let attempted = attempt(key, (request, step), (parsed, rule), parts, now);
            let Some((subscribed, judged)) = attempted else { return Ok(None) };
            match judged {
                Ok(judged) => Ok(Some((subscribed, Some(judged)))),
                Err(NoStream::NoRule) => Ok(Some((subscribed, None))),
                Err(no_stream) => {
                    if subscribed == Subscribed::New {
                        shard.unsubscribe(key, &request.subscription);
                    }
                    Err(no_stream)
                }
            }
        });
        let (subscribed, judged) = match attempted {
            Ok(Some(judged)) => judged,
            Err(NoStream::TooMany(_)) => return Err(PublishRefusal::TooManyTopics),
            // The store was not read, or the backend has ended the subscription meanwhile.
            Ok(None) | Err(NoStream::Cold | NoStream::NoRule) => return Err(PublishRefusal::Unavailable),
        };
        let Some(Judged { start, time_ms, scope, topic, delivery, state }) = judged else {
            // The rules have changed, and the topic has no history any more.
            let recovery = request.recover.map(|_| Err(NotRecovered::NoHistory));
            return Ok((subscribed, SubscriptionStart { recovery, ..SubscriptionStart::default() }));
        };
        let Start { recovery, cursor, replay } = start;
        // Messages of an earlier stream can still wait for a pattern of the client.
        let epoch = cursor.map(|cursor| cursor.epoch());
        let is_followed = |place: &Cursor| match subscribed {
            Subscribed::New => Some(place.epoch()) == epoch,
            Subscribed::Already => true,
        };
        let place = match scope {
            SubscriptionScope::Overlapping => {
                self.place(key, (&topic, parsed), shard, is_followed).or(cursor)
            }
            _ => cursor,
        };
        if subscribed == Subscribed::New
            && state == DeliveryState::Suspended
            && let Some(cursor) = cursor
        {
            self.begin(key, topic, cursor, delivery, now);
        }
        let time_ms = if place == cursor { time_ms } else { streams.look_ms(now) };
        let position = place.map(|place| place.position(time_ms));
        Ok((subscribed, SubscriptionStart { position, recovery, replay }))
    }

    /// Returns the place of a subscriber of a topic that does not stand at the newest message: it is
    /// behind, or messages still wait for its worker. Places for which `is_followed` returns `false`
    /// do not count.
    fn place(
        &self,
        key: ConnectionKey,
        (name, topic): (&Arc<str>, &Topic<'_>),
        shard: &HubShard,
        is_followed: impl Fn(&Cursor) -> bool,
    ) -> Option<Cursor> {
        if planted!(SecondSubscribeAtNewest) {
            return None;
        }
        let undelivered = || {
            shard.find_undelivered(key, topic, |delivery| {
                let sequenced = delivery.sequenced.as_ref().filter(|sequenced| sequenced.topic == *name)?;
                (is_followed(&sequenced.before) && !self.withholds(key, sequenced))
                    .then_some(sequenced.before)
            })
        };
        self.cursor(key, name).or_else(undelivered)
    }

    /// Ends a subscription of a client. Returns `false` if there was none.
    pub(crate) fn unsubscribe(
        &mut self,
        key: ConnectionKey,
        subscription: &Subscription<'_>,
        (router, shard): (&StreamRouter, &mut HubShard),
    ) -> bool {
        let has_ended = shard.unsubscribe(key, subscription);
        if has_ended
            && let Subscription::Topic(topic) = subscription
            && !planted!(UnsubscribeLeavesReplay)
        {
            self.resume(key, topic.as_str(), shard.count_matches(key, topic) > 0, (router, shard));
        }
        has_ended
    }

    /// Ends all subscriptions of a client and returns their number.
    pub(crate) fn unsubscribe_all(&mut self, key: ConnectionKey, shard: &mut HubShard) -> usize {
        self.remove(key);
        shard.remove_subscriber(key)
    }
}

/// Subscribes a client, and judges its position in the same critical section of the topic. Returns
/// `None` if a subscription that should be resumed has ended.
fn attempt(
    key: ConnectionKey,
    (request, step): (&SubscribeRequest<'_>, SubscribeStep),
    (topic, (budget, rule)): (&Topic<'_>, &StreamRule),
    (streams, router, shard): (&Streams, &StreamRouter, &mut HubShard),
    now: Instant,
) -> Option<(Subscribed, Attempt)> {
    let (at, now) = (now, streams.clock.seconds(now));
    // A pattern of the client that matches already delivers the topic.
    let own = match step {
        SubscribeStep::Begin => 0,
        SubscribeStep::Resume => 1,
    };
    let scope = match shard.count_matches(key, topic) {
        count if count <= own => SubscriptionScope::Topic,
        _ => SubscriptionScope::Overlapping,
    };
    let epoch = request.recover.and_then(|recover| recover.epoch);
    let recover = request.recover.map(|recover| history::Recover {
        // A text that is the epoch of no stream matches none.
        epoch: epoch.as_ref().map_or("", |epoch| epoch.as_str()),
        offset: recover.offset,
        time_ms: recover.time,
        partial: recover.partial,
    });
    let position = request.recover.and_then(|recover| Some((recover.epoch?, recover.offset)));
    let mut wishes = history::SubscribeRequest { recover, history: request.history };
    let mut remains = Remains::default();
    let judge = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
        match stripe.find_or_open(topic, kept, (budget, *rule), now, &mut remains) {
            Ok(id) if !stripe.is_ready(id, position) => {
                return (DeliveryState::Suspended, Err(NoStream::Cold));
            }
            Ok(_) => {}
            Err(no_stream) => return (DeliveryState::Live, Err(no_stream)),
        }
        let Some(current) = stripe.current(kept, now, &mut remains) else {
            return (DeliveryState::Live, Err(NoStream::NoRule));
        };
        let CurrentStream { stream, delivery, oldest, .. } = current;
        if let (Some(position), Some(recover)) = (position, &mut wishes.recover)
            && recover.time_ms.is_some_and(|time_ms| streams.is_replaced(stream, position, time_ms))
        {
            // The client's message is of no epoch of the stream any more.
            recover.epoch = "";
        }
        let mut start = judge_within(Some((stream, oldest)), scope, &wishes, delivery);
        if planted!(JudgedTooHigh) && start.replay > 0 {
            let after_first = |cursor: Cursor| Cursor::new(cursor.epoch(), cursor.offset() + 1);
            start.cursor = start.cursor.map(after_first);
        }
        let is_sampled =
            scope == SubscriptionScope::Topic && matches!(delivery, history::Delivery::Sample { .. });
        let is_behind = start.cursor.is_some_and(|cursor| cursor.is_behind(stream));
        let state = if is_sampled || is_behind { DeliveryState::Suspended } else { DeliveryState::Live };
        let time_ms = start.cursor.map_or(0, |cursor| streams.position_ms(stream, cursor.offset(), at));
        (state, Ok(Judged { start, time_ms, scope, topic: Arc::clone(topic.name()), delivery, state }))
    };
    let judged = match step {
        SubscribeStep::Begin => Some(shard.subscribe_at(key, topic, judge)),
        SubscribeStep::Resume => shard.resume_at(key, topic, judge).map(|judged| (Subscribed::New, judged)),
    };
    streams.finish(router, remains, now);
    judged
}
