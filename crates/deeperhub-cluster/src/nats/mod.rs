//! NATS: a connection that publishes, subscribes and appends, and one that reads streams.

mod client;
#[cfg(test)]
mod client_tests;
mod credentials;
mod handshake;
mod identity;
mod io;
mod jetstream;
mod request;
mod sender;
mod stream;
mod wakers;
mod wire;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tracing::warn;

use url::Url;

use crate::broker::Shared;
use crate::config::Config;
use crate::envelope::MAX_ENVELOPE_OVERHEAD_BYTES;
use crate::link::{self, Link, LinkError};
use crate::names::Names;
use client::Client;
use jetstream::Republished;
use request::Message;
use wire::command;

pub use credentials::check_credentials;
pub(crate) use jetstream::{Known, Reader, check_broker, check_store};
pub(crate) use sender::Sender;
#[cfg(fuzzing)]
pub use wire::fuzz_operations;

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
    let client = connect_client(&shared.config, &shared.node, server).await?;
    client.stamp_with(stamp(Arc::clone(shared)));
    let link = shared.jetstream.next_link();
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
        sender: link::Sender::Nats(Box::new(Sender::new(
            client.clone(),
            names.clone(),
            Arc::clone(shared),
            link,
        ))),
        subscriber: link::Subscriber::Nats(Subscriber {
            client: client.clone(),
            names,
            sids: HashMap::new(),
        }),
        receiver: link::Receiver::Nats(Receiver { client }),
        reader: link::Reader::Nats(Box::new(Reader::new(Arc::clone(shared), server.clone(), link))),
        echoes_own: false,
    })
}

/// Connects to a server.
async fn connect_client(config: &Config, node: &str, server: &Url) -> Result<Client, LinkError> {
    let inbox = Names::new(config.prefix.clone(), '.').inbox(node);
    let connected = handshake::connect(config, server, &format!("deeperhub-ws {node}")).await?;
    Ok(Client::new(connected, &inbox))
}

/// Returns a function that makes envelopes of the messages of streams.
fn stamp(shared: Arc<Shared>) -> impl Fn(&Message) -> Option<Bytes> {
    let last = RefCell::new(None::<Republished>);
    move |message| {
        let stamped = Republished::parse(&shared.jetstream, &shared.config.prefix, message)?;
        // Copies for several subscriptions come one after the other.
        let mut last = last.borrow_mut();
        if last.as_ref().is_some_and(|last| last.key == stamped.key && last.envelope == stamped.envelope) {
            return None;
        }
        Some(last.insert(stamped).envelope.clone())
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
