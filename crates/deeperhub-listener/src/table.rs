//! The connections of a worker.

use std::collections::HashMap;

use slab::Slab;

use crate::connection::{Connection, State};
use crate::session::ConnectionKey;

/// Capacity up to which the slab is not shrunk.
const MIN_SLAB_CAPACITY: usize = 1024;

/// Bytes that were read from a connection but not handled in its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnreadInput {
    pub(crate) bytes: Vec<u8>,
    /// Position at which the next turn continues.
    pub(crate) at: usize,
}

/// Send progress of a peer when it was last checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerProgress {
    /// Bytes that the peer's kernel has acknowledged.
    pub(crate) acknowledged: u64,
    /// `true` if bytes were queued or unacknowledged at that check.
    pub(crate) is_behind: bool,
    /// Number of times that the close timeout has started anew.
    pub(crate) extensions: u32,
}

/// Send progress of peers at their last check, by key. Only peers that were pinged or are closing
/// have an entry.
pub(crate) type ProgressTable = HashMap<u32, PeerProgress>;

/// The connections of a worker, with the state that only few of them have.
pub(crate) struct ConnectionTable<S> {
    pub(crate) slab: Slab<Connection<S>>,
    /// Bytes that were read but not handled yet: at most those of one read for each connection.
    pub(crate) unread: HashMap<u32, UnreadInput>,
    pub(crate) progress: ProgressTable,
    /// Open sessions.
    pub(crate) open: usize,
    /// Connections whose session paused reading. Parked connections do not count.
    pub(crate) paused: usize,
}

impl<S> Default for ConnectionTable<S> {
    fn default() -> Self {
        Self { slab: Slab::new(), unread: HashMap::new(), progress: HashMap::new(), open: 0, paused: 0 }
    }
}

impl<S> ConnectionTable<S> {
    #[inline]
    pub(crate) fn get(&self, key: u32) -> Option<&Connection<S>> {
        self.slab.get(key as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut Connection<S>> {
        self.slab.get_mut(key as usize)
    }

    /// Returns the lowest key of an open connection that is not below `from`.
    pub(crate) fn next_open(&self, from: ConnectionKey) -> Option<ConnectionKey> {
        (from as usize..self.slab.capacity().min(u32::MAX as usize))
            .find(|&key| matches!(self.slab.get(key), Some(Connection { state: State::Open(_), .. })))
            .map(|key| key as ConnectionKey)
    }

    /// Stores bytes that were read from a connection but not handled.
    pub(crate) fn store_unread(&mut self, key: u32, unread: UnreadInput) {
        if let Some(connection) = self.slab.get_mut(key as usize) {
            connection.flags.has_unread = true;
            self.unread.insert(key, unread);
        }
    }

    /// Takes the bytes that were read from a connection but not handled.
    pub(crate) fn take_unread(&mut self, key: u32) -> Option<UnreadInput> {
        self.slab.get_mut(key as usize)?.flags.has_unread = false;
        self.unread.remove(&key)
    }

    /// Drops bytes that were read from a connection but not handled.
    pub(crate) fn discard_unread(&mut self, key: u32) {
        if let Some(connection) = self.slab.get_mut(key as usize)
            && std::mem::take(&mut connection.flags.has_unread)
        {
            self.unread.remove(&key);
            self.shrink_unread();
        }
    }

    /// Frees the memory of the map of unread bytes once it is empty.
    pub(crate) fn shrink_unread(&mut self) {
        if self.unread.is_empty() {
            self.unread.shrink_to_fit();
        }
    }

    /// Removes a connection and what the table holds for it. Its session must have ended.
    pub(crate) fn remove(&mut self, key: u32) -> Option<Connection<S>> {
        self.discard_unread(key);
        let connection = self.slab.try_remove(key as usize)?;
        if !self.progress.is_empty() {
            self.progress.remove(&key);
            if self.progress.is_empty() {
                self.progress.shrink_to_fit();
            }
        }
        Some(connection)
    }

    /// Frees memory of the slab after many connections have closed, and returns the new capacity.
    /// The slab keeps its slots up to the highest key in use.
    pub(crate) fn shrink(&mut self) -> Option<usize> {
        let capacity = self.slab.capacity();
        (capacity > MIN_SLAB_CAPACITY && self.slab.len() < capacity / 4).then(|| {
            self.slab.shrink_to_fit();
            self.slab.capacity()
        })
    }
}

/// Returns the connection with a key of the dirty list, and clears its dirty flag. Returns `None`
/// if the flag is not set: a key that a new connection reuses may be in the list twice.
pub(crate) fn take_if_dirty<S>(
    connections: &mut Slab<Connection<S>>,
    key: u32,
) -> Option<&mut Connection<S>> {
    let connection = connections.get_mut(key as usize)?;
    std::mem::take(&mut connection.flags.dirty).then_some(connection)
}
