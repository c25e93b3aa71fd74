//! Answers of this node to queries of other nodes.

use std::sync::Arc;

use deeperhub_protocol::{ClientId, Subscription};
use tracing::warn;

use super::query::{ClientRecord, ClientsReply, ClusterQuery, TopicsReply};
use crate::hub::Hub;
use crate::stats::{ClusterStats, Stats};
use crate::worker::request::WorkerRequest;

/// Maximum bytes of an answer, so that it fits into a message of the broker. A broker with a lower
/// limit lowers it. The entries that do not fit are on the next page.
const MAX_ANSWER_BYTES: usize = 700 << 10;

/// Maximum topics in an answer. Bounds the memory and time that another node can request.
const MAX_ANSWER_TOPICS: usize = 1000;

/// Returns this node's answer to a query. Returns `None` if the query is invalid, if a worker does
/// not answer, or if the answer is too large.
pub(super) async fn answer_query(hub: &Arc<Hub>, query: ClusterQuery) -> Option<String> {
    match query {
        ClusterQuery::Client { client_id } => {
            let info = match hub.connection_id(&ClientId::parse(&client_id)?) {
                Some(client) => hub
                    .request(client.worker.into(), |reply| WorkerRequest::Client { client, reply })
                    .await
                    .ok()?,
                None => None,
            };
            serde_json::to_string(&info.map(ClientRecord::from)).ok()
        }
        ClusterQuery::Clients { cursor, mut limit } => loop {
            let page = hub.clients(cursor.as_deref(), limit).await.ok()?;
            let clients = page.items.into_iter().map(ClientRecord::from).collect();
            let text = serde_json::to_string(&ClientsReply { clients, next: page.next_cursor }).ok()?;
            if text.len() <= max_answer_bytes(hub) {
                return Some(text);
            }
            // The subscriptions are long. Try half as many clients; the next page has the others.
            limit /= 2;
            if limit == 0 {
                warn_answer_too_large("clients", hub);
                return None;
            }
        },
        ClusterQuery::Topics { after, limit } => {
            let topics = hub.router.list_names_after(&after, limit.min(MAX_ANSWER_TOPICS));
            let text = serialize_topics(topics, max_answer_bytes(hub));
            if text.is_none() {
                warn_answer_too_large("topics", hub);
            }
            text
        }
        ClusterQuery::Topic { name } => {
            let subscription = Subscription::parse(name).ok()?;
            serde_json::to_string(&hub.router.subscriber_count(&subscription)).ok()
        }
        ClusterQuery::Stats => serde_json::to_string(&ClusterStats::from(Stats::of(hub))).ok(),
    }
}

fn max_answer_bytes(hub: &Hub) -> usize {
    hub.broker.as_ref().map_or(MAX_ANSWER_BYTES, |broker| broker.max_answer_bytes().min(MAX_ANSWER_BYTES))
}

/// Logs that an answer is too large even with a single entry.
fn warn_answer_too_large(list: &str, hub: &Hub) {
    let max_answer_bytes = max_answer_bytes(hub);
    warn!(list, max_answer_bytes, "List entry exceeds the cluster answer limit");
}

/// Serializes the topics. If they do not fit, halves the list until it fits, and marks it as cut.
/// Returns `None` if not even one topic fits.
fn serialize_topics(mut topics: Vec<(String, u64)>, max_bytes: usize) -> Option<String> {
    let text = serde_json::to_string(&topics).ok()?;
    if text.len() <= max_bytes {
        return Some(text);
    }
    loop {
        topics.truncate(topics.len() / 2);
        if topics.is_empty() {
            return None;
        }
        let text = serde_json::to_string(&TopicsReply::Cut { cut: topics.clone() }).ok()?;
        if text.len() <= max_bytes {
            return Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(names: std::ops::Range<usize>) -> Vec<(String, u64)> {
        names.map(|number| (format!("topic.{number:04}"), 1)).collect()
    }

    fn parse(text: &str) -> TopicsReply {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_answer_is_cut_to_the_brokers_limit() {
        let whole = serialize_topics(topics(0..100), MAX_ANSWER_BYTES).unwrap();
        assert!(matches!(parse(&whole), TopicsReply::All(all) if all.len() == 100));
        let cut = serialize_topics(topics(0..100), 1000).unwrap();
        assert!(cut.len() <= 1000);
        assert!(
            matches!(parse(&cut), TopicsReply::Cut { cut } if cut.len() > 20 && cut == topics(0..cut.len()))
        );
        assert_eq!(serialize_topics(topics(0..100), 10), None);
        assert_eq!(serialize_topics(Vec::new(), 10).as_deref(), Some("[]"));
    }
}
