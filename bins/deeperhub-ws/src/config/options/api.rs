//! The server API.

use clap::Args;
use deeperhub_args::{Address, Switchable, Time, whole};
use deeperhub_security::Secret;

use super::{MAX_BYTES, MAX_COUNT};
use crate::config::values::secret;

/// Options under the heading "Server API".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Server API")]
pub(crate) struct ApiOptions {
    /// Address of the server API, or `off` [default: 127.0.0.1:8081]
    ///
    /// Backends publish, list and disconnect there; metrics and health checks are there too. Off loopback it needs
    /// --api-key. Port 0 takes any free one, which is printed.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) api_listen: Option<Switchable<Address>>,

    /// Key that calls of the server API bring as `Authorization: Bearer KEY` [default: none needed]
    ///
    /// Other users of the machine can read flags: prefer the variable or the file. Calls of /health need no key.
    #[arg(long, value_name = "KEY", value_parser = secret)]
    pub(crate) api_key: Option<Secret>,

    /// Connections of the server API at one time [default: 512]
    ///
    /// Over it, the connection that has been idle the longest is closed. While none has been for 5 s, 256 more are served
    /// one request each: health checks and metrics always, others when fewer than this number are being served within a
    /// second, or they get 503.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_api_connections: Option<usize>,

    /// Time that a connection of the server API may be open without a request [default: 2m]
    ///
    /// Longer than backends keep idle connections.
    #[arg(long, value_name = "TIME")]
    pub(crate) api_idle_timeout: Option<Time>,

    /// Time that a caller of the server API has for each step of a request [default: 30s]
    ///
    /// For the rest of a request's head, for its body, and to take some more of an answer or of events. A body, and an
    /// answer, gets another second for each 4 KiB.
    #[arg(long, value_name = "TIME")]
    pub(crate) api_timeout: Option<Time>,

    /// Bytes that bodies and answers of the server API may take together; a request that needs more gets 503
    /// [default: 67108864]
    ///
    /// Answers of up to 8 KiB do not count.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_api_bytes: Option<usize>,

    /// Streams of GET /v1/events at one time; more get 503 [default: 64]
    ///
    /// At most half of --max-api-connections.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_event_streams: Option<usize>,

    /// Bytes of events that may wait for one stream; more are lost to it, and it is told how many [default: 4194304]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_event_bytes: Option<usize>,

    /// Time between two probes that prove delivery for /health/ready; 0 sends none [default: 5s]
    ///
    /// A probe is published to each worker and must come back. While one is missing, /health/ready answers 503.
    #[arg(long, value_name = "TIME")]
    pub(crate) canary_interval: Option<Time>,

    /// Time within which a probe must be back [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub(crate) canary_timeout: Option<Time>,

    /// Calls in one request of POST /v1/batch [default: 256]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_batch_calls: Option<usize>,

    /// Bytes of a body of POST /v1/batch [default: 1048576]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_batch_bytes: Option<usize>,

    /// Time for which an Idempotency-Key is remembered; 0 remembers none [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub(crate) idempotency_ttl: Option<Time>,

    /// Idempotency keys that are remembered; the oldest goes first [default: 10000]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_idempotency_keys: Option<usize>,

    /// Bytes that remembered idempotency keys may take [default: 4194304]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_idempotency_bytes: Option<usize>,
}
