//! Requests to workers, with timeouts on their replies.

use std::time::{Duration, Instant};

use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::ClientId;
use deeperhub_router::ShardId;
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::Hub;
use crate::connection_id::ConnectionId;
use crate::operation::{Action, EncodedAction, Operation, Reached, Target, WorkerOperation, WorkerTarget};
use crate::types::{ClientInfo, CursorError, ListError, MAX_CLIENTS_PAGE_BYTES, Page, WorkerTimeout};
use crate::worker::request::{QueuedRequest, WorkerRequest};

impl Hub {
    /// Parses a client ID of this node. Returns `None` for clients of other nodes, and if there is
    /// no worker with this number.
    pub(crate) fn connection_id(&self, client: &ClientId) -> Option<ConnectionId> {
        ConnectionId::from_client_id(client, &self.node_id)
            .filter(|connection| usize::from(connection.worker) < self.request_senders.len())
    }

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

    /// Implements [`NodeHandle::clients`].
    pub(crate) async fn clients(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<ClientInfo>, ListError> {
        let (mut worker, mut from) = cursor.map_or(Ok((0, 0)), parse_cursor)?;
        let (mut items, mut bytes) = (Vec::new(), 0);
        while worker < self.request_senders.len() {
            if bytes >= MAX_CLIENTS_PAGE_BYTES {
                return Ok(Page { items, next_cursor: Some(format!("{worker:x}-{from:x}")) });
            }
            let remaining = limit.saturating_sub(items.len());
            let request = |reply| WorkerRequest::Clients { from, limit: remaining, reply };
            let (clients, next) = self.request(worker, request).await?;
            bytes += clients.iter().map(ClientInfo::bytes).sum::<usize>();
            items.extend(clients);
            if let Some(next) = next {
                return Ok(Page { items, next_cursor: Some(format!("{worker:x}-{next:x}")) });
            }
            (worker, from) = (worker + 1, 0);
        }
        Ok(Page { items, next_cursor: None })
    }
}

fn parse_cursor(cursor: &str) -> Result<(usize, ConnectionKey), CursorError> {
    let (worker, key) = cursor.split_once('-').ok_or(CursorError)?;
    let worker = usize::from_str_radix(worker, 16).map_err(|_| CursorError)?;
    let key = ConnectionKey::from_str_radix(key, 16).map_err(|_| CursorError)?;
    Ok((worker, key))
}
