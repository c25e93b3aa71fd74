//! Echoes and reads of history, which wait for the connection and for an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::RequestId;

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Echo,
    History,
}

#[derive(Debug)]
struct Request {
    kind: Kind,
    text: String,
    deadline: Duration,
}

/// Requests by number, in the order of the calls.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_id: BTreeMap<u64, Request>,
    waiting: BTreeSet<u64>,
    deadlines: BTreeSet<(Duration, u64)>,
    bytes: usize,
}

impl Requests {
    pub(super) fn has_room(&self, bytes: usize, max_bytes: usize) -> bool {
        self.bytes + bytes <= max_bytes
    }

    pub(super) fn add(&mut self, id: RequestId, kind: Kind, text: String, deadline: Duration) {
        self.bytes += text.len();
        self.waiting.insert(id.0);
        self.deadlines.insert((deadline, id.0));
        self.by_id.insert(id.0, Request { kind, text, deadline });
    }

    /// Returns the next message to send.
    pub(super) fn next(&mut self) -> Option<&str> {
        let id = self.waiting.pop_first()?;
        self.by_id.get(&id).map(|request| &*request.text)
    }

    pub(super) fn kind(&self, id: RequestId) -> Option<Kind> {
        self.by_id.get(&id.0).map(|request| request.kind)
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Kind> {
        let request = self.by_id.remove(&id.0)?;
        self.bytes -= request.text.len();
        self.waiting.remove(&id.0);
        self.deadlines.remove(&(request.deadline, id.0));
        Some(request.kind)
    }

    /// Sends unanswered requests again with the next connection.
    pub(super) fn on_disconnect(&mut self) {
        self.waiting.extend(self.by_id.keys());
    }

    /// Returns a request that was not answered in time.
    pub(super) fn on_time(&self, now: Duration) -> Option<RequestId> {
        self.deadlines.first().filter(|(at, _)| *at <= now).map(|(_, id)| RequestId(*id))
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(super) fn ids(&self) -> Vec<RequestId> {
        self.by_id.keys().map(|id| RequestId(*id)).collect()
    }

    /// Returns requests that are longer than the server takes.
    pub(super) fn too_large(&self, max_bytes: usize) -> Vec<RequestId> {
        let large = self.by_id.iter().filter(|(_, request)| request.text.len() > max_bytes);
        large.map(|(id, _)| RequestId(*id)).collect()
    }
}
