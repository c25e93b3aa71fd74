//! Client ids: a node's name and where on it a connection is, so that a send needs no map shared by threads.

use std::fmt::Write;

use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::ClientId;

/// Longest name of a node, in bytes.
const MAX_NODE_ID_BYTES: usize = 32;

/// Where on this node a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) worker: u16,
    pub(crate) key: ConnectionKey,
    /// Tells apart the connections that had the same key, also over restarts: it starts at random.
    pub(crate) serial: u64,
}

impl Place {
    /// Names the connection as a publisher, whose messages keep their order.
    pub(crate) fn source(self) -> u64 {
        // A key's next connection may share it for a moment: more order than is owed.
        u64::from(self.worker) << 32 | u64::from(self.key)
    }

    /// The id of this place's connection.
    pub(crate) fn client_id(self, node_id: &str) -> Option<ClientId> {
        let mut text = String::with_capacity(node_id.len() + 30);
        text.push_str(node_id);
        // Writing to a string cannot fail.
        let _ = write!(text, ".{:x}-{:x}-{:x}", self.worker, self.key, self.serial);
        ClientId::parse(&text)
    }

    /// The place that an id of this node names.
    pub(crate) fn of(client_id: &ClientId, node_id: &str) -> Option<Self> {
        let (node, place) = client_id.as_str().rsplit_once('.')?;
        if node != node_id {
            return None;
        }
        let mut parts = place.split('-');
        let worker = u16::from_str_radix(parts.next()?, 16).ok()?;
        let key = ConnectionKey::from_str_radix(parts.next()?, 16).ok()?;
        let serial = u64::from_str_radix(parts.next()?, 16).ok()?;
        parts.next().is_none().then_some(Self { worker, key, serial })
    }
}

/// Whether a text can name a node.
pub(crate) fn is_node_id(text: &str) -> bool {
    (1..=MAX_NODE_ID_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// A name that no other node is likely to have.
pub(crate) fn random_node_id() -> Result<String, getrandom::Error> {
    Ok(format!("n{:08x}", getrandom::u32()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_place() {
        let place = Place { worker: 3, key: 77, serial: u64::MAX };
        let id = place.client_id("node-1").unwrap();
        assert_eq!(Place::of(&id, "node-1"), Some(place));
        assert_eq!(Place::of(&id, "node-2"), None);
    }

    #[test]
    fn other_ids_name_none() {
        for text in ["node", "node.", "node.1", "node.1-2", "node.1-2-3-4", "node.g-1-1", "node.10000-1-1"] {
            assert_eq!(Place::of(&ClientId::parse(text).unwrap(), "node"), None, "{text}");
        }
    }

    #[test]
    fn names_of_nodes_are_short_and_plain() {
        assert!(is_node_id(&random_node_id().unwrap()));
        for bad in ["", "a.b", "ä", &"x".repeat(33)] {
            assert!(!is_node_id(bad), "{bad}");
        }
    }
}
