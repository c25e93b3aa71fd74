//! The `history` message: reads kept messages.

use std::sync::Arc;

use deeperhub_listener::Context;
use deeperhub_protocol::Subscription;
use deeperhub_protocol::message::{HistoryRequest, MessageId, ServerMessage};
use deeperhub_router::ShardId;

use crate::connection_id::ConnectionId;
use crate::hub::Hub;
use crate::metrics::SentType;
use crate::session::{Session, forbidden_reply};
use crate::streams::{HistoryNotice, HistoryPage, HistoryRead, ReadFailed, StoreNotice};
use crate::worker::NodeWorker;

/// Number of requested messages that count as one more message of the client.
const LIMIT_PER_MESSAGE: usize = 100;

/// Replies with kept messages of a topic. A topic without history has none. If only the store has
/// the messages, the connection waits until they are read.
pub(crate) fn history(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    request: &HistoryRequest<'_>,
    cx: &mut Context<'_, NodeWorker>,
) {
    let topic = request.topic.as_str();
    let subscription = Subscription::Topic(request.topic.borrow());
    if session.login.as_ref().is_some_and(|login| !login.may_read_history(&subscription)) {
        let text = "the token does not grant reading the history of this topic";
        return session.reply_error(&forbidden_reply(id, topic, text), cx);
    }
    let more_messages = usize::from(request.limit) / LIMIT_PER_MESSAGE;
    if let Err(wait) = session.check_more_messages(more_messages, cx) {
        return session.reply_rate_limited(id, wait, cx);
    }
    let worker = &*cx.worker();
    let NodeWorker { hub, shard, .. } = worker;
    let streams = &hub.streams;
    let answer = || answer_later((session.connection_id, id), topic, (hub, shard.id()));
    // A reply is no longer than the longest delivery, which every client must be able to take.
    let max_bytes = worker.limits.listener.max_message_bytes;
    let page = match streams.read(&hub.router, request, max_bytes) {
        HistoryRead::Page(page) if streams.may_answer_now(&hub.router, shard) => page,
        HistoryRead::Page(page) => {
            answer()(Ok(page));
            return cx.park();
        }
        HistoryRead::Stored(page) => {
            streams.read_stored(page, answer());
            return cx.park();
        }
        HistoryRead::InCluster(page) => {
            let Some(store) = &streams.cluster else { return };
            store.read_page(page, Box::new(answer()));
            return cx.park();
        }
    };
    let messages = page.messages();
    cx.charge(messages.iter().map(|message| message.as_str().len()).sum());
    let (position, next) = (page.position, page.next);
    let reply = ServerMessage::History { id, topic, position, messages: &messages, next };
    session.reply(SentType::History, &reply, cx);
}

/// Returns a function that hands a page to the worker of the client that waits for it.
pub(crate) fn answer_later(
    (connection, id): (ConnectionId, Option<MessageId<'_>>),
    topic: &str,
    (hub, shard): (&Arc<Hub>, ShardId),
) -> impl FnOnce(Result<HistoryPage, ReadFailed>) + Send + use<> {
    let (hub, topic) = (Arc::clone(hub), topic.into());
    let id = id.map(|id| id.as_json().into());
    move |page| {
        let after = hub.router.inbox_position(shard);
        let notice = HistoryNotice { connection, id, topic, page, after };
        hub.streams.notify(shard.0, StoreNotice::History(Box::new(notice)));
    }
}
