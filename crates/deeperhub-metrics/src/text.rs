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
    let mut text =
        Text { out: String::with_capacity(16 * 1024), is_open: format == Format::OpenMetrics, common };
    // Writing into a string cannot fail.
    let _ = metrics.iter().try_for_each(|metric| text.metric(metric));
    if text.is_open {
        text.out.push_str("# EOF\n");
    }
    text.out
}

struct Text<'a> {
    out: String,
    /// `true` for OpenMetrics.
    is_open: bool,
    common: &'a [(&'static str, String)],
}

impl Text<'_> {
    fn metric(&mut self, metric: &MetricSnapshot<'_>) -> fmt::Result {
        let MetricSnapshot { name, help, unit, data } = metric;
        let (_, kind) = data.suffix_and_kind();
        let commented = if self.is_open { metric.family() } else { name };
        write!(self.out, "# HELP {commented} ")?;
        write!(Escaping { out: &mut self.out, with_quotes: self.is_open }, "{help}")?;
        let kind = if kind == "info" && !self.is_open { "gauge" } else { kind };
        writeln!(self.out, ".\n# TYPE {commented} {kind}")?;
        if let Some(unit) = unit.as_str()
            && self.is_open
        {
            writeln!(self.out, "# UNIT {commented} {unit}")?;
        }
        match data {
            MetricData::Counter(counts) => counts.iter().try_for_each(|(label, count)| match label {
                Some((label, value)) => self.sample(name, &[(label, value)], *count),
                None => self.sample(name, &[], *count),
            }),
            MetricData::Gauge(value) => self.sample(name, &[], *value),
            MetricData::Histogram(histogram) => self.histogram(name, histogram),
            MetricData::Info(labels) => {
                let labels: Vec<_> =
                    labels.iter().map(|(label, value)| (*label, value as &dyn Display)).collect();
                self.sample(name, &labels, Number::Count(1))
            }
        }
    }

    fn histogram(&mut self, name: &str, histogram: &HistogramSnapshot) -> fmt::Result {
        let bounds = histogram.bounds();
        self.sample(&format!("{name}_sum"), &[], Number::Float(bounds.exposed(histogram.sum())))?;
        self.sample(&format!("{name}_count"), &[], histogram.count().into())?;
        let name = format!("{name}_bucket");
        let upper = bounds.upper().iter().map(|&bound| bounds.exposed(bound)).chain([f64::INFINITY]);
        let mut at_most = 0_u64;
        for (index, (upper, &count)) in upper.zip(histogram.buckets()).enumerate() {
            at_most = at_most.wrapping_add(count);
            self.sample(&name, &[("le", &Number::Float(upper))], at_most.into())?;
            if let Some(Some(Exemplar { value, trace_id, span_id, at })) = histogram.exemplars().get(index)
                && self.is_open
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
    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: Number) -> fmt::Result {
        self.out.push_str(name);
        let common = self.common.iter().map(|(label, value)| (*label, value as &dyn Display));
        let mut separator = '{';
        for (label, value) in common.chain(labels.iter().copied()) {
            write!(self.out, "{separator}{label}=\"")?;
            write!(Escaping { out: &mut self.out, with_quotes: true }, "{value}")?;
            self.out.push('"');
            separator = ',';
        }
        let end = if separator == ',' { "}" } else { "" };
        writeln!(self.out, "{end} {value}")
    }
}

/// A writer that escapes backslashes, line feeds and, if requested, quotation marks.
struct Escaping<'o> {
    out: &'o mut String,
    with_quotes: bool,
}

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '\\' => self.out.push_str(r"\\"),
                '\n' => self.out.push_str(r"\n"),
                '"' if self.with_quotes => self.out.push_str("\\\""),
                _ => self.out.push(char),
            }
        }
        Ok(())
    }
}
