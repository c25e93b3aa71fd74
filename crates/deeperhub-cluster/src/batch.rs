//! Envelopes on their way to the broker, in one buffer.

use crate::store::AppendTarget;

/// Receivers of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// All nodes that subscribe to the topic whose name is at this position in the envelope.
    Topic { start: usize, len: usize },
    /// One node.
    Node(Box<str>),
    /// All nodes.
    All,
    /// The store, which passes the message to all nodes that subscribe to its topic.
    Append(Box<AppendTarget>),
}

/// An envelope of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outbound<'b> {
    pub(crate) to: &'b Destination,
    pub(crate) envelope: &'b [u8],
}

/// Envelopes in the order of their pushes. They share a buffer, so that an envelope costs no
/// allocation.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Destination of each envelope, and the position of its end in `bytes`.
    entries: Vec<(Destination, usize)>,
    /// Number of appends, and what they take besides their envelopes.
    appends: usize,
    append_bytes: usize,
    /// Number of envelopes for one node.
    for_nodes: usize,
}

impl Batch {
    pub(crate) fn push(&mut self, to: Destination, envelope: &[u8]) {
        match &to {
            Destination::Append(target) => {
                self.appends += 1;
                self.append_bytes += target.bytes();
            }
            Destination::Node(_) => self.for_nodes += 1,
            Destination::Topic { .. } | Destination::All => {}
        }
        self.bytes.extend_from_slice(envelope);
        self.entries.push((to, self.bytes.len()));
    }

    /// Returns an empty batch with room for as much as this one has.
    pub(crate) fn empty_like(&self) -> Self {
        Self {
            bytes: Vec::with_capacity(self.bytes.len()),
            entries: Vec::with_capacity(self.entries.len()),
            ..Self::default()
        }
    }

    /// Returns what the appends take besides their envelopes, in bytes.
    pub(crate) const fn append_bytes(&self) -> usize {
        self.append_bytes
    }

    /// Returns `true` if an envelope of the batch is for one node.
    pub(crate) const fn has_envelopes_for_nodes(&self) -> bool {
        self.for_nodes > 0
    }

    /// Returns the number of envelopes.
    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the sum of the lengths of the envelopes.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the size of the buffers.
    pub(crate) const fn capacity(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<(Destination, usize)>()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Outbound<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |(to, end)| {
            let envelope = self.bytes.get(start..*end).unwrap_or_default();
            start = *end;
            Outbound { to, envelope }
        })
    }

    /// Removes and returns the envelopes after those that fill `max_bytes`. The last envelope that
    /// stays may exceed `max_bytes`.
    pub(crate) fn split_off(&mut self, max_bytes: usize) -> Self {
        if self.bytes.len() <= max_bytes {
            return Self::default();
        }
        let count = self.entries.iter().take_while(|(_, end)| *end < max_bytes).count() + 1;
        let entries = self.entries.split_off(count.min(self.entries.len()));
        let mut start = self.entries.last().map_or(0, |(_, end)| *end);
        let bytes = self.bytes.split_off(start);
        let mut rest = Self { bytes: Vec::with_capacity(bytes.len()), ..Self::default() };
        let first = start;
        for (to, end) in entries {
            rest.push(to, bytes.get(start - first..end - first).unwrap_or_default());
            start = end;
        }
        self.appends -= rest.appends;
        self.append_bytes -= rest.append_bytes;
        self.for_nodes -= rest.for_nodes;
        rest
    }

    /// Removes the envelopes and keeps the buffers.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        (self.appends, self.append_bytes, self.for_nodes) = (0, 0, 0);
    }

    /// Returns what is known of the appends besides their envelopes.
    pub(crate) fn into_appends(self) -> impl Iterator<Item = AppendTarget> {
        self.entries.into_iter().filter_map(|(to, _)| match to {
            Destination::Append(target) => Some(*target),
            _ => None,
        })
    }

    /// Returns `true` if an envelope of the batch is an append.
    #[cfg(any(test, feature = "nats", feature = "redis"))]
    pub(crate) const fn has_appends(&self) -> bool {
        self.appends > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(batch: &Batch) -> Vec<usize> {
        batch.iter().map(|outbound| outbound.envelope.len()).collect()
    }

    #[test]
    fn the_rest_of_a_split_batch_keeps_its_order() {
        for (max_bytes, expected) in [(0, 1), (1, 1), (10, 1), (11, 2), (30, 2), (31, 3), (1000, 4)] {
            let mut batch = Batch::default();
            [10, 20, 30, 40]
                .iter()
                .for_each(|length| batch.push(Destination::All, &vec![*length; (*length).into()]));
            let rest = batch.split_off(max_bytes);
            assert_eq!(batch.len(), expected, "{max_bytes}");
            assert_eq!([lengths(&batch), lengths(&rest)].concat(), [10, 20, 30, 40]);
            let first_bytes: Vec<_> =
                batch.iter().chain(rest.iter()).map(|outbound| usize::from(outbound.envelope[0])).collect();
            assert_eq!(first_bytes, [10, 20, 30, 40]);
            assert_eq!(batch.bytes() + rest.bytes(), 100);
        }
    }

    #[test]
    fn a_cleared_batch_is_used_again() {
        let mut batch = Batch::default();
        batch.push(Destination::All, b"abc");
        batch.clear();
        assert!(batch.is_empty() && batch.iter().next().is_none());
        batch.push(Destination::Node("n".into()), b"d");
        let all: Vec<_> = batch.iter().map(|outbound| (outbound.to.clone(), outbound.envelope)).collect();
        assert_eq!(all, [(Destination::Node("n".into()), &b"d"[..])]);
    }
}
