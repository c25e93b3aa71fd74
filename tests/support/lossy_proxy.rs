//! A proxy in front of Redis that drops published messages, and nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A proxy that drops messages of one channel on their way to subscribers. The connections stay.
#[derive(Debug)]
pub(crate) struct LossyProxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// End of the name of the channel.
    channel: Mutex<String>,
    /// Messages that are to be dropped.
    left: AtomicU64,
    is_over: AtomicBool,
}

impl LossyProxy {
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(State::default());
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(upstream) else { continue };
                accepting.carry(client, server);
            }
        });
        Self { address, state }
    }

    /// Drops the next `count` messages of the channels whose names end with `channel`.
    pub(crate) fn drop_next(&self, channel: &str, count: u64) {
        channel.clone_into(&mut self.state.channel.lock().unwrap());
        self.state.left.store(count, Ordering::SeqCst);
    }

    /// Returns `true` if all messages that were to be dropped have been.
    pub(crate) fn has_dropped(&self) -> bool {
        self.state.left.load(Ordering::SeqCst) == 0
    }
}

impl Drop for LossyProxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn carry(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket has copies");
        let (mut from_client, mut to_server) = (copy(&client), copy(&server));
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(std::net::Shutdown::Both);
        });
        let (state, mut from_server, mut to_client) = (Arc::clone(self), server, client);
        std::thread::spawn(move || {
            let (mut unread, mut buffer) = (Vec::new(), [0; 16 * 1024]);
            while let Ok(length @ 1..) = from_server.read(&mut buffer) {
                unread.extend_from_slice(&buffer[..length]);
                let mut passed = Vec::new();
                while let Some(value) = value_length(&unread) {
                    let rest = unread.split_off(value);
                    if !state.drops(&unread) {
                        passed.append(&mut unread);
                    }
                    unread = rest;
                }
                if to_client.write_all(&passed).is_err() {
                    break;
                }
            }
            let _ = to_client.shutdown(std::net::Shutdown::Both);
        });
    }

    /// Returns `true` if a reply of the server is a message that is to be dropped.
    fn drops(&self, value: &[u8]) -> bool {
        let Some(rest) = value.strip_prefix(b"*3\r\n$7\r\nmessage\r\n$") else { return false };
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return false };
        let length: usize = String::from_utf8_lossy(&rest[..end]).parse().unwrap_or(0);
        let channel = rest.get(end + 2..end + 2 + length).unwrap_or_default();
        channel.ends_with(self.channel.lock().unwrap().as_bytes())
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

/// Returns the length of the first value of RESP, or `None` if it is incomplete.
fn value_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")? + 2;
    let count = || String::from_utf8_lossy(&bytes[1..end - 2]).parse::<i64>().unwrap_or(-1);
    let length = match bytes[0] {
        b'$' => usize::try_from(count()).map_or(end, |length| end + length + 2),
        b'*' | b'>' => {
            let mut at = end;
            for _ in 0..count() {
                at += value_length(bytes.get(at..)?)?;
            }
            at
        }
        _ => end,
    };
    (bytes.len() >= length).then_some(length)
}
