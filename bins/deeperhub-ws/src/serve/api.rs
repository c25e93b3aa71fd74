//! The server API as a task on the control runtime.

use std::io;
use std::net::SocketAddr;

use deeperhub_api::SharedApiConfig;
use deeperhub_node::Node;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::warn;

use super::error::ServeError;
use crate::config::effective::Settings;

/// Binds a listener to the address. Also returns the bound address, whose port is never 0.
pub(super) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let listen = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listen.await.map_err(|source| ServeError::Listen {
        address,
        purpose: "the server API",
        flag: "--api-listen",
        source,
    })
}

/// The running server API.
pub(super) struct ApiTask {
    pub(super) address: SocketAddr,
    pub(super) config: SharedApiConfig,
    task: JoinHandle<io::Result<()>>,
    /// Asks the task to end when this sender is dropped.
    shutdown: oneshot::Sender<()>,
}

impl ApiTask {
    pub(super) fn start(socket: TcpListener, address: SocketAddr, node: &Node, settings: &Settings) -> Self {
        let mut config = settings.api.as_ref().map(|api| api.config.clone()).unwrap_or_default();
        config.websocket_url =
            websocket_url(settings.scheme(), node.local_addr(), &settings.node.listener.paths);
        let (shutdown, dropped) = oneshot::channel();
        let wait_for_shutdown = async {
            let _: Result<(), _> = dropped.await;
        };
        let config = SharedApiConfig::from(config);
        let task =
            tokio::spawn(deeperhub_api::serve(socket, node.handle(), config.clone(), wait_for_shutdown));
        Self { address, config, task, shutdown }
    }

    /// Waits until the API ends without being asked to, and returns the reason. Waits forever if
    /// there is no API.
    pub(super) async fn failed(api: &mut Option<Self>) -> ServeError {
        match api {
            None => std::future::pending().await,
            Some(running) => {
                let result = (&mut running.task).await;
                *api = None;
                let error = match result {
                    Ok(Ok(())) => io::Error::other("it ended unexpectedly"),
                    Ok(Err(error)) => error,
                    Err(error) => io::Error::other(error),
                };
                ServeError::system("the server API failed", error)
            }
        }
    }

    /// Asks the API to end and waits until running calls are finished.
    pub(super) async fn stop(self) {
        drop(self.shutdown);
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "Server API failed during shutdown"),
            Err(error) => warn!(%error, "Server API failed during shutdown"),
        }
    }
}

/// Returns the URL that the dashboard connects to. Returns `None` if the server listens on all
/// interfaces, because the right URL depends on the browser. The page then guesses the URL.
fn websocket_url(scheme: &str, client_address: SocketAddr, paths: &[String]) -> Option<String> {
    let path = paths.first().map_or("/", String::as_str);
    (!client_address.ip().is_unspecified()).then(|| format!("{scheme}://{client_address}{path}"))
}
