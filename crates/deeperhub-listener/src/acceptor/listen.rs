//! Opens the listening sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::TcpListener;

/// Maximum attempts to find a port that is free on both loopback addresses.
const MAX_PORT_ATTEMPTS: u32 = 100;

/// Addresses that a listener binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenOn {
    /// One address. `[::]` also accepts IPv4 if the system allows it, as most do. Port 0 picks any
    /// free port.
    Address(SocketAddr),
    /// Both loopback addresses, 127.0.0.1 and ::1, because `localhost` may resolve to either. A
    /// system that has only one of them binds that one.
    Loopback {
        /// Port of both addresses; 0 picks one that is free on both.
        port: u16,
    },
}

/// Opens the listening sockets, at least one.
///
/// # Errors
///
/// Returns the address that could not be bound, with the system's error.
pub(crate) fn listen_on(on: ListenOn, backlog: u32) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let port = match on {
        ListenOn::Address(address) => {
            return listen(address, backlog).map(|socket| vec![socket]).map_err(|error| (address, error));
        }
        ListenOn::Loopback { port } => port,
    };
    let mut attempts = 0;
    loop {
        attempts += 1;
        match listen_on_loopback(port, backlog) {
            // The port that the system chose for the first address is taken on the second: retry.
            Err((_, error))
                if port == 0 && error.kind() == io::ErrorKind::AddrInUse && attempts < MAX_PORT_ATTEMPTS => {}
            result => return result,
        }
    }
}

/// Opens listening sockets on the loopback addresses that the system has, all with the same port.
fn listen_on_loopback(port: u16, backlog: u32) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let mut sockets = Vec::with_capacity(2);
    let mut unavailable = None;
    let mut port = port;
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        let opened = listen(address, backlog).and_then(|socket| Ok((socket.local_addr()?.port(), socket)));
        match opened {
            Ok((bound_port, socket)) => {
                port = bound_port;
                sockets.push(socket);
            }
            Err(error) if is_unavailable(&error) => unavailable = Some((address, error)),
            Err(error) => return Err((address, error)),
        }
    }
    match unavailable {
        Some(unavailable) if sockets.is_empty() => Err(unavailable),
        _ => Ok(sockets),
    }
}

/// Returns `true` if the system lacks the address or its protocol family.
fn is_unavailable(error: &io::Error) -> bool {
    const EPROTONOSUPPORT: i32 = if cfg!(target_vendor = "apple") { 43 } else { 93 };
    const EAFNOSUPPORT: i32 = if cfg!(target_vendor = "apple") { 47 } else { 97 };
    error.kind() == io::ErrorKind::AddrNotAvailable
        || matches!(error.raw_os_error(), Some(EPROTONOSUPPORT | EAFNOSUPPORT))
}

/// Opens a listening socket.
pub(super) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit this option on Linux, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(TcpListener::from_std(socket.into()))
}
