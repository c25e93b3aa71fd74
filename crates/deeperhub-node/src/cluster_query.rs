//! Queries to all nodes, and the merging of their answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_cluster::{Message, RequestError};
use deeperhub_protocol::ClientId;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::handle::NodeHandle;
use crate::hub::Hub;
use crate::operation::Reached;
use crate::stats::{Stats, Totals};
use crate::types::{ClientInfo, CursorError, ListError, Page, TopicInfo};
use crate::worker_request::WorkerRequest;

/// Time after which a node that did not answer is listed as unanswered.
pub(crate) const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Reply to an operation on a client: the operation had an effect.
const REPLY_FOUND: &str = "found";
/// Reply to an operation on a client that is not connected.
const REPLY_NOT_FOUND: &str = "not_found";
/// Reply to an operation that had no effect: the client has no such subscription.
const REPLY_NO_EFFECT: &str = "none";

/// Returns the reply to an operation on a client.
pub(crate) const fn reply_to_operation(reached: Reached) -> &'static str {
    match reached {
        None => REPLY_NOT_FOUND,
        Some(0) => REPLY_NO_EFFECT,
        Some(_) => REPLY_FOUND,
    }
}

/// Parses the reply to an operation on a client.
pub(crate) fn parse_operation_reply(reply: &str) -> Reached {
    match reply {
        REPLY_NOT_FOUND => None,
        REPLY_NO_EFFECT => Some(0),
        // A later version may have other effects.
        _ => Some(1),
    }
}

/// Maximum bytes of an answer, so that it fits into a message of the broker. A broker with a lower
/// limit lowers it. The entries that do not fit are on the next page.
const MAX_ANSWER_BYTES: usize = 700 << 10;

/// Maximum topics in an answer. Bounds the memory and time that another node can request.
const MAX_ANSWER_TOPICS: usize = 1000;

/// Query from one node to another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClusterQuery {
    Client { client_id: String },
    Clients { cursor: Option<String>, limit: usize },
    Topics { after: String, limit: usize },
    Topic { name: String },
    Stats,
}

impl ClusterQuery {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn to_text(&self) -> String {
        // Names, numbers and strings always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Statistics of several nodes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ClusterStats {
    /// Nodes that answered.
    pub nodes: u64,
    /// Sums over these nodes. A topic with subscribers on two nodes counts twice.
    #[serde(flatten)]
    pub totals: Totals,
}

impl From<Stats> for ClusterStats {
    fn from(stats: Stats) -> Self {
        Self { nodes: 1, totals: stats.totals }
    }
}

impl ClusterStats {
    fn add(&mut self, other: &Self) {
        self.nodes += other.nodes;
        self.totals += &other.totals;
    }
}

/// Answer of all nodes of a cluster together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterAnswer<T> {
    /// Answer merged from this node and all nodes that answered.
    pub answer: T,
    /// Names of the nodes that did not answer in time.
    pub unanswered: Vec<String>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeInfo {
    /// Node name.
    pub node_id: String,
    /// Version of the node's program.
    pub version: String,
    /// Open connections: current for this node, as of the last heartbeat for others.
    pub connections: u64,
    /// Time since this node started. For another node: time since its first heartbeat arrived.
    pub known: Duration,
    /// Time since the node's last heartbeat. Nodes send one each second. Zero for this node.
    pub silent: Duration,
    /// `true` if this entry is the node that returned the list.
    pub is_self: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct ClientRecord {
    client_id: String,
    user: Option<String>,
    subscriptions: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ClientsReply {
    clients: Vec<ClientRecord>,
    next: Option<String>,
}

/// Topics in the order of their names.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum TopicsReply {
    /// All topics, or as many as requested.
    All(Vec<(String, u64)>),
    /// The first topics of a list that does not fit into an answer.
    Cut { cut: Vec<(String, u64)> },
}

impl From<ClientInfo> for ClientRecord {
    fn from(info: ClientInfo) -> Self {
        Self { client_id: info.client_id.to_string(), user: info.user, subscriptions: info.subscriptions }
    }
}

impl ClientRecord {
    fn into_info(self) -> Option<ClientInfo> {
        let client_id = ClientId::parse(&self.client_id)?;
        Some(ClientInfo { client_id, user: self.user, subscriptions: self.subscriptions })
    }
}

/// Returns this node's answer to a query. Returns `None` if the query is invalid, if a worker does
/// not answer, or if the answer is too large.
pub(crate) async fn answer_query(hub: &Arc<Hub>, query: ClusterQuery) -> Option<String> {
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
            let subscription = deeperhub_protocol::Subscription::parse(name).ok()?;
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

/// Merges the topics of several answers. Also returns `true` if there may be more.
///
/// Topics after the last name of a cut answer are left out, because their counts are incomplete.
fn merge_topics(answers: Vec<TopicsReply>, limit: usize) -> (Vec<TopicInfo>, bool) {
    let mut topics = BTreeMap::<String, u64>::new();
    let mut last_complete: Option<String> = None;
    for answer in answers {
        let entries = match answer {
            TopicsReply::All(entries) => entries,
            TopicsReply::Cut { cut } => {
                let last = cut.last().map(|(topic, _)| topic.clone());
                last_complete = [last_complete, last].into_iter().flatten().min();
                cut
            }
        };
        for (topic, subscribers) in entries {
            *topics.entry(topic).or_default() += subscribers;
        }
    }
    topics.retain(|topic, _| last_complete.as_ref().is_none_or(|last| topic <= last));
    let has_more = last_complete.is_some() || topics.len() >= limit;
    let info = |(topic, subscribers)| TopicInfo { topic, subscribers };
    (topics.into_iter().take(limit).map(info).collect(), has_more)
}

impl Hub {
    async fn query_node(&self, node: &str, query: &ClusterQuery) -> Result<String, RequestError> {
        let broker = self.broker.as_ref().ok_or(RequestError::UnknownNode)?;
        let text = query.to_text();
        broker.request(node, QUERY_TIMEOUT, |request| Message::Query { request, text: &text }).await
    }

    /// Queries all other nodes at once. Returns the answers, and the nodes that did not answer.
    async fn query_all_nodes<T: for<'de> Deserialize<'de>>(
        &self,
        query: &ClusterQuery,
    ) -> (Vec<T>, Vec<String>) {
        let nodes: Vec<_> =
            self.broker.iter().flat_map(|broker| broker.peers()).map(|peer| peer.node_id).collect();
        let answers = join_all(nodes.iter().map(|node| self.query_node(node, query))).await;
        let (mut parsed, mut unanswered) = (Vec::new(), Vec::new());
        for (node, answer) in nodes.into_iter().zip(answers) {
            match answer.ok().and_then(|text| serde_json::from_str(&text).ok()) {
                Some(answer) => parsed.push(answer),
                None => unanswered.push(node),
            }
        }
        (parsed, unanswered)
    }
}

impl NodeHandle {
    /// Returns the statistics of all nodes together.
    pub async fn cluster_stats(&self) -> ClusterAnswer<ClusterStats> {
        let (others, unanswered) = self.hub.query_all_nodes::<ClusterStats>(&ClusterQuery::Stats).await;
        let mut answer = ClusterStats::from(self.stats());
        others.iter().for_each(|other| answer.add(other));
        ClusterAnswer { answer, unanswered }
    }

    /// Returns one topic or pattern with its subscribers on all nodes.
    pub async fn cluster_topic(
        &self,
        topic: &deeperhub_protocol::Subscription<'_>,
    ) -> ClusterAnswer<TopicInfo> {
        let query = ClusterQuery::Topic { name: topic.as_str().to_owned() };
        let (others, unanswered) = self.hub.query_all_nodes::<u64>(&query).await;
        let mut answer = self.topic(topic);
        answer.subscribers += others.iter().sum::<u64>();
        ClusterAnswer { answer, unanswered }
    }

    /// Lists topics and patterns with subscribers on any node, ordered by name, one page at a time.
    /// A `limit` outside 1 to 1000 is raised or lowered to this range.
    ///
    /// # Errors
    ///
    /// Returns [`CursorError`] for a malformed cursor.
    pub async fn cluster_topics(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<ClusterAnswer<Page<TopicInfo>>, CursorError> {
        let limit = limit.clamp(1, 1000);
        let after = cursor.map_or(Ok(String::new()), name_from_cursor)?;
        let query = ClusterQuery::Topics { after: after.clone(), limit };
        let (mut answers, unanswered) = self.hub.query_all_nodes::<TopicsReply>(&query).await;
        answers.push(TopicsReply::All(self.hub.router.list_names_after(&after, limit)));
        // Each node sent its first `limit` topics after the cursor, so the counts of the first
        // `limit` merged topics are complete.
        let (items, has_more) = merge_topics(answers, limit);
        let next_cursor = items.last().filter(|_| has_more).map(|last| cursor_from_name(&last.topic));
        Ok(ClusterAnswer { answer: Page { items, next_cursor }, unanswered })
    }

    /// Lists connections of all nodes, node by node, one page at a time. A page that is shorter
    /// than the limit need not be the last one. A `limit` outside 1 to 1000 is raised or lowered to
    /// this range.
    ///
    /// # Errors
    ///
    /// Returns [`CursorError`] for a malformed cursor.
    pub async fn cluster_clients(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<ClusterAnswer<Page<ClientInfo>>, CursorError> {
        let limit = limit.clamp(1, 1000);
        let (start, mut node_cursor) = match cursor {
            None => (String::new(), None),
            Some(cursor) => {
                let (node, node_cursor) = cursor.split_once('.').ok_or(CursorError)?;
                (node.to_owned(), Some(node_cursor.to_owned()).filter(|text| !text.is_empty()))
            }
        };
        let mut nodes: Vec<String> = self.nodes().into_iter().map(|node| node.node_id).collect();
        nodes.retain(|node| *node >= start);
        if nodes.first().is_none_or(|node| *node != start) {
            // The node at which the page starts has left the cluster. Start at the next one.
            node_cursor = None;
        }
        let (mut items, mut unanswered) = (Vec::new(), Vec::new());
        for node in nodes {
            let remaining = limit - items.len();
            if remaining == 0 {
                return Ok(page_of(items, Some(format!("{node}.")), unanswered));
            }
            let page = self.node_clients(&node, node_cursor.take(), remaining).await?;
            let Some(page) = page else {
                unanswered.push(node);
                continue;
            };
            items.extend(page.items);
            if let Some(next) = page.next_cursor {
                return Ok(page_of(items, Some(format!("{node}.{next}")), unanswered));
            }
        }
        Ok(page_of(items, None, unanswered))
    }

    /// Returns a page of one node's connections, or `None` if the node does not answer.
    async fn node_clients(
        &self,
        node: &str,
        cursor: Option<String>,
        limit: usize,
    ) -> Result<Option<Page<ClientInfo>>, CursorError> {
        if node == self.hub.node_id {
            return match self.hub.clients(cursor.as_deref(), limit).await {
                Ok(page) => Ok(Some(page)),
                Err(ListError::Cursor(error)) => Err(error),
                Err(ListError::WorkerTimeout(_)) => Ok(None),
            };
        }
        let Ok(text) = self.hub.query_node(node, &ClusterQuery::Clients { cursor, limit }).await else {
            return Ok(None);
        };
        let page = serde_json::from_str::<ClientsReply>(&text).ok().map(|page| Page {
            items: page.clients.into_iter().filter_map(ClientRecord::into_info).collect(),
            next_cursor: page.next,
        });
        Ok(page)
    }

    /// Returns one connection of another node.
    pub(crate) async fn remote_client(&self, node: &str, client: &ClientId) -> Option<ClientInfo> {
        let query = ClusterQuery::Client { client_id: client.to_string() };
        let text = self.hub.query_node(node, &query).await.ok()?;
        serde_json::from_str::<Option<ClientRecord>>(&text).ok()??.into_info()
    }

    /// Lists the nodes of the cluster, including this one, ordered by name.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let hub = &self.hub;
        let others = hub.broker.iter().flat_map(|broker| broker.peers()).map(|peer| NodeInfo {
            node_id: peer.node_id,
            version: peer.version,
            connections: peer.connections,
            known: peer.known,
            silent: peer.silent,
            is_self: false,
        });
        let this_node = NodeInfo {
            node_id: hub.node_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connections: hub.metrics.connections(),
            known: hub.started.elapsed(),
            silent: Duration::ZERO,
            is_self: true,
        };
        let mut nodes: Vec<_> = others.chain([this_node]).collect();
        nodes.sort_unstable_by(|a, b| a.node_id.cmp(&b.node_id));
        nodes
    }
}

const fn page_of(
    items: Vec<ClientInfo>,
    next_cursor: Option<String>,
    unanswered: Vec<String>,
) -> ClusterAnswer<Page<ClientInfo>> {
    ClusterAnswer { answer: Page { items, next_cursor }, unanswered }
}

/// Encodes a name in hexadecimal, which is URL-safe.
fn cursor_from_name(name: &str) -> String {
    name.bytes()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

fn name_from_cursor(cursor: &str) -> Result<String, CursorError> {
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(CursorError);
    let bytes = cursor
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).map_err(|_| CursorError),
            _ => Err(CursorError),
        })
        .collect::<Result<Vec<u8>, _>>()?;
    String::from_utf8(bytes).map_err(|_| CursorError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_round_trips() {
        for name in ["", "a.b", "é.*.>"] {
            assert_eq!(name_from_cursor(&cursor_from_name(name)).as_deref(), Ok(name));
        }
        for bad in ["0", "zz", "ff", "é"] {
            assert_eq!(name_from_cursor(bad), Err(CursorError), "{bad}");
        }
    }

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

    #[test]
    fn topics_after_a_cut_answer_are_left_to_the_next_page() {
        let names = |(items, has_more): (Vec<TopicInfo>, bool)| {
            (items.into_iter().map(|item| (item.topic, item.subscribers)).collect::<Vec<_>>(), has_more)
        };
        let all = || TopicsReply::All(topics(0..50));
        let mut doubled = topics(0..10);
        doubled.iter_mut().for_each(|(_, subscribers)| *subscribers = 2);
        let answers = vec![all(), TopicsReply::Cut { cut: topics(0..10) }];
        assert_eq!(names(merge_topics(answers, 100)), (doubled, true));
        assert_eq!(names(merge_topics(vec![all()], 100)), (topics(0..50), false));
        assert_eq!(names(merge_topics(vec![all()], 20)), (topics(0..20), true));
        let answers = vec![TopicsReply::Cut { cut: topics(5..6) }, TopicsReply::Cut { cut: topics(0..3) }];
        assert_eq!(names(merge_topics(answers, 100)), (topics(0..3), true));
    }

    #[test]
    fn replies_to_operations_round_trip() {
        for (reached, text) in [(None, "not_found"), (Some(0), "none"), (Some(1), "found")] {
            assert_eq!(reply_to_operation(reached), text);
            assert_eq!(parse_operation_reply(text), reached);
        }
    }

    #[test]
    fn queries_round_trip() {
        for query in [
            ClusterQuery::Client { client_id: "n.0-0-0".to_owned() },
            ClusterQuery::Clients { cursor: None, limit: 5 },
            ClusterQuery::Stats,
        ] {
            let text = query.to_text();
            assert_eq!(ClusterQuery::parse(&text).map(|query| query.to_text()), Some(text));
        }
        assert!(ClusterQuery::parse("\"later\"").is_none());
    }
}
