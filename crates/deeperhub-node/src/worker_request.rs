//! Requests to workers, with timeouts on their replies.

use std::time::{Duration, Instant};

use deeperhub_listener::ConnectionKey;
use deeperhub_router::{InboxPosition, ShardId};
use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::connection_id::ConnectionId;
use crate::hub::Hub;
use crate::operation::{Action, EncodedAction, Operation, Reached, Target, WorkerOperation, WorkerTarget};
use crate::top::TopReport;
use crate::types::{ClientInfo, WorkerTimeout};

/// Maximum requests in the queue of one worker. Bounds the queue's memory: callers wait while it is
/// full.
pub(crate) const REQUEST_QUEUE_CAPACITY: usize = 1024;

/// Request from a handle, or from another node, to a worker.
#[derive(Debug)]
pub(crate) enum WorkerRequest {
    Execute {
        operation: WorkerOperation,
        reply: oneshot::Sender<Reached>,
    },
    Top {
        reply: oneshot::Sender<TopReport>,
    },
    Client {
        client: ConnectionId,
        reply: oneshot::Sender<Option<ClientInfo>>,
    },
    Clients {
        from: ConnectionKey,
        limit: usize,
        reply: oneshot::Sender<(Vec<ClientInfo>, Option<ConnectionKey>)>,
    },
    /// Runs a function on the worker, for tests.
    #[cfg(test)]
    Run(fn()),
}

/// Request in the queue of a worker.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: WorkerRequest,
    /// Position in the worker's inbox. The worker delivers everything published before it, then
    /// executes the request.
    pub(crate) after: InboxPosition,
}

impl Hub {
    /// Queues a request for a worker, and waits while the queue is full. Returns the receiver of
    /// the reply.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if there is no such worker, or if it has ended.
    pub(crate) async fn enqueue<T>(
        &self,
        worker: usize,
        make_request: impl FnOnce(oneshot::Sender<T>) -> WorkerRequest,
    ) -> Result<oneshot::Receiver<T>, WorkerTimeout> {
        let requests = self.request_senders.get(worker).ok_or(WorkerTimeout)?;
        let after = self.router.inbox_position(ShardId(u16::try_from(worker).map_err(|_| WorkerTimeout)?));
        let (reply, receiver) = oneshot::channel();
        requests
            .send(QueuedRequest { request: make_request(reply), after })
            .await
            .map_err(|_| WorkerTimeout)?;
        Ok(receiver)
    }

    /// Sends a request to a worker and waits for the reply.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if the worker does not exist, has ended, or did not answer in
    /// time.
    pub(crate) async fn request<T>(
        &self,
        worker: usize,
        make_request: impl FnOnce(oneshot::Sender<T>) -> WorkerRequest,
    ) -> Result<T, WorkerTimeout> {
        self.request_until(Instant::now() + self.config.answer_timeout, worker, make_request).await
    }

    /// Sends a request to all workers at once and waits for the replies.
    pub(crate) async fn request_all<T>(
        &self,
        timeout: Duration,
        make_request: impl Fn(oneshot::Sender<T>) -> WorkerRequest,
    ) -> Vec<Result<T, WorkerTimeout>> {
        let deadline = Instant::now() + timeout;
        let replies =
            (0..self.request_senders.len()).map(|worker| self.request_until(deadline, worker, &make_request));
        join_all(replies).await
    }

    /// Executes an operation on this node's clients.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. The workers that answered have
    /// executed the operation.
    pub(crate) async fn execute(
        &self,
        target: &WorkerTarget,
        action: &Action<'_>,
    ) -> Result<Reached, WorkerTimeout> {
        let deadline = Instant::now() + self.config.answer_timeout;
        let replies = self.worker_operations(target, action).map(|(worker, operation)| {
            let make_request = |reply| WorkerRequest::Execute { operation, reply };
            self.request_until(deadline, worker, make_request)
        });
        join_all(replies).await.into_iter().sum()
    }

    /// Returns an operation on this node's clients for each worker that must execute it, with the
    /// number of the worker.
    pub(crate) fn worker_operations(
        &self,
        target: &WorkerTarget,
        action: &Action<'_>,
    ) -> impl Iterator<Item = (usize, WorkerOperation)> {
        let workers = match target {
            Target::Client(connection) => {
                let worker = usize::from(connection.worker);
                worker..worker + 1
            }
            Target::User(_) | Target::All => 0..self.request_senders.len(),
        };
        let (action, is_only_worker) = (EncodedAction::new(action), workers.len() == 1);
        workers.map(move |worker| (worker, Operation::new(target.clone(), action.for_worker(is_only_worker))))
    }

    async fn request_until<T>(
        &self,
        deadline: Instant,
        worker: usize,
        make_request: impl FnOnce(oneshot::Sender<T>) -> WorkerRequest,
    ) -> Result<T, WorkerTimeout> {
        let reply = async { self.enqueue(worker, make_request).await?.await.map_err(|_| WorkerTimeout) };
        tokio::time::timeout_at(deadline.into(), reply).await.unwrap_or(Err(WorkerTimeout))
    }
}

#[cfg(test)]
pub(crate) mod tests;
