//! Bodies of responses; their doc comments are part of the OpenAPI document.

mod history;
mod list;
mod stats;

use deeperhub_node::{
    Action, ClusterAnswer, ClusterFault, Delivered, NodeInfo, Operation, Target, TopicHistory, TopicInfo,
};
use serde::Serialize;

use self::history::EpochText;
pub(crate) use self::history::{HistoryPage, HistoryState};
pub(crate) use self::list::{Client, Clients, List, SubscriptionPosition, Topics};
use self::stats::saturating_u64;
pub(crate) use self::stats::{Busiest, ClusterNumbers, NodeStats};
use crate::idempotency::PublishOutcome;

/// Outcome of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Published {
    /// Matching subscriptions on this node. A client with two of them counts twice and gets the
    /// message once.
    subscribers: u64,
    /// `unavailable` if the other nodes of the cluster could not be reached, `too_large` if the
    /// message is over the broker's size limit; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = String, required = false, example = "unavailable"))]
    cluster: Option<&'static str>,
    /// Epoch of the topic's stream. Epoch, offset and time are absent if the topic has no history.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = String, required = false, example = "k3J9aQx2"))]
    epoch: Option<EpochText>,
    /// Offset of the message in the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = u64, required = false))]
    offset: Option<u64>,
    /// Time of the publish in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = u64, required = false))]
    time: Option<u64>,
    /// The node's result.
    #[serde(skip)]
    pub(crate) delivered: Delivered,
}

/// Outcome of a call that may concern several connections.
#[derive(Debug, Clone, Copy, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Sent {
    /// Number of this node's connections on which the call took effect.
    clients: u64,
    /// `unavailable` if the other nodes of the cluster could not be reached, `too_large` if the
    /// message is over the broker's size limit; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = String, required = false, example = "unavailable"))]
    cluster: Option<&'static str>,
}

/// Outcome of an operation on clients. Its body depends on whom the operation concerns.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(crate) enum Executed {
    Done(Done),
    Unsubscribed(Unsubscribed),
    Sent(Sent),
}

/// Empty body of a call that took effect.
#[derive(Debug, Clone, Copy, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Done {}

/// Outcome of ending a client's subscription.
#[derive(Debug, Clone, Copy, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Unsubscribed {
    /// `false` if the client had no subscription to exactly this topic or pattern.
    pub(crate) unsubscribed: bool,
}

/// A topic or pattern.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Topic {
    #[cfg_attr(test, schema(example = "sports.football"))]
    pub(crate) topic: String,
    /// Number of subscribers on this node, or on all nodes with scope `cluster`.
    subscribers: u64,
    /// Kept messages of the topic. Absent in lists, for patterns, and if the topic has no history
    /// or was never used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = HistoryState, required = false))]
    history: Option<HistoryState>,
    /// Nodes of the cluster that did not answer in time and are missing here. Absent with scope
    /// `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = Vec<String>, required = false))]
    unanswered: Option<Vec<String>>,
}

impl From<Delivered> for Published {
    fn from(delivered: Delivered) -> Self {
        let (subscribers, cluster) = (delivered.count, cluster_fault(delivered));
        let published = Self { subscribers, cluster, epoch: None, offset: None, time: None, delivered };
        published.with_stored(delivered)
    }
}

impl Published {
    /// Returns the same outcome with the node's result after the message was stored.
    pub(crate) fn with_stored(self, delivered: Delivered) -> Self {
        let position = delivered.position;
        Self {
            delivered,
            epoch: position.map(|position| EpochText(position.epoch)),
            offset: position.map(|position| position.offset),
            time: position.map(|position| position.time),
            ..self
        }
    }

    /// Returns the same outcome after a second attempt to reach the other nodes.
    pub(crate) fn with_other_nodes(self, fault: Option<ClusterFault>) -> Self {
        Self { cluster: fault.map(ClusterFault::as_str), ..self }
    }
}

impl PublishOutcome for Published {
    fn is_incomplete(&self) -> bool {
        // A retry does not help if the message is too large for the broker.
        self.cluster == Some(ClusterFault::Unavailable.as_str())
    }
}

impl From<Delivered> for Sent {
    fn from(delivered: Delivered) -> Self {
        Self { clients: delivered.count, cluster: cluster_fault(delivered) }
    }
}

impl Executed {
    pub(crate) fn new(operation: &Operation<'_>, delivered: Delivered) -> Self {
        match (&operation.target, &operation.action) {
            (Target::Client(_), Action::Send(_) | Action::Disconnect) => Self::Done(Done {}),
            (Target::Client(_), Action::Unsubscribe(_)) => {
                Self::Unsubscribed(Unsubscribed { unsubscribed: delivered.count > 0 })
            }
            (Target::User(_) | Target::All, _) => Self::Sent(delivered.into()),
        }
    }
}

fn cluster_fault(delivered: Delivered) -> Option<&'static str> {
    delivered.cluster.map(ClusterFault::as_str)
}

impl From<TopicInfo> for Topic {
    fn from(topic: TopicInfo) -> Self {
        Self { topic: topic.topic, subscribers: topic.subscribers, history: None, unanswered: None }
    }
}

impl Topic {
    /// Adds the state of the topic's history.
    pub(crate) fn with_history(self, history: Option<TopicHistory>) -> Self {
        Self { history: history.map(HistoryState::from), ..self }
    }
}

impl From<ClusterAnswer<TopicInfo>> for Topic {
    fn from(cluster: ClusterAnswer<TopicInfo>) -> Self {
        Self { unanswered: Some(cluster.unanswered), ..cluster.answer.into() }
    }
}

/// The nodes of a cluster.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Nodes {
    /// All nodes including this one, in the order of their names.
    nodes: Vec<Node>,
}

/// A node of a cluster.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Node {
    /// Name of the node, with which its client IDs start.
    node_id: String,
    version: String,
    /// Open connections; of another node, at its last heartbeat.
    connections: u64,
    /// `true` for the node that answers this call.
    #[serde(rename = "self")]
    is_self: bool,
    /// Time since this node started, or since it first saw the other node.
    known_ms: u64,
    /// Time since the last heartbeat. Nodes send one each second, and are removed after 5 seconds
    /// without one.
    silent_ms: u64,
}

impl From<Vec<NodeInfo>> for Nodes {
    fn from(nodes: Vec<NodeInfo>) -> Self {
        let node = |node: NodeInfo| Node {
            node_id: node.node_id,
            version: node.version,
            connections: node.connections,
            is_self: node.is_self,
            known_ms: saturating_u64(node.known.as_millis()),
            silent_ms: saturating_u64(node.silent.as_millis()),
        };
        Self { nodes: nodes.into_iter().map(node).collect() }
    }
}
