//! NATS: a connection that publishes, subscribes and appends, and one that reads streams.

mod client;
mod credentials;
mod identity;
mod jetstream;
mod receiver;
mod sender;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::Client;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::broker::Shared;
use crate::envelope::MAX_ENVELOPE_OVERHEAD_BYTES;
use crate::link::{self, Link, LinkError};
use crate::names::Names;
use client::{Lost, confirm, connect_client, with_causes};
use receiver::Change;

pub use credentials::check_credentials;
pub(crate) use jetstream::{Known, Reader, check_store};
pub(crate) use receiver::Receiver;
pub(crate) use sender::Sender;

pub(crate) struct Subscriber {
    client: Client,
    names: Names,
    changes: mpsc::UnboundedSender<Change>,
}

/// Connects. The library does not restore a lost connection; the link ends instead, so that the
/// driver knows which batch was in flight.
pub(crate) async fn connect(shared: &Arc<Shared>, attempt: usize) -> Result<Link, LinkError> {
    let servers = shared.config.url.servers();
    let server = servers.get(attempt % servers.len().max(1)).ok_or_else(|| LinkError::new("no server"))?;
    let names = Names::new(shared.config.prefix.clone(), '.');
    let lost = Lost { metrics: Some(shared.metrics.clone()), ..Lost::default() };
    let reason = lost.reason.subscribe();
    let client = connect_client(&shared.config, &shared.node, server, lost).await?;
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

    let (changes_sender, changes) = mpsc::unbounded_channel();
    let mut running = SelectAll::new();
    let mut permanent = Vec::new();
    for subject in [names.broadcast(), names.node(&shared.node)] {
        let (stop, stopped) = oneshot::channel();
        running.push(client.subscribe(subject).await.map_err(LinkError::new)?.take_until(stopped));
        permanent.push(stop);
    }
    confirm(&client, &names).await?;
    Ok(Link {
        sender: link::Sender::Nats(Box::new(Sender::new(
            client.clone(),
            names.clone(),
            Arc::clone(shared),
            link,
        ))),
        subscriber: link::Subscriber::Nats(Subscriber { client, names, changes: changes_sender }),
        receiver: link::Receiver::Nats(Receiver {
            changes,
            running,
            stops: HashMap::new(),
            ending: Vec::new(),
            shared: Arc::clone(shared),
            lost: reason,
            _permanent: permanent,
        }),
        reader: link::Reader::Nats(Box::new(Reader::new(Arc::clone(shared), server.clone(), link))),
        echoes_own: false,
    })
}

impl Subscriber {
    pub(crate) async fn subscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        for name in names {
            let subscriber = self.client.subscribe(self.names.topic(name)).await.map_err(LinkError::new)?;
            // There is no await in between, so that the receiver gets the subscription before its
            // first message.
            self.notify_receiver(Change::Subscribed(Arc::clone(name), subscriber))?;
        }
        confirm(&self.client, &self.names).await
    }

    // The method is async because other engines wait for an answer.
    #[expect(clippy::unused_async, reason = "see above")]
    pub(crate) async fn unsubscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        // The receiver takes the messages that have arrived, and then ends the subscription.
        for name in names {
            self.notify_receiver(Change::Unsubscribed(Arc::clone(name)))?;
        }
        Ok(())
    }

    fn notify_receiver(&self, change: Change) -> Result<(), LinkError> {
        self.changes.send(change).map_err(|_| LinkError::new("the connection was lost"))
    }
}
