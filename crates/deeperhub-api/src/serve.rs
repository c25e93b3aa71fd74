//! Accept loop of the API.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_node::NodeHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::admission::Admission;
use crate::connection::{ConnectionState, Timeouts, serve_connection};
use crate::stream::Stream;
use crate::{Api, SharedApiConfig, router_of, samples};

/// Time that running calls have to finish when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Pause after a failed `accept`. Usually no descriptor is free, and only waiting helps.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Serves the API until `shutdown` completes. Running calls then have five seconds to finish.
///
/// Every wait has a timeout: for a request ([`idle_timeout`](crate::ApiConfig::idle_timeout)), for
/// the rest of it and for the caller to read the response ([`timeout`](crate::ApiConfig::timeout)).
/// Over [`max_connections`](crate::ApiConfig::max_connections), the longest idle connection is
/// evicted. At most [`RESERVED_CONNECTIONS`](crate::RESERVED_CONNECTIONS) more are served one
/// request each: health checks at once, other requests as soon as fewer than the limit are being
/// served. A request that waits for longer than a second gets 503. As many connections again may
/// be closing.
///
/// # Errors
///
/// Returns no error today. A failed connection ends alone, and a failed `accept` is repeated after
/// a pause.
pub async fn serve(
    listener: TcpListener,
    node: NodeHandle,
    config: impl Into<SharedApiConfig>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let config = config.into();
    let fixed = config.fixed();
    let admission = Admission::new(fixed.max_connections, fixed.metrics.clone());
    let timeouts = Timeouts { idle: fixed.idle_timeout, step: fixed.timeout };
    let max_held_bytes = fixed.max_held_bytes;
    let api = Arc::new(Api::new(node, config.clone()));
    let router = router_of(&api);
    let mut sample_timer = tokio::time::interval(samples::INTERVAL);
    sample_timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let socket = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            _ = sample_timer.tick() => {
                api.samples.record_if_due(&api.node);
                continue;
            }
            socket = async { admission.ready().await; accept(&listener).await } => socket,
        };
        let permit = admission.admit(Instant::now());
        let (state, router) = (ConnectionState::new(permit, timeouts), router.clone());
        let config = config.clone();
        connections.spawn(async move {
            if let Some(stream) = Stream::open(socket, &state, config.fixed()).await {
                serve_connection(stream, state, router, max_held_bytes).await;
            }
        });
        // Lets evicted connections close and pending requests run before the next accept.
        tokio::task::yield_now().await;
    }
    drop(listener);
    admission.drain();
    let ended = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        () = tokio::time::sleep(SHUTDOWN_GRACE) => {}
    }
    Ok(())
}

/// Accepts the next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // Nagle's algorithm would delay the last segment of a response until an
                // acknowledgement.
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY failed");
                }
                return socket;
            }
            Err(error) => {
                tracing::debug!(%error, "Server API accept failed");
                tokio::time::sleep(ACCEPT_ERROR_PAUSE).await;
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
        let mut response = String::new();
        let read = socket.read_to_string(&mut response);
        let _ =
            tokio::time::timeout(Duration::from_secs(30), read).await.expect("the connection closes in time");
        response
    }

    const HEALTH: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// Sends a request and reads its response, on a connection that stays open.
    async fn ask(socket: &mut TcpStream, request: &[u8]) -> String {
        socket.write_all(request).await.unwrap();
        let mut response = Vec::new();
        while !response.ends_with(b"}") {
            let mut part = [0; 1024];
            let read = tokio::time::timeout(Duration::from_secs(30), socket.read(&mut part));
            let length = read.await.expect("a response arrives in time").unwrap();
            assert!(length > 0, "the connection closed");
            response.extend_from_slice(&part[..length]);
        }
        String::from_utf8(response).unwrap()
    }

    #[tokio::test]
    async fn incomplete_requests_time_out() {
        let time = Duration::from_millis(200);
        let config = ApiConfig { idle_timeout: time, timeout: time, ..ApiConfig::default() };
        let (address, _node, _serving) = start(config).await;
        for (start, status) in [
            ("", ""),
            ("GET /health/live HTTP/1.1\r\nHost: localhost\r\n", "HTTP/1.1 408 "),
            ("POST /v1/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", "HTTP/1.1 408 "),
        ] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(start.as_bytes()).await.unwrap();
            let response = read_to_end(socket).await;
            assert!(response.starts_with(status) && response.is_empty() == start.is_empty(), "{response}");
        }
    }

    #[tokio::test]
    async fn over_the_limit_the_longest_idle_connection_is_evicted() {
        let config = ApiConfig { max_connections: 2, ..ApiConfig::default() };
        let (address, _node, _serving) = start(config).await;
        let mut idle =
            [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        for socket in idle.iter_mut().rev() {
            assert!(ask(socket, HEALTH).await.starts_with("HTTP/1.1 200 OK"));
        }
        let [newer, older] = &mut idle;
        // New connections are still served, one request each.
        loop {
            let mut third = TcpStream::connect(address).await.unwrap();
            assert!(ask(&mut third, HEALTH).await.starts_with("HTTP/1.1 200 OK"));
            drop(third);
            // Neither idle connection is evicted before its grace time.
            let ended = tokio::time::timeout(Duration::from_millis(100), older.read(&mut [0])).await;
            if let Ok(ended) = ended {
                assert_eq!(ended.unwrap(), 0, "it was closed");
                break;
            }
        }
        assert!(ask(newer, HEALTH).await.starts_with("HTTP/1.1 200 OK"));
    }

    #[tokio::test]
    async fn at_the_request_limit_health_is_answered_and_other_calls_get_503() {
        let config = ApiConfig { max_connections: 2, ..ApiConfig::default() };
        let (address, _node, _serving) = start(config).await;
        let mut busy = Vec::new();
        for _ in 0..2 {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket
                .write_all(
                    b"POST /v1/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{\"type\"",
                )
                .await
                .unwrap();
            busy.push(socket);
        }
        for _ in 0..3 * crate::RESERVED_CONNECTIONS {
            busy.push(TcpStream::connect(address).await.unwrap());
        }
        for path in ["/health/live", "/health/ready", "/metrics"] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let response = read_to_end(socket).await;
            assert!(response.starts_with("HTTP/1.1 200 OK"), "{path}: {response}");
            assert!(response.contains("connection: close"), "{path}: {response}");
        }
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /v1/stats HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let response = read_to_end(socket).await;
        assert!(
            response.starts_with("HTTP/1.1 503 ") && response.contains("too_many_connections"),
            "{response}"
        );
        assert!(response.contains("retry-after: 1") && response.contains("connection: close"), "{response}");
        // Running requests are still served.
        assert!(ask(&mut busy[0], b":\"x\"}").await.starts_with("HTTP/1.1 200 OK"));
    }

    #[tokio::test]
    async fn a_half_closed_client_gets_its_response() {
        let (address, _node, _serving) = start(ApiConfig::default()).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /v1/clients HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        socket.shutdown().await.unwrap();
        let response = read_to_end(socket).await;
        assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
    }
}
