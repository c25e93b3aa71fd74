//! Metrics of a node, and the types with which they are read.

pub use deeperhub_metrics::{
    CellError, Exemplar, Format, HistogramSnapshot, LabelPair, MetricData, MetricSnapshot, Number,
    RegisterError, Unit,
};

use std::time::Duration;

use deeperhub_history::EvictionReason;
use deeperhub_metrics::{Bounds, Counter, CounterVec, Gauge, Histogram, Label, labels, metrics};
use deeperhub_protocol::message::Command;
use deeperhub_protocol::{CloseCode, ErrorCode, GapReason, NotRecovered};

use crate::stream_counts::StreamCounts;

labels! {
    /// Type of a received message: the types of `Command`, then two more.
    pub(crate) enum ReceivedType("type") {
        Echo = "echo",
        Subscribe = "subscribe",
        Unsubscribe = "unsubscribe",
        Publish = "publish",
        Authenticate = "authenticate",
        Ping = "ping",
        History = "history",
        Binary = "binary",
        /// The message cannot be parsed, or exceeds a rate limit.
        Invalid = "invalid",
    }

    /// Type of a sent message: the types of `ServerMessage`, then one more.
    pub(crate) enum SentType("type") {
        Welcome = "welcome",
        Echo = "echo",
        Subscribed = "subscribed",
        Unsubscribed = "unsubscribed",
        Published = "published",
        Authenticated = "authenticated",
        Pong = "pong",
        Message = "message",
        Goodbye = "goodbye",
        Error = "error",
        Gap = "gap",
        Position = "position",
        History = "history",
        /// The message of a backend.
        Raw = "raw",
    }

    /// Limit of a connection.
    pub(crate) enum Limit("limit") {
        Messages = "messages",
        Bytes = "bytes",
        Tokens = "tokens",
        Subscriptions = "subscriptions",
        /// Pings and pongs.
        Control = "control",
        JsonDepth = "json_depth",
        /// First burst of a new connection, from its address's pool.
        FirstBurst = "first_burst",
    }

    /// Result of a subscribe with a position.
    pub(crate) enum RecoveryResult("result") {
        Recovered = "recovered",
        Epoch = "epoch",
        Ahead = "ahead",
        Trimmed = "trimmed",
        NoHistory = "no_history",
        Pattern = "pattern",
        Overlap = "overlap",
    }

    /// Cause of a connection's end: the client, a loss, or the server with a close code.
    pub(crate) enum ClosedBy("by") {
        Client = "client",
        Lost = "lost",
        GoingAway = "1001",
        ProtocolError = "1002",
        InvalidUtf8 = "1007",
        PolicyViolation = "1008",
        MessageTooBig = "1009",
        InternalError = "1011",
        SlowConsumer = "1013",
        TokenExpired = "4001",
        Disconnected = "4003",
        PongTimeout = "4200",
        Other = "other",
    }
}

impl From<&Command<'_>> for ReceivedType {
    fn from(command: &Command<'_>) -> Self {
        match command {
            Command::Echo { .. } => Self::Echo,
            Command::Subscribe(_) | Command::SubscribeList { .. } => Self::Subscribe,
            Command::Unsubscribe { .. } => Self::Unsubscribe,
            Command::Publish { .. } => Self::Publish,
            Command::Authenticate { .. } => Self::Authenticate,
            Command::Ping => Self::Ping,
            Command::History(_) => Self::History,
        }
    }
}

impl SentType {
    pub(crate) fn name(self) -> &'static str {
        self.value()
    }
}

/// Implements [`Label`] for a newtype around an enum with `ALL`, in the order of its variants, and
/// `as_str`.
macro_rules! label_of {
    ($label:ident, $value:ident, $name:literal) => {
        impl Label for $label {
            const NAME: &'static str = $name;
            const VALUES: &'static [&'static str] = &{
                let mut values = [""; $value::ALL.len()];
                let mut index = 0;
                while index < values.len() {
                    values[index] = $value::ALL[index].as_str();
                    index += 1;
                }
                values
            };

            fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

/// Code of an error reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorLabel(pub(crate) ErrorCode);

label_of!(ErrorLabel, ErrorCode, "code");

impl From<Result<(), NotRecovered>> for RecoveryResult {
    fn from(recovery: Result<(), NotRecovered>) -> Self {
        match recovery {
            Ok(()) => Self::Recovered,
            Err(NotRecovered::Epoch) => Self::Epoch,
            Err(NotRecovered::Ahead) => Self::Ahead,
            Err(NotRecovered::Trimmed) => Self::Trimmed,
            Err(NotRecovered::Pattern) => Self::Pattern,
            Err(NotRecovered::Overlap) => Self::Overlap,
            Err(_) => Self::NoHistory,
        }
    }
}

/// Reason for a gap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GapLabel(pub(crate) GapReason);

label_of!(GapLabel, GapReason, "reason");

/// Reason for which a message left a history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EvictionLabel(pub(crate) EvictionReason);

label_of!(EvictionLabel, EvictionReason, "reason");

impl From<CloseCode> for ClosedBy {
    fn from(code: CloseCode) -> Self {
        match code {
            CloseCode::GoingAway => Self::GoingAway,
            CloseCode::ProtocolError => Self::ProtocolError,
            CloseCode::InvalidUtf8 => Self::InvalidUtf8,
            CloseCode::PolicyViolation => Self::PolicyViolation,
            CloseCode::MessageTooBig => Self::MessageTooBig,
            CloseCode::InternalError => Self::InternalError,
            CloseCode::SlowConsumer => Self::SlowConsumer,
            CloseCode::TokenExpired => Self::TokenExpired,
            CloseCode::Disconnected => Self::Disconnected,
            CloseCode::PongTimeout => Self::PongTimeout,
            _ => Self::Other,
        }
    }
}

metrics! {
    /// Metrics of a node.
    pub(crate) struct Metrics(max_message_bytes: usize) {
        /// Open connections.
        // After their handshake, until their close begins.
        pub(crate) active: Gauge = "deeperhub_connections_active", per worker;
        /// Closed connections.
        pub(crate) closed: CounterVec<ClosedBy> = "deeperhub_connections_closed_total", per worker;
        /// Messages received from clients.
        pub(crate) received: CounterVec<ReceivedType> = "deeperhub_messages_received_total", per worker;
        /// Replies and deliveries queued for clients.
        pub(crate) sent: CounterVec<SentType> = "deeperhub_messages_sent_total", per worker;
        /// Sizes of received messages.
        // Without frame headers.
        pub(crate) size: Histogram = "deeperhub_message_size_bytes", per worker,
            bounds: Bounds::bytes(max_message_bytes as u64);
        /// Error replies.
        pub(crate) errors: CounterVec<ErrorLabel> = "deeperhub_errors_total", per worker;
        /// Messages over a limit, rejected or only observed.
        limited: CounterVec<Limit> = "deeperhub_messages_limited_total", per worker;
        /// Subscriptions of all connections.
        pub(crate) subscriptions: Gauge = "deeperhub_subscriptions", per worker;
        /// Subscribes with a position, by result.
        pub(crate) recoveries: CounterVec<RecoveryResult> = "deeperhub_recoveries_total", per worker;
        /// Messages sent from the history to subscribers that were behind.
        pub(crate) recovered: Counter = "deeperhub_recovered_messages_total", per worker;
        /// Subscriptions that are behind the newest message.
        pub(crate) behind: Gauge = "deeperhub_subscriptions_behind", per worker;
        /// Subscriptions that fell behind because the client read too slowly.
        pub(crate) suspensions: Counter = "deeperhub_subscriptions_suspended_total", per worker;
        /// Gaps told to subscribers, by reason.
        pub(crate) gaps: CounterVec<GapLabel> = "deeperhub_gaps_total", per worker;
        /// Time from a publish to the write to a subscriber, per delivery.
        // To the end of the write to the subscriber's socket. The publish of a client starts with
        // the round in which its worker read it. Bytes that a full socket does not take at once
        // count as written.
        pub(crate) latency: Histogram = "deeperhub_publish_latency_seconds", per worker,
            bounds: latency_bounds();
        /// Time from a publish to its first delivery on a worker.
        // Counted once per worker.
        pub(crate) queue_wait: Histogram = "deeperhub_queue_wait_seconds", per worker,
            bounds: latency_bounds();
    }

    /// Metric cells of one worker.
    pub(crate) struct WorkerMetrics;
}

/// Returns bounds that resolve the 99.9th percentile.
fn latency_bounds() -> Bounds {
    Bounds::fine_seconds(Duration::from_micros(10), Duration::from_secs(10))
}

metrics! {
    /// Metrics of the streams of all topics.
    pub(crate) struct HistoryMetrics {
        /// Messages that left the history, by reason.
        pub(crate) evicted: CounterVec<EvictionLabel> = "deeperhub_history_evicted_total";
    }
}

labels! {
    /// Result of a message for the store.
    pub(crate) enum AppendLabel("result") {
        Ok = "ok",
        /// Too many bytes wait for the store.
        QueueFull = "queue_full",
        Unavailable = "unavailable",
        /// The cluster's store refused the message; for example, its memory is full.
        Refused = "refused",
        /// The message exceeds what the cluster's broker accepts.
        TooLarge = "too_large",
    }

    /// Result of a read from the store.
    pub(crate) enum ReadLabel("result") {
        Ok = "ok",
        Failed = "failed",
    }
}

metrics! {
    /// Metrics of the store of kept messages, on disk or in the cluster.
    pub(crate) struct StoreMetrics {
        /// Messages for the history store, by result.
        pub(crate) appends: CounterVec<AppendLabel> = "deeperhub_store_appends_total";
        /// Reads of messages that are not in memory, by result.
        pub(crate) reads: CounterVec<ReadLabel> = "deeperhub_store_reads_total";
        /// Time from a publish to its answer, if the answer waits for the history store.
        pub(crate) append_time: Histogram = "deeperhub_store_append_seconds", bounds: latency_bounds();
    }
}

metrics! {
    /// Metrics of the mirrors of streams that the cluster keeps.
    pub(crate) struct MirrorMetrics {
        /// Holes in the streams of the cluster's store that this node found and read again.
        pub(crate) holes: Counter = "deeperhub_mirror_holes_total";
        /// Messages that this node had missed, read from the cluster's store and delivered late.
        pub(crate) healed: Counter = "deeperhub_mirror_healed_messages_total";
        /// Messages that this node had missed and the cluster's store no longer had.
        // Subscribers are told so by gaps.
        pub(crate) lost: Counter = "deeperhub_mirror_lost_messages_total";
        /// Followed topics whose stream began anew, which subscribers are told.
        // Because the store lost it, or because the history was emptied.
        pub(crate) new_epochs: Counter = "deeperhub_mirror_new_epochs_total";
        /// Comparisons of followed topics with their newest position in the cluster's store.
        pub(crate) checks: Counter = "deeperhub_mirror_checks_total";
        /// Topics that this node follows in the cluster's store and has all kept messages of.
        pub(crate) warm: Gauge = "deeperhub_mirrors_warm";
        /// Connections that wait until topics were read from the cluster's store.
        pub(crate) parked: Gauge = "deeperhub_connections_parked";
        /// Publishes that wait until the cluster's store has appended them.
        pub(crate) waiting_appends: Gauge = "deeperhub_store_appends_waiting";
    }
}

metrics! {
    /// Metrics of the canary's probes of the workers. Missed probes that return later are among the
    /// round-trip times.
    pub(crate) struct CanaryMetrics {
        /// Round-trip times of probes through router and worker.
        pub(crate) round_trips: Histogram = "deeperhub_canary_round_trip_seconds", bounds: probe_bounds();
        /// Probes that did not return in time.
        pub(crate) missed: Counter = "deeperhub_canary_missed_total";
        /// Restarts of the canary thread after a panic.
        pub(crate) restarts: Counter = "deeperhub_canary_restarts_total";
    }
}

metrics! {
    /// Metrics of the canary's probes through the broker.
    pub(crate) struct ClusterCanaryMetrics {
        /// Round-trip times of probes through broker, router and worker.
        pub(crate) round_trips: Histogram = "deeperhub_canary_cluster_round_trip_seconds",
            bounds: probe_bounds();
        /// Probes through the broker that did not return in time.
        pub(crate) missed: Counter = "deeperhub_canary_cluster_missed_total";
    }
}

metrics! {
    /// Metrics of the canary's probes of the cluster's store.
    pub(crate) struct StoreCanaryMetrics {
        /// Round-trip times of probes that the cluster's store appended, sent and gave back.
        pub(crate) round_trips: Histogram = "deeperhub_canary_store_round_trip_seconds",
            bounds: probe_bounds();
        /// Probes of the cluster's store that did not return in time.
        pub(crate) missed: Counter = "deeperhub_canary_store_missed_total";
    }
}

fn probe_bounds() -> Bounds {
    Bounds::seconds(Duration::from_micros(10), Duration::from_secs(60))
}

/// One unit of a gauge, until it is dropped.
#[derive(Debug)]
pub(crate) struct GaugeUnit(Gauge);

impl GaugeUnit {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeUnit {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Returns the number of open connections.
    pub(crate) fn connections(&self) -> u64 {
        u64::try_from(self.active.value()).unwrap_or_default()
    }
}

impl WorkerMetrics {
    pub(crate) fn count_sent(&mut self, sent_type: SentType, count: u64) {
        self.sent.add(sent_type, count);
    }

    /// Counts frames about streams that were sent.
    pub(crate) fn count_streams(&mut self, counts: StreamCounts) {
        let StreamCounts { messages, positions, gaps } = counts;
        let of_messages = [(SentType::Message, messages), (SentType::Position, positions)];
        for (sent_type, count) in of_messages.into_iter().filter(|(_, count)| *count > 0) {
            self.count_sent(sent_type, count);
        }
        for (reason, count) in GapReason::ALL.iter().zip(gaps).filter(|(_, count)| *count > 0) {
            self.gaps.add(GapLabel(*reason), count);
            self.count_sent(SentType::Gap, count);
        }
    }

    pub(crate) fn count_limited(&mut self, limit: Limit) {
        self.limited.inc(limit);
    }

    pub(crate) fn count_closed(&mut self, by: ClosedBy) {
        self.closed.inc(by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_protocol::message::ServerMessage;

    #[test]
    fn labels_follow_the_protocol() {
        assert_eq!(ReceivedType::VALUES, [Command::TYPES, &["binary", "invalid"]].concat());
        assert_eq!(SentType::VALUES, [ServerMessage::TYPES, &["raw"]].concat());
        for &code in CloseCode::ALL {
            let by = ClosedBy::from(code);
            assert_eq!(by == ClosedBy::Other, code == CloseCode::Normal);
            assert!(by == ClosedBy::Other || by.value() == code.as_u16().to_string(), "{code:?}");
        }
    }
}
