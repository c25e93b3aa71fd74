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
use crate::deflate::{Coders, Sizes};
use crate::transport::TlsHandshakeCounts;

/// How handshakes end, in the order of [`Metrics::handshakes`].
const OUTCOMES: &[&str] = &["accepted", "refused", "timed_out", "lost", "tls_failed", "proxy_failed"];

/// Answers to probes, in the order of [`Metrics::probes`].
const ANSWERS: &[&str] = &["unready", "ready"];

/// Limits that new connections meet, in the order of [`Metrics::limited`].
const LIMITS: &[&str] = &["max_connections", "max_connections_per_ip", "connection_rate_per_ip"];

/// Limits that end handshakes, in the order of [`HandshakeLimit`].
const HANDSHAKE_LIMITS: &[&str] = &["head_bytes", "time", "head_lines"];

/// Indices into [`HANDSHAKE_LIMITS`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum HandshakeLimit {
    HeadBytes,
    Time,
    HeadLines,
}

/// Limits on the size of a message, in the order of [`Metrics::too_big`].
const SIZES: &[&str] = &["bytes", "fragments"];

/// How TLS handshakes end, in the order of [`Metrics::tls_handshakes`].
const TLS_RESULTS: &[&str] = &["full", "resumed", "failed"];

/// Indices into [`OUTCOMES`].
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
    /// Handshakes by outcome. Refusals before the request was read are `refused`.
    pub handshakes: SharedCounterVec,
    /// Load balancer probes by answer. They are not handshakes.
    pub probes: SharedCounterVec,
    /// TLS handshakes by result. Clients that went away during theirs are not counted.
    pub tls_handshakes: SharedCounterVec,
    /// Clients refused in the TLS handshake for their certificate, by reason. Each is a failed TLS
    /// handshake too.
    #[cfg(feature = "tls")]
    pub tls_client_auth_refused: SharedCounterVec,
    /// Connections refused by a limit, by which; they are among the refused handshakes too, once they are told.
    pub limited: SharedCounterVec,
    /// Handshakes ended by a limit of their own, by which.
    pub handshakes_limited: SharedCounterVec,
    /// Messages over a limit of size, by which; each closed its connection with 1009.
    pub messages_too_big: SharedCounterVec,
    /// Errors of `accept` (no descriptors, aborted connections).
    pub accept_errors: SharedCounter,
    /// Connections that were dropped unanswered because too many were being refused already.
    pub accept_drops: SharedCounter,
    /// Pauses of accepting because every worker's queue of new connections was full.
    pub accept_pauses: SharedCounter,
    /// New connections taken back from a stalled or dead worker and given to another.
    pub arrivals_moved: SharedCounter,
    /// Connections closed with 1013 because their queue passed the limit.
    pub slow_consumers: SharedCounter,
    /// Connections refused because too little memory was left.
    pub memory_refusals: SharedCounter,
    /// Connections closed with 1013 because too little memory was left and they had the most bytes waiting.
    pub memory_sheds: SharedCounter,
    /// Connections closed with 4200.
    pub pong_timeouts: SharedCounter,
    /// Panics of sessions; each closed its own connection with 1011.
    pub session_panics: SharedCounter,
    /// Workers that died and were replaced.
    pub worker_restarts: SharedCounter,
    /// Restarts of the acceptor thread after a panic.
    pub acceptor_restarts: SharedCounter,
    /// Workers that write many connections per system call.
    pub io_uring_workers: Gauge,
    /// Bytes that wait in queues to be sent, as of each worker's last look.
    pub queue_bytes: Gauge,
    /// Bytes read from sockets, handshakes included; of TLS what is inside.
    pub received_bytes: Counter,
    /// Bytes written to sockets, handshakes included; of TLS what is inside.
    pub sent_bytes: Counter,
    /// Turns that ended with bytes read but not handled: the connection sent more than its share of
    /// a round.
    pub turns_deferred: Counter,
    /// Messages compressed. One that many clients get counts once, or at most once for each of its forms.
    pub compressions: Counter,
    /// Bytes before compression of frames sent compressed, per receiver.
    pub compression_input_bytes: Counter,
    /// Bytes of the same frames after compression.
    pub compression_output_bytes: Counter,
    /// Bytes of compressed messages received, without frame headers.
    pub decompression_input_bytes: Counter,
    /// Bytes of the same messages after decompression.
    pub decompression_output_bytes: Counter,
    /// Time from accepting a connection to its worker taking it.
    pub accept_seconds: SharedHistogram,
    /// Time from accepting a connection to accepting its handshake. Refused ones are not counted.
    pub handshake_seconds: SharedHistogram,
    /// Time of each round of a worker, from its wake-up to the last write.
    pub round_seconds: Histogram,
}

/// A worker's part of what is counted about compression.
pub(crate) struct CoderCells {
    compressions: CounterCell,
    compression: [CounterCell; 2],
    decompression: [CounterCell; 2],
}

impl CoderCells {
    /// Counts what was done since the last call.
    pub(crate) fn take(&mut self, coders: &mut Coders) {
        // A worker without such connections has nothing to count: two comparisons.
        if coders.incoming.sizes.input > 0 {
            add(&mut self.decompression, &mut coders.incoming.sizes);
        }
        let runs = coders.outgoing.take_message_count();
        if runs > 0 {
            self.compressions.add(runs);
        }
        if coders.outgoing.sizes.input > 0 {
            add(&mut self.compression, &mut coders.outgoing.sizes);
        }
    }
}

fn add([input, output]: &mut [CounterCell; 2], sizes: &mut Sizes) {
    let sizes = std::mem::take(sizes);
    input.add(sizes.input);
    output.add(sizes.output);
}

impl Metrics {
    /// Creates metrics for as many workers as `cells` has.
    pub fn new(cells: &Cells) -> Self {
        Self {
            handshakes: SharedCounterVec::new("outcome", OUTCOMES),
            probes: SharedCounterVec::new("answer", ANSWERS),
            tls_handshakes: SharedCounterVec::new("result", TLS_RESULTS),
            #[cfg(feature = "tls")]
            tls_client_auth_refused: SharedCounterVec::new("reason", ClientAuthFault::NAMES),
            limited: SharedCounterVec::new("limit", LIMITS),
            handshakes_limited: SharedCounterVec::new("limit", HANDSHAKE_LIMITS),
            messages_too_big: SharedCounterVec::new("limit", SIZES),
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

    pub(crate) fn coders(&self, worker: usize) -> Result<CoderCells, CellError> {
        Ok(CoderCells {
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
            "Clients refused in the TLS handshake for their certificate, by reason",
            none,
            &self.tls_client_auth_refused,
        )?;
        registry.register(
            "deeperhub_connections_limited_total",
            "Connections refused, by limit",
            none,
            &self.limited,
        )?;
        registry.register(
            "deeperhub_handshakes_limited_total",
            "Handshakes ended by a limit on handshakes",
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
            "Connections closed with 1013 because their queue passed the limit",
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
            "Connections closed with 1013 because too little memory was left",
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
            "Session panics; each closed its connection with 1011",
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
            "Workers that use io_uring to write many connections per system call",
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

    pub(crate) fn tls(&self, ended: TlsHandshakeCounts) {
        for (index, count) in [ended.full, ended.resumed, ended.failed].into_iter().enumerate() {
            // Mostly there were none in a round, and the counter is shared between workers.
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

    pub(crate) fn limited(&self, by: AdmissionError) {
        self.limited.inc(match by {
            AdmissionError::ServerFull => 0,
            AdmissionError::AddressFull => 1,
            AdmissionError::RateLimited(_) => 2,
        });
    }

    /// Counts a frame error if it is about size.
    pub(crate) fn too_big(&self, error: &FrameError) {
        match error {
            FrameError::MessageTooBig { .. } => self.messages_too_big.inc(0),
            FrameError::TooManyFragments { .. } => self.messages_too_big.inc(1),
            _ => {}
        }
    }

    pub(crate) fn handshake(&self, outcome: HandshakeOutcome) {
        self.handshakes.inc(outcome as usize);
    }
}

/// Returns bounds from 10 microseconds to `max`.
fn times(max: Duration) -> Bounds {
    Bounds::seconds(Duration::from_micros(10), max)
}
