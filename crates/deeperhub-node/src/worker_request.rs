//! Requests to workers and their replies, which are not waited for without deadline.

use std::time::{Duration, Instant};

use deeperhub_router::{Mark, ShardId};
use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::hub::{Hub, WorkerRequest};

/// Error for a worker that did not answer: it is stuck, overloaded, or died. It may carry out the
/// request later, unless it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker does not answer; what was asked of it may be carried out later")]
pub struct WorkerTimeout;

/// A request on its way to a worker.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: WorkerRequest,
    /// What was published before it is delivered before it is carried out.
    pub(crate) after: Mark,
}

impl Hub {
    /// Hands a request to a worker, waiting for room, and gives what waits for its reply.
    ///
    /// # Errors
    ///
    /// There is no such worker, or it has ended.
    pub(crate) async fn enqueue<T>(
        &self,
        worker: usize,
        make_request: impl FnOnce(oneshot::Sender<T>) -> WorkerRequest,
    ) -> Result<oneshot::Receiver<T>, WorkerTimeout> {
        let requests = self.request_senders.get(worker).ok_or(WorkerTimeout)?;
        let after = self.router.mark(ShardId(u16::try_from(worker).map_err(|_| WorkerTimeout)?));
        let (reply, answer) = oneshot::channel();
        requests
            .send(QueuedRequest { request: make_request(reply), after })
            .await
            .map_err(|_| WorkerTimeout)?;
        Ok(answer)
    }

    /// Asks a worker.
    ///
    /// # Errors
    ///
    /// It does not exist, has ended, or did not answer in time.
    pub(crate) async fn request<T>(
        &self,
        worker: usize,
        make_request: impl FnOnce(oneshot::Sender<T>) -> WorkerRequest,
    ) -> Result<T, WorkerTimeout> {
        self.request_until(Instant::now() + self.config.answer_timeout, worker, make_request).await
    }

    /// Asks all workers at once.
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

    /// Asks all workers for a count, and adds up.
    ///
    /// # Errors
    ///
    /// One of them did not answer in time; the others have done what they were asked.
    pub(crate) async fn sum_over_workers(
        &self,
        make_request: impl Fn(oneshot::Sender<u64>) -> WorkerRequest,
    ) -> Result<u64, WorkerTimeout> {
        self.request_all(self.config.answer_timeout, make_request).await.into_iter().sum()
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
