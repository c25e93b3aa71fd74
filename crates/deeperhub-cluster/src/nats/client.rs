//! Connections to a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, ConnectOptions, Event, Request, ServerAddr};
use tokio::sync::watch;
use url::Url;

use super::credentials::with_credentials;
use crate::config::Config;
use crate::driver::BROKER_TIMEOUT;
use crate::link::LinkError;
use crate::metrics::{Dropped, Metrics};
use crate::names::Names;

/// Maximum number of messages that the library queues per subscription. If the queue is full,
/// messages are lost and counted. The driver empties the queue at once, but the library may first
/// read all messages that the system has buffered: some megabytes of messages with about a hundred
/// bytes each. An empty queue takes no memory.
const SUBSCRIPTION_CAPACITY: usize = 1 << 17;

/// Maximum number of commands that the library queues before it writes them.
const COMMAND_QUEUE_CAPACITY: usize = 2048;

/// Reason why a connection was lost, and a count of lost messages.
#[derive(Debug, Clone, Default)]
pub(super) struct Lost {
    /// `None` while the connection is open.
    pub(super) reason: watch::Sender<Option<String>>,
    pub(super) metrics: Option<Metrics>,
}

impl Lost {
    fn set(&self, reason: String) {
        self.reason.send_if_modified(|lost| {
            let is_first = lost.is_none();
            if is_first {
                *lost = Some(reason);
            }
            is_first
        });
    }

    fn on_slow(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.dropped(Dropped::SlowLink, 1);
        }
    }
}

/// Connects to a server. The library does not restore a lost connection.
pub(super) async fn connect_client(
    config: &Config,
    node: &str,
    server: &Url,
    lost: Lost,
) -> Result<Client, LinkError> {
    let options = connect_options(config, node, server, lost).await?;
    options.connect(server_address(server)?).await.map_err(|error| LinkError(with_causes(&error)))
}

async fn connect_options(
    config: &Config,
    node: &str,
    server: &Url,
    lost: Lost,
) -> Result<ConnectOptions, LinkError> {
    let was_connected = Arc::new(AtomicBool::new(false));
    let is_connected = Arc::clone(&was_connected);
    let names = Names::new(config.prefix.clone(), '.');
    let mut options = ConnectOptions::new()
        .name(format!("deeperhub-ws {node}"))
        .no_echo()
        .custom_inbox_prefix(names.inbox(node))
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
            match &event {
                Event::Connected => is_connected.store(true, Ordering::Relaxed),
                Event::SlowConsumer(_) => lost.on_slow(),
                Event::Disconnected | Event::Closed => lost.set("the connection was lost".to_owned()),
                // The server reports the reason before it closes the connection.
                Event::ServerError(error) => lost.set(error.to_string()),
                _ => {}
            }
            std::future::ready(())
        });
    if let Some(file) = &config.credentials {
        options = with_credentials(options, file).await?;
    } else if !server.username().is_empty() || server.password().is_some() {
        let user = percent_decode(server.username());
        options = match server.password() {
            Some(password) => options.user_and_password(user, percent_decode(password)),
            None => options.token(user),
        };
    }
    if let Some(ca) = &config.ca {
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
pub(super) async fn confirm(client: &Client, names: &Names) -> Result<(), LinkError> {
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

pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
