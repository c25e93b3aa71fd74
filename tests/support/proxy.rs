//! A TCP proxy that can cut or slow connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A TCP proxy that can cut and slow its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<ProxyState>,
}

#[derive(Debug)]
struct ProxyState {
    upstream: SocketAddr,
    is_cut: AtomicBool,
    /// Delay in microseconds of each chunk of up to 4 KiB.
    delay: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
    is_over: AtomicBool,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(ProxyState {
            upstream,
            is_cut: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            connections: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.is_over.load(Ordering::Relaxed) {
                    return;
                }
                accepting.carry(client);
            }
        });
        Self { address, state }
    }

    /// Cuts all connections and refuses new ones until [`Self::mend`].
    pub(crate) fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
        for connection in self.state.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Accepts connections again.
    pub(crate) fn mend(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }

    /// Delays each chunk.
    pub(crate) fn slow(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).expect("a delay is short");
        self.state.delay.store(micros, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        self.cut();
        let _ = TcpStream::connect(self.address);
    }
}

impl ProxyState {
    fn carry(self: &Arc<Self>, client: TcpStream) {
        if self.is_cut.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(self.upstream) else { return };
        for (mut from, mut to) in [
            (
                client.try_clone().expect("a socket has copies"),
                server.try_clone().expect("a socket has copies"),
            ),
            (
                server.try_clone().expect("a socket has copies"),
                client.try_clone().expect("a socket has copies"),
            ),
        ] {
            let _ = to.set_nodelay(true);
            let state = Arc::clone(self);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    let delay = state.delay.load(Ordering::Relaxed);
                    if delay > 0 {
                        std::thread::sleep(Duration::from_micros(delay));
                    }
                    if to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        let mut connections = self.connections.lock().unwrap();
        connections.extend([client, server]);
        if self.is_cut.load(Ordering::SeqCst) {
            for connection in connections.drain(..) {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
    }
}
