//! Requests to other nodes, and their answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use crate::batch::Destination;
use crate::broker::{Broker, EnqueueError};
use crate::envelope::Message;
use crate::metrics::Dropped;
use crate::queue::Lane;

/// Maximum number of requests that wait for answers at the same time. Limits memory use.
const MAX_REQUESTS: usize = 4096;

/// Reason why a request to another node got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request was not sent.
    #[error(transparent)]
    NotSent(#[from] EnqueueError),
    /// No node of this name has sent a heartbeat recently.
    #[error("no node of this name is known")]
    UnknownNode,
    /// The node did not answer in time.
    #[error("the node did not answer in time")]
    TimedOut,
}

impl Broker {
    /// Sends a request to one node and waits for its answer, for at most `timeout`. `make` returns
    /// the message for the request's number. Needs a tokio runtime with time.
    ///
    /// # Errors
    ///
    /// Returns [`RequestError`] if there is no answer. After a timeout, it is unknown whether the
    /// node executed the request.
    pub async fn request<'a>(
        &self,
        node: &str,
        timeout: Duration,
        make: impl FnOnce(u64) -> Message<'a>,
    ) -> Result<String, RequestError> {
        let shared = &*self.0;
        if !shared.is_up.load(Ordering::Acquire) {
            return Err(EnqueueError::Unavailable.into());
        }
        if !shared.peers.contains(node) {
            return Err(RequestError::UnknownNode);
        }
        // The guard removes the request also if this future is dropped.
        let (request, answer) = shared.requests.begin()?;
        self.enqueue(Destination::Node(node.into()), make(request.number))?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => Err(RequestError::TimedOut),
        }
    }

    /// Answers a request of another node. If the answer exceeds the broker's limit (see
    /// [`max_answer_bytes`](Self::max_answer_bytes)) or the queue is full, the answer is dropped,
    /// counted and logged.
    pub fn answer(&self, node: &str, request: u64, text: &str) {
        let mut envelope = self.0.envelope(Message::Answer { request, text });
        let limit = self.0.max_envelope.load(Ordering::Relaxed);
        if envelope.len() > limit {
            self.0.metrics.dropped(Dropped::TooLarge, 1);
            warn!(node, bytes = envelope.len(), limit, "Answer dropped: exceeds the broker's max_payload");
            return;
        }
        if self.0.queue.push(Lane::Control, Destination::Node(node.into()), &mut envelope).is_err() {
            // The request then times out at the other node.
            self.0.metrics.dropped(Dropped::Full, 1);
            warn!(node, "Answer dropped: too many wait for the broker");
        }
    }

    /// Returns the length in bytes up to which an [`answer`](Self::answer) always fits within the
    /// broker's limit.
    #[must_use]
    pub fn max_answer_bytes(&self) -> usize {
        self.max_payload_bytes()
    }
}

/// Requests of this node that wait for answers of other nodes.
pub(crate) struct NodeRequests {
    waiting: Mutex<HashMap<u64, oneshot::Sender<String>>>,
    next: AtomicU64,
}

impl NodeRequests {
    /// Creates an empty list. `first` is the number of the first request.
    pub(crate) fn new(first: u64) -> Self {
        Self { waiting: Mutex::default(), next: AtomicU64::new(first) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<String>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request. The answer comes from the receiver while the guard lives.
    fn begin(&self) -> Result<(RequestGuard<'_>, oneshot::Receiver<String>), EnqueueError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.len() >= MAX_REQUESTS {
            return Err(EnqueueError::Full);
        }
        waiting.insert(number, sender);
        Ok((RequestGuard { requests: self, number }, answer))
    }

    /// Passes an answer to the request that waits for it.
    pub(crate) fn complete(&self, number: u64, text: &str) {
        let requester = self.lock().remove(&number);
        if let Some(requester) = requester {
            let _ = requester.send(text.to_owned());
        }
    }
}

/// Guard that removes a request from the list when it is dropped.
struct RequestGuard<'a> {
    requests: &'a NodeRequests,
    number: u64,
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.requests.lock().remove(&self.number);
    }
}
