//! Asks a server API over HTTP.

use std::io;
use std::time::{Duration, Instant};

use deeperhub_security::Secret;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::commands::http_get;
use deeperhub_args::Address;

/// For connecting, asking and reading together.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Names that are asked for, of topics and of clients.
const MAX_NAMES: usize = 100;

/// Where to ask, and with what.
#[derive(Debug)]
pub(crate) struct ApiClient {
    pub(crate) address: Address,
    pub(crate) key: Option<Secret>,
}

/// Why there is no answer, for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nobody answers there.
    #[error("cannot reach the server API at {address}: {source} (--api-listen says where it is)")]
    Unreachable { address: Address, source: io::Error },
    /// The key is missing or wrong.
    #[error(
        "the server API at {address} refuses the key: give the server's own with --api-key or DEEPERHUB_API_KEY"
    )]
    Unauthorized { address: Address },
    /// Something else is there.
    #[error("what answers at {address} is no server API of this version: {what}")]
    Unexpected { address: Address, what: String },
}

/// The numbers of `/v1/stats`, as far as they are shown.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Stats {
    pub(crate) node_id: String,
    pub(crate) version: String,
    pub(crate) phase: String,
    pub(crate) uptime_ms: u64,
    pub(crate) workers: u64,
    pub(crate) connections: Connections,
    pub(crate) subscriptions: u64,
    pub(crate) topics: u64,
    pub(crate) messages: Messages,
    pub(crate) bytes: Bytes,
    pub(crate) publish_latency: Option<Latency>,
    pub(crate) canary: Canary,
    pub(crate) process: Option<Process>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Connections {
    pub(crate) active: u64,
    pub(crate) max: u64,
    pub(crate) accepted_total: u64,
    pub(crate) closed_total: u64,
    pub(crate) slow_total: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Messages {
    pub(crate) received_total: u64,
    pub(crate) sent_total: u64,
    pub(crate) errors_total: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Bytes {
    pub(crate) received_total: u64,
    pub(crate) sent_total: u64,
    pub(crate) queued: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Canary {
    pub(crate) round_trip_us: Option<u64>,
    pub(crate) cluster_round_trip_us: Option<u64>,
    pub(crate) failing_workers: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Process {
    pub(crate) cpu_seconds_total: f64,
    pub(crate) resident_bytes: u64,
}

/// What `/v1/top` says.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Busiest {
    pub(crate) window_ms: u64,
    pub(crate) topics: Vec<BusyTopic>,
    pub(crate) clients: Vec<BusyClient>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BusyTopic {
    pub(crate) topic: String,
    pub(crate) messages: u64,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BusyClient {
    pub(crate) client_id: String,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// Both answers, and when they came.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) stats: Stats,
    pub(crate) busiest: Busiest,
}

impl ApiClient {
    /// Asks for everything that is shown.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub(crate) fn sample(&self) -> Result<Sample, ApiError> {
        let stats = self.get("/v1/stats")?;
        let at = Instant::now();
        let busiest = self.get(&format!("/v1/top?limit={MAX_NAMES}"))?;
        Ok(Sample { at, stats, busiest })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let address = || self.address.clone();
        let unexpected = |what: String| ApiError::Unexpected { address: address(), what };
        let answer = match http_get::get(&self.address, path, self.key.as_ref(), REQUEST_TIMEOUT) {
            Ok(answer) => answer,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(unexpected("it does not speak HTTP".to_owned()));
            }
            Err(source) => return Err(ApiError::Unreachable { address: address(), source }),
        };
        match answer.status {
            200 => serde_json::from_slice(&answer.body).map_err(|error| unexpected(error.to_string())),
            401 => Err(ApiError::Unauthorized { address: address() }),
            status => Err(unexpected(format!("{path} answered {status}"))),
        }
    }
}
