//! Messages that wait to be published, or for the answer to that.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::RequestId;
use super::backoff::Backoff;

/// Publishes that may be unanswered at a time.
const MAX_UNANSWERED: usize = 32;

/// The state of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// An earlier publish to the topic is unanswered.
    Blocked,
    Ready,
    Sent,
    /// The server asked to wait.
    Retry(Duration),
}

#[derive(Debug)]
pub(super) struct Publish {
    pub(super) topic: Arc<str>,
    /// The message as it is sent each time.
    text: String,
    pub(super) exclude_self: bool,
    ordered: bool,
    state: State,
    deadline: Option<Duration>,
    pub(super) backoff: Backoff,
}

/// Publishes by number, in the order of the calls.
#[derive(Debug, Default)]
pub(super) struct Publishes {
    by_id: BTreeMap<u64, Publish>,
    /// Ordered publishes of each topic. The first one may be sent.
    lanes: HashMap<Arc<str>, VecDeque<u64>>,
    ready: BTreeSet<u64>,
    retries: BTreeSet<(Duration, u64)>,
    deadlines: BTreeSet<(Duration, u64)>,
    unanswered: usize,
    waiting_bytes: usize,
    /// Publishes of each topic that were sent, exclude their publisher and are unanswered.
    own: HashMap<Arc<str>, usize>,
    /// Topics of such publishes that failed, but that the server may still answer.
    late: HashMap<u64, Arc<str>>,
    /// Nothing is sent before this time.
    held_until: Option<Duration>,
}

impl Publishes {
    /// Returns `true` if there is room for a message of so many bytes.
    pub(super) fn has_room(&self, bytes: usize, max_bytes: usize) -> bool {
        self.waiting_bytes + bytes <= max_bytes
    }

    pub(super) fn add(
        &mut self,
        id: RequestId,
        topic: Arc<str>,
        text: String,
        exclude_self: bool,
        ordered: bool,
    ) {
        self.waiting_bytes += text.len();
        let mut state = State::Ready;
        if ordered {
            let lane = self.lanes.entry(Arc::clone(&topic)).or_default();
            lane.push_back(id.0);
            if lane.len() > 1 {
                state = State::Blocked;
            }
        }
        if state == State::Ready {
            self.ready.insert(id.0);
        }
        let backoff = Backoff::default();
        self.by_id
            .insert(id.0, Publish { topic, text, exclude_self, ordered, state, deadline: None, backoff });
    }

    /// Returns the next message to send.
    pub(super) fn next(&mut self, now: Duration, timeout: Duration) -> Option<&str> {
        if self.unanswered >= MAX_UNANSWERED || self.held_until.is_some_and(|until| until > now) {
            return None;
        }
        let id = self.ready.pop_first()?;
        self.unanswered += 1;
        let publish = self.by_id.get_mut(&id)?;
        publish.state = State::Sent;
        self.waiting_bytes -= publish.text.len();
        if publish.deadline.is_none() {
            let deadline = now + timeout;
            publish.deadline = Some(deadline);
            self.deadlines.insert((deadline, id));
            if publish.exclude_self {
                *self.own.entry(Arc::clone(&publish.topic)).or_default() += 1;
            }
        }
        Some(&publish.text)
    }

    /// Returns `true` if an own publish that excludes its publisher is unanswered on a topic.
    pub(super) fn awaits_own(&self, topic: &str) -> bool {
        !self.own.is_empty() && self.own.contains_key(topic)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Publish> {
        self.by_id.get_mut(&id.0)
    }

    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.by_id.contains_key(&id.0)
    }

    /// Removes a publish that is answered or failed. The next one on its topic may be sent.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Publish> {
        let publish = self.by_id.remove(&id.0)?;
        match publish.state {
            State::Sent => self.unanswered -= 1,
            _ => self.waiting_bytes -= publish.text.len(),
        }
        if let State::Retry(at) = publish.state {
            self.retries.remove(&(at, id.0));
        }
        self.ready.remove(&id.0);
        if let Some(deadline) = publish.deadline {
            self.deadlines.remove(&(deadline, id.0));
            if publish.exclude_self {
                self.forget_own(&publish.topic);
            }
        }
        if publish.ordered {
            self.leave_lane(id.0, &publish.topic);
        }
        Some(publish)
    }

    fn forget_own(&mut self, topic: &Arc<str>) {
        if let Some(count) = self.own.get_mut(topic) {
            *count -= 1;
            if *count == 0 {
                self.own.remove(topic);
            }
        }
    }

    /// Notes that a publish is to fail that the server may still answer on this connection.
    pub(super) fn expect_late(&mut self, id: RequestId) {
        if let Some(publish) = self.by_id.get(&id.0)
            && publish.state == State::Sent
            && publish.exclude_self
        {
            *self.own.entry(Arc::clone(&publish.topic)).or_default() += 1;
            self.late.insert(id.0, Arc::clone(&publish.topic));
        }
    }

    /// Takes the topic of a failed publish that is answered after all.
    pub(super) fn take_late(&mut self, id: RequestId) -> Option<Arc<str>> {
        let topic = self.late.remove(&id.0)?;
        self.forget_own(&topic);
        Some(topic)
    }

    fn leave_lane(&mut self, id: u64, topic: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(topic) else { return };
        lane.retain(|other| *other != id);
        match lane.front() {
            None => {
                self.lanes.remove(topic);
            }
            Some(&next) => {
                if let Some(publish) = self.by_id.get_mut(&next)
                    && publish.state == State::Blocked
                {
                    publish.state = State::Ready;
                    self.ready.insert(next);
                }
            }
        }
    }

    /// Sends a publish again at a time.
    pub(super) fn retry(&mut self, id: RequestId, at: Duration) {
        let Some(publish) = self.by_id.get_mut(&id.0) else { return };
        if publish.state == State::Sent {
            self.unanswered -= 1;
            self.waiting_bytes += publish.text.len();
            publish.state = State::Retry(at);
            self.retries.insert((at, id.0));
        }
    }

    /// Sends nothing before a time.
    pub(super) fn hold_until(&mut self, at: Duration) {
        self.held_until = self.held_until.max(Some(at));
    }

    /// Makes unanswered publishes ready to be sent again.
    pub(super) fn on_disconnect(&mut self) {
        self.unanswered = 0;
        self.held_until = None;
        self.retries.clear();
        for topic in std::mem::take(&mut self.late).into_values() {
            self.forget_own(&topic);
        }
        for (&id, publish) in &mut self.by_id {
            match publish.state {
                State::Sent => self.waiting_bytes += publish.text.len(),
                State::Retry(_) => {}
                State::Blocked | State::Ready => continue,
            }
            publish.state = State::Ready;
            self.ready.insert(id);
        }
    }

    /// Makes publishes ready whose time has come, and returns one that was not answered in time.
    pub(super) fn on_time(&mut self, now: Duration) -> Option<RequestId> {
        if self.held_until.is_some_and(|until| until <= now) {
            self.held_until = None;
        }
        while let Some(&(at, id)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            if let Some(publish) = self.by_id.get_mut(&id) {
                publish.state = State::Ready;
                self.ready.insert(id);
            }
        }
        self.deadlines.first().filter(|(at, _)| *at <= now).map(|(_, id)| RequestId(*id))
    }

    /// Returns the next time at which something is to be done.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let first = |times: &BTreeSet<(Duration, u64)>| times.first().map(|(at, _)| *at);
        [first(&self.retries), first(&self.deadlines), self.held_until].into_iter().flatten().min()
    }

    /// Returns all publishes, in the order of the calls.
    pub(super) fn ids(&self) -> Vec<RequestId> {
        self.by_id.keys().map(|id| RequestId(*id)).collect()
    }

    /// Returns publishes that were never sent and are longer than the server takes.
    pub(super) fn too_large(&self, max_bytes: usize) -> Vec<RequestId> {
        let large = self.by_id.iter().filter(|(_, publish)| publish.text.len() > max_bytes);
        large.map(|(id, _)| RequestId(*id)).collect()
    }
}
