//! Requests, and subscriptions whose messages a future takes itself.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;

use bytes::Bytes;
use tokio::time::timeout;

use super::client::Client;
use super::wire::command;
use super::wire::headers::Headers;
use crate::driver::BROKER_TIMEOUT;
use crate::link::LinkError;

/// Status of a request that nobody answers.
pub(super) const NO_RESPONDERS: u16 = 503;

/// A received message. Its fields share the buffer of the read that it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(super) subject: Bytes,
    /// Subject of the answer. Empty if none is expected.
    pub(super) reply: Bytes,
    pub(super) headers: Bytes,
    pub(crate) payload: Bytes,
}

impl Message {
    pub(crate) fn headers(&self) -> Headers<'_> {
        Headers::new(&self.headers)
    }

    pub(crate) fn subject(&self) -> &str {
        std::str::from_utf8(&self.subject).unwrap_or_default()
    }

    /// Returns a message with headers, as a server sends it.
    #[cfg(test)]
    pub(super) fn with_headers(headers: &[(&str, &str)], payload: &[u8]) -> Self {
        let headers = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let headers = format!("NATS/1.0\r\n{}\r\n", headers.collect::<String>());
        Self {
            subject: Bytes::new(),
            reply: Bytes::new(),
            headers: headers.into(),
            payload: Bytes::copy_from_slice(payload),
        }
    }
}

/// Reason why a message was not sent, or a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("the message and its headers exceed the server's max_payload")]
    TooLarge,
    #[error("the server did not answer in time")]
    TimedOut,
    #[error("nobody answers requests of this subject")]
    NoResponders,
    #[error(transparent)]
    Lost(#[from] LinkError),
}

/// Messages of subscriptions that wait for their owners.
#[derive(Default)]
pub(super) struct Owned {
    queues: HashMap<u64, VecDeque<Message>, ahash::RandomState>,
}

impl Owned {
    /// Keeps a message for its owner. Returns `false` if the owner has gone.
    pub(super) fn push(&mut self, sid: u64, message: Message) -> bool {
        self.queues.get_mut(&sid).map(|queue| queue.push_back(message)).is_some()
    }
}

/// A subscription whose messages its owner takes. Dropping it unsubscribes.
pub(crate) struct Subscription {
    client: Client,
    sid: u64,
}

impl Subscription {
    /// Returns the next message, if it has arrived.
    pub(crate) fn take(&mut self) -> Option<Message> {
        self.client.owned().queues.get_mut(&self.sid)?.pop_front()
    }

    /// Waits for the next message.
    pub(crate) async fn next(&mut self) -> Result<Message, LinkError> {
        let mut taken = None;
        poll_fn(|cx| {
            let client = self.client.clone();
            client.poll_until(cx, || {
                taken = taken.take().or_else(|| self.take());
                taken.is_some()
            })
        })
        .await?;
        taken.ok_or_else(|| LinkError::new("the connection was lost"))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.client.owned().queues.remove(&self.sid);
        // A lost connection has no subscriptions.
        let _ = self.client.write(|out| command::unsubscribe(out, self.sid));
    }
}

impl Client {
    /// Subscribes to a subject whose messages the caller takes.
    pub(crate) fn subscribe_owned(&self, subject: &str) -> Result<Subscription, LinkError> {
        let sid = self.next_owned_sid();
        self.owned().queues.insert(sid, VecDeque::new());
        let subscription = Subscription { client: self.clone(), sid };
        self.write(|out| command::subscribe(out, subject, sid))?;
        Ok(subscription)
    }

    /// Sends a message. Its answers come to the subject `reply`.
    pub(crate) fn publish(
        &self,
        subject: &str,
        reply: Option<&str>,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> Result<(), RequestError> {
        let subject = [subject.as_bytes()];
        if command::message_len(headers, payload) > self.max_payload() {
            return Err(RequestError::TooLarge);
        }
        Ok(self.write(|out| command::publish_with(out, &subject, reply, headers, payload))?)
    }

    /// Sends a request and waits for its answer, for at most [`BROKER_TIMEOUT`].
    pub(crate) async fn request(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> Result<Message, RequestError> {
        let reply = self.next_inbox();
        let mut answers = self.subscribe_owned(&reply)?;
        self.publish(subject, Some(&reply), headers, payload)?;
        let answer = timeout(BROKER_TIMEOUT, answers.next()).await.map_err(|_| RequestError::TimedOut)??;
        match answer.headers().status() {
            Some(NO_RESPONDERS) if answer.payload.is_empty() => Err(RequestError::NoResponders),
            _ => Ok(answer),
        }
    }
}
