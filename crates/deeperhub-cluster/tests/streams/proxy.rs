//! A TCP proxy that holds back what passes, in either direction, and cuts connections.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A proxy in front of a server.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sockets of clients and of the server, by number.
    connections: Vec<(usize, TcpStream, TcpStream)>,
    accepted: usize,
    /// Connections whose commands, or whose replies, are held back.
    held_commands: HashSet<usize>,
    held_replies: HashSet<usize>,
    holds_calls: bool,
    /// `true` if the connection with the next append is to hold back replies.
    holds_next_replies: bool,
    refuses: bool,
    /// Time that each chunk waits before it is sent on.
    delay: Duration,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                accepting.accept(client, upstream);
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// Holds back appends that clients send on the open connections, and what follows: calls of
    /// scripts, and messages of NATS with headers.
    pub(crate) fn hold_commands(&self) {
        let inner = &mut *self.state.inner.lock().unwrap();
        inner.held_commands.extend(inner.connections.iter().map(|(number, ..)| *number));
    }

    /// Returns `true` if appends are held back.
    pub(crate) fn holds_calls(&self) -> bool {
        self.state.inner.lock().unwrap().holds_calls
    }

    /// Sends on what was held back, even if the client has gone.
    pub(crate) fn release_commands(&self) {
        self.state.inner.lock().unwrap().held_commands.clear();
        self.state.changed.notify_all();
    }

    /// Holds back what the server sends on the open connections.
    pub(crate) fn hold_replies(&self) {
        let inner = &mut *self.state.inner.lock().unwrap();
        inner.held_replies.extend(inner.connections.iter().map(|(number, ..)| *number));
    }

    /// Holds back what the server sends on a connection from its next append on.
    pub(crate) fn hold_replies_to_the_next_append(&self) {
        self.state.inner.lock().unwrap().holds_next_replies = true;
    }

    /// Sends on what was held back.
    pub(crate) fn release_replies(&self) {
        self.state.inner.lock().unwrap().held_replies.clear();
        self.state.changed.notify_all();
    }

    /// Cuts the open connections on the side of the clients. The server gets what is held back,
    /// when it is released.
    pub(crate) fn cut_clients(&self) {
        for (_, client, _) in &self.state.inner.lock().unwrap().connections {
            let _ = client.shutdown(Shutdown::Both);
        }
        self.state.changed.notify_all();
    }

    /// Cuts the connection that was made last. A node makes the one that reads streams after the other.
    pub(crate) fn cut_last_client(&self) {
        if let Some((_, client, _)) = self.state.inner.lock().unwrap().connections.last() {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Delays what passes, as a distant server does.
    pub(crate) fn delay(&self, delay: Duration) {
        self.state.inner.lock().unwrap().delay = delay;
    }

    /// Refuses new connections, or accepts them again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.state.inner.lock().unwrap().refuses = refuses;
    }
}

impl State {
    fn accept(self: &Arc<Self>, client: TcpStream, upstream: SocketAddr) {
        let mut inner = self.inner.lock().unwrap();
        if inner.refuses {
            return;
        }
        let Ok(server) = TcpStream::connect(upstream) else { return };
        inner.accepted += 1;
        let number = inner.accepted;
        let copy = |stream: &TcpStream| stream.try_clone().unwrap();
        inner.connections.push((number, copy(&client), copy(&server)));
        let (commands, replies) = (Arc::clone(self), Arc::clone(self));
        let (from, to) = (copy(&client), copy(&server));
        std::thread::spawn(move || {
            commands.carry(from, &to, |inner, chunk| {
                let has_append = || {
                    [&b"EVALSHA"[..], b"HPUB "]
                        .iter()
                        .any(|append| chunk.windows(append.len()).any(|part| part == *append))
                };
                let is_held = inner.held_commands.contains(&number) && has_append();
                inner.holds_calls |= is_held;
                if inner.holds_next_replies && !is_held && has_append() {
                    inner.holds_next_replies = false;
                    inner.held_replies.insert(number);
                }
                is_held
            });
            let _ = to.shutdown(Shutdown::Both);
        });
        std::thread::spawn(move || {
            replies.carry(server, &client, |inner, _| inner.held_replies.contains(&number));
            let _ = client.shutdown(Shutdown::Both);
        });
    }

    fn carry(&self, mut from: TcpStream, mut to: &TcpStream, is_held: impl Fn(&mut Inner, &[u8]) -> bool) {
        let mut buffer = [0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let chunk = &buffer[..length];
            let inner = self.inner.lock().unwrap();
            let inner = self.changed.wait_while(inner, |inner| is_held(inner, chunk)).unwrap();
            let delay = inner.delay;
            drop(inner);
            std::thread::sleep(delay);
            if to.write_all(chunk).is_err() {
                return;
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut inner = self.state.inner.lock().unwrap();
            inner.refuses = true;
            inner.held_commands.clear();
            inner.held_replies.clear();
            for (_, client, server) in inner.connections.drain(..) {
                let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
            }
        }
        self.state.changed.notify_all();
    }
}
