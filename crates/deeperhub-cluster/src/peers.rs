//! The other nodes of the cluster, known from their heartbeats.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::announcement;

/// Time without a heartbeat after which a node counts as gone: five heartbeat intervals.
pub(crate) const PEER_EXPIRY: Duration = Duration::from_secs(5);

/// Maximum number of known nodes. Limits memory use.
const MAX_PEERS: usize = 1024;

/// Another node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// The node's name.
    pub node_id: String,
    /// Version of the node's program. A version that can keep history is followed by the digest of
    /// the node's rules for it.
    pub version: String,
    /// Number of open connections at the last heartbeat.
    pub connections: u64,
    /// Time since the first heartbeat.
    pub known: Duration,
    /// Time since the last heartbeat. A node sends one every second.
    pub silent: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<BTreeMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    incarnation: u64,
    version: String,
    connections: u64,
    first: Instant,
    last: Instant,
    /// `true` if a heartbeat arrived on the current connection to the broker.
    has_returned: bool,
    /// The rules for history of this node and of the other one, as they were last compared.
    compared: Option<(u32, Option<u32>)>,
}

/// Difference between this node's rules for history and those of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RulesDifference {
    /// The version of the other node keeps no history in a cluster.
    Unsupported,
    /// The other node has other rules.
    Other,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a heartbeat. Returns `true` if the node is new or was restarted. Nodes beyond
    /// [`MAX_PEERS`] are not recorded.
    pub(crate) fn record_hello(
        &self,
        node: &str,
        incarnation: u64,
        version: &str,
        connections: u64,
        now: Instant,
    ) -> bool {
        let mut peers = self.lock();
        if let Some(peer) = peers.get_mut(node) {
            let is_other = peer.incarnation != incarnation;
            if is_other {
                (peer.first, peer.compared) = (now, None);
            }
            peer.incarnation = incarnation;
            version.clone_into(&mut peer.version);
            (peer.connections, peer.last, peer.has_returned) = (connections, now, true);
            return is_other;
        }
        let has_room = peers.len() < MAX_PEERS;
        if has_room {
            let version = version.to_owned();
            let entry = Entry {
                incarnation,
                version,
                connections,
                first: now,
                last: now,
                has_returned: true,
                compared: None,
            };
            peers.insert(node.to_owned(), entry);
        }
        has_room
    }

    /// Compares the rules for history of a node with `own`. Returns a difference once, and again when
    /// either changes.
    pub(crate) fn compare_rules(&self, node: &str, own: u32) -> Option<RulesDifference> {
        let mut peers = self.lock();
        let peer = peers.get_mut(node)?;
        let rules = announcement::rules(&peer.version);
        if peer.compared.replace((own, rules)) == Some((own, rules)) {
            return None;
        }
        match rules {
            None => (own != 0).then_some(RulesDifference::Unsupported),
            Some(rules) => (own != rules).then_some(RulesDifference::Other),
        }
    }

    /// Removes a node that leaves. Returns `true` if it was known.
    pub(crate) fn remove(&self, node: &str, incarnation: u64) -> bool {
        let mut peers = self.lock();
        let is_known = peers.get(node).is_some_and(|peer| peer.incarnation == incarnation);
        if is_known {
            peers.remove(node);
        }
        is_known
    }

    /// Removes nodes that were silent for [`PEER_EXPIRY`] and returns their names.
    pub(crate) fn expire(&self, now: Instant) -> Vec<String> {
        let mut peers = self.lock();
        let is_gone = |peer: &Entry| now.saturating_duration_since(peer.last) > PEER_EXPIRY;
        let gone: Vec<_> =
            peers.iter().filter(|(_, peer)| is_gone(peer)).map(|(node, _)| node.clone()).collect();
        peers.retain(|_, peer| !is_gone(peer));
        gone
    }

    /// Prepares for a new connection: resets the time of each node's last heartbeat, so that the
    /// outage makes no node expire.
    pub(crate) fn expect_all(&self, now: Instant) {
        for peer in self.lock().values_mut() {
            (peer.has_returned, peer.last) = (false, now);
        }
    }

    /// Returns `true` if all known nodes have sent a heartbeat since
    /// [`expect_all`](Self::expect_all).
    pub(crate) fn all_returned(&self) -> bool {
        self.lock().values().all(|peer| peer.has_returned)
    }

    pub(crate) fn contains(&self, node: &str) -> bool {
        self.lock().contains_key(node)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn list(&self, now: Instant) -> Vec<Peer> {
        self.lock()
            .iter()
            .map(|(node, peer)| Peer {
                node_id: node.clone(),
                version: peer.version.clone(),
                connections: peer.connections,
                known: now.saturating_duration_since(peer.first),
                silent: now.saturating_duration_since(peer.last),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_nodes_expire() {
        let peers = Peers::default();
        let start = Instant::now();
        assert!(peers.record_hello("a", 1, "1", 0, start));
        assert!(peers.record_hello("b", 1, "1", 7, start));
        assert!(!peers.record_hello("a", 1, "1", 3, start + PEER_EXPIRY));
        assert_eq!(peers.expire(start + PEER_EXPIRY), [""; 0]);
        assert_eq!(peers.expire(start + PEER_EXPIRY * 3 / 2), ["b"]);
        let list = peers.list(start + PEER_EXPIRY);
        assert_eq!((list.len(), list[0].connections, list[0].known), (1, 3, PEER_EXPIRY));
    }

    #[test]
    fn nodes_over_the_limit_are_not_new_with_each_heartbeat() {
        let peers = Peers::default();
        let now = Instant::now();
        for number in 0..MAX_PEERS {
            assert!(peers.record_hello(&number.to_string(), 1, "1", 0, now));
        }
        assert!(!peers.record_hello("one too many", 1, "1", 0, now));
        assert_eq!(peers.len(), MAX_PEERS);
    }

    #[test]
    fn a_restarted_node_is_new_and_its_former_incarnation_cannot_remove_it() {
        let peers = Peers::default();
        let now = Instant::now();
        assert!(peers.record_hello("a", 1, "1", 0, now));
        assert!(peers.record_hello("a", 2, "1", 0, now));
        assert!(!peers.remove("a", 1));
        assert!(peers.remove("a", 2));
        assert_eq!(peers.len(), 0);
    }

    #[test]
    fn a_difference_of_rules_is_reported_once() {
        let peers = Peers::default();
        let now = Instant::now();
        let hello = |node: &str, incarnation, version: &str| {
            peers.record_hello(node, incarnation, version, 0, now);
        };
        hello("same", 1, &announcement::write("2", 7));
        hello("other", 1, &announcement::write("2", 8));
        hello("none", 1, &announcement::write("2", 0));
        hello("old", 1, "1");
        let compare =
            |own| ["same", "other", "none", "old", "gone"].map(|node| peers.compare_rules(node, own));
        let (other, unsupported) = (Some(RulesDifference::Other), Some(RulesDifference::Unsupported));
        assert_eq!(compare(7), [None, other, other, unsupported, None]);
        assert_eq!(compare(7), [None; 5]);
        // This node gets other rules, and then none.
        assert_eq!(compare(8), [other, None, other, unsupported, None]);
        assert_eq!(compare(0), [other, other, None, None, None]);
        // Another node gets them, or is restarted.
        hello("same", 1, &announcement::write("2", 0));
        hello("other", 2, &announcement::write("2", 8));
        assert_eq!(compare(0), [None, other, None, None, None]);
    }

    #[test]
    fn all_nodes_are_expected_after_an_outage() {
        let peers = Peers::default();
        let now = Instant::now();
        peers.record_hello("a", 1, "1", 0, now);
        peers.record_hello("b", 1, "1", 0, now);
        peers.expect_all(now);
        assert!(!peers.all_returned());
        peers.record_hello("a", 1, "1", 0, now);
        assert!(!peers.all_returned());
        peers.remove("b", 1);
        assert!(peers.all_returned());
    }
}
