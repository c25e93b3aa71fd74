//! A TCP load balancer in front of nodes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::Server;

/// A TCP load balancer. A connection goes to the first node of its list that accepts it.
#[derive(Debug)]
pub(crate) struct Balancer {
    address: SocketAddr,
    upstreams: Arc<Mutex<Vec<SocketAddr>>>,
    accepting: JoinHandle<()>,
}

impl Balancer {
    /// Starts a balancer on a free port.
    pub(crate) async fn start(nodes: &[&Server]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let upstreams = Arc::new(Mutex::new(addresses(nodes)));
        let list = Arc::clone(&upstreams);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let upstreams = list.lock().unwrap().clone();
                tokio::spawn(carry(client, upstreams));
            }
        });
        Self { address, upstreams, accepting }
    }

    /// Sends new connections to the first of these nodes.
    pub(crate) fn set(&self, nodes: &[&Server]) {
        *self.upstreams.lock().unwrap() = addresses(nodes);
    }

    /// Returns the URL for clients.
    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn addresses(nodes: &[&Server]) -> Vec<SocketAddr> {
    nodes.iter().map(|node| node.clients).collect()
}

/// Carries the bytes of one connection until it ends.
async fn carry(mut client: TcpStream, upstreams: Vec<SocketAddr>) {
    for address in upstreams {
        if let Ok(mut node) = TcpStream::connect(address).await {
            let _ = (client.set_nodelay(true), node.set_nodelay(true));
            // Either side may break off.
            let _ = copy_bidirectional(&mut client, &mut node).await;
            return;
        }
    }
}
