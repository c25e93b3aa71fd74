//! NATS: one connection without echo, with a subscription for each topic and pattern.

mod credentials;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::{Client, ConnectOptions, Event, Request, ServerAddr};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, TakeUntil};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::unconstrained;
use tracing::warn;
use url::Url;

use crate::broker::Shared;
use crate::driver::BROKER_TIMEOUT;
use crate::envelope::{MAX_ENVELOPE_OVERHEAD_BYTES, sort_key};
use crate::link::{self, Link, LinkError};
use crate::metrics::Dropped;
use crate::names::Names;
use crate::queue::{Destination, Outbound};
use credentials::with_credentials;

pub use credentials::check_credentials;

/// Maximum number of messages that the library queues per subscription. If the queue is full,
/// messages are lost and counted. The driver empties the queue at once, but the library may first
/// read all messages that the system has buffered: some megabytes of messages with about a hundred
/// bytes each. An empty queue takes no memory.
const SUBSCRIPTION_CAPACITY: usize = 1 << 17;

/// Maximum number of commands that the library queues before it writes them.
const COMMAND_QUEUE_CAPACITY: usize = 2048;

/// Start or end of a subscription, sent to the receiver.
enum Change {
    Subscribed(Arc<str>, async_nats::Subscriber),
    Unsubscribed(Arc<str>),
}

type Stream = TakeUntil<async_nats::Subscriber, oneshot::Receiver<()>>;

pub(crate) struct Sender {
    client: Client,
    names: Names,
    shared: Arc<Shared>,
}

pub(crate) struct Subscriber {
    client: Client,
    names: Names,
    changes: mpsc::UnboundedSender<Change>,
}

/// Receiving side, which restores the order of messages across subscriptions.
///
/// The library has a queue for each subscription and so loses the server's order. The receiver
/// empties all queues at one moment. So each message that the server sent before a message of this
/// batch is in this batch or in an earlier one. Sorted by sequence, the messages of each node are
/// in the server's order.
pub(crate) struct Receiver {
    /// Pending changes, no more than the node has subscriptions.
    changes: mpsc::UnboundedReceiver<Change>,
    running: SelectAll<Stream>,
    /// Handles of the subscriptions, by name. Dropping a handle ends the subscription.
    stops: HashMap<Arc<str>, oneshot::Sender<()>>,
    /// Handles of subscriptions that end after the next emptying of the queues.
    ending: Vec<oneshot::Sender<()>>,
    /// Reason why the connection was lost. `None` while it is open.
    lost: watch::Receiver<Option<String>>,
    /// Handles of the subscriptions to the names of this node and of all nodes, which never end.
    _permanent: Vec<oneshot::Sender<()>>,
}

/// Connects. The library does not restore a lost connection; the link ends instead, so that the
/// driver knows which batch was in flight.
pub(crate) async fn connect(shared: &Arc<Shared>, attempt: usize) -> Result<Link, LinkError> {
    let servers = shared.config.url.servers();
    let server = servers.get(attempt % servers.len().max(1)).ok_or_else(|| LinkError::new("no server"))?;
    let names = Names::new(shared.config.prefix.clone(), '.');
    let (lost_sender, lost) = watch::channel(None);
    let client = connect_options(shared, server, lost_sender, &names)
        .await?
        .connect(server_address(server)?)
        .await
        .map_err(|error| LinkError(with_causes(&error)))?;
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
        sender: link::Sender::Nats(Sender {
            client: client.clone(),
            names: names.clone(),
            shared: Arc::clone(shared),
        }),
        subscriber: link::Subscriber::Nats(Subscriber { client, names, changes: changes_sender }),
        receiver: link::Receiver::Nats(Receiver {
            changes,
            running,
            stops: HashMap::new(),
            ending: Vec::new(),
            lost,
            _permanent: permanent,
        }),
        reader: link::Reader::Nats,
        echoes_own: false,
    })
}

async fn connect_options(
    shared: &Arc<Shared>,
    server: &Url,
    lost: watch::Sender<Option<String>>,
    names: &Names,
) -> Result<ConnectOptions, LinkError> {
    let was_connected = Arc::new(AtomicBool::new(false));
    let is_connected = Arc::clone(&was_connected);
    let metrics = shared.metrics.clone();
    let mut options = ConnectOptions::new()
        .name(format!("deeperhub-ws {}", shared.node))
        .no_echo()
        .custom_inbox_prefix(names.inbox(&shared.node))
        .connection_timeout(BROKER_TIMEOUT)
        .ping_interval(Duration::from_secs(2))
        .client_capacity(COMMAND_QUEUE_CAPACITY)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .ignore_discovered_servers()
        .max_reconnects(1)
        // A connection that was up is not restored: the runtime of this link ends before the delay.
        .reconnect_delay_callback(move |_| {
            if was_connected.load(Ordering::Relaxed) { Duration::from_secs(3600) } else { Duration::ZERO }
        })
        .event_callback(move |event| {
            let reason = match &event {
                Event::Connected => {
                    is_connected.store(true, Ordering::Relaxed);
                    None
                }
                Event::SlowConsumer(_) => {
                    metrics.dropped(Dropped::SlowLink, 1);
                    None
                }
                Event::Disconnected | Event::Closed => Some("the connection was lost".to_owned()),
                // The server reports the reason before it closes the connection.
                Event::ServerError(error) => Some(error.to_string()),
                _ => None,
            };
            if let Some(reason) = reason {
                lost.send_if_modified(|lost| {
                    let is_first = lost.is_none();
                    if is_first {
                        *lost = Some(reason);
                    }
                    is_first
                });
            }
            std::future::ready(())
        });
    if let Some(file) = &shared.config.credentials {
        options = with_credentials(options, file).await?;
    } else if !server.username().is_empty() || server.password().is_some() {
        let user = percent_decode(server.username());
        options = match server.password() {
            Some(password) => options.user_and_password(user, percent_decode(password)),
            None => options.token(user),
        };
    }
    if let Some(ca) = &shared.config.ca {
        options = options.add_root_certificates(ca.clone());
    }
    Ok(options)
}

/// Returns the server's address without user and password, which are in the options.
fn server_address(server: &Url) -> Result<ServerAddr, LinkError> {
    let mut url = server.clone();
    // Both calls succeed for a URL with a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    ServerAddr::from_url(url).map_err(LinkError::new)
}

/// Decodes the percent-encoding of a part of a URL.
fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Waits until the server has processed everything that was sent before. Sends a request to a
/// subject without subscribers, which the server answers at once, in order on the same connection.
async fn confirm(client: &Client, names: &Names) -> Result<(), LinkError> {
    let request = Request::new().timeout(Some(BROKER_TIMEOUT));
    match client.send_request(names.no_responders(), request).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            RequestErrorKind::NoResponders => Ok(()),
            RequestErrorKind::TimedOut => Err(LinkError::new("the server did not answer in time")),
            _ => Err(LinkError(with_causes(&error))),
        },
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl Sender {
    pub(crate) async fn send(&mut self, batch: &[Outbound]) -> Result<(), LinkError> {
        for outbound in batch {
            let subject = match &outbound.to {
                Destination::Topic { start, len } => {
                    let topic = outbound.envelope.get(*start..start + len).unwrap_or_default();
                    self.names.topic(&String::from_utf8_lossy(topic))
                }
                Destination::Node(node) => self.names.node(node),
                Destination::All => self.names.broadcast(),
                // `Broker::append` refuses to queue it.
                Destination::Append(_) => continue,
            };
            match self.client.publish(subject, outbound.envelope.clone()).await {
                Ok(()) => {}
                // The message was queued while a server with a larger limit was connected.
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    self.shared.metrics.dropped(Dropped::TooLarge, 1);
                    let bytes = outbound.envelope.len();
                    warn!(bytes, "Queued message dropped: exceeds the new server's max_payload");
                }
                Err(error) => return Err(LinkError(with_causes(&error))),
            }
        }
        confirm(&self.client, &self.names).await
    }
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

impl Receiver {
    pub(crate) async fn next(&mut self, batch: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let mut lost = self.lost.clone();
        let is_open = tokio::select! {
            // Messages that arrived before the loss are taken first.
            biased;
            // All queues must be emptied at one moment. Under tokio's cooperative budget, some
            // queues would seem empty.
            is_open = unconstrained(poll_fn(|cx| self.poll_all(cx, batch))) => is_open,
            _ = lost.wait_for(Option::is_some) => false,
        };
        if is_open {
            return Ok(());
        }
        let lost = self.lost.borrow();
        Err(LinkError::new(lost.as_deref().unwrap_or("the connection was lost")))
    }

    /// Empties all queues into a batch. The task that fills the queues runs on this thread, so they
    /// do not change meanwhile. Returns `false` if all subscriptions have ended, because the
    /// connection was lost.
    fn poll_all(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Bytes>) -> Poll<bool> {
        while let Poll::Ready(Some(change)) = self.changes.poll_recv(cx) {
            match change {
                Change::Subscribed(name, subscriber) => {
                    let (stop, stopped) = oneshot::channel();
                    self.running.push(subscriber.take_until(stopped));
                    self.ending.extend(self.stops.insert(name, stop));
                }
                Change::Unsubscribed(name) => self.ending.extend(self.stops.remove(&name)),
            }
        }
        loop {
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => batch.push(message.payload),
                Poll::Ready(None) => return Poll::Ready(false),
                Poll::Pending => break,
            }
        }
        self.ending.clear();
        if batch.is_empty() {
            return Poll::Pending;
        }
        sort_by_origin(batch);
        Poll::Ready(true)
    }
}

/// Sorts the envelopes of each origin into the order in which the origin sent them.
fn sort_by_origin(batch: &mut [Bytes]) {
    batch.sort_by_key(|envelope| sort_key(envelope));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Envelope, Message, Origin, set_sequence};

    #[test]
    fn messages_of_several_queues_are_sorted_by_origin_and_sequence() {
        let envelope = |incarnation, sequence| {
            let origin = Origin { node: "n", incarnation };
            let mut bytes = Envelope { origin, sequence: 0, message: Message::Bye }.write();
            set_sequence(&mut bytes, sequence);
            Bytes::from(bytes)
        };
        let mut batch: Vec<_> = [(2, 4), (1, 3), (2, 5), (1, 1), (2, 4), (1, 1 << 40), (1, 2)]
            .map(|(incarnation, sequence)| envelope(incarnation, sequence))
            .into();
        batch.push(Bytes::from_static(b"short"));
        sort_by_origin(&mut batch);
        let sequences = |incarnation| {
            let all = batch.iter().filter_map(|bytes| Envelope::parse(bytes).ok());
            all.filter(|envelope| envelope.origin.incarnation == incarnation)
                .map(|envelope| envelope.sequence)
                .collect::<Vec<_>>()
        };
        assert_eq!(sequences(1), [1, 2, 3, 1 << 40]);
        assert_eq!(sequences(2), [4, 4, 5]);
        assert_eq!(batch.len(), 8);
    }
}
