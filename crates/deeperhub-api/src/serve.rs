use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_node::NodeHandle;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::{SharedApiConfig, router};

/// Time that calls under way are given when the server ends.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// Pause after an error of `accept`, which only time can cure (no descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the API until `shutdown` is ready. Calls under way are then given five seconds.
///
/// A connection over [`max_connections`](crate::ApiConfig::max_connections) waits until another one ends; one on which no
/// request comes whole within [`head_timeout`](crate::ApiConfig::head_timeout) is closed. Both are read once, at the start.
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
    let config = config.into();
    let start = config.current();
    let places = Arc::new(Semaphore::new(start.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(start.head_timeout);
    let service = TowerToHyperService::new(router(node, config));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        // All are cancel-safe: a place that was taken is given back.
        let (place, socket) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let connection = graceful.watch(http.serve_connection(TokioIo::new(socket), service.clone()));
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "A connection of the server API failed.");
            }
            drop(place);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(LAST_CALLS) => {}
    }
    Ok(())
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (OwnedSemaphorePermit, TcpStream) {
    let Ok(place) = Arc::clone(places).acquire_owned().await else {
        // It is closed by nobody.
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // Answers are small; without it the last part of one waits for an acknowledgement.
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY could not be set.");
                }
                return (place, socket);
            }
            Err(error) => {
                tracing::debug!(%error, "A connection of the server API could not be accepted.");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_node::{Config, Node};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::ApiConfig;

    async fn start(config: ApiConfig) -> (std::net::SocketAddr, Node, JoinSet<io::Result<()>>) {
        let node = Node::start(([127, 0, 0, 1], 0).into(), Config::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, node.handle(), config, std::future::pending()));
        (address, node, serving)
    }

    async fn read_to_end(mut socket: TcpStream) -> String {
        let mut answer = String::new();
        let read = socket.read_to_string(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(30), read).await.expect("it ends in time");
        answer
    }

    #[tokio::test]
    async fn a_request_that_never_comes_whole_does_not_keep_its_connection() {
        let config = ApiConfig { head_timeout: Duration::from_millis(200), ..ApiConfig::default() };
        let (address, _node, _serving) = start(config).await;
        for start in ["", "GET /health/live HTTP/1.1\r\nHost: localhost\r\n"] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(start.as_bytes()).await.unwrap();
            let answer = read_to_end(socket).await;
            assert!(!answer.contains("200 OK"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_connection_over_the_limit_waits_for_a_place() {
        let config = ApiConfig { max_connections: 2, ..ApiConfig::default() };
        let (address, _node, _serving) = start(config).await;
        let idle = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let mut waiting = TcpStream::connect(address).await.unwrap();
        let request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        waiting.write_all(request).await.unwrap();
        let answer = waiting.readable();
        assert!(tokio::time::timeout(Duration::from_millis(200), answer).await.is_err(), "there is no place");
        drop(idle);
        let answer = read_to_end(waiting).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}
