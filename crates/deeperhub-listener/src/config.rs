use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_protocol::handshake::HeadLimits;
use deeperhub_protocol::{deflate, handshake};
use deeperhub_security::proxy::TrustedProxies;
use deeperhub_security::{LimitMode, RateLimit};

use crate::proxy::{ForwardedHeader, ProxyProtocol};

use crate::budget::MemoryBudget;

/// Default rate of new connections per address and second.
const DEFAULT_CONNECTION_RATE: NonZeroU32 = NonZeroU32::new(200).expect("it is not 0");

/// Burst of new connections per address, in seconds of the rate.
const CONNECTION_BURST: NonZeroU32 = NonZeroU32::new(5).expect("it is not 0");

/// Returns a limit for new connections per address: `per_second`, with a burst of five times that.
#[must_use]
pub fn connection_rate_limit(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(CONNECTION_BURST))
}

/// Sockets, threads, sizes and times of a listener.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Paths that are served; others are answered with 404. Empty: every path. Default `/` and `/ws`.
    pub paths: Vec<String>,
    /// Path of load balancer probes, a plain GET or HEAD. The answer is 200 if the application is
    /// ready ([`Application::is_ready`](crate::Application::is_ready)) and no drain is under way,
    /// otherwise 503. May be one of `paths`. `None`, the default: no probes.
    pub probe_path: Option<String>,
    /// What TLS connections are made with; those that are there keep what they were made with. `None`: no TLS, the
    /// default.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<deeperhub_security::tls::Reloadable>>,
    /// Threads that carry connections. Default: the cores that this process may use.
    pub workers: usize,
    /// Connections at one time, handshakes included. Default 1000.
    pub max_connections: usize,
    /// Connections at one time of one address (IPv6: of one /64). `None`: no limit, the default.
    pub max_connections_per_ip: Option<usize>,
    /// Rate of new connections per address (IPv6: per /64); those over it get 429. `None`: no
    /// limit. Default 200 a second, burst 1000. That is the pace at which
    /// [`reconnects_per_second`](Self::reconnects_per_second) asks clients to come back. All
    /// clients behind one address may return at that pace, plus a thousand more at once.
    pub connection_rate_per_ip: Option<RateLimit>,
    /// Whether `connection_rate_per_ip` also applies to loopback addresses. Default `false`: a
    /// local peer is mostly a proxy, behind which all clients share one address.
    pub limits_loopback: bool,
    /// Networks of proxies whose word on the client's address is taken: `X-Forwarded-For` and `Forwarded`, and the PROXY
    /// protocol. The limits of addresses hold for clients, not for these. None by default.
    pub trusted_proxies: TrustedProxies,
    /// Header in which trusted proxies name the client. Default: the one that is present.
    pub forwarded_header: ForwardedHeader,
    /// Whether those send a header of the PROXY protocol. Default: what comes first tells.
    pub proxy_protocol: ProxyProtocol,
    /// Maximum bytes of a handshake's head (request line and headers); at most 65,535. Default
    /// 32,768.
    pub max_head_bytes: usize,
    /// Maximum header lines of a handshake. Default 96.
    pub max_head_lines: usize,
    /// Bytes of a message, all its fragments together. Default 65536.
    pub max_message_bytes: usize,
    /// Fragments of a message. Default 65,536: an attacker gains nothing by more, and no real client needs as many.
    pub max_fragments: u32,
    /// Bytes that may wait to be sent to one connection. Default 1 MiB.
    pub max_queue_bytes: usize,
    /// Work budget of a worker's round for client input, in bytes. It counts bytes read,
    /// decompressed and replied, and 512 for each message or control frame. A connection gets a
    /// sixteenth of it per turn; the rest of its input waits behind others. Default 4 MiB, about
    /// four milliseconds.
    pub round_bytes: usize,
    /// Time after which a round reads no more. Default 5 ms.
    pub round_time: Duration,
    /// Time from accepting a connection to the end of its handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// Time between two pings. Zero: none. Default 25 s.
    pub ping_interval: Duration,
    /// Time for a sign of life after a ping: any byte received, or bytes that the peer takes while
    /// more are queued. Default 10 s.
    pub pong_timeout: Duration,
    /// Time for a closing connection to read what is left. A peer that keeps reading gets it again,
    /// at most twenty times. Default 3 s.
    pub close_timeout: Duration,
    /// Connections that wait to be accepted (`listen`'s backlog; the kernel caps it at `net.core.somaxconn`).
    /// Default 4096.
    pub backlog: u32,
    /// Compression of messages (RFC 7692): on by default, and used with clients that offer it.
    pub compression: deflate::Config,
    /// Whether many connections are written, and read, by one system call (`io_uring`), where the system lets this program. Default:
    /// they are.
    #[cfg(feature = "io-uring")]
    pub io_uring: bool,
    /// How many clients a second should come back, to this node or to others: clients that are refused or drained are
    /// told times from it. Default 200.
    pub reconnects_per_second: u32,
    /// Time from the end of this node until its successor listens. Clients of a node without others
    /// are told to come back after that. Default 5 s.
    pub restart_time: Duration,
    /// Whether limits of addresses refuse connections, or are only counted. Default: they refuse.
    pub limit_mode: LimitMode,
    /// A limit for the memory of the whole process, which somebody else measures. `None`: no limit, the default.
    pub memory: Option<Arc<MemoryBudget>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            paths: vec!["/".to_owned(), "/ws".to_owned()],
            probe_path: None,
            #[cfg(feature = "tls")]
            tls: None,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            max_connections: 1000,
            max_connections_per_ip: None,
            connection_rate_per_ip: Some(connection_rate_limit(DEFAULT_CONNECTION_RATE)),
            limits_loopback: false,
            trusted_proxies: TrustedProxies::default(),
            forwarded_header: ForwardedHeader::default(),
            proxy_protocol: ProxyProtocol::default(),
            max_head_bytes: handshake::MAX_HEAD_BYTES,
            max_head_lines: handshake::MAX_HEADERS,
            max_message_bytes: 65_536,
            max_fragments: 65_536,
            max_queue_bytes: 1 << 20,
            round_bytes: 4 << 20,
            round_time: Duration::from_millis(5),
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(3),
            backlog: 4096,
            compression: deflate::Config::default(),
            #[cfg(feature = "io-uring")]
            io_uring: true,
            reconnects_per_second: 200,
            restart_time: Duration::from_secs(5),
            limit_mode: LimitMode::Enforce,
            memory: None,
        }
    }
}

impl Config {
    /// Returns the limits for the head of a handshake.
    pub(crate) fn head_limits(&self) -> HeadLimits {
        HeadLimits { max_bytes: self.max_head_bytes, max_lines: self.max_head_lines }
    }

    /// How often a worker looks at its connections' deadlines: often enough that a time is kept to an eighth.
    pub(crate) fn tick(&self) -> Duration {
        let times = [self.handshake_timeout, self.ping_interval, self.pong_timeout, self.close_timeout];
        let shortest = times.into_iter().filter(|time| !time.is_zero()).min().unwrap_or(Duration::MAX);
        (shortest / 8).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}
