//! Identity of connections. A client ID contains the node's name, and the worker and key of the
//! connection on this node. A send to a client thus needs no map that threads share.

use std::fmt::Write;

use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::ClientId;

/// Maximum bytes of a node name. Keeps client IDs short.
const MAX_NODE_ID_BYTES: usize = 32;

/// Identity of a connection on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId {
    pub(crate) worker: u16,
    pub(crate) key: ConnectionKey,
    /// Distinguishes connections that had the same key. Serials start at a random number, so they
    /// also differ after a restart.
    pub(crate) serial: u64,
}

impl ConnectionId {
    /// Returns the source number of this connection as a publisher. The router keeps messages with
    /// the same source number in order.
    pub(crate) fn publisher_source(self) -> u64 {
        // A later connection with the same key has the same number. The router then orders its
        // messages after those of the earlier connection, which does no harm.
        u64::from(self.worker) << 32 | u64::from(self.key)
    }

    /// Returns the client ID.
    pub(crate) fn client_id(self, node_id: &str) -> Option<ClientId> {
        let mut text = String::with_capacity(node_id.len() + 30);
        text.push_str(node_id);
        // Writing to a string cannot fail.
        let _ = write!(text, ".{:x}-{:x}-{:x}", self.worker, self.key, self.serial);
        ClientId::parse(&text)
    }

    /// Parses a client ID of the node named `node_id`. Returns `None` for any other client ID.
    pub(crate) fn from_client_id(client_id: &ClientId, node_id: &str) -> Option<Self> {
        let (node, connection) = client_id.as_str().rsplit_once('.')?;
        if node != node_id {
            return None;
        }
        let mut parts = connection.split('-');
        let worker = u16::from_str_radix(parts.next()?, 16).ok()?;
        let key = ConnectionKey::from_str_radix(parts.next()?, 16).ok()?;
        let serial = u64::from_str_radix(parts.next()?, 16).ok()?;
        parts.next().is_none().then_some(Self { worker, key, serial })
    }
}

/// Returns `true` if `text` is a valid node name.
pub(crate) fn is_node_id(text: &str) -> bool {
    (1..=MAX_NODE_ID_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Returns a random name that no other node is likely to have.
pub(crate) fn random_node_id() -> Result<String, getrandom::Error> {
    Ok(format!("n{:08x}", getrandom::u32()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_round_trips() {
        let connection = ConnectionId { worker: 3, key: 77, serial: u64::MAX };
        let id = connection.client_id("node-1").unwrap();
        assert_eq!(ConnectionId::from_client_id(&id, "node-1"), Some(connection));
        assert_eq!(ConnectionId::from_client_id(&id, "node-2"), None);
    }

    #[test]
    fn malformed_client_ids_are_rejected() {
        for text in ["node", "node.", "node.1", "node.1-2", "node.1-2-3-4", "node.g-1-1", "node.10000-1-1"] {
            assert_eq!(ConnectionId::from_client_id(&ClientId::parse(text).unwrap(), "node"), None, "{text}");
        }
    }

    #[test]
    fn node_ids_are_short_and_plain() {
        assert!(is_node_id(&random_node_id().unwrap()));
        for bad in ["", "a.b", "ä", &"x".repeat(33)] {
            assert!(!is_node_id(bad), "{bad}");
        }
    }
}
