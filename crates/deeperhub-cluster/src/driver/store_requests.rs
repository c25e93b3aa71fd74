//! Answers the node's requests to the store.

use std::time::Instant;

use tokio::time::sleep_until;

use super::connection::Connection;
use super::{ConnectionEnd, MessageHandler};
use crate::link::Reader;
use crate::store::RequestQueue;

/// Guard that closes the queue of requests when the connection ends.
struct CloseOnDrop<'q>(&'q RequestQueue);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<I: MessageHandler> Connection<'_, I> {
    /// Answers requests to the store, and does not end. A fault of the reader's connection fails
    /// the requests under way, and leaves the other connections alone.
    pub(super) async fn serve_store_requests(&self, reader: &mut Reader) -> ConnectionEnd {
        let shared = self.shared();
        let queue = &shared.requests_to_store;
        queue.open();
        let _guard = CloseOnDrop(queue);
        reader.prepare().await;
        loop {
            let requests = queue.take(shared.interests.confirmed(), Instant::now());
            if !requests.is_empty() {
                reader.answer(requests).await;
                continue;
            }
            let next_timeout = queue.next_timeout();
            tokio::select! {
                () = queue.changed.notified() => {}
                () = reader.keep_alive() => {}
                () = sleep_until(next_timeout.unwrap_or_else(Instant::now).into()), if next_timeout.is_some() => {}
            }
        }
    }

    /// Confirms requests for a confirmation of interest, and wakes those that wait for one.
    pub(super) fn confirm_interest(&self, requested: u64) {
        let shared = self.shared();
        if shared.interests.confirmed() != requested {
            shared.interests.confirm(requested);
            shared.requests_to_store.changed.notify_one();
        }
    }
}
