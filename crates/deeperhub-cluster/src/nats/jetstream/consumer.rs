//! Consumers, each of which brings the messages of a stream once.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::client::Client;
use super::super::request::{Message, RequestError, Subscription};
use super::super::wire::operation::parse_number;
use super::api::{ApiError, unexpected};
use super::ensure::{Store, header};
use super::source::Source;

/// Time after which the server removes a consumer whose subscription has ended.
const REMOVED_AFTER: Duration = Duration::from_secs(5);

/// Interval at which the server says that it waits for more messages, or for an answer.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Status of a message that is none of the stream's.
const CONTROL: u16 = 100;

/// A consumer. The server sends no more than the node has read, because it asks for answers on the
/// way (flow control). Dropping this value ends it.
pub(super) struct Consumer {
    client: Client,
    messages: Subscription,
    /// Number of the next message.
    next: u64,
    /// Messages that were left after the last one, as far as the server knew.
    pending: u64,
}

/// A message of a stream.
pub(super) struct Delivered {
    pub(super) sequence: u64,
    /// Time in nanoseconds since the Unix epoch.
    pub(super) time_ns: u64,
    pub(super) message: Message,
}

impl Store {
    /// Creates a consumer of all messages from a sequence on.
    pub(super) async fn consume(&mut self, source: &Source, start: u64) -> Result<Consumer, ApiError> {
        let client = self.api.client().clone();
        let inbox = client.next_inbox();
        let messages = client.subscribe_owned(&inbox).map_err(RequestError::from)?;
        let name = format!("pass-{:x}", getrandom::u64().map_err(|_| unexpected())?);
        let request = json!({
            "stream_name": source.stream,
            "action": "create",
            "config": {
                "name": name,
                "deliver_subject": inbox,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": start,
                "ack_policy": "none",
                "max_deliver": 1,
                "mem_storage": true,
                "num_replicas": 1,
                "flow_control": true,
                "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
                "inactive_threshold": REMOVED_AFTER.as_nanos() as u64,
            },
        });
        let created = self.api.call(&format!("CONSUMER.CREATE.{}.{name}", source.stream), &request).await?;
        let pending = created.get("num_pending").and_then(Value::as_u64).ok_or_else(unexpected)?;
        Ok(Consumer { client, messages, next: 1, pending })
    }
}

impl Consumer {
    /// Returns `true` if the server had no further message at the last one, or at the start. It may have
    /// taken others meanwhile.
    pub(super) const fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Returns the next message, if it has arrived. Fails if there is a message missing before it.
    pub(super) fn take(&mut self) -> Result<Option<Delivered>, ApiError> {
        while let Some(message) = self.messages.take() {
            if let Some(delivered) = self.receive(message)? {
                return Ok(Some(delivered));
            }
        }
        Ok(None)
    }

    /// Waits for the next message. Fails if there is a message missing before it.
    pub(super) async fn next(&mut self) -> Result<Delivered, ApiError> {
        loop {
            let message = self.messages.next().await.map_err(RequestError::from)?;
            if let Some(delivered) = self.receive(message)? {
                return Ok(delivered);
            }
        }
    }

    /// Takes a message. Returns `None` if it is none of the stream's.
    fn receive(&mut self, message: Message) -> Result<Option<Delivered>, ApiError> {
        if message.headers().status() == Some(CONTROL) {
            self.answer(&message)?;
            return Ok(None);
        }
        let place = Place::parse(&message.reply).filter(|place| place.number == self.next);
        let Place { sequence, time_ns, pending, .. } = place.ok_or_else(unexpected)?;
        (self.next, self.pending) = (self.next + 1, pending);
        Ok(Some(Delivered { sequence, time_ns, message }))
    }

    /// Tells the server that everything before a message was read, if it asks.
    fn answer(&self, control: &Message) -> Result<(), ApiError> {
        let asked = if control.reply.is_empty() {
            // The server repeats a question that got no answer.
            header(control, "Nats-Consumer-Stalled")
        } else {
            std::str::from_utf8(&control.reply).ok()
        };
        match asked {
            Some(subject) => Ok(self.client.publish(subject, None, &[], b"")?),
            None => Ok(()),
        }
    }
}

/// Place of a message in its stream and among those of its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    sequence: u64,
    number: u64,
    time_ns: u64,
    pending: u64,
}

impl Place {
    /// Parses the subject to which a message is acknowledged (NATS, ADR-15):
    /// `$JS.ACK.STREAM.CONSUMER.DELIVERIES.SEQUENCE.NUMBER.TIME.PENDING`, or the same with a domain and
    /// an account after `ACK`, and perhaps more at the end.
    fn parse(subject: &[u8]) -> Option<Self> {
        let rest = subject.strip_prefix(b"$JS.ACK.")?;
        let skipped = match rest.iter().filter(|byte| **byte == b'.').count() {
            6 => 3,
            8.. => 5,
            _ => return None,
        };
        let start = memchr::memchr_iter(b'.', rest).nth(skipped - 1)? + 1;
        let mut numbers = rest.get(start..)?.split(|byte| *byte == b'.').map(parse_number);
        let mut next = || numbers.next().flatten();
        Some(Self { sequence: next()?, number: next()?, time_ns: next()?, pending: next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_both_forms_are_parsed() {
        let place = Some(Place { sequence: 20, number: 3, time_ns: 1_795_984_110_080_066_985, pending: 7 });
        for (subject, expected) in [
            ("$JS.ACK.s.c.1.20.3.1795984110080066985.7", place),
            ("$JS.ACK._.hash.s.c.1.20.3.1795984110080066985.7", place),
            ("$JS.ACK.hub.hash.s.c.1.20.3.1795984110080066985.7.random", place),
            ("$JS.ACK.s.c.1.20.3.1795984110080066985", None),
            ("$JS.ACK.s.c.1.20.x.1795984110080066985.7", None),
            ("$JS.ACK.s.c.1.20.+3.1795984110080066985.7", None),
            ("$JS.ACK.s.c.1.20..1795984110080066985.7", None),
            ("$JS.ACK._.hash.s.c.1.20.3.1795984110080066985", None),
            ("$JS.FC.s.c.1", None),
            ("", None),
        ] {
            assert_eq!(Place::parse(subject.as_bytes()), expected, "{subject}");
        }
    }
}
