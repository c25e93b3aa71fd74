//! The text form of a report.

use std::fmt;

use super::{Percentiles, Recovery, Report};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scenario, self.url)?;
        if let Some(load) = &self.load {
            let (senders, receivers) = (Number(load.senders as f64), Number(load.receivers as f64));
            match self.scenario {
                "echo" => write!(f, ": {senders} connections")?,
                _ => write!(f, ": {senders} publishing to {receivers}")?,
            }
            if load.topics > 1 {
                write!(f, " on {} topics", Number(load.topics as f64))?;
            }
            write!(f, ", {} bytes", Number(load.size_bytes as f64))?;
            if let Some(in_flight) = load.in_flight {
                write!(f, ", {in_flight} in flight")?;
            }
            if let Some(rate) = load.rate_per_second {
                write!(f, ", {} a second", Number(rate as f64))?;
            }
        }
        writeln!(f, "; {:.1} s", self.measured_seconds)?;

        let connections = &self.connections;
        write!(f, "connections  {} opened", Number(connections.opened as f64))?;
        if let Some(rate) = connections.opened_per_second {
            write!(f, ", {} a second", Number(rate))?;
        }
        for (count, what) in [(connections.failed, "failed"), (connections.dropped, "dropped")] {
            if count > 0 {
                write!(f, ", {} {what}", Number(count as f64))?;
            }
        }
        writeln!(f, "\nopen         {}", Line(connections.open_microseconds))?;
        if let Some(messages) = &self.messages {
            let rate = |rate| Number(rate);
            writeln!(
                f,
                "sent         {}, {} a second",
                Number(messages.sent as f64),
                rate(messages.sent_per_second)
            )?;
            writeln!(
                f,
                "delivered    {}, {} a second, {:.1} MB/s",
                Number(messages.delivered as f64),
                rate(messages.delivered_per_second),
                messages.received_bytes_per_second / 1e6
            )?;
            writeln!(f, "latency      {}", Line(messages.latency_microseconds))?;
            writeln!(
                f,
                "faults       {} lost, {} duplicated, {} out of order",
                Number(messages.lost as f64),
                Number(messages.duplicated as f64),
                Number(messages.out_of_order as f64)
            )?;
            if messages.misdelivered > 0 {
                writeln!(f, "misdelivered {}", Number(messages.misdelivered as f64))?;
            }
            if messages.stalls > 0 {
                writeln!(f, "stalls       {}", Number(messages.stalls as f64))?;
            }
        }
        if let Some(churn) = &self.churn {
            writeln!(
                f,
                "cycles       {}, {} a second",
                Number(churn.cycles as f64),
                Number(churn.cycles_per_second)
            )?;
        }
        if let Some(slow) = &self.slow_readers {
            writeln!(
                f,
                "slow readers {}, {} disconnected, {} messages read in the end",
                slow.count,
                slow.disconnected,
                Number(slow.received as f64)
            )?;
            for (kind, count) in &slow.ends {
                writeln!(f, "             {} {kind}", Number(*count as f64))?;
            }
            let seen = slow.disconnect_seen_milliseconds;
            if seen.count > 0 {
                writeln!(
                    f,
                    "             seen after {:.1} s (p50), {:.1} s (max)",
                    seen.p50 / 1e3,
                    seen.max / 1e3
                )?;
            }
        }
        if let Some(recovery) = &self.recovery {
            write_recovery(f, recovery)?;
        }
        if self.scenario == "idle" {
            writeln!(f, "pings        {} answered", Number(connections.pings_answered as f64))?;
        }
        for (kind, count) in &self.errors {
            writeln!(f, "error        {} {kind}", Number(*count as f64))?;
        }
        if let Some(cpu) = self.generator_cpu_percent {
            writeln!(f, "generator    {cpu:.0} % of a core")?;
        }
        if let Some(server) = &self.server {
            f.write_str("server       ")?;
            if let Some(cpu) = server.cpu_percent {
                write!(f, "{cpu:.0} % of a core, ")?;
            }
            if let Some(microseconds) = server.cpu_microseconds_per_message {
                let unit = match (&self.churn, &self.recovery) {
                    (Some(_), _) => "cycle",
                    (None, Some(_)) => "replayed message",
                    (None, None) => "delivery",
                };
                write!(f, "{microseconds:.2} µs a {unit}, ")?;
            }
            if let Some(microseconds) = server.cpu_microseconds_per_client {
                write!(f, "{microseconds:.2} µs a client, ")?;
            }
            write!(f, "{:.1} MB resident", server.resident_bytes as f64 / 1e6)?;
            match server.resident_bytes_per_connection {
                Some(bytes) => writeln!(f, ", {} bytes more a connection", Number(bytes))?,
                None => writeln!(f)?,
            }
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// Writes the lines of the scenario `recover`.
fn write_recovery(f: &mut fmt::Formatter<'_>, recovery: &Recovery) -> fmt::Result {
    writeln!(
        f,
        "returns      {} of {}, {} a second; {} live again",
        Number(recovery.returned as f64),
        Number(recovery.clients as f64),
        Number(recovery.returns_per_second as f64),
        Number(recovery.live as f64)
    )?;
    writeln!(f, "live after   {}", Line(recovery.live_microseconds))?;
    writeln!(
        f,
        "recovered    {} subscriptions, {} messages replayed",
        Number(recovery.recovered as f64),
        Number(recovery.replayed as f64)
    )?;
    for (reason, count) in &recovery.not_recovered {
        writeln!(f, "             {} {reason}", Number(*count as f64))?;
    }
    writeln!(
        f,
        "gaps         {}, {} messages skipped",
        Number(recovery.gaps as f64),
        Number(recovery.skipped as f64)
    )
}

/// Formats a number without decimals, in groups of three digits.
pub(super) struct Number(pub(super) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:.0}", self.0);
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at) % 3 == 0 {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// Formats percentiles on one line, each in µs, ms or s.
pub(super) struct Line(pub(super) Percentiles);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { count, p50, p90, p99, p99_9, max } = self.0;
        if count == 0 {
            return f.write_str("-");
        }
        let shares = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p99_9), ("max", max)];
        for (at, (name, microseconds)) in shares.into_iter().enumerate() {
            let gap = if at > 0 { "  " } else { "" };
            match microseconds {
                0.0..1_000.0 => write!(f, "{gap}{name} {microseconds:.0} µs")?,
                1_000.0..1_000_000.0 => write!(f, "{gap}{name} {:.2} ms", microseconds / 1e3)?,
                _ => write!(f, "{gap}{name} {:.2} s", microseconds / 1e6)?,
            }
        }
        Ok(())
    }
}
