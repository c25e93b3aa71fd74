use serde_json::Value;

use super::text::{Line, Number};
use super::*;
use crate::counters::count;
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
fn json_keys_carry_units() {
    let report = report("fanout --subscribers 10 --publishers 2 --rate 5", |counters| {
        (counters.sent, counters.sent_measured, counters.delivered_measured) = (12, 10, 100);
        counters.latency.record(1_500_000);
        counters.count_error("http_503");
    });
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
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
fn a_fixed_number_of_messages_is_measured_to_the_last_delivery() {
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
        ("recover", [true, false, false]),
    ] {
        let report = report(scenario, |_| {});
        let has = [report.messages.is_some(), report.churn.is_some(), report.slow_readers.is_some()];
        assert_eq!(has, parts, "{scenario}");
        assert_eq!(report.recovery.is_some(), scenario == "recover");
        assert!(report.to_string().starts_with(scenario));
    }
}

#[test]
fn an_empty_measurement_has_no_null_in_json() {
    let measurements = Measurements { start: 0, measured: 0, cpu: 0, cpu_interval: 0, server: None };
    let report = Report::new(&plan("fanout"), &Counters::default(), measurements);
    assert!(!report.to_json().unwrap().contains("null"));
    assert!(report.to_string().contains("latency      -"));
}

#[test]
fn a_generator_at_its_limit_is_a_warning() {
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
fn server_usage_is_reported_per_delivery_and_per_connection() {
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
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["server"]["cpu_percent"], 0.5);
    assert_eq!(json["server"]["cpu_microseconds_per_message"], 5.0);
    assert_eq!(json["server"]["resident_bytes_per_connection"], 1000.0);
    let text = report.to_string();
    assert!(text.contains("5.00 µs a delivery, 5.1 MB resident, 1,000 bytes more a connection"), "{text}");
}

#[test]
fn returns_are_reported_per_message_and_per_client() {
    let mut counters = Counters { opened: 100, ..Counters::default() };
    (counters.recovery.live, counters.recovery.replayed) = (100, 5000);
    count(&mut counters.recovery.not_recovered, "trimmed", 7);
    let server = ServerMeasurements { cpu: 5_000_000, resident_before: 0, resident: 0 };
    let measurements = Measurements {
        start: 0,
        measured: 1_000_000_000,
        cpu: 0,
        cpu_interval: 1_000_000_000,
        server: Some(server),
    };
    let report = Report::new(&plan("recover --clients 101"), &counters, measurements);
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["recovery"]["not_recovered"]["trimmed"], 7);
    assert_eq!(json["server"]["cpu_microseconds_per_message"], 1.0);
    assert_eq!(json["server"]["cpu_microseconds_per_client"], 50.0);
    let text = report.to_string();
    for part in ["5,000 messages replayed", "7 trimmed", "1.00 µs a replayed message, 50.00 µs a client"] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(text.contains("warning: 1 clients did not become live again"), "{text}");
    assert!(text.contains("raise `history`"), "{text}");
}

#[test]
fn misdelivered_messages_are_faults() {
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
