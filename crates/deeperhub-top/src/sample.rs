//! The responses of the server API that the screen shows.

use std::time::Instant;

use serde::Deserialize;

use crate::{ApiClient, ApiError};

/// Maximum number of topics and of clients that are requested.
const MAX_NAMES: usize = 100;

/// The members of the response of `/v1/stats` that are shown.
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
    pub(crate) history: History,
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
pub(crate) struct History {
    pub(crate) streams: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) behind: u64,
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

/// Response of `/v1/top`.
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
    pub(crate) behind: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BusyClient {
    pub(crate) client_id: String,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// The responses of one poll.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Time at which `stats` arrived.
    pub(crate) at: Instant,
    pub(crate) stats: Stats,
    pub(crate) busiest: Busiest,
}

impl Sample {
    /// Requests both responses.
    pub(crate) async fn request(client: &ApiClient) -> Result<Self, ApiError> {
        let stats = client.get_json("/v1/stats").await?;
        let at = Instant::now();
        let busiest = client.get_json(&format!("/v1/top?limit={MAX_NAMES}")).await?;
        Ok(Self { at, stats, busiest })
    }
}
