//! The links of nodes to the broker, with their faults.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deeperhub_cluster::simulation::{QueuedAppend, StoreRequest};
use deeperhub_cluster::{AppendError, AppendNumber, Appended, ReadError};

use super::Simulation;
use super::jetstream::{Attempt, Known, LateAppend, Record};
use super::plants::{ModelBug, is_broken};

/// Time after which a request without an answer has failed, and the connection is lost.
const BROKER_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) type Outcome = (AppendNumber, Result<Appended, AppendError>);

/// An append of a lost connection, which the broker may still execute.
#[derive(Debug)]
pub(super) enum Late {
    Redis { append: QueuedAppend, is_resent: bool },
    JetStream(LateAppend),
}

/// A message on its way to a node.
#[derive(Debug, Clone)]
pub(super) enum Incoming {
    Envelope(Bytes),
    /// The node writes the position into it when it comes.
    Record(Arc<Record>),
}

/// The connections of one node to the broker.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) is_up: bool,
    /// The batch that was sent last and is not confirmed.
    pub(super) batch: Vec<QueuedAppend>,
    pub(super) is_resent: bool,
    pub(super) sent_at: Duration,
    /// Number of the appends of the batch that the broker has executed.
    pub(super) executed: usize,
    pub(super) outcomes: Vec<Outcome>,
    /// Appends of lost connections, which are sent again.
    pub(super) unconfirmed: VecDeque<QueuedAppend>,
    pub(super) late: VecDeque<Late>,
    /// `true` if the streams of JetStream were compared since the node has connected.
    pub(super) is_prepared: bool,
    /// Part of the batch that JetStream was sent.
    pub(super) attempt: Option<Attempt>,
    /// Knowledge of the node about the streams of JetStream.
    pub(super) known: Known,
    pub(super) requests: VecDeque<(StoreRequest, Duration)>,
    /// Messages on their way to the node.
    pub(super) incoming: VecDeque<Incoming>,
    pub(super) subscriptions: BTreeSet<Arc<str>>,
}

impl Link {
    /// Loses the connections. The broker executes the first `late` appends that it has not
    /// executed, later.
    fn cut(&mut self, late: usize) {
        self.is_up = false;
        match self.attempt.take() {
            Some(attempt) => self.late.extend(attempt.into_rest().take(late).map(Late::JetStream)),
            None => {
                let is_resent = self.is_resent;
                let rest = self.batch.iter().skip(self.executed).take(late);
                self.late.extend(rest.map(|append| Late::Redis { append: append.clone(), is_resent }));
            }
        }
        for append in std::mem::take(&mut self.batch).into_iter().rev() {
            if !is_broken(ModelBug::BatchForgotten) {
                self.unconfirmed.push_front(append);
            }
        }
        self.executed = 0;
        self.outcomes.clear();
        self.requests.clear();
        self.incoming.clear();
        self.subscriptions.clear();
    }

    pub(super) fn follows(&self, topic: &str) -> bool {
        self.subscriptions.iter().any(|name| **name == *topic)
    }
}

impl Simulation {
    /// Connects a node to the broker.
    pub(super) fn connect_link(&mut self, node: usize) {
        let link = &mut self.links[node];
        if let Some(running) = &self.nodes[node]
            && !link.is_up
        {
            (link.is_up, link.is_prepared) = (true, false);
            link.known.on_connected();
            running.driver.connect();
        }
        self.follow(node);
    }

    /// Loses the connection of a node.
    pub(super) fn cut_link(&mut self, node: usize, late: usize) {
        if std::mem::take(&mut self.links[node].is_up) {
            self.links[node].cut(late);
            if let Some(running) = &self.nodes[node] {
                running.on_disconnected();
            }
        }
    }

    /// Forgets what a node has sent: the node has ended.
    pub(super) fn drop_link(&mut self, node: usize, late: usize) {
        self.links[node].cut(late);
        self.links[node].unconfirmed.clear();
        self.links[node].known = Known::default();
    }

    /// Makes the changes of a node's subscriptions.
    pub(super) fn follow(&mut self, node: usize) {
        let (link, now) = (&mut self.links[node], self.times.started + self.times.now);
        let Some(running) = self.nodes[node].as_ref().filter(|_| link.is_up) else { return };
        let requested = running.driver.requested();
        let changes = running.driver.take_interest(now);
        link.subscriptions.extend(changes.subscribe);
        changes.unsubscribe.iter().for_each(|name| {
            link.subscriptions.remove(name);
        });
        running.driver.confirm(requested);
    }

    /// Sends a message to the nodes that follow a topic.
    pub(super) fn push(&mut self, topic: &str, bytes: &Bytes) {
        for link in self.links.iter_mut().filter(|link| link.is_up && link.follows(topic)) {
            link.incoming.push_back(Incoming::Envelope(bytes.clone()));
        }
    }

    /// Passes messages to a node.
    pub(super) fn pass(&mut self, node: usize, count: usize) -> Result<bool, String> {
        let mut is_busy = false;
        for _ in 0..count {
            let link = &mut self.links[node];
            let Some(incoming) = link.incoming.pop_front() else { break };
            is_busy = true;
            let bytes = match incoming {
                Incoming::Envelope(bytes) => Some(bytes),
                Incoming::Record(record) => link.known.stamp(&record),
            };
            if let (Some(running), Some(bytes)) = (&self.nodes[node], bytes) {
                running.handle(&bytes)?;
            }
        }
        Ok(is_busy)
    }

    /// Loses messages on their way to a node.
    pub(super) fn lose(&mut self, node: usize, count: usize) {
        let link = &mut self.links[node];
        link.incoming.drain(..count.min(link.incoming.len()));
    }

    /// Repeats the next message to a node.
    pub(super) fn repeat(&mut self, node: usize) {
        let link = &mut self.links[node];
        if let Some(incoming) = link.incoming.front().cloned() {
            link.incoming.push_back(incoming);
        }
    }

    /// Fails requests that were not answered in time, and loses connections whose batch was not.
    pub(super) fn time_out(&mut self) {
        let now = self.times.now;
        let is_late = |since: Duration| now.saturating_sub(since) > BROKER_TIMEOUT;
        for node in 0..self.links.len() {
            while let Some((_, since)) = self.links[node].requests.front()
                && is_late(*since)
            {
                match self.links[node].requests.pop_front().map(|(request, _)| request) {
                    Some(StoreRequest::Streams { reply, .. }) => {
                        let _ = reply.send(Err(ReadError::TimedOut));
                    }
                    Some(StoreRequest::Tops { reply, .. }) => {
                        let _ = reply.send(Err(ReadError::TimedOut));
                    }
                    Some(StoreRequest::Reset { reply, .. }) => {
                        let _ = reply.send(Err(ReadError::TimedOut));
                    }
                    None => {}
                }
            }
            if !self.links[node].batch.is_empty() && is_late(self.links[node].sent_at) {
                self.cut_link(node, usize::MAX);
            }
        }
    }
}
