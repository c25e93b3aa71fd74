//! Starts the node, and aborts the start after a stop signal.

use std::io;
use std::time::Duration;

use deeperhub_listener::ListenOn;
use deeperhub_node::{Node, StartError};
use tokio::task::JoinError;
use tracing::info;

use super::error::ServeError;
use crate::config::effective::Settings;
use crate::process::signals::StopSignals;

/// Limits how long a node that is still starting delays the exit. A starting node waits for its
/// broker at most this long.
const START_ABORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Outcome of starting a node.
pub(super) enum Started {
    Node(Box<Node>),
    /// A stop signal arrived. Contains the node if it finished starting within
    /// [`START_ABORT_TIMEOUT`].
    Stopped(Option<Node>),
}

/// Starts the node on a thread for blocking tasks, because the start waits for the cluster's broker
/// and the first probes.
pub(super) async fn start_node(
    listen_on: ListenOn,
    settings: &Settings,
    stops: &mut StopSignals,
) -> Result<Started, ServeError> {
    let config = settings.node.clone();
    let mut starting = tokio::task::spawn_blocking(move || Node::start_on(listen_on, config));
    let stop_signal = tokio::select! {
        result = &mut starting => return Ok(Started::Node(Box::new(started_node(result)?))),
        signal = stops.recv() => signal,
    };
    info!(signal = stop_signal, "Stop requested during start");
    match tokio::time::timeout(START_ABORT_TIMEOUT, starting).await {
        Ok(result) => Ok(Started::Stopped(Some(started_node(result)?))),
        Err(_) => Ok(Started::Stopped(None)),
    }
}

/// Returns the node of a finished start, or the error for the operator.
fn started_node(result: Result<Result<Node, StartError>, JoinError>) -> Result<Node, ServeError> {
    let result = result.map_err(|error| ServeError::system("the start failed", io::Error::other(error)))?;
    result.map_err(|error| match error {
        StartError::Listener(deeperhub_listener::StartError::Listen { address, source }) => {
            ServeError::Listen { address, purpose: "clients", flag: "--port", source }
        }
        StartError::NodeIdTaken(error) => ServeError::NodeIdTaken(error),
        error => ServeError::Node(error),
    })
}
