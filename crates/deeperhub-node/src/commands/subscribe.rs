//! The `subscribe` message, for one topic or a list.

use std::borrow::Cow;
use std::sync::Arc;

use deeperhub_history::{self as history, Start, SubscriptionScope, judge};
use deeperhub_listener::Context;
use deeperhub_protocol::message::{
    MessageError, MessageId, ServerMessage, SubscribeList, SubscribeRequest, SubscribedEntry,
    SubscribedError, SubscriptionStart,
};
use deeperhub_protocol::{ErrorCode, NotRecovered, Subscription, Topic};
use deeperhub_router::{DeliveryState, Subscribed, TopicView};

use crate::metrics::{Limit, RecoveryResult, SentType};
use crate::session::{Session, error_reply};
use crate::streams::{KeptStream, NoStream, PublishRefusal, Remains, StreamRule, StreamStripe};
use crate::worker::NodeWorker;

/// Number of topics in a list that count as one message.
const TOPICS_PER_MESSAGE: usize = 16;

/// Cost of one topic in a list, for [`Context::charge`]. That of a message.
const TOPIC_COST: usize = 512;

/// Result of an attempt to subscribe under the lock of the topic.
type Attempt = Result<Judged, NoStream>;

/// Judgement of a subscribe.
struct Judged {
    start: Start,
    topic: Arc<str>,
    delivery: history::Delivery,
    state: DeliveryState,
}

/// Subscribes the client to a topic or pattern, and replies where the subscription starts.
pub(crate) fn subscribe(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    request: &SubscribeRequest<'_>,
    cx: &mut Context<'_, NodeWorker>,
) {
    let topic = request.subscription.as_str();
    // Subscribe before replying: a publish that counts the new subscriber must reach it. Deliveries
    // are queued only after this message was handled, so none overtakes the reply.
    match start(session, request, cx) {
        Ok(start) => session.reply(SentType::Subscribed, &ServerMessage::Subscribed { id, topic, start }, cx),
        Err(error) => {
            let reply = ServerMessage::Error {
                id,
                code: error.code,
                message: &error.message,
                field: error.field,
                topic: Some(topic),
                retry_after_ms: error.retry_after_ms,
            };
            session.reply_error(&reply, cx);
        }
    }
}

/// Subscribes the client to each topic or pattern of a list. An entry that fails affects no other.
pub(crate) fn subscribe_list(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    topics: SubscribeList<'_>,
    cx: &mut Context<'_, NodeWorker>,
) {
    let max_subscriptions = cx.worker().limits.session.max_subscriptions;
    if topics.len() > max_subscriptions {
        let text = "`topics` has more entries than a connection may have subscriptions";
        let error = error_reply(id, ErrorCode::InvalidMessage, text);
        return session.reply_error(&MessageError { field: Some("topics"), ..error }.to_message(), cx);
    }
    // The message itself was counted as one.
    let more_messages = topics.len().div_ceil(TOPICS_PER_MESSAGE).saturating_sub(1);
    if let Err(wait) = session.check_more_messages(more_messages, cx) {
        return session.reply_rate_limited(id, wait, cx);
    }
    cx.charge(topics.len() * TOPIC_COST);
    let entries: Vec<_> = topics
        .entries()
        .map(|entry| SubscribedEntry {
            topic: entry.topic,
            result: match entry.request {
                Ok(request) => start(session, &request, cx),
                Err(error) => Err(error.into()),
            },
        })
        .collect();
    session.reply(SentType::Subscribed, &ServerMessage::SubscribedList { id, topics: &entries }, cx);
}

/// Subscribes the client and returns where the subscription starts.
fn start(
    session: &mut Session,
    request: &SubscribeRequest<'_>,
    cx: &mut Context<'_, NodeWorker>,
) -> Result<SubscriptionStart, SubscribedError> {
    let subscription = &request.subscription;
    if let Some(login) = &session.login {
        if !login.may_subscribe(subscription) {
            return Err(error(ErrorCode::Forbidden, "the token does not grant subscribing to this topic"));
        }
        let reads_history = request.history > 0 || request.recover.is_some_and(|recover| recover.partial);
        if reads_history && !login.may_read_history(subscription) {
            let text = "the token does not grant reading the history of this topic";
            return Err(error(ErrorCode::Forbidden, text));
        }
    }
    let key = cx.key();
    let worker = cx.worker();
    let is_full = worker.shard.subscription_count(key) >= worker.limits.session.max_subscriptions;
    if is_full && !worker.shard.is_subscribed(key, subscription) {
        worker.metrics.count_limited(Limit::Subscriptions);
        return Err(error(ErrorCode::TooManySubscriptions, "subscription limit reached"));
    }
    let not_recovered = |reason| request.recover.map(|_| Err(reason));
    let (start, is_new) = match subscription {
        Subscription::Pattern(_) => {
            let is_new = worker.shard.subscribe(key, subscription);
            let recovery = not_recovered(NotRecovered::Pattern);
            (SubscriptionStart { recovery, ..SubscriptionStart::default() }, is_new)
        }
        Subscription::Topic(topic) => match worker.hub.streams.rule(topic) {
            Some(rule) => follow(request, topic, &rule, cx)?,
            None => {
                let is_new = worker.shard.subscribe(key, subscription);
                let recovery = not_recovered(NotRecovered::NoHistory);
                (SubscriptionStart { recovery, ..SubscriptionStart::default() }, is_new)
            }
        },
    };
    let worker = cx.worker();
    if is_new == Subscribed::New {
        worker.metrics.subscriptions.inc();
        if let Some(recovery) = start.recovery {
            worker.metrics.recoveries.inc(RecoveryResult::from(recovery));
        }
        return Ok(start);
    }
    // A second subscribe to the same topic changes nothing, so it recovers nothing.
    Ok(SubscriptionStart { recovery: None, replay: 0, ..start })
}

/// Subscribes the client to a topic with history.
fn follow(
    request: &SubscribeRequest<'_>,
    topic: &Topic<'_>,
    rule: &StreamRule,
    cx: &mut Context<'_, NodeWorker>,
) -> Result<(SubscriptionStart, Subscribed), SubscribedError> {
    let (key, now) = (cx.key(), cx.now());
    let mut has_made_room = false;
    loop {
        let (subscribed, attempt) = attempt(request, topic, rule, cx);
        let worker = cx.worker();
        let (streams, router) = (&worker.hub.streams, &worker.hub.router);
        let time = streams.clock.unix_ms(now);
        match attempt {
            Ok(Judged { start: Start { recovery, cursor, replay }, topic, delivery, state }) => {
                let mut place = cursor;
                if subscribed == Subscribed::Already {
                    place = worker.replays.cursor(key, &topic).or(cursor);
                } else if let Some(cursor) = cursor
                    && state == DeliveryState::Suspended
                {
                    worker.replays.begin(key, topic, cursor, delivery, now);
                }
                let position = place.map(|cursor| cursor.position(time));
                return Ok((SubscriptionStart { position, recovery, replay }, subscribed));
            }
            // The rules have changed, and the topic has no history any more.
            Err(NoStream::NoRule) => {
                let recovery = request.recover.map(|_| Err(NotRecovered::NoHistory));
                return Ok((SubscriptionStart { recovery, ..SubscriptionStart::default() }, subscribed));
            }
            Err(NoStream::TooMany(rule)) => {
                if subscribed == Subscribed::New {
                    worker.shard.unsubscribe(key, &request.subscription);
                }
                if has_made_room || !streams.make_room(router, rule) {
                    let refusal = PublishRefusal::TooManyTopics;
                    let retry_after_ms = Some(refusal.retry_after_ms());
                    let message = Cow::Borrowed(refusal.text());
                    let code = refusal.code();
                    return Err(SubscribedError { code, message, field: None, retry_after_ms });
                }
                has_made_room = true;
            }
        }
    }
}

/// Subscribes the client, and judges its position in the same critical section of the topic.
fn attempt(
    request: &SubscribeRequest<'_>,
    topic: &Topic<'_>,
    (budget, rule): &StreamRule,
    cx: &mut Context<'_, NodeWorker>,
) -> (Subscribed, Attempt) {
    let (key, now) = (cx.key(), cx.now());
    let worker = cx.worker();
    let streams = &worker.hub.streams;
    let now = streams.clock.seconds(now);
    // A pattern of the client that matches already delivers the topic.
    let scope = match worker.shard.count_matches(key, topic) {
        0 => SubscriptionScope::Topic,
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
    let wishes = history::SubscribeRequest { recover, history: request.history };
    let mut remains = Remains::default();
    let judge = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
        if let Err(no_stream) = stripe.find_or_open(topic, kept, (budget, *rule), now, &mut remains) {
            return (DeliveryState::Live, Err(no_stream));
        }
        let Some((stream, delivery)) = stripe.current(kept, now, &mut remains) else {
            return (DeliveryState::Live, Err(NoStream::NoRule));
        };
        let start = judge(Some(stream), scope, &wishes, delivery);
        let is_sampled =
            scope == SubscriptionScope::Topic && matches!(delivery, history::Delivery::Sample { .. });
        let is_behind = start.cursor.is_some_and(|cursor| cursor.is_behind(stream));
        let state = if is_sampled || is_behind { DeliveryState::Suspended } else { DeliveryState::Live };
        (state, Ok(Judged { start, topic: Arc::clone(topic.name()), delivery, state }))
    };
    let (subscribed, judged) = worker.shard.subscribe_at(key, topic, judge);
    worker.hub.streams.finish(&worker.hub.router, remains, now);
    (subscribed, judged)
}

fn error(code: ErrorCode, message: &'static str) -> SubscribedError {
    SubscribedError { code, message: Cow::Borrowed(message), field: None, retry_after_ms: None }
}
