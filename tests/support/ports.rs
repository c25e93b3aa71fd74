//! Ports of loopback for servers that cannot bind port 0. Tests of the crates include this file too.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Returns a port that is free now and that no other call returns, for servers that cannot bind
/// port 0 or do not report the port.
///
/// The port is below those that the system gives to clients. Otherwise a client of another test
/// could take it before the server binds it.
pub(crate) fn free_port() -> u16 {
    /// Number of ports that calls have tried.
    static TRIED: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_of_clients = range.split_whitespace().next().and_then(|first| first.parse().ok());
    let count = first_of_clients.unwrap_or(32_768_u16).saturating_sub(FIRST);
    assert!(count > 1000, "the system gives almost all ports to clients: {range}");
    // Processes that run at the same time start at different ports.
    let start = std::process::id().wrapping_mul(7919) % u32::from(count);
    for _ in 0..count {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + ((start + tried) % u32::from(count)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of loopback is free");
}
