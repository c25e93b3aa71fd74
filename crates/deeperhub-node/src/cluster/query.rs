//! Queries from node to node, and the replies.

use std::time::Duration;

use deeperhub_protocol::ClientId;
use serde::{Deserialize, Serialize};

use crate::operation::Reached;
use crate::types::{ClientInfo, ConnectionInfo};

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

    pub(crate) fn to_text(&self) -> String {
        // Names, numbers and strings always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientRecord {
    client_id: String,
    user: Option<String>,
    subscriptions: Vec<String>,
    /// Absent in the records of older nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connection: Option<ConnectionInfo>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientsReply {
    pub(crate) clients: Vec<ClientRecord>,
    pub(crate) next: Option<String>,
}

/// Topics in the order of their names.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum TopicsReply {
    /// All topics, or as many as requested.
    All(Vec<(String, u64)>),
    /// The first topics of a list that does not fit into an answer.
    Cut { cut: Vec<(String, u64)> },
}

impl From<ClientInfo> for ClientRecord {
    fn from(info: ClientInfo) -> Self {
        let ClientInfo { client_id, user, subscriptions, connection } = info;
        Self { client_id: client_id.to_string(), user, subscriptions, connection }
    }
}

impl ClientRecord {
    pub(crate) fn into_info(self) -> Option<ClientInfo> {
        let client_id = ClientId::parse(&self.client_id)?;
        let Self { user, subscriptions, connection, .. } = self;
        Some(ClientInfo { client_id, user, subscriptions, connection })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_to_operations_round_trip() {
        for (reached, text) in [(None, "not_found"), (Some(0), "none"), (Some(1), "found")] {
            assert_eq!(reply_to_operation(reached), text);
            assert_eq!(parse_operation_reply(text), reached);
        }
    }

    #[test]
    fn records_of_older_nodes_have_no_connection() {
        let older = r#"{"client_id":"n.0-0-0","user":"ada","subscriptions":["a"]}"#;
        let info = serde_json::from_str::<ClientRecord>(older).unwrap().into_info().unwrap();
        assert_eq!((info.user.as_deref(), &info.connection), (Some("ada"), &None));
        let text = serde_json::to_string(&ClientRecord::from(info)).unwrap();
        assert_eq!(text, older);
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
