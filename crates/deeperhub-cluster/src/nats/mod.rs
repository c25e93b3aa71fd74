//! NATS: one connection without echo, with a subscription for each topic and pattern.

mod client;
#[cfg(test)]
mod client_tests;
mod credentials;
mod handshake;
mod stream;
mod wakers;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tracing::warn;

use crate::batch::{Batch, Destination};
use crate::broker::Shared;
use crate::envelope::MAX_ENVELOPE_OVERHEAD_BYTES;
use crate::link::{self, Link, LinkError};
use crate::metrics::Dropped;
use crate::names::Names;
use client::Client;
use wire::command;

pub use credentials::check_credentials;
#[cfg(fuzzing)]
pub use wire::fuzz_operations;

/// Sending part.
pub(crate) struct Sender {
    client: Client,
    names: Names,
    /// Start of the subjects of topics.
    topics: String,
    shared: Arc<Shared>,
}

/// Subscribing part.
pub(crate) struct Subscriber {
    client: Client,
    names: Names,
    /// Numbers of the subscriptions.
    sids: HashMap<Arc<str>, u64>,
}

/// Receiving part. The server sends messages of all subscriptions in one order.
pub(crate) struct Receiver {
    client: Client,
}

/// Connects. A lost connection is not restored; the link ends instead, so that the driver knows
/// which batches were in flight.
pub(crate) async fn connect(shared: &Arc<Shared>, attempt: usize) -> Result<Link, LinkError> {
    let servers = shared.config.url.servers();
    let server = servers.get(attempt % servers.len().max(1)).ok_or_else(|| LinkError::new("no server"))?;
    let names = Names::new(shared.config.prefix.clone(), '.');
    let name = format!("deeperhub-ws {}", shared.node);
    let client = Client::new(handshake::connect(&shared.config, server, &name).await?);
    let max_payload = client.max_payload();
    let previous_max = shared.max_envelope.swap(max_payload, Ordering::Relaxed);
    let max_message_bytes = shared.config.max_payload_bytes;
    if previous_max != max_payload
        && max_message_bytes > 0
        && max_payload < max_message_bytes.saturating_add(MAX_ENVELOPE_OVERHEAD_BYTES)
    {
        warn!(
            max_payload,
            max_message_bytes,
            "NATS server takes smaller messages than this node: raise its max_payload or lower max_message_bytes"
        );
    }
    for subject in [names.broadcast(), names.node(&shared.node)] {
        client.subscribe(&subject)?;
    }
    client.confirm().await?;
    Ok(Link {
        sender: link::Sender::Nats(Sender {
            client: client.clone(),
            topics: names.topic(""),
            names: names.clone(),
            shared: Arc::clone(shared),
        }),
        subscriber: link::Subscriber::Nats(Subscriber {
            client: client.clone(),
            names,
            sids: HashMap::new(),
        }),
        receiver: link::Receiver::Nats(Receiver { client }),
        reader: link::Reader::Nats,
        echoes_own: false,
    })
}

impl Sender {
    /// Writes a batch. Returns the number of its confirmation.
    pub(crate) fn send(&mut self, batch: &Batch) -> Result<u64, LinkError> {
        let max_payload = self.client.max_payload();
        let mut too_large = 0;
        let number = self.client.write_and_ping(|out| {
            for outbound in batch.iter() {
                let envelope = outbound.envelope;
                if envelope.len() > max_payload {
                    too_large += 1;
                    continue;
                }
                match outbound.to {
                    Destination::Topic { start, len } => {
                        let topic = envelope.get(*start..start + len).unwrap_or_default();
                        command::publish(out, &[self.topics.as_bytes(), topic], envelope);
                    }
                    Destination::Node(node) => {
                        command::publish(out, &[self.names.node(node).as_bytes()], envelope);
                    }
                    Destination::All => {
                        command::publish(out, &[self.names.broadcast().as_bytes()], envelope);
                    }
                    // `Broker::append` refuses to queue it.
                    Destination::Append(_) => {}
                }
            }
        })?;
        if too_large > 0 {
            // The messages were queued while a server with a larger limit was connected.
            self.shared.metrics.dropped(Dropped::TooLarge, too_large);
            warn!(messages = too_large, max_payload, "Queued messages dropped: too large for the new server");
        }
        Ok(number)
    }

    /// Waits for a confirmation.
    pub(crate) async fn confirmed(&self, number: u64) -> Result<(), LinkError> {
        self.client.confirmed(number).await
    }
}

impl Subscriber {
    pub(crate) async fn subscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        for name in names {
            let sid = self.client.subscribe(&self.names.topic(name))?;
            self.sids.insert(Arc::clone(name), sid);
        }
        self.client.confirm().await
    }

    // The method is async because other engines wait for an answer.
    #[expect(clippy::unused_async, reason = "see above")]
    pub(crate) async fn unsubscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        let sids: Vec<_> = names.iter().filter_map(|name| self.sids.remove(name)).collect();
        self.client.write(|out| sids.iter().for_each(|sid| command::unsubscribe(out, *sid)))
    }
}

impl Receiver {
    pub(crate) async fn next(&mut self, batch: &mut Vec<Bytes>) -> Result<(), LinkError> {
        self.client.receive(batch).await
    }
}
