//! Lists and counts of one node.

use deeperhub_protocol::{ClientId, Subscription};

use super::NodeHandle;
use crate::types::{ClientInfo, ClientNotFound, CursorError, ListError, Page, SendError, TopicInfo};
use crate::worker::request::WorkerRequest;

impl NodeHandle {
    /// Returns one connection, on any node.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn client(&self, client: &ClientId) -> Result<ClientInfo, SendError> {
        if let Some(node) = self.remote_node(client) {
            return self.remote_client(node, client).await.ok_or(ClientNotFound.into());
        }
        let client = self.local_connection(client)?;
        let info =
            self.hub.request(client.worker.into(), |reply| WorkerRequest::Client { client, reply }).await?;
        info.ok_or(ClientNotFound.into())
    }

    /// Lists connections of this node, one page at a time. A page ends at `limit` connections, or
    /// after 512 KiB of names. A client that stays connected until the last page is on exactly one
    /// page.
    ///
    /// # Errors
    ///
    /// Returns [`ListError`] for a malformed cursor, or if a worker did not answer in time.
    pub async fn clients(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ClientInfo>, ListError> {
        self.hub.clients(cursor, limit).await
    }

    /// Lists topics and patterns with subscribers on this node, one page at a time.
    ///
    /// # Errors
    ///
    /// Returns [`CursorError`] for a malformed cursor.
    pub fn topics(&self, cursor: Option<&str>, limit: usize) -> Result<Page<TopicInfo>, CursorError> {
        let page = self.hub.router.list(cursor, limit).map_err(|_| CursorError)?;
        let info = |(topic, subscribers)| TopicInfo { topic, subscribers };
        Ok(Page { items: page.topics.into_iter().map(info).collect(), next_cursor: page.next_cursor })
    }

    /// Returns the number of subscribers that a topic or pattern has on this node. The number is 0
    /// if there is no such topic.
    pub fn topic(&self, topic: &Subscription<'_>) -> TopicInfo {
        let subscribers = self.hub.router.subscriber_count(topic);
        TopicInfo { topic: topic.as_str().to_owned(), subscribers }
    }
}
