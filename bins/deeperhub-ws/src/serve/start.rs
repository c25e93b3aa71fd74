//! Starts the node, unless a signal stops the start.

use std::io;
use std::time::Duration;

use deeperhub_listener::ListenOn;
use deeperhub_node::Node;
use tracing::info;

use super::error::ServeError;
use crate::config::effective::Settings;
use crate::process::signals::StopSignals;

/// Time for a node to finish starting after a stop signal; as long as it waits for its broker.
const START_ABORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Outcome of starting a node.
pub(super) enum Started {
    Node(Box<Node>),
    /// A stop signal arrived. `None` if the start did not finish in time.
    Stopped(Option<Node>),
}

/// Starts the node off the control thread, because it waits for its cluster's broker and its first
/// probes.
pub(super) async fn start_node(
    clients: ListenOn,
    settings: &Settings,
    stops: &mut StopSignals,
) -> Result<Started, ServeError> {
    let config = settings.node.clone();
    let mut starting = tokio::task::spawn_blocking(move || Node::start_on(clients, config));
    let ended = tokio::select! {
        ended = &mut starting => Ok(ended),
        signal = stops.recv() => Err(signal),
    };
    let (ended, is_stopped) = match ended {
        Ok(ended) => (ended, false),
        Err(signal) => {
            info!(signal, "Stop requested during start");
            match tokio::time::timeout(START_ABORT_TIMEOUT, starting).await {
                Ok(ended) => (ended, true),
                Err(_) => return Ok(Started::Stopped(None)),
            }
        }
    };
    let started = ended.map_err(|error| ServeError::system("the start failed", io::Error::other(error)))?;
    let node = started.map_err(|error| match error {
        deeperhub_node::StartError::Listener(deeperhub_listener::StartError::Listen { address, source }) => {
            ServeError::Listen { address, purpose: "clients", flag: "--port", source }
        }
        deeperhub_node::StartError::NodeIdTaken(taken) => ServeError::NodeIdTaken(taken),
        error => ServeError::Node(error),
    })?;
    Ok(if is_stopped { Started::Stopped(Some(node)) } else { Started::Node(Box::new(node)) })
}
