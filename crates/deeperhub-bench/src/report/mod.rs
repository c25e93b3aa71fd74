//! The report of a run.

mod figures;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

pub use figures::{Churn, Connections, Load, Messages, Percentiles, Recovery, ServerUsage, SlowReaders};

use crate::counters::{Counters, Faults};
use crate::error::BenchError;
use crate::plan::Plan;
use crate::scenario::{LoadModel, Scenario, StopCondition};

/// The result of a run. `Display` formats it as text for people, `Serialize` as JSON.
///
/// Field names are the keys of the JSON form. The name of a quantity ends with its unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// URL of the server, without its query.
    pub url: String,
    /// Version of the load generator.
    pub version: &'static str,
    /// Threads of the load generator.
    pub threads: usize,
    /// `true` if the load generator offered permessage-deflate.
    pub compression: bool,
    /// Connections and how they opened.
    pub connections: Connections,
    /// Parameters of the load, in scenarios with messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// Messages and deliveries, in scenarios with messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Messages>,
    /// Cycles of the `churn` scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    /// Slow readers of the `slow` scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_readers: Option<SlowReaders>,
    /// Returns of the `recover` scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// Number of errors of each kind.
    pub errors: BTreeMap<String, u64>,
    /// Duration of the measurement.
    pub measured_seconds: f64,
    /// CPU use of the load generator in percent of one core: 200 is two cores. Missing if the run
    /// was too short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator_cpu_percent: Option<f64>,
    /// CPU time and memory of the server, with `--server-pid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerUsage>,
    /// Conditions that make the figures misleading.
    pub warnings: Vec<String>,
}

/// Times and usage of a run, which are not in the counters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurements {
    /// Start of the measured time, in nanoseconds since the epoch of the run.
    pub(crate) start: u64,
    /// Measured time in nanoseconds; shorter than planned if the run ended early.
    pub(crate) measured: u64,
    /// CPU time of the load generator in nanoseconds, within [`Self::cpu_interval`].
    pub(crate) cpu: u64,
    /// Time between the first and the last sample of CPU time, in nanoseconds.
    pub(crate) cpu_interval: u64,
    pub(crate) server: Option<ServerMeasurements>,
}

/// Usage of the server's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerMeasurements {
    /// CPU time in nanoseconds, within [`Measurements::cpu_interval`].
    pub(crate) cpu: u64,
    /// Resident bytes before the first connection.
    pub(crate) resident_before: u64,
    /// Resident bytes at the end of the measured time.
    pub(crate) resident: u64,
}

const NANOS_PER_SECOND: f64 = 1e9;
/// CPU use per thread, in percent of one core, above which the load generator may be the
/// bottleneck.
const MAX_GENERATOR_PERCENT: f64 = 90.0;
/// Minimum interval for a meaningful CPU percentage, because the kernel counts CPU time in ticks.
const MIN_CPU_SAMPLE_NANOS: u64 = 200_000_000;

impl Report {
    pub(crate) fn new(plan: &Plan, counters: &Counters, measurements: Measurements) -> Self {
        let faults = counters.faults();
        // A run of a fixed number of messages ends with the last delivery.
        let measured = match plan.stop {
            StopCondition::Messages(_) => counters.last_delivered.saturating_sub(measurements.start),
            StopCondition::Time { .. } | StopCondition::AllReturned { .. } => measurements.measured,
        };
        let seconds = measured as f64 / NANOS_PER_SECOND;
        let per_second = |count: u64| if seconds > 0.0 { round(count as f64 / seconds, 10.0) } else { 0.0 };
        let cpu = (measurements.cpu_interval >= MIN_CPU_SAMPLE_NANOS)
            .then(|| round(measurements.cpu as f64 * 100.0 / measurements.cpu_interval as f64, 10.0));
        let opening = counters.last_opened as f64 / NANOS_PER_SECOND;
        let scenario = plan.scenario;
        let mut report = Self {
            scenario: scenario.name(),
            url: plan.url.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            threads: plan.threads,
            compression: plan.compression,
            connections: Connections {
                requested: plan.clients + plan.publishers,
                opened: counters.opened,
                failed: counters.failed,
                dropped: counters.dropped,
                pings_answered: counters.pings,
                opened_per_second: (scenario != Scenario::Churn && opening > 0.0)
                    .then(|| round(counters.opened as f64 / opening, 10.0)),
                open_microseconds: Percentiles::microseconds(&counters.connect),
            },
            load: scenario.has_messages().then(|| Load {
                size_bytes: plan.size,
                senders: plan.senders(),
                receivers: plan.clients - plan.slow_readers,
                topics: plan.topics,
                in_flight: if let LoadModel::ClosedLoop(count) = plan.load { Some(count) } else { None },
                rate_per_second: if let LoadModel::OpenLoop(rate) = plan.load { Some(rate) } else { None },
            }),
            messages: scenario.has_messages().then(|| Messages {
                sent: counters.sent,
                unsent: counters.unsent,
                delivered: counters.delivered,
                lost: faults.lost,
                duplicated: faults.duplicated,
                out_of_order: faults.out_of_order,
                misdelivered: counters.misdelivered,
                stalls: counters.stalls,
                sent_per_second: per_second(counters.sent_measured),
                delivered_per_second: per_second(counters.delivered_measured),
                received_bytes_per_second: per_second(counters.bytes_measured),
                latency_microseconds: Percentiles::microseconds(&counters.latency),
            }),
            churn: (scenario == Scenario::Churn)
                .then(|| Churn { cycles: counters.cycles, cycles_per_second: per_second(counters.cycles) }),
            slow_readers: (scenario == Scenario::Slow).then(|| SlowReaders {
                count: plan.slow_readers,
                disconnected: counters.slow_disconnects.values().sum(),
                ends: counters.slow_disconnects.clone(),
                received: counters.slow_received,
                disconnect_seen_milliseconds: Percentiles::milliseconds(&counters.slow_disconnect_times),
            }),
            recovery: plan
                .recover
                .as_ref()
                .map(|recover| Recovery::new(recover, &counters.recovery, faults.skipped)),
            errors: counters.errors.clone(),
            measured_seconds: round(seconds, 1e6),
            generator_cpu_percent: cpu,
            server: None,
            warnings: Vec::new(),
        };
        report.server =
            measurements.server.map(|server| report.server_usage(server, measurements.cpu_interval));
        report.warnings = report.warnings(plan, faults);
        report
    }

    /// Returns `true` if messages were lost, duplicated, out of order or misdelivered.
    pub fn has_faults(&self) -> bool {
        self.messages.as_ref().is_some_and(|messages| {
            messages.lost + messages.duplicated + messages.out_of_order + messages.misdelivered > 0
        })
    }

    /// Encodes the report as one line of JSON.
    ///
    /// # Errors
    ///
    /// [`BenchError::Json`] if the encoder fails.
    pub fn to_json(&self) -> Result<String, BenchError> {
        serde_json::to_string(self).map_err(BenchError::Json)
    }

    fn server_usage(&self, server: ServerMeasurements, interval: u64) -> ServerUsage {
        let share = (interval >= MIN_CPU_SAMPLE_NANOS).then(|| server.cpu as f64 / interval as f64);
        let per_second = match (&self.messages, &self.churn, &self.recovery) {
            (_, _, Some(recovery)) => recovery.replayed as f64 / self.measured_seconds,
            (Some(messages), _, _) => messages.delivered_per_second,
            (None, Some(churn), _) => churn.cycles_per_second,
            (None, None, None) => 0.0,
        };
        let clients_per_second =
            self.recovery.as_ref().map_or(0.0, |recovery| recovery.live as f64 / self.measured_seconds);
        let each = |per_second: f64| {
            let is_known = per_second > 0.0 && per_second.is_finite();
            share.filter(|_| is_known).map(|share| round(share * 1e6 / per_second, 1000.0))
        };
        let open = self.connections.opened.saturating_sub(self.connections.dropped);
        ServerUsage {
            cpu_percent: share.map(|share| round(share * 100.0, 10.0)),
            cpu_microseconds_per_message: each(per_second),
            cpu_microseconds_per_client: each(clients_per_second),
            resident_bytes_before: server.resident_before,
            resident_bytes: server.resident,
            resident_bytes_per_connection: (self.churn.is_none() && open > 0).then(|| {
                let growth = server.resident.saturating_sub(server.resident_before);
                (growth as f64 / open as f64).round()
            }),
        }
    }

    fn warnings(&self, plan: &Plan, faults: Faults) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.generator_cpu_percent.is_some_and(|cpu| cpu > MAX_GENERATOR_PERCENT * plan.threads as f64) {
            warnings.push(
                "the generator used all the CPU time of its threads: it may be the bottleneck, not the server; use more \
                 --threads, or run it on another machine"
                    .to_owned(),
            );
        }
        if let Some(rejected) = self.errors.get("error_rate_limited") {
            warnings.push(format!(
                "{rejected} messages were rejected because a connection exceeded the server's --rate-limit: use a lower \
                 --rate or more connections, or start the server with --rate-limit 0"
            ));
        }
        if let Some(rejected) = self.errors.get("http_503") {
            warnings.push(format!(
                "{rejected} connections were rejected with 503: the server's --max-connections may be too low"
            ));
        }
        if self.errors.contains_key("connect_no_free_port") {
            warnings.push(
                "the system had no free port for some connections: add local addresses with --source"
                    .to_owned(),
            );
        }
        if let Some(Messages { unsent: unsent @ 1.., .. }) = self.messages {
            warnings.push(format!(
                "{unsent} messages that were due were not sent: the server or the generator cannot sustain the rate"
            ));
        }
        if let Some(recovery) = &self.recovery {
            if recovery.live < recovery.clients as u64 {
                let missing = recovery.clients as u64 - recovery.live;
                warnings.push(format!("{missing} clients did not become live again"));
            }
            if let Some(trimmed) = recovery.not_recovered.get("trimmed") {
                warnings.push(format!(
                    "{trimmed} subscriptions missed more messages than their topics keep: raise `history` of the \
                     topics' rule or the server's --history-bytes, or use a lower --missed"
                ));
            }
        }
        if faults.lost > 0 && self.connections.dropped > 0 {
            warnings
                .push("connections were dropped; messages that they missed do not count as lost".to_owned());
        }
        warnings
    }
}

fn round(number: f64, parts: f64) -> f64 {
    (number * parts).round() / parts
}

#[cfg(test)]
mod tests;
