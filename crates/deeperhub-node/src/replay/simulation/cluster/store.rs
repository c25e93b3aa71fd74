//! The store of a simulated cluster.

use std::collections::BTreeSet;

use super::{jetstream, redis};

/// The server of the store. A copy is a replica.
#[derive(Debug, Clone)]
pub(super) enum Store {
    /// The offsets of a topic are dense.
    Redis(redis::Server),
    /// The topics of a rule share a stream, so their offsets have holes.
    JetStream(jetstream::Server),
}

/// Numbers that never come again, whatever the store loses.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// All epochs that began. A clock could only give one twice within the same millisecond.
    epochs: BTreeSet<u64>,
    serial: u64,
}

impl Given {
    /// Returns a new epoch that is not below `least`.
    pub(super) fn new_epoch(&mut self, mut least: u64) -> u64 {
        while !self.epochs.insert(least) {
            least += 1;
        }
        least
    }

    /// Returns the number of epochs that began.
    pub(super) fn begun(&self) -> usize {
        self.epochs.len()
    }

    pub(super) const fn new_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

impl Store {
    pub(super) fn new(is_sparse: bool) -> Self {
        if is_sparse {
            Self::JetStream(jetstream::Server::default())
        } else {
            Self::Redis(redis::Server::default())
        }
    }

    /// Returns the epochs that messages of a topic have, the last one for nodes that know all, and
    /// the newest offset.
    pub(super) fn positions(&mut self, topic: &str, now: u64) -> (Vec<u64>, u64) {
        match self {
            Self::Redis(server) => {
                let (position, _) = server.content(topic, now);
                (vec![position.epoch], position.offset)
            }
            Self::JetStream(server) => server.positions(topic),
        }
    }

    /// Returns the epoch of a topic, and the offsets of its messages that are kept.
    pub(super) fn content(&mut self, topic: &str, now: u64) -> (u64, Vec<u64>) {
        match self {
            Self::Redis(server) => {
                let (position, entries) = server.content(topic, now);
                (position.epoch, entries.iter().map(|entry| entry.position.offset).collect())
            }
            Self::JetStream(server) => server.content(topic, now),
        }
    }

    /// Returns `true` if the server would not recognize a message of a topic that it has stored.
    pub(super) fn forgets(&self, topic: &str, (offset, time): (u64, u64), now: u64) -> bool {
        match self {
            Self::Redis(_) => time + redis::ONCE_MS <= now,
            Self::JetStream(server) => server.forgets(topic, (offset, time), now),
        }
    }

    /// Notes that the server has started again.
    pub(super) fn start_again(&mut self) {
        if let Self::JetStream(server) = self {
            server.start_again();
        }
    }
}
