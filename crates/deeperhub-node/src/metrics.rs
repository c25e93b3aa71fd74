//! Metrics of a node, and the types with which they are read.

pub use deeperhub_metrics::{
    CellError, Exemplar, Format, HistogramSnapshot, Label, MetricData, MetricSnapshot, Number, RegisterError,
    Unit,
};

use std::time::Duration;

use deeperhub_metrics::{
    Bounds, Cells, CounterVec, CounterVecCell, Gauge, GaugeCell, Histogram, HistogramCell, Registry,
};
use deeperhub_protocol::message::ServerMessage;

/// Labels of received messages: `Command::TYPES`, then `binary`, then `invalid` for messages that
/// cannot be parsed or exceed a rate limit.
pub(crate) const RECEIVED_TYPES: &[&str] =
    &["echo", "subscribe", "unsubscribe", "publish", "authenticate", "ping", "history", "binary", "invalid"];
pub(crate) const RECEIVED_BINARY_INDEX: usize = 7;
pub(crate) const RECEIVED_INVALID_INDEX: usize = 8;

/// Labels of sent messages: `ServerMessage::TYPES`, then `raw` for messages of backends.
const SENT_TYPES: &[&str] = &{
    let mut all = ["raw"; ServerMessage::TYPES.len() + 1];
    let (protocol_types, _) = all.split_at_mut(ServerMessage::TYPES.len());
    protocol_types.copy_from_slice(ServerMessage::TYPES);
    all
};

/// Index into [`SENT_TYPES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SentType {
    Welcome,
    Echo,
    Subscribed,
    Unsubscribed,
    Published,
    Authenticated,
    Pong,
    Message,
    Goodbye,
    Error,
    /// Types of topics with history are between.
    Raw = SENT_TYPES.len() as isize - 1,
}

impl SentType {
    pub(crate) const fn name(self) -> &'static str {
        SENT_TYPES[self as usize]
    }
}

/// Error codes, in the order of `ErrorCode::ALL`.
const ERROR_CODES: &[&str] = &[
    "invalid_json",
    "invalid_message",
    "unknown_type",
    "invalid_topic",
    "unauthorized",
    "forbidden",
    "token_invalid",
    "token_expired",
    "rate_limited",
    "too_many_subscriptions",
    "too_many_topics",
    "unavailable",
    "internal",
];

/// Labels of a connection's limits.
const LIMIT_LABELS: &[&str] =
    &["messages", "bytes", "tokens", "subscriptions", "control", "json_depth", "first_burst"];

/// Index into [`LIMIT_LABELS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Messages,
    Bytes,
    Tokens,
    Subscriptions,
    /// Pings and pongs.
    Control,
    JsonDepth,
    /// First burst of a new connection, from its address's pool.
    FirstBurst,
}

/// Labels of the ways in which connections end.
const CLOSE_LABELS: &[&str] = &[
    "client", "lost", "1001", "1002", "1007", "1008", "1009", "1011", "1013", "4001", "4003", "4200", "other",
];

/// Instruments of a node.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Open connections: after their handshake, until their close begins.
    pub(crate) active: Gauge,
    /// Closed connections, by the close code of the server, or by `client` or `lost`.
    pub(crate) closed: CounterVec,
    /// Received messages, by type.
    pub(crate) received: CounterVec,
    /// Replies and deliveries that were queued, by type.
    pub(crate) sent: CounterVec,
    /// Sizes of received messages without frame headers.
    size: Histogram,
    /// Error replies, by code.
    pub(crate) errors: CounterVec,
    /// Messages over a limit of their connection, by limit.
    limited: CounterVec,
    /// Subscriptions of all connections.
    pub(crate) subscriptions: Gauge,
    /// Time from a publish to the end of the write to each subscriber's socket, counted once per
    /// delivery. The publish of a client starts with the round in which its worker read it. Bytes
    /// that a full socket does not take at once count as written.
    pub(crate) latency: Histogram,
    /// Time from a publish to its first delivery on a worker, counted once per worker.
    queue_wait: Histogram,
}

impl Metrics {
    pub(crate) fn new(cells: &Cells, max_message_bytes: usize) -> Self {
        Self {
            active: Gauge::new(cells),
            closed: CounterVec::new(cells, "by", CLOSE_LABELS),
            received: CounterVec::new(cells, "type", RECEIVED_TYPES),
            sent: CounterVec::new(cells, "type", SENT_TYPES),
            size: Histogram::new(cells, Bounds::bytes(max_message_bytes as u64)),
            errors: CounterVec::new(cells, "code", ERROR_CODES),
            limited: CounterVec::new(cells, "limit", LIMIT_LABELS),
            subscriptions: Gauge::new(cells),
            latency: Histogram::new(cells, latency_bounds()),
            queue_wait: Histogram::new(cells, latency_bounds()),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        let none = Unit::None;
        registry.register("deeperhub_connections_active", "Open connections", none, &self.active)?;
        registry.register("deeperhub_connections_closed_total", "Closed connections", none, &self.closed)?;
        registry.register(
            "deeperhub_messages_received_total",
            "Messages received from clients",
            none,
            &self.received,
        )?;
        registry.register(
            "deeperhub_messages_sent_total",
            "Replies and deliveries queued for clients",
            none,
            &self.sent,
        )?;
        registry.register(
            "deeperhub_message_size_bytes",
            "Sizes of received messages",
            Unit::Bytes,
            &self.size,
        )?;
        registry.register("deeperhub_errors_total", "Error replies", none, &self.errors)?;
        registry.register(
            "deeperhub_messages_limited_total",
            "Messages over a limit, rejected or only observed",
            none,
            &self.limited,
        )?;
        registry.register(
            "deeperhub_subscriptions",
            "Subscriptions of all connections",
            none,
            &self.subscriptions,
        )?;
        registry.register(
            "deeperhub_publish_latency_seconds",
            "Time from a publish to the write to a subscriber, per delivery",
            Unit::Seconds,
            &self.latency,
        )?;
        registry.register(
            "deeperhub_queue_wait_seconds",
            "Time from a publish to its first delivery on a worker",
            Unit::Seconds,
            &self.queue_wait,
        )
    }

    /// Returns the number of open connections.
    pub(crate) fn connections(&self) -> u64 {
        u64::try_from(self.active.value()).unwrap_or_default()
    }

    /// Returns the cells of a worker.
    ///
    /// # Errors
    ///
    /// Returns [`CellError`] if there is no such worker, or if its cells are still in use.
    pub(crate) fn worker(&self, worker: usize) -> Result<WorkerMetrics, CellError> {
        Ok(WorkerMetrics {
            active: self.active.cell(worker)?,
            closed: self.closed.cell(worker)?,
            received: self.received.cell(worker)?,
            sent: self.sent.cell(worker)?,
            size: self.size.cell(worker)?,
            errors: self.errors.cell(worker)?,
            limited: self.limited.cell(worker)?,
            subscriptions: self.subscriptions.cell(worker)?,
            latency: self.latency.cell(worker)?,
            queue_wait: self.queue_wait.cell(worker)?,
        })
    }
}

/// Returns bounds that resolve the 99.9th percentile.
fn latency_bounds() -> Bounds {
    Bounds::fine_seconds(Duration::from_micros(10), Duration::from_secs(10))
}

/// Metric cells of one worker.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    pub(crate) active: GaugeCell,
    closed: CounterVecCell,
    pub(crate) received: CounterVecCell,
    sent: CounterVecCell,
    pub(crate) size: HistogramCell,
    pub(crate) errors: CounterVecCell,
    limited: CounterVecCell,
    pub(crate) subscriptions: GaugeCell,
    pub(crate) latency: HistogramCell,
    pub(crate) queue_wait: HistogramCell,
}

impl WorkerMetrics {
    pub(crate) fn count_sent(&mut self, sent_type: SentType, count: u64) {
        self.sent.add(sent_type as usize, count);
    }

    pub(crate) fn count_limited(&mut self, limit: Limit) {
        self.limited.inc(limit as usize);
    }

    pub(crate) fn count_closed(&mut self, label: &str) {
        let index = CLOSE_LABELS.iter().position(|&known| known == label).unwrap_or(CLOSE_LABELS.len() - 1);
        self.closed.inc(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_protocol::ErrorCode;
    use deeperhub_protocol::message::Command;

    #[test]
    fn tables_follow_the_protocol() {
        assert_eq!(&RECEIVED_TYPES[..RECEIVED_BINARY_INDEX], Command::TYPES);
        assert_eq!(SENT_TYPES, [ServerMessage::TYPES, &["raw"]].concat());
        assert_eq!(LIMIT_LABELS[Limit::Messages as usize], "messages");
        assert_eq!(LIMIT_LABELS[Limit::Bytes as usize], "bytes");
        assert_eq!(LIMIT_LABELS[Limit::Tokens as usize], "tokens");
        assert_eq!(LIMIT_LABELS[Limit::Subscriptions as usize], "subscriptions");
        assert_eq!(LIMIT_LABELS[Limit::Control as usize], "control");
        assert_eq!(LIMIT_LABELS[Limit::JsonDepth as usize], "json_depth");
        assert_eq!(LIMIT_LABELS[Limit::FirstBurst as usize], "first_burst");
        let errors: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(errors, ERROR_CODES);
        assert_eq!(
            (SentType::Pong.name(), SentType::Raw.name(), SentType::Published.name()),
            ("pong", "raw", "published")
        );
    }
}
