use std::future::Future;
use std::io;
use std::time::Duration;

use axum::serve::ListenerExt;
use deeperhub_node::NodeHandle;
use tokio::net::TcpListener;

use crate::{SharedApiConfig, router};

/// Time that calls under way are given when the server ends.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// Serves the API until `shutdown` is ready. Calls under way are then given five seconds.
///
/// # Errors
///
/// The socket failed.
pub async fn serve(
    listener: TcpListener,
    node: NodeHandle,
    config: impl Into<SharedApiConfig>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = listener.tap_io(|socket| {
        // Answers are small; without it the last part of one waits for an acknowledgement.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set.");
        }
    });
    let (ended, mut over) = tokio::sync::watch::channel(false);
    let shutdown = async move {
        shutdown.await;
        ended.send_replace(true);
    };
    let server = axum::serve(listener, router(node, config)).with_graceful_shutdown(shutdown);
    tokio::select! {
        result = async { server.await } => result,
        () = async {
            // An error says that the sender was dropped, which it is only with the server.
            let _ = over.wait_for(|over| *over).await;
            tokio::time::sleep(LAST_CALLS).await;
        } => Ok(()),
    }
}
