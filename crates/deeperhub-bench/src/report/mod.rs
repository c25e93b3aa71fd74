//! What a run showed: as text for people, as JSON for programs.

mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::counters::{Counters, DurationHistogram, Faults};
use crate::plan::Plan;
use crate::scenario::{LoadModel, Scenario, StopCondition};

/// The figures of a run. Field names are the keys of the JSON form and end with their unit where they have one.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    scenario: &'static str,
    url: String,
    version: &'static str,
    threads: usize,
    compression: bool,
    connections: Connections,
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<Load>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Messages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    churn: Option<Churn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_readers: Option<SlowReaders>,
    /// What went wrong, by kind.
    errors: BTreeMap<String, u64>,
    /// The time that was measured.
    measured_seconds: f64,
    /// Of one core: 200 is two. Left out when the run was too short to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    generator_cpu_percent: Option<f64>,
    /// With `--server-pid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
    /// Why the figures may not be what they seem.
    warnings: Vec<String>,
}

/// What the server used in the measured time.
#[derive(Debug, Serialize)]
struct Server {
    /// Of one core: 200 is two.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
    /// Per delivery, or per cycle of `churn`: user and kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_microseconds_per_message: Option<f64>,
    /// Before the first connection.
    resident_bytes_before: u64,
    /// At the end of the measured time.
    resident_bytes: u64,
    /// The difference, for each connection that is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_bytes_per_connection: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Connections {
    requested: usize,
    opened: u64,
    failed: u64,
    /// Were open and ended before their time.
    dropped: u64,
    pings_answered: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    opened_per_second: Option<f64>,
    /// From the start of connecting to the end of the handshake and of subscribing.
    open_microseconds: Percentiles,
}

#[derive(Debug, Serialize)]
struct Load {
    size_bytes: usize,
    senders: usize,
    receivers: usize,
    topics: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_flight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_per_second: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Messages {
    /// In the whole run, with what was sent before anything was measured.
    sent: u64,
    /// Due in an open loop, and not sent.
    unsent: u64,
    /// In the whole run, each once.
    delivered: u64,
    lost: u64,
    duplicated: u64,
    out_of_order: u64,
    misdelivered: u64,
    /// Times a closed loop gave up waiting for deliveries.
    stalls: u64,
    sent_per_second: f64,
    delivered_per_second: f64,
    received_bytes_per_second: f64,
    latency_microseconds: Percentiles,
}

#[derive(Debug, Serialize)]
struct Churn {
    cycles: u64,
    cycles_per_second: f64,
}

#[derive(Debug, Serialize)]
struct SlowReaders {
    count: usize,
    /// Ended by the server or the network.
    disconnected: u64,
    /// How, by kind: `closed_1013` where the close frame could be read.
    ends: BTreeMap<String, u64>,
    /// Messages that they got in the end.
    received: u64,
    /// Ends that were seen while nothing was read, from the start of the load.
    disconnect_seen_milliseconds: Percentiles,
}

/// The shares of a distribution that the field looks at.
#[derive(Debug, Clone, Copy, Serialize)]
struct Percentiles {
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Percentiles {
    fn microseconds(times: &DurationHistogram) -> Self {
        Self {
            count: times.count(),
            p50: times.quantile_us(0.5),
            p90: times.quantile_us(0.9),
            p99: times.quantile_us(0.99),
            p99_9: times.quantile_us(0.999),
            max: times.max_us(),
        }
    }

    fn milliseconds(times: &DurationHistogram) -> Self {
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

/// What is measured beside the counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurements {
    /// From the epoch to the start of the load, in nanoseconds.
    pub(crate) start: u64,
    /// Of the time that was measured, in nanoseconds; less than planned if the run ended early.
    pub(crate) measured: u64,
    /// Of the process, in nanoseconds.
    pub(crate) cpu: u64,
    /// The time in which that was, in nanoseconds: about the one that was measured.
    pub(crate) cpu_interval: u64,
    pub(crate) server: Option<ServerMeasurements>,
}

/// The same of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerMeasurements {
    /// Of the process, in nanoseconds of the time of [`Measurements::cpu_interval`].
    pub(crate) cpu: u64,
    /// In bytes.
    pub(crate) resident_before: u64,
    pub(crate) resident: u64,
}

const NANOS_PER_SECOND: f64 = 1e9;
/// A generator that is busier than this, in percent of what its threads can do, is the limit itself.
const MAX_GENERATOR_PERCENT: f64 = 90.0;
/// A shorter time says nothing about what the generator needs, in nanoseconds.
const MIN_CPU_SAMPLE_NANOS: u64 = 200_000_000;

impl Report {
    pub(crate) fn new(plan: &Plan, counters: &Counters, measurements: Measurements) -> Self {
        let faults = counters.faults();
        // A number of messages has no time of its own: it is over with the last delivery.
        let measured = match plan.stop {
            StopCondition::Messages(_) => counters.last_delivered.saturating_sub(measurements.start),
            StopCondition::Time { .. } => measurements.measured,
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
            errors: counters.errors.clone(),
            measured_seconds: round(seconds, 1e6),
            generator_cpu_percent: cpu,
            server: None,
            warnings: Vec::new(),
        };
        report.server = measurements.server.map(|server| report.server(server, measurements.cpu_interval));
        report.warnings = report.warn(plan, faults);
        report
    }

    /// Whether messages were lost, came twice, out of order or to the wrong receiver.
    pub(crate) fn has_faults(&self) -> bool {
        self.messages.as_ref().is_some_and(|messages| {
            messages.lost + messages.duplicated + messages.out_of_order + messages.misdelivered > 0
        })
    }

    /// The JSON form, on one line.
    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    fn server(&self, server: ServerMeasurements, of: u64) -> Server {
        let share = (of >= MIN_CPU_SAMPLE_NANOS).then(|| server.cpu as f64 / of as f64);
        let per_second = match (&self.messages, &self.churn) {
            (Some(messages), _) => messages.delivered_per_second,
            (None, Some(churn)) => churn.cycles_per_second,
            (None, None) => 0.0,
        };
        let open = self.connections.opened.saturating_sub(self.connections.dropped);
        Server {
            cpu_percent: share.map(|share| round(share * 100.0, 10.0)),
            cpu_microseconds_per_message: share
                .filter(|_| per_second > 0.0)
                .map(|share| round(share * 1e6 / per_second, 1000.0)),
            resident_bytes_before: server.resident_before,
            resident_bytes: server.resident,
            resident_bytes_per_connection: (self.churn.is_none() && open > 0).then(|| {
                let more = server.resident.saturating_sub(server.resident_before);
                (more as f64 / open as f64).round()
            }),
        }
    }

    fn warn(&self, plan: &Plan, faults: Faults) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.generator_cpu_percent.is_some_and(|cpu| cpu > MAX_GENERATOR_PERCENT * plan.threads as f64) {
            warnings.push(
                "the generator was as busy as its threads allow: it may be the limit, not the server; give more \
                 --threads, or run it on another machine"
                    .to_owned(),
            );
        }
        if let Some(refused) = self.errors.get("error_rate_limited") {
            warnings.push(format!(
                "{refused} messages were refused because a connection sent faster than the server's --rate-limit: give \
                 a lower --rate, more connections, or start the server with --rate-limit 0"
            ));
        }
        if let Some(refused) = self.errors.get("http_503") {
            warnings.push(format!(
                "{refused} connections were refused with 503: the server's --max-connections may be lower than what is \
                 asked for"
            ));
        }
        if self.errors.contains_key("connect_no_free_port") {
            warnings.push(
                "the system had no free port for some connections: give more local addresses with --source"
                    .to_owned(),
            );
        }
        if let Some(Messages { unsent: unsent @ 1.., .. }) = self.messages {
            warnings.push(format!(
                "{unsent} messages that were due were not sent: server or generator cannot keep the rate"
            ));
        }
        if faults.lost > 0 && self.connections.dropped > 0 {
            warnings.push("connections were dropped; what they missed is not counted as lost".to_owned());
        }
        warnings
    }
}

fn round(number: f64, parts: f64) -> f64 {
    (number * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::text::{Line, Number};
    use super::*;
    use crate::plan::tests::plan;

    fn report(flags: &str, change: impl FnOnce(&mut Counters)) -> Report {
        let mut counters = Counters { opened: 2, last_opened: 500_000_000, ..Counters::default() };
        change(&mut counters);
        let measurements = Measurements {
            start: 1_000_000_000,
            measured: 2_000_000_000,
            cpu: 500_000_000,
            cpu_interval: 2_000_000_000,
            server: None,
        };
        Report::new(&plan(flags), &counters, measurements)
    }

    #[test]
    fn json_has_rates_percentiles_and_errors_with_units_in_their_keys() {
        let report = report("fanout --subscribers 10 --publishers 2 --rate 5", |counters| {
            (counters.sent, counters.sent_measured, counters.delivered_measured) = (12, 10, 100);
            counters.latency.record(1_500_000);
            counters.count_error("http_503");
        });
        let json: Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["scenario"], "fanout");
        assert_eq!(json["load"]["rate_per_second"], 5);
        assert_eq!(json["load"].get("in_flight"), None);
        assert_eq!(json["messages"]["sent"], 12);
        assert_eq!(json["messages"]["sent_per_second"], 5.0);
        assert_eq!(json["messages"]["delivered_per_second"], 50.0);
        assert_eq!(json["messages"]["latency_microseconds"]["count"], 1);
        assert_eq!(json["errors"]["http_503"], 1);
        assert_eq!(json["generator_cpu_percent"], 25.0);
        assert_eq!(json["connections"]["opened_per_second"], 4.0);
        assert!(json["warnings"][0].as_str().unwrap().contains("--max-connections"));
    }

    #[test]
    fn a_number_of_messages_is_measured_to_the_last_delivery() {
        let report = report("fanout --messages 10", |counters| {
            counters.sent_measured = 10;
            counters.last_delivered = 1_500_000_000;
        });
        assert_eq!(report.measured_seconds, 0.5);
        assert_eq!(report.messages.unwrap().sent_per_second, 20.0);
    }

    #[test]
    fn each_scenario_has_its_own_parts() {
        for (scenario, parts) in [
            ("echo", [true, false, false]),
            ("fanout", [true, false, false]),
            ("topics", [true, false, false]),
            ("idle", [false, false, false]),
            ("churn", [false, true, false]),
            ("slow", [true, false, true]),
        ] {
            let report = report(scenario, |_| {});
            let has = [report.messages.is_some(), report.churn.is_some(), report.slow_readers.is_some()];
            assert_eq!(has, parts, "{scenario}");
            assert!(report.to_string().starts_with(scenario));
        }
    }

    #[test]
    fn nothing_measured_is_no_number_that_json_has_not() {
        let measurements = Measurements { start: 0, measured: 0, cpu: 0, cpu_interval: 0, server: None };
        let report = Report::new(&plan("fanout"), &Counters::default(), measurements);
        assert!(!report.json().unwrap().contains("null"));
        assert!(report.to_string().contains("latency      -"));
    }

    #[test]
    fn a_generator_at_its_limit_says_so() {
        let mut counters = Counters::default();
        counters.count_error("error_rate_limited");
        let measurements = Measurements {
            start: 0,
            measured: 1_000_000_000,
            cpu: 950_000_000,
            cpu_interval: 1_000_000_000,
            server: None,
        };
        let text = Report::new(&plan("fanout"), &counters, measurements).to_string();
        assert!(text.contains("--threads") && text.contains("--rate-limit 0"), "{text}");
    }

    #[test]
    fn what_the_server_uses_is_told_per_delivery_and_per_connection() {
        let counters = Counters { opened: 100, delivered_measured: 1000, ..Counters::default() };
        let server = ServerMeasurements { cpu: 5_000_000, resident_before: 5_000_000, resident: 5_100_000 };
        let measurements = Measurements {
            start: 0,
            measured: 1_000_000_000,
            cpu: 0,
            cpu_interval: 1_000_000_000,
            server: Some(server),
        };
        let report = Report::new(&plan("fanout"), &counters, measurements);
        let json: Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["server"]["cpu_percent"], 0.5);
        assert_eq!(json["server"]["cpu_microseconds_per_message"], 5.0);
        assert_eq!(json["server"]["resident_bytes_per_connection"], 1000.0);
        let text = report.to_string();
        assert!(
            text.contains("5.00 µs a delivery, 5.1 MB resident, 1,000 bytes more a connection"),
            "{text}"
        );
    }

    #[test]
    fn loss_is_what_the_exit_code_may_tell() {
        assert!(!report("fanout", |_| {}).has_faults());
        assert!(report("fanout", |counters| counters.misdelivered = 1).has_faults());
    }

    #[test]
    fn text_groups_digits_and_chooses_units() {
        let line =
            Line(Percentiles { count: 1, p50: 12.4, p90: 1234.0, p99: 999.9, p99_9: 2_500_000.0, max: 0.0 });
        assert_eq!(line.to_string(), "p50 12 µs  p90 1.23 ms  p99 1000 µs  p99.9 2.50 s  max 0 µs");
        for (number, text) in [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (1_234_567.8, "1,234,568")] {
            assert_eq!(Number(number).to_string(), text);
        }
    }
}
