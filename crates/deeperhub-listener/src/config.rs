//! Configuration of a listener.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_protocol::frame::FrameLimits;
use deeperhub_protocol::handshake::HeadLimits;
use deeperhub_protocol::{deflate, handshake};
use deeperhub_security::proxy::TrustedProxies;
use deeperhub_security::{LimitMode, RateLimit};

use crate::memory_budget::MemoryBudget;
use crate::proxy::{ForwardedHeader, ProxyProtocol};

/// Default number of new connections per second and address.
const DEFAULT_CONNECTION_RATE: NonZeroU32 = NonZeroU32::new(200).expect("the rate is not 0");

/// Burst of new connections per address, in seconds of the rate.
const CONNECTION_BURST_SECONDS: NonZeroU32 = NonZeroU32::new(5).expect("the burst is not 0");

/// Returns a limit of `per_second` new connections per address, with a burst of five times as many.
#[must_use]
pub fn connection_rate_limit(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(CONNECTION_BURST_SECONDS))
}

/// Limits of a listener that can change while it runs
/// ([`Listener::set_limits`](crate::Listener::set_limits)): all settings that can, and no others.
///
/// Each limit has a setter of the same name, here and on [`Config`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum connections at one time, handshakes included. Default 1000.
    pub max_connections: usize,
    /// Maximum connections at one time per address (IPv6: per /64). `None` (the default) means no
    /// limit.
    pub max_connections_per_ip: Option<usize>,
    /// Maximum bytes of a handshake's head (request line and headers); at most 65,535. Default
    /// 32,768.
    pub max_head_bytes: usize,
    /// Maximum header lines of a handshake. Default 96.
    pub max_head_lines: usize,
    /// Maximum bytes of a message, all fragments together. Default 65,536.
    pub max_message_bytes: usize,
    /// Maximum fragments of a message. Default 65,536, far more than real clients send.
    pub max_fragments: u32,
    /// Maximum bytes queued for one connection. Default 1 MiB.
    pub max_queue_bytes: usize,
    /// Budget of a worker's round for client input, in bytes. Bytes read, decompressed and replied
    /// count, plus 512 for each message or control frame, and extra for fragments and compression.
    /// A turn of one connection gets at most a sixteenth, so that a busy client does not delay the
    /// others. Default 4 MiB, about four milliseconds.
    pub round_bytes: usize,
    /// Time after which a round stops reading input. Default 5 ms.
    pub round_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1000,
            max_connections_per_ip: None,
            max_head_bytes: handshake::MAX_HEAD_BYTES,
            max_head_lines: handshake::MAX_HEADERS,
            max_message_bytes: 65_536,
            max_fragments: 65_536,
            max_queue_bytes: 1 << 20,
            round_bytes: 4 << 20,
            round_time: Duration::from_millis(5),
        }
    }
}

/// Settings of a listener: sockets, threads, limits and timeouts.
///
/// Each setting has a setter of the same name, also those of [`limits`](Self::limits).
///
/// ```
/// use std::time::Duration;
/// use deeperhub_listener::Config;
///
/// let config = Config::default().max_connections(50_000).ping_interval(Duration::from_secs(55));
/// assert_eq!(config.limits.max_connections, 50_000);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Paths that accept handshakes; other paths get 404. If empty, every path accepts handshakes.
    /// Default `/` and `/ws`.
    pub paths: Vec<String>,
    /// Path of load balancer probes, a plain GET or HEAD. The answer is 200 if the application is
    /// ready ([`Application::is_ready`](crate::Application::is_ready)) and no drain is under way,
    /// otherwise 503. The path may also be one of `paths`. `None` (the default) disables probes.
    pub probe_path: Option<String>,
    /// TLS settings of new connections; open connections keep theirs. `None` (the default) disables
    /// TLS.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<deeperhub_security::tls::SharedTls>>,
    /// Worker threads. Default: the number of cores that the process may use.
    pub workers: usize,
    /// Limits that can change while the listener runs. All other settings are fixed at the start.
    pub limits: Limits,
    /// Limit on the rate of new connections per address (IPv6: per /64). Connections over the limit
    /// get status 429. `None` means no limit. Default 200 a second, burst 1000. The default of
    /// [`reconnects_per_second`](Self::reconnects_per_second) has the same rate. All clients may
    /// thus be behind one address and still reconnect after a drain.
    pub connection_rate_per_ip: Option<RateLimit>,
    /// `true` to apply `connection_rate_per_ip` also to loopback addresses. Default `false`: a
    /// local peer is usually a proxy, behind which all clients share one address.
    pub limits_loopback: bool,
    /// Networks of trusted proxies. For connections from these, `X-Forwarded-For`, `Forwarded` and
    /// PROXY protocol headers name the client. Limits per address then apply to the client.
    /// Default: none.
    pub trusted_proxies: TrustedProxies,
    /// Header in which trusted proxies name the client. Default: either header, if present.
    pub forwarded_header: ForwardedHeader,
    /// Use of the PROXY protocol by trusted proxies. Default: detect a header.
    pub proxy_protocol: ProxyProtocol,
    /// Maximum time from a worker taking a new connection to the end of its handshake. Default
    /// 10 s.
    pub handshake_timeout: Duration,
    /// Time between two pings. Zero disables pings. Default 25 s.
    pub ping_interval: Duration,
    /// Maximum time from a ping to a sign of life: any byte received, or bytes that the peer takes
    /// while more are queued. Default 10 s.
    pub pong_timeout: Duration,
    /// Time that the peer of a closing connection has to read the queued bytes and the close frame.
    /// The time starts anew for a peer that keeps reading, at most twenty times. Default 3 s.
    pub close_timeout: Duration,
    /// Maximum connections that wait in the kernel to be accepted (the backlog of `listen`). Linux
    /// caps it at `net.core.somaxconn`. Default 4096.
    pub backlog: u32,
    /// Message compression (RFC 7692), used with clients that offer it. On by default.
    pub compression: deflate::Config,
    /// `true` to read and write many connections with one system call (`io_uring`), if the kernel
    /// allows it. Default `true`.
    #[cfg(feature = "io-uring")]
    pub io_uring: bool,
    /// Rate at which refused and drained clients are asked to reconnect. Default 200 a second.
    pub reconnects_per_second: u32,
    /// Time that a restart of the program takes. A drain with
    /// [`ReconnectTo::ThisNode`](crate::ReconnectTo::ThisNode) asks clients to reconnect only after
    /// this time. Default 5 s.
    pub restart_time: Duration,
    /// Effect of limits per address: connections over them are refused, or only counted. Default:
    /// refused.
    pub limit_mode: LimitMode,
    /// Memory limit of the whole process; the embedding program measures the memory in use.
    /// `None` (the default) means no limit.
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
            limits: Limits::default(),
            connection_rate_per_ip: Some(connection_rate_limit(DEFAULT_CONNECTION_RATE)),
            limits_loopback: false,
            trusted_proxies: TrustedProxies::default(),
            forwarded_header: ForwardedHeader::default(),
            proxy_protocol: ProxyProtocol::default(),
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

/// Declares a setter for each field.
macro_rules! setters {
    ($owner:ident: $($(#[$attribute:meta])* $field:ident: $type:ty,)*) => {
        impl $owner {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self#structfield.", stringify!($field), ").")]
                $(#[$attribute])*
                #[must_use]
                pub fn $field(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

/// Declares setters of the limits, on both types.
macro_rules! limit_setters {
    ($($field:ident: $type:ty,)*) => {
        setters! { Limits: $($field: $type,)* }

        impl Config {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Limits#structfield.", stringify!($field), ").")]
                #[must_use]
                pub fn $field(mut self, $field: $type) -> Self {
                    self.limits.$field = $field;
                    self
                }
            )*
        }
    };
}

limit_setters! {
    max_connections: usize,
    max_connections_per_ip: Option<usize>,
    max_head_bytes: usize,
    max_head_lines: usize,
    max_message_bytes: usize,
    max_fragments: u32,
    max_queue_bytes: usize,
    round_bytes: usize,
    round_time: Duration,
}

setters! {
    Config:
    paths: Vec<String>,
    probe_path: Option<String>,
    #[cfg(feature = "tls")]
    tls: Option<Arc<deeperhub_security::tls::SharedTls>>,
    workers: usize,
    limits: Limits,
    connection_rate_per_ip: Option<RateLimit>,
    limits_loopback: bool,
    trusted_proxies: TrustedProxies,
    forwarded_header: ForwardedHeader,
    proxy_protocol: ProxyProtocol,
    handshake_timeout: Duration,
    ping_interval: Duration,
    pong_timeout: Duration,
    close_timeout: Duration,
    backlog: u32,
    compression: deflate::Config,
    #[cfg(feature = "io-uring")]
    io_uring: bool,
    reconnects_per_second: u32,
    restart_time: Duration,
    limit_mode: LimitMode,
    memory: Option<Arc<MemoryBudget>>,
}

impl Limits {
    /// Returns the limits for the head of a handshake.
    pub(crate) fn head(&self) -> HeadLimits {
        HeadLimits { max_bytes: self.max_head_bytes, max_lines: self.max_head_lines }
    }

    /// Returns the limits for frames and messages.
    pub(crate) fn frames(&self) -> FrameLimits {
        let mut limits = FrameLimits::default();
        limits.max_message_bytes = self.max_message_bytes;
        limits.max_fragments = self.max_fragments;
        limits
    }
}

impl Config {
    /// Returns the interval at which a worker checks deadlines: an eighth of the shortest timeout,
    /// between 20 ms and 1 s.
    pub(crate) fn tick(&self) -> Duration {
        let times = [self.handshake_timeout, self.ping_interval, self.pong_timeout, self.close_timeout];
        let shortest = times.into_iter().filter(|time| !time.is_zero()).min().unwrap_or(Duration::MAX);
        (shortest / 8).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}
