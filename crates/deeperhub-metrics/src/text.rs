//! Writes snapshots as Prometheus text and as OpenMetrics text.
//!
//! The samples are the same in both formats, except that only OpenMetrics has exemplars. The
//! comments differ: OpenMetrics names the family (without `_total` and `_info`), has units, and
//! escapes quotation marks in descriptions.

use crate::format::Format;
use crate::snapshot::{MetricData, MetricSnapshot, Number};
use crate::{Exemplar, HistogramSnapshot};
use std::fmt::{self, Display, Write};
use std::time::SystemTime;

/// Returns a text with all metrics. Each sample has the labels in `common` first.
pub(crate) fn encode(
    format: Format,
    common: &[(&'static str, String)],
    metrics: &[MetricSnapshot<'_>],
) -> String {
    let mut text = Text { out: String::with_capacity(16 * 1024), format, common };
    // Writing into a string cannot fail.
    let _ = text.metrics(metrics);
    text.out
}

struct Text<'a> {
    out: String,
    format: Format,
    common: &'a [(&'static str, String)],
}

impl Text<'_> {
    fn metrics(&mut self, metrics: &[MetricSnapshot<'_>]) -> fmt::Result {
        for MetricSnapshot { name, help, unit, data } in metrics {
            let (suffix, kind) = match data {
                MetricData::Counter(_) => ("_total", "counter"),
                MetricData::Gauge(_) => ("", "gauge"),
                MetricData::Histogram(_) => ("", "histogram"),
                MetricData::Info(_) => ("_info", "info"),
            };
            match self.format {
                Format::Prometheus => {
                    let kind = if kind == "info" { "gauge" } else { kind };
                    self.comments(name, help, kind, Quotes::Plain)?;
                }
                Format::OpenMetrics => {
                    let family = name.strip_suffix(suffix).unwrap_or(name);
                    self.comments(family, help, kind, Quotes::Escaped)?;
                    if let Some(unit) = unit.as_str() {
                        writeln!(self.out, "# UNIT {family} {unit}")?;
                    }
                }
            }
            match data {
                MetricData::Counter(counts) => {
                    counts.iter().try_for_each(|&(label, count)| self.sample(name, label, count))?;
                }
                MetricData::Gauge(value) => self.sample(name, None::<(_, &str)>, *value)?,
                MetricData::Histogram(histogram) => self.histogram(name, histogram)?,
                MetricData::Info(labels) => {
                    let labels = labels.iter().map(|(label, value)| (*label, value));
                    self.sample(name, labels, Number::Count(1))?;
                }
            }
        }
        if self.format == Format::OpenMetrics { self.out.write_str("# EOF\n") } else { Ok(()) }
    }

    fn comments(&mut self, name: &str, help: &str, kind: &str, quotes: Quotes) -> fmt::Result {
        write!(self.out, "# HELP {name} ")?;
        self.escaped(help, quotes)?;
        writeln!(self.out, ".\n# TYPE {name} {kind}")
    }

    fn histogram(&mut self, name: &str, histogram: &HistogramSnapshot) -> fmt::Result {
        let bounds = histogram.bounds();
        let sum = Number::Float(bounds.exposed(histogram.sum()));
        self.sample(&format!("{name}_sum"), None::<(_, &str)>, sum)?;
        self.sample(&format!("{name}_count"), None::<(_, &str)>, histogram.count().into())?;
        let name = format!("{name}_bucket");
        let upper = bounds.upper().iter().map(|&bound| bounds.exposed(bound)).chain([f64::INFINITY]);
        let mut at_most = 0_u64;
        for (index, (upper, &count)) in upper.zip(histogram.buckets()).enumerate() {
            at_most = at_most.wrapping_add(count);
            self.sample(&name, [("le", Number::Float(upper))], at_most.into())?;
            if self.format == Format::OpenMetrics
                && let Some(Some(Exemplar { value, trace_id, span_id, at })) =
                    histogram.exemplars().get(index)
            {
                // The exemplar is on the line of its bucket.
                self.out.pop();
                let value = bounds.exposed(*value);
                let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                let ids = format_args!("trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"");
                writeln!(self.out, " # {{{ids}}} {value} {at:.3}")?;
            }
        }
        Ok(())
    }

    /// Writes the line of one sample.
    fn sample<V: Display>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'static str, V)>,
        value: Number,
    ) -> fmt::Result {
        self.out.push_str(name);
        let mut is_first = true;
        let common = self.common;
        for (label, value) in common {
            self.label(label, value, &mut is_first)?;
        }
        for (label, value) in labels {
            self.label(label, value, &mut is_first)?;
        }
        let end = if is_first { "" } else { "}" };
        writeln!(self.out, "{end} {value}")
    }

    fn label(&mut self, label: &str, value: impl Display, is_first: &mut bool) -> fmt::Result {
        let separator = if std::mem::take(is_first) { '{' } else { ',' };
        write!(self.out, "{separator}{label}=\"")?;
        self.escaped(value, Quotes::Escaped)?;
        self.out.write_char('"')
    }

    fn escaped(&mut self, text: impl Display, quotes: Quotes) -> fmt::Result {
        write!(Escaping { out: &mut self.out, quotes }, "{text}")
    }
}

/// Whether quotation marks are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Plain,
    Escaped,
}

/// A writer that escapes backslashes, line feeds and, if requested, quotation marks.
struct Escaping<'o> {
    out: &'o mut String,
    quotes: Quotes,
}

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '\\' => self.out.push_str(r"\\"),
                '\n' => self.out.push_str(r"\n"),
                '"' if self.quotes == Quotes::Escaped => self.out.push_str("\\\""),
                _ => self.out.push(char),
            }
        }
        Ok(())
    }
}
