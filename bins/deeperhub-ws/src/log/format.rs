//! Format of log lines: text for people, or one JSON object per line. Both include trace IDs and
//! rate-limit repeated lines.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as Clock};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::log::rate_limit::LogRateLimit;

/// Trace and span ID of a span.
#[derive(Debug, Default, Clone)]
struct TraceIds {
    trace_id: Option<String>,
    span_id: Option<String>,
}

/// Stores the fields `trace_id` and `span_id` of each span with the span, for [`trace_ids`].
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct TraceIdsLayer;

impl<S: Subscriber + for<'l> LookupSpan<'l>> Layer<S> for TraceIdsLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut ids = TraceIds::default();
        attributes.record(&mut ids);
        if let (Some(span), true) = (context.span(id), ids.trace_id.is_some()) {
            span.extensions_mut().insert(ids);
        }
    }
}

impl Visit for TraceIds {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "trace_id" => self.trace_id = Some(format!("{value:?}")),
            "span_id" => self.span_id = Some(format!("{value:?}")),
            _ => {}
        }
    }
}

/// Returns the IDs of the trace that an event belongs to. They are stored with the innermost span
/// that has IDs.
fn trace_ids<S, N>(context: &FmtContext<'_, S, N>) -> Option<TraceIds>
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    // The scope is ordered from the innermost span outwards.
    let mut scope = context.event_scope()?;
    scope.find_map(|span| span.extensions().get::<TraceIds>().cloned())
}

/// Text format: the default format of `tracing_subscriber`. A line that follows suppressed lines
/// ends with their number as `left_out`.
#[derive(Debug)]
pub(crate) struct TextLines {
    format: Format<Full>,
    rate_limit: LogRateLimit,
}

/// JSON format: `timestamp`, `level`, `target`, `message` and the event's fields. A line inside a
/// trace has `trace_id` and `span_id`. A line after suppressed lines has their number in
/// `left_out`.
#[derive(Debug)]
pub(crate) struct JsonLines {
    rate_limit: LogRateLimit,
}

impl TextLines {
    pub(crate) fn new(rate_limit: LogRateLimit) -> Self {
        Self { format: Format::default(), rate_limit }
    }
}

impl JsonLines {
    pub(crate) fn new(rate_limit: LogRateLimit) -> Self {
        Self { rate_limit }
    }
}

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(left_out) = self.rate_limit.check(event.metadata()) else { return Ok(()) };
        if left_out == 0 {
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{} left_out={left_out}", line.trim_end())
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(left_out) = self.rate_limit.check(event.metadata()) else { return Ok(()) };
        let mut timestamp = String::new();
        Clock.format_time(&mut Writer::new(&mut timestamp))?;
        let mut fields = Map::new();
        event.record(&mut Fields(&mut fields));
        let ids = trace_ids(context).unwrap_or_default();
        let line = JsonLine {
            timestamp,
            level: event.metadata().level().as_str(),
            target: event.metadata().target(),
            message: fields.remove("message"),
            fields,
            trace_id: ids.trace_id,
            span_id: ids.span_id,
            left_out,
        };
        // A map with string keys can always be serialized.
        let line = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

/// Members of a JSON line, in this order.
#[derive(Serialize)]
struct JsonLine<'l> {
    timestamp: String,
    level: &'l str,
    target: &'l str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Collects the fields of an event as JSON.
struct Fields<'m>(&'m mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Registry, fmt as log};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(json: bool, say: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = log::layer().with_writer(move || writer.clone()).with_ansi(false);
        let layer: Box<dyn Layer<_> + Send + Sync> = if json {
            layer.event_format(JsonLines::new(LogRateLimit::default())).boxed()
        } else {
            layer.event_format(TextLines::new(LogRateLimit::default())).boxed()
        };
        tracing::subscriber::with_default(Registry::default().with(TraceIdsLayer).with(layer), say);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_json_line_is_one_object_with_the_ids_of_its_trace() {
        let text = written(true, || {
            let span = tracing::error_span!("message", trace_id = %"0af7", span_id = %"b9c7");
            span.in_scope(|| tracing::warn!(worker = 3, ratio = 0.5, ok = true, "It \"broke\".\nTwice."));
            tracing::info!(user = "u", "Outside.");
        });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            text.starts_with("{\"timestamp\":\"") && text.contains("\"level\":\"WARN\",\"target\":"),
            "{text}"
        );
        assert_eq!(lines[0]["message"], "It \"broke\".\nTwice.");
        assert_eq!(
            (&lines[0]["worker"], &lines[0]["ratio"], &lines[0]["ok"]),
            (&3.into(), &0.5.into(), &true.into())
        );
        assert_eq!((&lines[0]["trace_id"], &lines[0]["span_id"]), (&"0af7".into(), &"b9c7".into()));
        assert_eq!((&lines[0]["level"], &lines[1]["user"]), (&"WARN".into(), &"u".into()));
        assert_eq!(lines[1].get("trace_id"), None);
        let timestamp = lines[0]["timestamp"].as_str().unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.contains('T'), "{timestamp}");
    }

    #[test]
    fn a_text_line_shows_the_ids_of_its_trace() {
        let text = written(false, || {
            let span = tracing::error_span!("message", trace_id = %"0af7", span_id = %"b9c7");
            span.in_scope(|| tracing::warn!("It broke."));
        });
        assert!(text.contains("trace_id=0af7") && text.contains("It broke."), "{text}");
    }

    #[test]
    fn a_line_ends_with_the_count_of_suppressed_lines() {
        let warn = || tracing::warn!("The same.");
        let text = written(false, || {
            for _ in 0..1000 {
                warn();
            }
            std::thread::sleep(std::time::Duration::from_millis(600));
            warn();
        });
        let last = text.lines().last().unwrap();
        assert!(last.starts_with('2') && last.contains("The same. left_out="), "{text}");
    }

    #[test]
    fn repeated_lines_of_one_call_site_are_suppressed() {
        let text = written(true, || {
            for _ in 0..10_000 {
                tracing::warn!("The same.");
            }
            tracing::warn!("Another.");
        });
        let lines = text.lines().count();
        assert!((11..1000).contains(&lines), "{lines} lines");
        assert!(text.contains("Another."), "lines of other call sites are written");
    }
}
