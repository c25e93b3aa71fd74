//! Limits of connections, messages, rates and times.

use clap::Args;
use deeperhub_args::{Time, whole};

use super::{MAX_BYTES, MAX_COUNT};
use crate::config::values::LimitEnforcement;

/// Options under the heading "Limits".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Limit the number of connections; further ones get 503
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_connections: Option<usize>,

    /// Limit the number of connections per client address; 0 sets no limit
    ///
    /// IPv6 addresses count per /64.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(0, MAX_COUNT))]
    pub(crate) max_connections_per_ip: Option<usize>,

    /// Limit new connections per second and client address; further ones get 429; 0 sets no limit
    ///
    /// Bursts of {CONNECTION_BURST} times the rate are allowed. IPv6 addresses count per /64. Many
    /// clients can share an address: set it well above what they need together, and not below
    /// --reconnect-rate. Loopback addresses are not limited unless this option is set.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) connection_rate_per_ip: Option<u32>,

    /// Limit the bytes of a message; a longer one closes its connection with 1009
    ///
    /// Counts all fragments of a message together. Also limits bodies of the server API.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_message_bytes: Option<usize>,

    /// Limit the fragments of a message; more close the connection with 1009
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, MAX_COUNT))]
    pub(crate) max_fragments: Option<u32>,

    /// Limit the nesting of arrays and objects in a message, its own object included
    ///
    /// A deeper message gets the error `invalid_message`. Payloads, also those of the server API,
    /// may be two levels less deep, because a delivery wraps them in two objects.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(2, 127))]
    pub(crate) max_json_depth: Option<usize>,

    /// Limit the number of subscriptions per connection
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_subscriptions: Option<usize>,

    /// Queue at most this many bytes for a slow client; more close it with 1013
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_queue_bytes: Option<usize>,

    /// Limit the client input that a worker handles per round, in bytes
    ///
    /// Counts bytes read, decompressed and replied, 512 per message or control frame, and 64 per
    /// fragment. Each connection gets a sixteenth; the rest of its input waits behind the other
    /// connections. A smaller value lowers the latency of others under load; a larger one costs
    /// less CPU per message.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(4096, 1 << 30))]
    pub(crate) round_bytes: Option<usize>,

    /// Stop handling client input in a round after this time
    #[arg(long, value_name = "TIME")]
    pub(crate) round_time: Option<Time>,

    /// Enforce rate limits and limits per address, or only count what they would refuse
    ///
    /// Metrics count both alike (deeperhub_messages_limited_total,
    /// deeperhub_connections_limited_total). Limits that bound memory (connections, message and
    /// queue bytes, subscriptions, memory) are always enforced.
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) limits: Option<LimitEnforcement>,

    /// Limit the memory of this process, in bytes; 0 sets no limit
    ///
    /// Compares the larger of the resident memory and the charge of the control group with the
    /// smallest limit. From {REFUSE_PERCENT} % on, new connections get 503. From {SHED_PERCENT} %
    /// on, the connections that hold the most memory are closed with 1013. Between two
    /// measurements, input is read up to {INTAKE_PERCENT} %. The default is the smallest limit of
    /// the control groups (containers, systemd), or the machine's memory.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u64>(0, 1 << 60))]
    pub(crate) max_memory: Option<u64>,

    /// Ask this many clients per second to reconnect when the server is full or drains
    ///
    /// Refused and drained clients are given reconnect times one after the other at this rate.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, 1_000_000))]
    pub(crate) reconnect_rate: Option<u32>,

    /// Limit messages per second and connection; 0 sets no limit
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) rate_limit: Option<u32>,

    /// Allow bursts of this many messages per connection above --rate-limit
    ///
    /// It can be 0 with `--rate-limit 0`.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) rate_burst: Option<u32>,

    /// Limit message bytes per second and connection; 0 sets no limit
    ///
    /// --rate-limit bounds bytes as well: to its rate times --max-message-bytes.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u32>(0, MAX_BYTES))]
    pub(crate) byte_rate_limit: Option<u32>,

    /// Allow bursts of this many bytes per connection above --byte-rate-limit
    ///
    /// A longer message counts as this many bytes. It can be 0 with `--byte-rate-limit 0`.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u32>(0, MAX_BYTES))]
    pub(crate) byte_rate_burst: Option<u32>,

    /// Limit WebSocket pings and pongs per second and connection; 0 sets no limit
    ///
    /// Bursts of {CONTROL_BURST} times the rate are allowed. A ping over the limit gets no pong; a
    /// connection that continues is closed with 1008.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) control_rate_limit: Option<u32>,

    /// Limit `authenticate` messages per second and connection; 0 sets no limit
    ///
    /// Bursts of {TOKEN_BURST} times the rate are allowed.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) token_rate_limit: Option<u32>,

    /// Limit the bursts that new connections of one address draw per second; 0 sets no limit
    ///
    /// Up to {CONNECTION_BURSTS} times as many may be drawn at once. A new connection draws from
    /// its address what it sends above its rates (--rate-burst and the like). If none is left, it
    /// may send at its rates only, so reconnecting gains nothing. IPv6 addresses count per /64;
    /// trusted proxies are exempt.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) burst_rate_per_ip: Option<u32>,

    /// Limit the bytes of a handshake's request line and headers; longer ones get 400
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(512, 65_535))]
    pub(crate) max_handshake_bytes: Option<usize>,

    /// Limit the header lines of a handshake; more get 400
    #[arg(long, value_name = "N", value_parser = whole::<usize>(8, 4096))]
    pub(crate) max_handshake_headers: Option<usize>,

    /// Close a connection whose handshake takes longer than this
    #[arg(long, value_name = "TIME")]
    pub(crate) handshake_timeout: Option<Time>,

    /// Ping each client at this interval; 0 sends no pings
    #[arg(long, value_name = "TIME")]
    pub(crate) ping_interval: Option<Time>,

    /// Close a connection with 4200 if nothing moves for this time after a ping
    ///
    /// Any byte received from the client, or acknowledged by it, counts.
    #[arg(long, value_name = "TIME")]
    pub(crate) pong_timeout: Option<Time>,
}
