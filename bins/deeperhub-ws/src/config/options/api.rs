//! The server API.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::{Address, Switchable, Time, whole};
use deeperhub_security::Secret;

use super::{MAX_BYTES, MAX_COUNT};
use crate::config::values::{Dashboard, secret};

/// Options under the heading "Server API".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Server API")]
pub(crate) struct ApiOptions {
    /// Listen for the server API on this address; `off` disables it
    ///
    /// Backends publish, list and disconnect clients over it. It also serves metrics and health
    /// checks. An address other than loopback needs --api-key, and should have --api-tls-cert. Port
    /// 0 picks a free one and prints it.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) api_listen: Option<Switchable<Address>>,

    /// Require this key from callers of the server API, as `Authorization: Bearer KEY`
    ///
    /// Other users of the machine can see flags: prefer the variable or the file. Requests to
    /// /health need no key.
    #[arg(long, value_name = "KEY", value_parser = secret)]
    pub(crate) api_key: Option<Secret>,

    /// Serve the server API over TLS with this certificate chain, in PEM: the server's certificate
    /// first
    ///
    /// Needs --api-tls-key. Callers then use https://, and so do `health`, `tail` and `top` if
    /// they get this option. The files are read again on SIGHUP and within 10 s after they change, as for
    /// --tls-cert.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) api_tls_cert: Option<PathBuf>,

    /// Use this private key for --api-tls-cert, in PEM: PKCS#8, SEC1 or PKCS#1, not encrypted
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) api_tls_key: Option<PathBuf>,

    /// Serve the dashboard at / of the server API, or answer 404 there
    ///
    /// The page uses only calls of the server API. With --api-key, it asks for the key and keeps it
    /// in the memory of the page.
    #[arg(long, value_name = "SWITCH", value_enum)]
    pub(crate) dashboard: Option<Dashboard>,

    /// Limit the number of connections to the server API
    ///
    /// A new connection over the limit closes the one that has been idle the longest. If none has
    /// been idle for 5 s, {RESERVED_CONNECTIONS} more connections are served, one request each.
    /// Health checks and metrics are always answered there; other requests wait up to a second for
    /// a free place and then get 503.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_api_connections: Option<usize>,

    /// Close a connection to the server API after this time without a request
    ///
    /// Choose a time longer than backends keep idle connections.
    #[arg(long, value_name = "TIME")]
    pub(crate) api_idle_timeout: Option<Time>,

    /// Limit the time of each step of a request to the server API
    ///
    /// Applies to the rest of the head, to the body, and to each pause of a caller that reads a
    /// response or events. Bodies and responses get another second per 4 KiB.
    #[arg(long, value_name = "TIME")]
    pub(crate) api_timeout: Option<Time>,

    /// Limit the bytes of all request bodies and responses of the server API together; further
    /// requests get 503
    ///
    /// Responses of up to 8 KiB do not count.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_api_bytes: Option<usize>,

    /// Limit the number of streams of events and of messages; further ones get 503
    ///
    /// The streams may use at most half of --max-api-connections.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_event_streams: Option<usize>,

    /// Queue at most this many bytes of events per stream; later events are dropped and reported as
    /// lost
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_event_bytes: Option<usize>,

    /// Publish a probe to each worker at this interval to prove delivery; 0 sends none
    ///
    /// While a probe is missing, /health/ready answers 503.
    #[arg(long, value_name = "TIME")]
    pub(crate) canary_interval: Option<Time>,

    /// Wait this long for a probe of --canary-interval to come back
    #[arg(long, value_name = "TIME")]
    pub(crate) canary_timeout: Option<Time>,

    /// Limit the number of calls in one POST /v1/batch
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_batch_calls: Option<usize>,

    /// Limit the bytes of the body of a POST /v1/batch
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_batch_bytes: Option<usize>,

    /// Remember each Idempotency-Key for this time; 0 remembers none
    #[arg(long, value_name = "TIME")]
    pub(crate) idempotency_ttl: Option<Time>,

    /// Remember at most this many idempotency keys; the oldest is dropped first
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT))]
    pub(crate) max_idempotency_keys: Option<usize>,

    /// Limit the bytes of remembered idempotency keys and their responses
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES))]
    pub(crate) max_idempotency_bytes: Option<usize>,
}
