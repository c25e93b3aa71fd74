//! The `publish` message.

use deeperhub_listener::Context;
use deeperhub_protocol::message::{MessageId, ServerMessage};
use deeperhub_protocol::{RawJson, Topic};

use crate::hub::Publisher;
use crate::metrics::SentType;
use crate::session::{Session, forbidden_reply};
use crate::streams::{Once, PublishRefusal};
use crate::trace::MessageSpan;
use crate::worker::{AppendReply, NodeWorker, StoredReply};

/// Cost of a pattern-matching step, for [`Context::charge`]. Lets other clients of the worker go
/// first if matching a topic takes long.
const MATCHING_STEP_COST: usize = 16;

/// Arguments of a publish.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publish<'a> {
    pub(crate) topic: &'a Topic<'a>,
    pub(crate) message: RawJson<'a>,
    pub(crate) exclude_self: bool,
    pub(crate) once: Option<&'a str>,
}

/// Delivers a message to all subscribers of a topic. Replies only if the message has an `id`. If the
/// topic's rule has `ack=disk`, or the cluster keeps the topic's history, the reply comes when the
/// message is stored.
pub(crate) fn publish(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    publish: &Publish<'_>,
    span: Option<&mut MessageSpan>,
    cx: &mut Context<'_, NodeWorker>,
) {
    if session.login.as_ref().is_some_and(|login| !login.may_publish(publish.topic)) {
        let error =
            forbidden_reply(id, publish.topic.as_str(), "the token does not grant publishing to this topic");
        return session.reply_error(&error, cx);
    }
    let (key, now) = (cx.key(), cx.now());
    let user = session.user().cloned();
    let once = publish.once.map(|text| Once { user: user.as_deref(), text });
    let worker = cx.worker();
    let publisher = Publisher {
        id: &session.client_id,
        connection_id: session.connection_id,
        is_excluded: publish.exclude_self,
        shard: &mut worker.shard,
        once,
        wants_reply: id.is_some(),
    };
    let active_span = span.as_ref().map(|span| &span.span);
    let published = worker.hub.publish(publish.topic, publish.message, Some(publisher), now, active_span);
    let outcome = match published {
        Ok(outcome) => outcome,
        Err(refusal) => return reply_refused(session, id, publish.topic, refusal, cx),
    };
    if let Some(span) = span {
        span.subscribers = Some(outcome.subscribers);
        span.offset = outcome.position.map(|position| position.offset);
    }
    if let Some(top_window) = &mut worker.top_window {
        top_window.publish(publish.topic.as_str(), outcome.subscribers, publish.message.as_str().len(), now);
    }
    session.record_publish(publish.message.as_str().len(), worker.uncongested_rounds);
    cx.charge(outcome.matching_steps * MATCHING_STEP_COST);
    let worker = cx.worker();
    if outcome.is_congested {
        // A worker is congested. Stop reading from this publisher, so that TCP slows its client
        // down.
        worker.paused_publishers.push(key);
        cx.pause_reading();
    }
    if let Some(message_id) = id {
        let worker = cx.worker();
        let excluded = if publish.exclude_self { worker.shard.count_matches(key, publish.topic) } else { 0 };
        let subscribers = outcome.subscribers.saturating_sub(excluded);
        if let Some(ticket) = outcome.ticket {
            return worker.reply_when_stored(StoredReply {
                ticket,
                connection: session.connection_id,
                id: message_id.as_json().into(),
                topic: publish.topic.as_str().into(),
                subscribers,
                position: outcome.position,
                since: now,
            });
        }
        if let Some(number) = outcome.append {
            let reply = AppendReply {
                connection: session.connection_id,
                id: message_id.as_json().into(),
                topic: publish.topic.as_str().into(),
                subscribers,
                since: now,
            };
            return worker.reply_when_appended(number, reply);
        }
        let reply = ServerMessage::Published {
            id,
            topic: publish.topic.as_str(),
            subscribers,
            position: outcome.position,
            cluster: outcome.cluster,
        };
        session.reply(SentType::Published, &reply, cx);
    }
}

/// Replies that nothing was published.
#[cold]
fn reply_refused(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    topic: &Topic<'_>,
    refusal: PublishRefusal,
    cx: &mut Context<'_, NodeWorker>,
) {
    let error = ServerMessage::Error {
        id,
        code: refusal.code(),
        message: &refusal.text(),
        field: refusal.field(),
        topic: Some(topic.as_str()),
        retry_after_ms: refusal.retry_after_ms(),
    };
    session.reply_error(&error, cx);
}
