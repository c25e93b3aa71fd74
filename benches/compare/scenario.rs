//! The scenarios and their figures.

use serde_json::Value;

/// A scenario of `deeperhub-ws bench`: one row of the table per server.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Flags of `deeperhub-ws bench`.
    pub(crate) flags: &'static [&'static str],
    /// `true` if memory is measured instead of CPU time.
    pub(crate) is_idle: bool,
}

/// All scenarios, in the order of the table.
pub(crate) const SCENARIOS: &[Scenario] = &[
    load("fan-out to 1,000, 128 B, 1 in flight", &["fanout", "--subscribers", "1000", "--size", "128"]),
    load(
        "fan-out to 1,000, 128 B, 8 in flight",
        &["fanout", "--subscribers", "1000", "--size", "128", "--in-flight", "8"],
    ),
    load("fan-out to 1,000, 4 KiB", &["fanout", "--subscribers", "1000", "--size", "4096"]),
    load(
        "1,000 clients on 1,000 topics, 128 B",
        &[
            "topics",
            "--subscribers",
            "1000",
            "--topics",
            "1000",
            "--publishers",
            "16",
            "--in-flight",
            "16",
            "--size",
            "128",
        ],
    ),
    load("echo, 100 connections, 128 B", &["echo", "--connections", "100", "--size", "128"]),
    load("echo, 100 connections, 16 KiB", &["echo", "--connections", "100", "--size", "16384"]),
    load("connect, subscribe, close", &["churn", "--connections", "50"]),
    Scenario { name: "idle, 10,000 connections", flags: &["idle", "--connections", "10000"], is_idle: true },
];

/// Returns a scenario that measures CPU time.
const fn load(name: &'static str, flags: &'static [&'static str]) -> Scenario {
    Scenario { name, flags, is_idle: false }
}

/// The figures of one run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// CPU time of the server per message, or per cycle of `churn`, in microseconds.
    pub(crate) cpu: Option<f64>,
    /// Messages, cycles or new connections per second.
    pub(crate) rate: Option<f64>,
    /// Median latency in microseconds.
    pub(crate) p50: Option<f64>,
    /// 99th percentile of the latency in microseconds.
    pub(crate) p99: Option<f64>,
    /// Resident memory of the server at the end, in MB.
    pub(crate) memory: Option<f64>,
    /// Resident memory per connection, in KiB.
    pub(crate) memory_each: Option<f64>,
    /// Messages that were lost, duplicated or out of order.
    pub(crate) faults: f64,
}

impl Figures {
    /// Extracts the figures from the JSON of `deeperhub-ws bench`.
    pub(crate) fn from_report(report: &Value) -> Self {
        let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
        let latency = |share: &str| {
            number(&format!("/messages/latency_microseconds/{share}"))
                .or_else(|| number(&format!("/connections/open_microseconds/{share}")))
        };
        Self {
            cpu: number("/server/cpu_microseconds_per_message"),
            rate: number("/messages/delivered_per_second")
                .or_else(|| number("/churn/cycles_per_second"))
                .or_else(|| number("/connections/opened_per_second")),
            p50: latency("p50"),
            p99: latency("p99"),
            memory: number("/server/resident_bytes").map(|bytes| bytes / 1e6),
            memory_each: number("/server/resident_bytes_per_connection").map(|bytes| bytes / 1024.0),
            faults: ["lost", "duplicated", "out_of_order"]
                .iter()
                .filter_map(|kind| number(&format!("/messages/{kind}")))
                .fold(0.0, |sum, count| sum + count),
        }
    }
}
