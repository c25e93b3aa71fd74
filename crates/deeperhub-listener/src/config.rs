use std::time::Duration;

/// Sockets, threads, sizes and times of a listener.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Threads that carry connections. Default: the cores that this process may use.
    pub workers: usize,
    /// Connections at one time, handshakes included. Default 1000.
    pub max_connections: usize,
    /// Connections at one time of one address (IPv6: of one /64). `None`: no limit, the default.
    pub max_connections_per_ip: Option<usize>,
    /// Bytes of a message, all its fragments together. Default 65536.
    pub max_message_bytes: usize,
    /// Bytes that may wait to be sent to one connection. Default 1 MiB.
    pub max_queue_bytes: usize,
    /// Time from accepting a connection to the end of its handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// Time between two pings. Zero: none. Default 25 s.
    pub ping_interval: Duration,
    /// Time for the pong. Default 10 s.
    pub pong_timeout: Duration,
    /// Time that a closing connection is given to read the end. Default 3 s.
    pub close_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            max_connections: 1000,
            max_connections_per_ip: None,
            max_message_bytes: 65_536,
            max_queue_bytes: 1 << 20,
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(3),
        }
    }
}
