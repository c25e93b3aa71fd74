//! Requests to workers and their replies, which are not waited for without end.

use std::time::{Duration, Instant};

use deeperhub_router::{InboxPosition, ShardId};
use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::hub::{Hub, Request};

/// Error for a worker that did not answer: it is stuck, overloaded, or died. It may carry out the
/// request later, unless it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker does not answer; what was asked of it may be carried out later")]
pub struct Unanswered;

/// A request on its way to a worker.
#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) request: Request,
    /// What was published before it is delivered before it is carried out.
    pub(crate) after: InboxPosition,
}

impl Hub {
    /// Hands a request to a worker, waiting for room, and gives what waits for its reply.
    ///
    /// # Errors
    ///
    /// There is no such worker, or it has ended.
    pub(crate) async fn post<T>(
        &self,
        worker: usize,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<oneshot::Receiver<T>, Unanswered> {
        let requests = self.requests.get(worker).ok_or(Unanswered)?;
        let after = self.router.inbox_position(ShardId(u16::try_from(worker).map_err(|_| Unanswered)?));
        let (reply, answer) = oneshot::channel();
        requests.send(Posted { request: request(reply), after }).await.map_err(|_| Unanswered)?;
        Ok(answer)
    }

    /// Asks a worker.
    ///
    /// # Errors
    ///
    /// It does not exist, has ended, or did not answer in time.
    pub(crate) async fn ask<T>(
        &self,
        worker: usize,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Unanswered> {
        self.ask_until(Instant::now() + self.config.answer_timeout, worker, request).await
    }

    /// Asks all workers at once.
    pub(crate) async fn ask_workers<T>(
        &self,
        time: Duration,
        request: impl Fn(oneshot::Sender<T>) -> Request,
    ) -> Vec<Result<T, Unanswered>> {
        let end = Instant::now() + time;
        let asked = (0..self.requests.len()).map(|worker| self.ask_until(end, worker, &request));
        join_all(asked).await
    }

    /// Asks all workers for a count, and adds up.
    ///
    /// # Errors
    ///
    /// One of them did not answer in time; the others have done what they were asked.
    pub(crate) async fn count(
        &self,
        request: impl Fn(oneshot::Sender<u64>) -> Request,
    ) -> Result<u64, Unanswered> {
        self.ask_workers(self.config.answer_timeout, request).await.into_iter().sum()
    }

    async fn ask_until<T>(
        &self,
        end: Instant,
        worker: usize,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Unanswered> {
        let asked = async { self.post(worker, request).await?.await.map_err(|_| Unanswered) };
        tokio::time::timeout_at(end.into(), asked).await.unwrap_or(Err(Unanswered))
    }
}

#[cfg(test)]
pub(crate) mod tests;
