//! Lists and counts of all nodes of a cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use deeperhub_cluster::{Broker, Message, RequestError};
use deeperhub_protocol::{ClientId, Subscription};
use futures_util::future::join_all;
use serde::Deserialize;

use super::NodeHandle;
use crate::cluster::query::{ClientRecord, ClientsReply, ClusterQuery, QUERY_TIMEOUT, TopicsReply};
use crate::hub::Hub;
use crate::stats::{ClusterStats, NodeTotals};
use crate::types::{ClientInfo, ClusterAnswer, CursorError, ListError, NodeInfo, Page, TopicInfo};

impl Hub {
    async fn query_node(&self, node: &str, query: &ClusterQuery) -> Result<String, RequestError> {
        let broker = self.broker.as_ref().ok_or(RequestError::UnknownNode)?;
        let text = query.to_text();
        broker.request(node, QUERY_TIMEOUT, |request| Message::Query { request, text: &text }).await
    }

    /// Queries all other nodes at once. Returns the answers with the names of their nodes, and the
    /// nodes that did not answer.
    async fn query_all_nodes<T: for<'de> Deserialize<'de>>(
        &self,
        query: &ClusterQuery,
    ) -> (Vec<(String, T)>, Vec<String>) {
        let nodes: Vec<_> =
            self.broker.iter().flat_map(|broker| broker.peers()).map(|peer| peer.node_id).collect();
        let answers = join_all(nodes.iter().map(|node| self.query_node(node, query))).await;
        let (mut parsed, mut unanswered) = (Vec::new(), Vec::new());
        for (node, answer) in nodes.into_iter().zip(answers) {
            match answer.ok().and_then(|text| serde_json::from_str(&text).ok()) {
                Some(answer) => parsed.push((node, answer)),
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
        others.iter().for_each(|(_, other)| answer.add(other));
        ClusterAnswer { answer, unanswered }
    }

    /// Returns the statistics of each node, ordered by name.
    pub async fn node_totals(&self) -> ClusterAnswer<Vec<NodeTotals>> {
        let (others, unanswered) = self.hub.query_all_nodes::<ClusterStats>(&ClusterQuery::Stats).await;
        let this_node = (self.hub.node_id.clone(), ClusterStats::from(self.stats()));
        let mut answer: Vec<_> = others
            .into_iter()
            .chain([this_node])
            .map(|(node_id, stats)| NodeTotals { node_id, totals: stats.totals })
            .collect();
        answer.sort_unstable_by(|a, b| a.node_id.cmp(&b.node_id));
        ClusterAnswer { answer, unanswered }
    }

    /// Returns one topic or pattern with its subscribers on all nodes.
    pub async fn cluster_topic(&self, topic: &Subscription<'_>) -> ClusterAnswer<TopicInfo> {
        let query = ClusterQuery::Topic { name: topic.as_str().to_owned() };
        let (others, unanswered) = self.hub.query_all_nodes::<u64>(&query).await;
        let mut answer = self.topic(topic);
        answer.subscribers += others.iter().map(|(_, subscribers)| subscribers).sum::<u64>();
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
        let (others, unanswered) = self.hub.query_all_nodes::<TopicsReply>(&query).await;
        let mut answers: Vec<_> = others.into_iter().map(|(_, reply)| reply).collect();
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
        let own_version = || env!("CARGO_PKG_VERSION").to_owned();
        let this_node = NodeInfo {
            node_id: hub.node_id.clone(),
            version: hub.broker.as_ref().map_or_else(own_version, Broker::announced_version),
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
}
