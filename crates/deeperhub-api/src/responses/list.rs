//! Pages of the lists of clients and topics.

use deeperhub_node::{ClientInfo, ClusterAnswer, ConnectionInfo, Page, TopicInfo};
use serde::Serialize;

use super::Topic;

/// A client's connection.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Client {
    /// ID of the client.
    #[cfg_attr(test, schema(example = "node-1.0-1f-5c2a"))]
    pub(crate) client_id: String,
    /// User of the client's token or certificate; null without one.
    #[cfg_attr(test, schema(required = true))]
    pub(crate) user: Option<String>,
    /// Topics and patterns that the client is subscribed to.
    pub(crate) subscriptions: Vec<String>,
    /// State of the connection. Absent if the client's node is of an older version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = ClientConnection, required = false))]
    pub(crate) connection: Option<ClientConnection>,
    /// Positions of the subscriptions to topics with history. Absent in lists, and for clients of
    /// other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = Vec<SubscriptionPosition>, required = false))]
    pub(crate) positions: Option<Vec<SubscriptionPosition>>,
}

/// State of a client's connection.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct ClientConnection {
    /// Address of the client.
    #[cfg_attr(test, schema(example = "192.0.2.7:52118"))]
    peer: String,
    /// `Origin` header of the handshake; null without one.
    #[cfg_attr(test, schema(required = true))]
    origin: Option<String>,
    /// Time since the handshake.
    connected_ms: u64,
    /// Messages received from the client.
    received_total: u64,
    /// Replies and deliveries to the client.
    sent_total: u64,
    /// Bytes that wait to be sent to the client.
    queued_bytes: u64,
    /// Subscriptions that are behind the newest message of their topic.
    pub(crate) behind: Vec<Behind>,
}

/// A subscription that is behind.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Behind {
    pub(crate) topic: String,
    /// Offset of the last message that was sent to the client.
    pub(crate) offset: u64,
}

/// Position of a subscription to a topic with history.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct SubscriptionPosition {
    pub(crate) topic: String,
    /// Offset of the last message that was sent to the client.
    pub(crate) offset: u64,
    /// Offset of the topic's newest message.
    pub(crate) newest: u64,
}

/// A page of the list of clients.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Clients {
    pub(crate) clients: Vec<Client>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = String, required = false))]
    pub(crate) next_cursor: Option<String>,
    /// Nodes of the cluster that did not answer in time and are missing here. Absent with scope
    /// `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = Vec<String>, required = false))]
    pub(crate) unanswered: Option<Vec<String>>,
}

/// A page of the list of topics.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Topics {
    pub(crate) topics: Vec<Topic>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = String, required = false))]
    pub(crate) next_cursor: Option<String>,
    /// Nodes of the cluster that did not answer in time and are missing here. Absent with scope
    /// `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = Vec<String>, required = false))]
    pub(crate) unanswered: Option<Vec<String>>,
}

/// A page of a list.
pub(crate) trait List {
    type Item;

    fn items(&mut self) -> &mut Vec<Self::Item>;

    fn next_cursor(&mut self) -> &mut Option<String>;

    fn unanswered(&mut self) -> &mut Option<Vec<String>>;
}

impl List for Clients {
    type Item = Client;

    fn items(&mut self) -> &mut Vec<Client> {
        &mut self.clients
    }

    fn next_cursor(&mut self) -> &mut Option<String> {
        &mut self.next_cursor
    }

    fn unanswered(&mut self) -> &mut Option<Vec<String>> {
        &mut self.unanswered
    }
}

impl List for Topics {
    type Item = Topic;

    fn items(&mut self) -> &mut Vec<Topic> {
        &mut self.topics
    }

    fn next_cursor(&mut self) -> &mut Option<String> {
        &mut self.next_cursor
    }

    fn unanswered(&mut self) -> &mut Option<Vec<String>> {
        &mut self.unanswered
    }
}

impl Client {
    /// Returns `true` if the ID, the user or the address contains a text.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.client_id.contains(text)
            || self.user.as_ref().is_some_and(|user| user.contains(text))
            || self.connection.as_ref().is_some_and(|connection| connection.peer.contains(text))
    }
}

impl From<ClientInfo> for Client {
    fn from(client: ClientInfo) -> Self {
        Self {
            client_id: client.client_id.as_str().to_owned(),
            user: client.user,
            subscriptions: client.subscriptions,
            connection: client.connection.map(ClientConnection::from),
            positions: None,
        }
    }
}

impl From<ConnectionInfo> for ClientConnection {
    fn from(connection: ConnectionInfo) -> Self {
        let behind = |behind: deeperhub_node::SubscriptionBehind| Behind {
            topic: behind.topic,
            offset: behind.offset,
        };
        Self {
            peer: connection.peer.to_string(),
            origin: connection.origin,
            connected_ms: connection.connected_ms,
            received_total: connection.received_total,
            sent_total: connection.sent_total,
            queued_bytes: connection.queued_bytes,
            behind: connection.behind.into_iter().map(behind).collect(),
        }
    }
}

impl From<Page<ClientInfo>> for Clients {
    fn from(page: Page<ClientInfo>) -> Self {
        let clients = page.items.into_iter().map(Client::from).collect();
        Self { clients, next_cursor: page.next_cursor, unanswered: None }
    }
}

impl From<ClusterAnswer<Page<ClientInfo>>> for Clients {
    fn from(cluster: ClusterAnswer<Page<ClientInfo>>) -> Self {
        Self { unanswered: Some(cluster.unanswered), ..cluster.answer.into() }
    }
}

impl From<Page<TopicInfo>> for Topics {
    fn from(page: Page<TopicInfo>) -> Self {
        let topics = page.items.into_iter().map(Topic::from).collect();
        Self { topics, next_cursor: page.next_cursor, unanswered: None }
    }
}

impl From<ClusterAnswer<Page<TopicInfo>>> for Topics {
    fn from(cluster: ClusterAnswer<Page<TopicInfo>>) -> Self {
        Self { unanswered: Some(cluster.unanswered), ..cluster.answer.into() }
    }
}
