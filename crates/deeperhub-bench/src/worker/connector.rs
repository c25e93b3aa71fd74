//! Opens connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mio::{Interest, Token};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Protocol, Socket, Type};

use super::{MAX_CONCURRENT_CONNECTS, MAX_POLL_WAIT_NANOS, Worker};
use crate::connection::{Connection, Return, Stage};
use crate::disconnect_reason::DisconnectReason;
use crate::scenario::{ConnectionSpec, Role};
use crate::transport::Transport;

/// Receive buffer of a slow reader. It is small, so that unread messages soon fill the server's
/// queue.
const SLOW_READER_RECEIVE_BUFFER_BYTES: usize = 4096;

/// The addresses of the server and the TLS configuration.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Where clients that were cut return.
    pub(crate) return_address: SocketAddr,
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Worker<'_> {
    /// Opens this thread's share of the connections and waits until each one has opened or failed.
    pub(super) fn open_all(&mut self) -> io::Result<()> {
        let (plan, thread) = (self.state.plan, self.state.thread);
        let max_opening = (MAX_CONCURRENT_CONNECTS / plan.threads).max(1);
        // Thread `t` owns the publishers whose number modulo the number of threads is `t`;
        // `SharedState::add_delivered` relies on that.
        let clients = plan.clients;
        let specs = plan.connection_specs().enumerate().filter(|(at, _)| {
            let number = if *at < clients { *at } else { at - clients };
            number % plan.threads == thread
        });
        for (_, spec) in specs {
            while self.opening >= max_opening {
                self.poll_once(MAX_POLL_WAIT_NANOS)?;
            }
            if self.state.shared.is_stopped() {
                return Ok(());
            }
            let slot = self.connections.len();
            self.connections.push(Connection::placeholder(spec));
            self.open(slot, spec, None);
            if matches!(spec.role, Role::Echo | Role::Publisher) {
                self.senders.push(slot);
            }
            if slot.is_multiple_of(max_opening) {
                self.poll_once(0)?;
            }
        }
        while self.opening > 0 && !self.state.shared.is_stopped() {
            self.poll_once(MAX_POLL_WAIT_NANOS)?;
        }
        Ok(())
    }

    /// Starts to open the connection of a slot. `returning` is the return of a client that was cut.
    pub(super) fn open(&mut self, slot: usize, spec: ConnectionSpec, returning: Option<Return>) {
        let source = self.state.plan.source(self.next_number);
        self.next_number += self.state.plan.threads;
        let registry = self.poll.registry();
        let endpoint = &self.endpoint;
        let address = if returning.is_some() { endpoint.return_address } else { endpoint.address };
        let connection = connect(address, &endpoint.tls, source, spec.role).and_then(|mut transport| {
            registry.register(transport.socket(), Token(slot), Interest::READABLE | Interest::WRITABLE)?;
            Ok(Connection::new(spec, transport, returning, &mut self.state))
        });
        let Some(entry) = self.connections.get_mut(slot) else { return };
        self.opening += 1;
        match connection {
            Ok(connection) => *entry = connection,
            Err(error) => {
                *entry = Connection::placeholder(spec);
                self.disconnect(slot, &DisconnectReason::ConnectFailed(error));
            }
        }
    }

    /// Counts a connection that opened.
    pub(super) fn opened(&mut self, slot: usize) {
        use std::sync::atomic::Ordering::Relaxed;

        let Some(connection) = self.connections.get(slot) else { return };
        self.opening -= 1;
        if connection.is_returning() {
            self.state.counters.recovery.returned += 1;
            return;
        }
        self.state.counters.opened += 1;
        self.state.counters.last_opened = self.state.shared.now();
        self.state.shared.opened.fetch_add(1, Relaxed);
        match connection.spec.role {
            Role::Subscriber => self.state.shared.subscribed(connection.topic()),
            Role::Returner => {
                let topics = self.state.plan.topics_from(connection.topic());
                topics.for_each(|topic| self.state.shared.subscribed(topic));
            }
            Role::Churner => self.newly_opened.push(slot),
            _ => {}
        }
    }

    /// Disconnects connections that did not open within `--connect-timeout`.
    pub(super) fn time_out_connections(&mut self) {
        let now = self.state.shared.now();
        if now < self.next_timeout_check {
            return;
        }
        self.next_timeout_check = now + MAX_POLL_WAIT_NANOS;
        let limit = u64::try_from(self.state.plan.connect_timeout.as_nanos()).unwrap_or(u64::MAX);
        let expired: Vec<_> = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| {
                connection.stage < Stage::Open && now.saturating_sub(connection.connect_started) > limit
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in expired {
            self.disconnect(slot, &DisconnectReason::OpenTimedOut);
        }
    }
}

/// Starts to connect a non-blocking socket.
fn connect(
    address: SocketAddr,
    tls: &Option<(Arc<ClientConfig>, ServerName<'static>)>,
    source: Option<SocketAddr>,
    role: Role,
) -> io::Result<Transport> {
    let session = match tls {
        None => None,
        Some((config, name)) => {
            let session = ClientConnection::new(Arc::clone(config), name.clone());
            Some(session.map_err(io::Error::other)?)
        }
    };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if role == Role::SlowReader {
        socket.set_recv_buffer_size(SLOW_READER_RECEIVE_BUFFER_BYTES)?;
    }
    if let Some(source) = source {
        socket.bind(&source.into()).map_err(|error| match error.kind() {
            io::ErrorKind::AddrNotAvailable => {
                io::Error::other(format!("--source {} is not an address of this machine", source.ip()))
            }
            _ => error,
        })?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if is_in_progress(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(Transport::new(mio::net::TcpStream::from_std(socket.into()), session))
}

fn is_in_progress(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}
