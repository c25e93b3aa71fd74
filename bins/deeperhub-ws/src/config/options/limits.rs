//! Limits of connections, messages, rates and times.

use clap::Args;
use deeperhub_args::{Time, whole};

use super::{MAX_BYTES, MAX_COUNT};
use crate::config::values::LimitEnforcement;

/// Options under the heading "Limits".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Connections at one time; more are refused with 503 [default: 1000]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_connections: Option<usize>,

    /// Connections at one time of one address; 0 is no limit [default: 0]
    ///
    /// IPv6 addresses count by their /64.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(0, MAX_COUNT))]
    pub(crate) max_connections_per_ip: Option<usize>,

    /// New connections a second of one address; more are refused with 429; 0 is no limit [default: 200]
    ///
    /// IPv6 addresses count by their /64. Five times as many may come at once. Many clients can
    /// share an address: set it well above what they need together, and not below
    /// `--reconnect-rate`. Loopback addresses have no limit unless this is set.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) connection_rate_per_ip: Option<u32>,

    /// Bytes of a message; a longer one closes its connection with 1009 [default: 65536]
    ///
    /// All fragments of a message together. Bodies of the server API have the same limit.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_message_bytes: Option<usize>,

    /// Fragments of a message; more close the connection with 1009 [default: 65536]
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, MAX_COUNT))]
    pub(crate) max_fragments: Option<u32>,

    /// Levels of arrays and objects in a message, its own object among them [default: 127]
    ///
    /// One that is deeper is answered with `invalid_message`. A payload may have two fewer, since its delivery puts two
    /// around it; that holds for bodies of the server API, too.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(2, 127))]
    pub(crate) max_json_depth: Option<usize>,

    /// Subscriptions of a connection [default: 128]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_subscriptions: Option<usize>,

    /// Bytes that may wait for a slow client before it is closed with 1013 [default: 1048576]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_queue_bytes: Option<usize>,

    /// Work of a round for what clients send, in bytes [default: 4194304]
    ///
    /// Counts bytes read, decompressed and replied, 512 for each message or control frame, and 64 for
    /// each fragment. A connection gets a sixteenth for its turn; the rest of its input waits for its
    /// next turn, behind the others. A smaller value keeps others' latency lower under load; a larger
    /// one costs less per message.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(4096, 1 << 30))]
    pub(crate) round_bytes: Option<usize>,

    /// Time of a round after which no more of what clients send is handled in it [default: 5ms]
    #[arg(long, value_name = "TIME")]
    pub(crate) round_time: Option<Time>,

    /// Whether rates and limits of addresses refuse, or only count whom they would have refused [default: enforce]
    ///
    /// Metrics count both alike (deeperhub_messages_limited_total, deeperhub_connections_limited_total). Limits that keep
    /// memory in bounds (connections, message and queue bytes, subscriptions, memory) are enforced in either case.
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) limits: Option<LimitEnforcement>,

    /// Bytes of memory that this process may use; 0 is no limit [default: what the system grants]
    ///
    /// What counts is the larger of resident memory and what the control group with the smallest limit is charged. From
    /// 80 % on, new connections are refused with 503; from 90 % on, those that hold the most are closed with 1013, and up
    /// to 95 % is taken in between two measurements. The default is the smallest limit of the control groups (containers, systemd) or the machine's memory.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u64>(0, 1 << 60))]
    pub(crate) max_memory: Option<u64>,

    /// Clients a second that are asked to come back when the server is full or shuts down [default: 200]
    ///
    /// Refused and drained clients are told times to come back at, one behind the other at this rate.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, 1_000_000))]
    pub(crate) reconnect_rate: Option<u32>,

    /// Messages a second from a connection; 0 is no limit [default: 100]
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) rate_limit: Option<u32>,

    /// Messages that a connection may send at once before --rate-limit holds [default: 200]
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, 1_000_000_000))]
    pub(crate) rate_burst: Option<u32>,

    /// Bytes of messages a second from a connection; 0 is no limit [default: 0]
    ///
    /// Beside --rate-limit, which bounds bytes too: messages a second times --max-message-bytes.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u32>(0, MAX_BYTES))]
    pub(crate) byte_rate_limit: Option<u32>,

    /// Bytes that a connection may send at once before --byte-rate-limit holds [default: 1048576]
    ///
    /// A message larger than that counts as that many.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u32>(1, MAX_BYTES))]
    pub(crate) byte_rate_burst: Option<u32>,

    /// WebSocket pings and pongs a second from a connection; 0 is no limit [default: 50]
    ///
    /// Twice as many may come at once. A ping that is over the limit gets no pong; whoever goes on is closed with 1008.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) control_rate_limit: Option<u32>,

    /// `authenticate` messages a second from a connection; 0 is no limit [default: 5]
    ///
    /// Ten times as many may come at once.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) token_rate_limit: Option<u32>,

    /// Bursts a second that new connections of one address may take together; 0 is no limit [default: 20]
    ///
    /// Five times as many may be taken at once. A connection takes of a burst (--rate-burst and the like) what it sends
    /// beyond its rate while it is new; with none left for its address it sends at its rate alone. Who reconnects gains
    /// nothing that way. IPv6 addresses count by their /64; trusted proxies themselves are exempt.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) burst_rate_per_ip: Option<u32>,

    /// Bytes of a handshake's request line and headers; more are refused with 400 [default: 32768]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(512, 65_535))]
    pub(crate) max_handshake_bytes: Option<usize>,

    /// Header lines of a handshake; more are refused with 400 [default: 96]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(8, 4096))]
    pub(crate) max_handshake_headers: Option<usize>,

    /// Time from connecting to the end of the handshake [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) handshake_timeout: Option<Time>,

    /// Time between two pings to a client; 0 sends none [default: 25s]
    #[arg(long, value_name = "TIME")]
    pub(crate) ping_interval: Option<Time>,

    /// Time for a sign of life after a ping [default: 10s]
    ///
    /// Any byte that comes or is taken counts. Without one, 4200 closes the connection.
    #[arg(long, value_name = "TIME")]
    pub(crate) pong_timeout: Option<Time>,
}
