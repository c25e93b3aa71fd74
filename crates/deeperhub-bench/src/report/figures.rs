//! The sections of a report.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::counters::DurationHistogram;
use crate::plan::RecoverPlan;
use crate::recovery::RecoveryCounters;

/// CPU time and memory of the server.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServerUsage {
    /// CPU use in percent of one core: 200 is two cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// User and kernel time per delivery, per cycle of `churn`, or per replayed message of `recover`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_microseconds_per_message: Option<f64>,
    /// User and kernel time per client of `recover` that became live again. All CPU time while
    /// clients return counts, also that of live messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_microseconds_per_client: Option<f64>,
    /// Resident memory before the first connection.
    pub resident_bytes_before: u64,
    /// Resident memory at the end of the measurement.
    pub resident_bytes: u64,
    /// Growth of the resident memory divided by the number of open connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes_per_connection: Option<f64>,
}

/// Connections and how they opened.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Connections {
    /// Connections of the scenario.
    pub requested: usize,
    /// Connections that opened.
    pub opened: u64,
    /// Connections that did not open.
    pub failed: u64,
    /// Open connections that the server or the network closed.
    pub dropped: u64,
    /// WebSocket pings of the server that were answered.
    pub pings_answered: u64,
    /// Rate at which connections opened; missing in `churn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_per_second: Option<f64>,
    /// Time to open a connection: connect, handshake, welcome and subscribe.
    pub open_microseconds: Percentiles,
}

/// Parameters of the load.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Load {
    /// Size of the JSON in each message.
    pub size_bytes: usize,
    /// Connections that send.
    pub senders: usize,
    /// Connections that read messages.
    pub receivers: usize,
    /// Number of topics.
    pub topics: usize,
    /// Messages in flight per sender, in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Rate of all senders together, in an open loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_second: Option<u64>,
}

/// Messages and deliveries. Counts are of the whole run, rates and latency of the measured time.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Messages {
    /// Messages sent.
    pub sent: u64,
    /// Messages of an open loop that were due and not sent.
    pub unsent: u64,
    /// Deliveries, without duplicates.
    pub delivered: u64,
    /// Deliveries that did not arrive at receivers that stayed connected.
    pub lost: u64,
    /// Deliveries that arrived more than once.
    pub duplicated: u64,
    /// Deliveries that arrived after a later message of the same stream.
    pub out_of_order: u64,
    /// Messages that arrived at a connection they were not sent to.
    pub misdelivered: u64,
    /// Number of times that a closed loop stopped waiting for missing deliveries.
    pub stalls: u64,
    /// Messages sent per second.
    pub sent_per_second: f64,
    /// Deliveries per second.
    pub delivered_per_second: f64,
    /// Bytes received per second by reads that contained deliveries.
    pub received_bytes_per_second: f64,
    /// Time from sending a message to its delivery. In an open loop it starts when the message was
    /// due. In `recover`, only deliveries to subscribers that stay connected count.
    pub latency_microseconds: Percentiles,
}

/// Cycles of the `churn` scenario.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Churn {
    /// Connections that were closed in the measured time.
    pub cycles: u64,
    /// Cycles per second.
    pub cycles_per_second: f64,
}

/// Slow readers of the `slow` scenario.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SlowReaders {
    /// Number of slow readers.
    pub count: usize,
    /// Slow readers that the server or the network disconnected.
    pub disconnected: u64,
    /// Reasons of the disconnects: `closed_1013` if the close frame could be read.
    pub ends: BTreeMap<String, u64>,
    /// Messages that slow readers read, most of them after the load ended.
    pub received: u64,
    /// Time from the start of the load to a disconnect, for readers that noticed the disconnect
    /// before they read.
    pub disconnect_seen_milliseconds: Percentiles,
}

/// Clients of the `recover` scenario that were cut and returned.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Recovery {
    /// Number of clients that were cut.
    pub clients: usize,
    /// Topics of each client.
    pub topics_per_client: usize,
    /// Messages that were published to each topic while all clients were away.
    pub missed_per_topic: u64,
    /// Clients that were due per second.
    pub returns_per_second: u64,
    /// Clients that were subscribed again.
    pub returned: u64,
    /// Clients that got all messages that were kept when they subscribed again.
    pub live: u64,
    /// Subscriptions that were recovered.
    pub recovered: u64,
    /// Subscriptions that were not recovered, by the server's reason.
    pub not_recovered: BTreeMap<String, u64>,
    /// Messages of replays.
    pub replayed: u64,
    /// Gaps that the server told.
    pub gaps: u64,
    /// Messages that the server told it does not send. They are not lost.
    pub skipped: u64,
    /// Time from the due time of a return until the client was live.
    pub live_microseconds: Percentiles,
}

impl Recovery {
    /// `skipped` is the number of messages that were skipped at the end of the run.
    pub(super) fn new(plan: &RecoverPlan, counters: &RecoveryCounters, skipped: u64) -> Self {
        Self {
            clients: plan.clients,
            topics_per_client: plan.topics_per_client,
            missed_per_topic: plan.missed,
            returns_per_second: plan.rate,
            returned: counters.returned,
            live: counters.live,
            recovered: counters.recovered,
            not_recovered: counters.not_recovered.clone(),
            replayed: counters.replayed,
            gaps: counters.gaps,
            skipped: counters.skipped + skipped,
            live_microseconds: Percentiles::microseconds(&counters.live_times),
        }
    }
}

/// Percentiles of a distribution. The unit is in the name of the report's field.
#[derive(Debug, Clone, Copy, Serialize)]
#[non_exhaustive]
pub struct Percentiles {
    /// Number of values.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p99_9: f64,
    /// Maximum.
    pub max: f64,
}

impl Percentiles {
    /// Returns percentiles in microseconds.
    pub(super) fn microseconds(times: &DurationHistogram) -> Self {
        Self {
            count: times.count(),
            p50: times.quantile_us(0.5),
            p90: times.quantile_us(0.9),
            p99: times.quantile_us(0.99),
            p99_9: times.quantile_us(0.999),
            max: times.max_us(),
        }
    }

    /// Returns percentiles in milliseconds.
    pub(super) fn milliseconds(times: &DurationHistogram) -> Self {
        let Self { count, p50, p90, p99, p99_9, max } = Self::microseconds(times);
        let milli = |micro: f64| micro.round() / 1000.0;
        Self {
            count,
            p50: milli(p50),
            p90: milli(p90),
            p99: milli(p99),
            p99_9: milli(p99_9),
            max: milli(max),
        }
    }
}
