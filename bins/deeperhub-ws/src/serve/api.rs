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
    /// Dropping it asks the task to end.
    running: oneshot::Sender<()>,
}

impl ApiTask {
    pub(super) fn start(socket: TcpListener, address: SocketAddr, node: &Node, settings: &Settings) -> Self {
        let mut config = settings.api.as_ref().map(|api| api.config.clone()).unwrap_or_default();
        config.websocket_url =
            websocket_url(settings.scheme(), node.local_addr(), &settings.node.listener.paths);
        let (running, stopped) = oneshot::channel();
        let shutdown = async {
            let _: Result<(), _> = stopped.await;
        };
        let config = SharedApiConfig::from(config);
        let task = tokio::spawn(deeperhub_api::serve(socket, node.handle(), config.clone(), shutdown));
        Self { address, config, task, running }
    }

    /// Waits until the API ends by itself, which is an error.
    pub(super) async fn failed(api: &mut Option<Self>) -> ServeError {
        match api {
            None => std::future::pending().await,
            Some(running) => {
                let ended = (&mut running.task).await;
                *api = None;
                let error = match ended {
                    Ok(Ok(())) => io::Error::other("it ended unexpectedly"),
                    Ok(Err(error)) => error,
                    Err(error) => io::Error::other(error),
                };
                ServeError::system("the server API failed", error)
            }
        }
    }

    /// Lets running calls finish.
    pub(super) async fn stop(self) {
        drop(self.running);
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "Server API failed during shutdown"),
            Err(error) => warn!(%error, "Server API failed during shutdown"),
        }
    }
}

/// Returns the URL that the console page connects to. `None` if clients connect to all interfaces;
/// the page then guesses the address.
fn websocket_url(scheme: &str, clients: SocketAddr, paths: &[String]) -> Option<String> {
    let path = paths.first().map_or("/", String::as_str);
    (!clients.ip().is_unspecified()).then(|| format!("{scheme}://{clients}{path}"))
}
