//! Metrics of a listener.

use std::time::Duration;

use deeperhub_metrics::{
    Bounds, CellError, Cells, Counter, CounterCell, Gauge, Histogram, RegisterError, Registry, SharedCounter,
    SharedCounterVec, SharedHistogram, Unit,
};

use deeperhub_protocol::frame::FrameError;
#[cfg(feature = "tls")]
use deeperhub_security::tls::ClientAuthFault;

use crate::admission::AdmissionError;
use crate::deflate::{DeflateCodec, Sizes};
use crate::transport::TlsHandshakeCounts;

/// Names of [`HandshakeOutcome`], in its order.
const OUTCOMES: &[&str] = &["accepted", "refused", "timed_out", "lost", "tls_failed", "proxy_failed"];

/// Answers to probes: index 0 for 503, index 1 for 200.
const PROBE_ANSWERS: &[&str] = &["unready", "ready"];

/// Names of the limits on new connections, in the order of [`AdmissionError`].
const CONNECTION_LIMITS: &[&str] = &["max_connections", "max_connections_per_ip", "connection_rate_per_ip"];

/// Names of [`HandshakeLimit`], in its order.
const HANDSHAKE_LIMITS: &[&str] = &["head_bytes", "time", "head_lines"];

/// Limit that ended a handshake.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HandshakeLimit {
    HeadBytes,
    Time,
    HeadLines,
}

/// Names of the size limits of a message, in the order of [`Metrics::record_too_big`].
const MESSAGE_LIMITS: &[&str] = &["bytes", "fragments"];

/// Names of the results of TLS handshakes, in the order of [`Metrics::record_tls_handshakes`].
const TLS_RESULTS: &[&str] = &["full", "resumed", "failed"];

/// Outcome of a handshake.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HandshakeOutcome {
    Accepted,
    Refused,
    TimedOut,
    Lost,
    TlsFailed,
    ProxyFailed,
}

/// Metrics of a listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Handshakes by outcome. A connection that the acceptor refused counts as `refused` once its
    /// handshake is answered.
    pub handshakes: SharedCounterVec,
    /// Load balancer probes by answer. Probes do not count as handshakes.
    pub probes: SharedCounterVec,
    /// TLS handshakes by result. Handshakes that the client broke off are not counted.
    pub tls_handshakes: SharedCounterVec,
    /// Clients refused in the TLS handshake because of their certificate, by reason. Each one also
    /// counts as a failed TLS handshake.
    #[cfg(feature = "tls")]
    pub tls_client_auth_refused: SharedCounterVec,
    /// Connections over a limit on connections, by limit. They are refused, except those over a
    /// limit per address in observe mode ([`Config::limit_mode`](crate::Config::limit_mode)).
    pub limited: SharedCounterVec,
    /// Handshakes ended by a limit on time or on the size of the head, by limit.
    pub handshakes_limited: SharedCounterVec,
    /// Messages over a size limit, by limit. Each one closed its connection with 1009.
    pub messages_too_big: SharedCounterVec,
    /// Errors of `accept`, such as a lack of file descriptors or aborted connections.
    pub accept_errors: SharedCounter,
    /// Connections dropped without an answer because too many others were being refused already.
    pub accept_drops: SharedCounter,
    /// Pauses of accepting because every worker's queue of new connections was full.
    pub accept_pauses: SharedCounter,
    /// New connections moved from a worker that hangs or panicked to another worker.
    pub arrivals_moved: SharedCounter,
    /// Connections closed with 1013: their queue passed the limit, or memory was short.
    pub slow_consumers: SharedCounter,
    /// Connections refused because too little memory was left.
    pub memory_refusals: SharedCounter,
    /// Connections closed because too little memory was left and they held the most. Open ones are
    /// closed with 1013; handshakes are refused or dropped.
    pub memory_sheds: SharedCounter,
    /// Connections closed with 4200: no sign of life after a ping.
    pub pong_timeouts: SharedCounter,
    /// Panics of sessions and of handshake decisions. Each one ended only its own connection.
    pub session_panics: SharedCounter,
    /// Workers that panicked and were replaced.
    pub worker_restarts: SharedCounter,
    /// Restarts of the acceptor thread after a panic.
    pub acceptor_restarts: SharedCounter,
    /// Workers that use io_uring to read and write many connections per system call.
    pub io_uring_workers: Gauge,
    /// Bytes queued to be sent to clients, as of each worker's last check of deadlines.
    pub queue_bytes: Gauge,
    /// Bytes read from sockets, WebSocket handshakes included. With TLS, decrypted bytes count.
    pub received_bytes: Counter,
    /// Bytes written to sockets, WebSocket handshakes included. With TLS, bytes before encryption
    /// count.
    pub sent_bytes: Counter,
    /// Turns of connections that ended with bytes read but not handled. The client sent more than
    /// the connection's share of a round, or its session paused reading.
    pub turns_deferred: Counter,
    /// Messages compressed. A message with many receivers counts once for each set of compression
    /// parameters.
    pub compressions: Counter,
    /// Bytes before compression of the frames sent compressed, counted for each receiver.
    pub compression_input_bytes: Counter,
    /// Bytes of the same frames after compression.
    pub compression_output_bytes: Counter,
    /// Bytes of compressed messages received, without frame headers.
    pub decompression_input_bytes: Counter,
    /// Bytes of the same messages after decompression.
    pub decompression_output_bytes: Counter,
    /// Time from accepting a connection to its worker taking it.
    pub accept_seconds: SharedHistogram,
    /// Time from accepting a connection to accepting its handshake. Refused handshakes do not
    /// count.
    pub handshake_seconds: SharedHistogram,
    /// Duration of each round of a worker, from its start to its last write.
    pub round_seconds: Histogram,
}

/// A worker's cells of the compression metrics.
pub(crate) struct CompressionCells {
    compressions: CounterCell,
    /// Input and output bytes of compression.
    compression: [CounterCell; 2],
    /// Input and output bytes of decompression.
    decompression: [CounterCell; 2],
}

impl CompressionCells {
    /// Adds the codec's counts since the last call.
    pub(crate) fn add_counts(&mut self, codec: &mut DeflateCodec) {
        // Called every round, so rounds without compression only compare.
        if codec.decompressor.sizes.input > 0 {
            add_sizes(&mut self.decompression, &mut codec.decompressor.sizes);
        }
        let messages = codec.compressor.take_message_count();
        if messages > 0 {
            self.compressions.add(messages);
        }
        if codec.compressor.sizes.input > 0 {
            add_sizes(&mut self.compression, &mut codec.compressor.sizes);
        }
    }
}

/// Adds the sizes to two cells and resets them.
fn add_sizes([input, output]: &mut [CounterCell; 2], sizes: &mut Sizes) {
    let sizes = std::mem::take(sizes);
    input.add(sizes.input);
    output.add(sizes.output);
}

impl Metrics {
    /// Creates metrics for as many workers as `cells` has.
    pub fn new(cells: &Cells) -> Self {
        Self {
            handshakes: SharedCounterVec::new("outcome", OUTCOMES),
            probes: SharedCounterVec::new("answer", PROBE_ANSWERS),
            tls_handshakes: SharedCounterVec::new("result", TLS_RESULTS),
            #[cfg(feature = "tls")]
            tls_client_auth_refused: SharedCounterVec::new("reason", ClientAuthFault::NAMES),
            limited: SharedCounterVec::new("limit", CONNECTION_LIMITS),
            handshakes_limited: SharedCounterVec::new("limit", HANDSHAKE_LIMITS),
            messages_too_big: SharedCounterVec::new("limit", MESSAGE_LIMITS),
            accept_errors: SharedCounter::new(),
            accept_drops: SharedCounter::new(),
            accept_pauses: SharedCounter::new(),
            arrivals_moved: SharedCounter::new(),
            slow_consumers: SharedCounter::new(),
            memory_refusals: SharedCounter::new(),
            memory_sheds: SharedCounter::new(),
            pong_timeouts: SharedCounter::new(),
            session_panics: SharedCounter::new(),
            worker_restarts: SharedCounter::new(),
            acceptor_restarts: SharedCounter::new(),
            io_uring_workers: Gauge::new(cells),
            queue_bytes: Gauge::new(cells),
            received_bytes: Counter::new(cells),
            sent_bytes: Counter::new(cells),
            turns_deferred: Counter::new(cells),
            compressions: Counter::new(cells),
            compression_input_bytes: Counter::new(cells),
            compression_output_bytes: Counter::new(cells),
            decompression_input_bytes: Counter::new(cells),
            decompression_output_bytes: Counter::new(cells),
            accept_seconds: SharedHistogram::new(times(Duration::from_secs(10))),
            handshake_seconds: SharedHistogram::new(times(Duration::from_secs(60))),
            round_seconds: Histogram::new(cells, times(Duration::from_secs(1))),
        }
    }

    /// Returns the compression cells of a worker.
    pub(crate) fn compression_cells(&self, worker: usize) -> Result<CompressionCells, CellError> {
        Ok(CompressionCells {
            compressions: self.compressions.cell(worker)?,
            compression: [
                self.compression_input_bytes.cell(worker)?,
                self.compression_output_bytes.cell(worker)?,
            ],
            decompression: [
                self.decompression_input_bytes.cell(worker)?,
                self.decompression_output_bytes.cell(worker)?,
            ],
        })
    }

    /// Registers the metrics under names that begin with `deeperhub_`.
    pub fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        let none = Unit::None;
        registry.register("deeperhub_handshakes_total", "Handshakes by outcome", none, &self.handshakes)?;
        registry.register(
            "deeperhub_probes_total",
            "Load balancer probes of the client port by answer",
            none,
            &self.probes,
        )?;
        registry.register(
            "deeperhub_tls_handshakes_total",
            "TLS handshakes by result",
            none,
            &self.tls_handshakes,
        )?;
        #[cfg(feature = "tls")]
        registry.register(
            "deeperhub_tls_client_auth_refused_total",
            "Clients refused in the TLS handshake because of their certificate, by reason",
            none,
            &self.tls_client_auth_refused,
        )?;
        registry.register(
            "deeperhub_connections_limited_total",
            "Connections over a limit on connections, by limit",
            none,
            &self.limited,
        )?;
        registry.register(
            "deeperhub_handshakes_limited_total",
            "Handshakes ended by a limit on time or head size, by limit",
            none,
            &self.handshakes_limited,
        )?;
        registry.register(
            "deeperhub_messages_too_big_total",
            "Messages over a size limit; each closed its connection with 1009",
            none,
            &self.messages_too_big,
        )?;
        registry.register(
            "deeperhub_accept_errors_total",
            "Errors while accepting connections",
            none,
            &self.accept_errors,
        )?;
        registry.register(
            "deeperhub_accept_drops_total",
            "Connections dropped without an answer",
            none,
            &self.accept_drops,
        )?;
        registry.register(
            "deeperhub_accept_pauses_total",
            "Pauses of accepting because all workers were behind",
            none,
            &self.accept_pauses,
        )?;
        registry.register(
            "deeperhub_arrivals_moved_total",
            "New connections reassigned from a stalled worker",
            none,
            &self.arrivals_moved,
        )?;
        registry.register(
            "deeperhub_slow_consumers_total",
            "Connections closed with 1013: their queue passed the limit, or memory was short",
            none,
            &self.slow_consumers,
        )?;
        registry.register(
            "deeperhub_memory_refusals_total",
            "Connections refused because too little memory was left",
            none,
            &self.memory_refusals,
        )?;
        registry.register(
            "deeperhub_memory_sheds_total",
            "Connections closed because too little memory was left and they held the most",
            none,
            &self.memory_sheds,
        )?;
        registry.register(
            "deeperhub_pong_timeouts_total",
            "Connections closed with 4200: no sign of life after a ping",
            none,
            &self.pong_timeouts,
        )?;
        registry.register(
            "deeperhub_session_panics_total",
            "Panics of sessions and handshake decisions; each ended only its own connection",
            none,
            &self.session_panics,
        )?;
        registry.register(
            "deeperhub_worker_restarts_total",
            "Workers replaced after a panic",
            none,
            &self.worker_restarts,
        )?;
        registry.register(
            "deeperhub_acceptor_restarts_total",
            "Restarts of the acceptor thread after a panic",
            none,
            &self.acceptor_restarts,
        )?;
        registry.register(
            "deeperhub_io_uring_workers",
            "Workers that use io_uring to read and write many connections per system call",
            none,
            &self.io_uring_workers,
        )?;
        registry.register(
            "deeperhub_queue_bytes",
            "Bytes queued to be sent to clients",
            Unit::Bytes,
            &self.queue_bytes,
        )?;
        registry.register(
            "deeperhub_received_bytes_total",
            "Bytes read from sockets",
            Unit::Bytes,
            &self.received_bytes,
        )?;
        registry.register(
            "deeperhub_sent_bytes_total",
            "Bytes written to sockets",
            Unit::Bytes,
            &self.sent_bytes,
        )?;
        registry.register(
            "deeperhub_turns_deferred_total",
            "Connection turns that ended with unhandled input",
            Unit::None,
            &self.turns_deferred,
        )?;
        self.register_compression(registry)?;
        registry.register(
            "deeperhub_accept_seconds",
            "Time from accepting a connection to its worker taking it",
            Unit::Seconds,
            &self.accept_seconds,
        )?;
        registry.register(
            "deeperhub_handshake_seconds",
            "Time from accepting a connection to accepting its handshake",
            Unit::Seconds,
            &self.handshake_seconds,
        )?;
        registry.register(
            "deeperhub_worker_round_seconds",
            "Duration of a worker round",
            Unit::Seconds,
            &self.round_seconds,
        )
    }

    fn register_compression(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        registry.register(
            "deeperhub_compressions_total",
            "Messages compressed; a message with many receivers counts once",
            Unit::None,
            &self.compressions,
        )?;
        registry.register(
            "deeperhub_compression_input_bytes_total",
            "Bytes before compression of frames sent compressed, per receiver",
            Unit::Bytes,
            &self.compression_input_bytes,
        )?;
        registry.register(
            "deeperhub_compression_output_bytes_total",
            "Bytes after compression of frames sent compressed, per receiver",
            Unit::Bytes,
            &self.compression_output_bytes,
        )?;
        registry.register(
            "deeperhub_decompression_input_bytes_total",
            "Bytes of compressed messages received",
            Unit::Bytes,
            &self.decompression_input_bytes,
        )?;
        registry.register(
            "deeperhub_decompression_output_bytes_total",
            "Bytes of received messages after decompression",
            Unit::Bytes,
            &self.decompression_output_bytes,
        )
    }

    /// Counts TLS handshakes that ended.
    pub(crate) fn record_tls_handshakes(&self, ended: TlsHandshakeCounts) {
        for (index, count) in [ended.full, ended.resumed, ended.failed].into_iter().enumerate() {
            // Skip zeros, the common case: all workers share the counter.
            if count > 0 {
                self.tls_handshakes.add(index, count);
            }
        }
        #[cfg(feature = "tls")]
        if ended.failed > 0 {
            for (index, count) in ended.client_auth.into_iter().enumerate().filter(|&(_, count)| count > 0) {
                self.tls_client_auth_refused.add(index, count);
            }
        }
    }

    /// Counts a connection over a limit.
    pub(crate) fn record_limited(&self, limit: AdmissionError) {
        self.limited.inc(match limit {
            AdmissionError::ServerFull => 0,
            AdmissionError::AddressFull => 1,
            AdmissionError::RateLimited(_) => 2,
        });
    }

    /// Counts a frame error if a size limit caused it.
    pub(crate) fn record_too_big(&self, error: &FrameError) {
        match error {
            FrameError::MessageTooBig { .. } => self.messages_too_big.inc(0),
            FrameError::TooManyFragments { .. } => self.messages_too_big.inc(1),
            _ => {}
        }
    }

    /// Counts a handshake that ended.
    pub(crate) fn record_handshake(&self, outcome: HandshakeOutcome) {
        self.handshakes.inc(outcome as usize);
    }
}

/// Returns histogram bounds from 10 microseconds to `max`.
fn times(max: Duration) -> Bounds {
    Bounds::seconds(Duration::from_micros(10), max)
}
