//! Metrics of a listener.

use std::time::Duration;

use deeperhub_metrics::{Bounds, Counter, CounterVec, Gauge, Histogram, labels, metrics};
use deeperhub_protocol::frame::FrameError;
#[cfg(feature = "tls")]
use deeperhub_security::tls::ClientAuthFault;

use crate::admission::AdmissionError;
use crate::deflate::DeflateCodec;
use crate::transport::TlsHandshakeCounts;

labels! {
    /// Outcome of a handshake.
    pub enum HandshakeOutcome("outcome") {
        Accepted = "accepted",
        /// A connection that the acceptor refused counts once its handshake is answered.
        Refused = "refused",
        TimedOut = "timed_out",
        Lost = "lost",
        TlsFailed = "tls_failed",
        ProxyFailed = "proxy_failed",
    }

    /// Answer to a load balancer's probe. Probes do not count as handshakes.
    pub enum ProbeAnswer("answer") { Unready = "unready", Ready = "ready" }

    /// Result of a TLS handshake. Handshakes that the client broke off are not counted.
    pub enum TlsResult("result") { Full = "full", Resumed = "resumed", Failed = "failed" }

    /// Limit on new connections.
    pub enum ConnectionLimit("limit") {
        Total = "max_connections",
        PerAddress = "max_connections_per_ip",
        RatePerAddress = "connection_rate_per_ip",
    }

    /// Limit that ended a handshake.
    pub enum HandshakeLimit("limit") { HeadBytes = "head_bytes", Time = "time", HeadLines = "head_lines" }

    /// Limit on the size of a message.
    pub enum MessageLimit("limit") { Bytes = "bytes", Fragments = "fragments" }
}

/// Reason why a client was refused in the TLS handshake because of its certificate.
#[cfg(feature = "tls")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAuthReason(pub ClientAuthFault);

#[cfg(feature = "tls")]
impl deeperhub_metrics::Label for ClientAuthReason {
    const NAME: &'static str = "reason";
    const VALUES: &'static [&'static str] = ClientAuthFault::NAMES;

    fn index(self) -> usize {
        self.0 as usize
    }
}

metrics! {
    /// Metrics of a listener. Cheap to clone.
    pub struct Metrics {
        /// Handshakes by outcome.
        pub handshakes: CounterVec<HandshakeOutcome> = "deeperhub_handshakes_total";
        /// Load balancer probes of the client port by answer.
        pub probes: CounterVec<ProbeAnswer> = "deeperhub_probes_total";
        /// TLS handshakes by result.
        pub tls_handshakes: CounterVec<TlsResult> = "deeperhub_tls_handshakes_total";
        /// Clients refused in the TLS handshake because of their certificate, by reason.
        // Each one also counts as a failed TLS handshake.
        #[cfg(feature = "tls")]
        pub tls_client_auth_refused: CounterVec<ClientAuthReason> = "deeperhub_tls_client_auth_refused_total";
        /// Connections over a limit on connections, by limit.
        // They are refused, except those over a limit per address in observe mode (`limit_mode`).
        pub limited: CounterVec<ConnectionLimit> = "deeperhub_connections_limited_total";
        /// Handshakes ended by a limit on time or head size, by limit.
        pub handshakes_limited: CounterVec<HandshakeLimit> = "deeperhub_handshakes_limited_total";
        /// Messages over a size limit; each closed its connection with 1009.
        pub messages_too_big: CounterVec<MessageLimit> = "deeperhub_messages_too_big_total";
        /// Errors while accepting connections.
        // Such as a lack of file descriptors or aborted connections.
        pub accept_errors: Counter = "deeperhub_accept_errors_total";
        /// Connections dropped without an answer.
        // Too many others were being refused already.
        pub accept_drops: Counter = "deeperhub_accept_drops_total";
        /// Pauses of accepting because all workers were behind.
        // That is, every worker's queue of new connections was full.
        pub accept_pauses: Counter = "deeperhub_accept_pauses_total";
        /// New connections reassigned from a stalled worker.
        // A worker that hangs or panicked.
        pub arrivals_moved: Counter = "deeperhub_arrivals_moved_total";
        /// Connections closed with 1013: their queue passed the limit, or memory was short.
        pub slow_consumers: Counter = "deeperhub_slow_consumers_total";
        /// Connections refused because too little memory was left.
        pub memory_refusals: Counter = "deeperhub_memory_refusals_total";
        /// Connections closed because too little memory was left and they held the most.
        // Open ones are closed with 1013; handshakes are refused or dropped.
        pub memory_sheds: Counter = "deeperhub_memory_sheds_total";
        /// Connections closed with 4200: no sign of life after a ping.
        pub pong_timeouts: Counter = "deeperhub_pong_timeouts_total";
        /// Panics of sessions and handshake decisions; each ended only its own connection.
        pub session_panics: Counter = "deeperhub_session_panics_total";
        /// Workers replaced after a panic.
        pub worker_restarts: Counter = "deeperhub_worker_restarts_total";
        /// Restarts of the acceptor thread after a panic.
        pub acceptor_restarts: Counter = "deeperhub_acceptor_restarts_total";
        /// Workers that use io_uring to read and write many connections per system call.
        pub io_uring_workers: Gauge = "deeperhub_io_uring_workers", per worker;
        /// Bytes queued to be sent to clients.
        // As of each worker's last check of deadlines.
        pub queue_bytes: Gauge = "deeperhub_queue_bytes", per worker;
        /// Bytes read from sockets.
        // WebSocket handshakes included. With TLS, decrypted bytes count.
        pub received_bytes: Counter = "deeperhub_received_bytes_total", per worker;
        /// Bytes written to sockets.
        // WebSocket handshakes included. With TLS, bytes before encryption count.
        pub sent_bytes: Counter = "deeperhub_sent_bytes_total", per worker;
        /// Connection turns that ended with unhandled input.
        // The client sent more than its share of a round, or its session paused reading or parked
        // the connection.
        pub turns_deferred: Counter = "deeperhub_turns_deferred_total", per worker;
        /// Messages compressed; a message with many receivers counts once.
        // Once for each set of compression parameters.
        pub compressions: Counter = "deeperhub_compressions_total", per worker;
        /// Bytes before compression of frames sent compressed, per receiver.
        pub compression_input_bytes: Counter = "deeperhub_compression_input_bytes_total", per worker;
        /// Bytes after compression of frames sent compressed, per receiver.
        pub compression_output_bytes: Counter = "deeperhub_compression_output_bytes_total", per worker;
        /// Bytes of compressed messages received.
        // Without frame headers.
        pub decompression_input_bytes: Counter = "deeperhub_decompression_input_bytes_total", per worker;
        /// Bytes of received messages after decompression.
        pub decompression_output_bytes: Counter = "deeperhub_decompression_output_bytes_total", per worker;
        /// Time from accepting a connection to its worker taking it.
        pub accept_seconds: Histogram = "deeperhub_accept_seconds", bounds: times(10);
        /// Time from accepting a connection to accepting its handshake.
        // Refused handshakes do not count.
        pub handshake_seconds: Histogram = "deeperhub_handshake_seconds", bounds: times(60);
        /// Duration of a worker round.
        // From its start to its last write.
        pub round_seconds: Histogram = "deeperhub_worker_round_seconds", per worker, bounds: times(1);
    }

    /// A worker's cells.
    pub(crate) struct WorkerMetrics;
}

/// Returns histogram bounds from 10 microseconds to `max_seconds`.
fn times(max_seconds: u64) -> Bounds {
    Bounds::seconds(Duration::from_micros(10), Duration::from_secs(max_seconds))
}

impl WorkerMetrics {
    /// Adds the codec's counts since the last call.
    pub(crate) fn add_compression(&mut self, codec: &mut DeflateCodec) {
        // Called every round, so rounds without compression only compare.
        if codec.decompressor.sizes.input > 0 {
            let sizes = std::mem::take(&mut codec.decompressor.sizes);
            self.decompression_input_bytes.add(sizes.input);
            self.decompression_output_bytes.add(sizes.output);
        }
        let messages = codec.compressor.take_message_count();
        if messages > 0 {
            self.compressions.add(messages);
        }
        if codec.compressor.sizes.input > 0 {
            let sizes = std::mem::take(&mut codec.compressor.sizes);
            self.compression_input_bytes.add(sizes.input);
            self.compression_output_bytes.add(sizes.output);
        }
    }
}

impl Metrics {
    /// Counts TLS handshakes that ended.
    pub(crate) fn record_tls_handshakes(&self, ended: TlsHandshakeCounts) {
        let results = [
            (TlsResult::Full, ended.full),
            (TlsResult::Resumed, ended.resumed),
            (TlsResult::Failed, ended.failed),
        ];
        // Skip zeros, the common case: all workers share the counters.
        for (result, count) in results.into_iter().filter(|&(_, count)| count > 0) {
            self.tls_handshakes.add(result, count);
        }
        #[cfg(feature = "tls")]
        if ended.failed > 0 {
            for (fault, count) in ClientAuthFault::ALL.into_iter().zip(ended.client_auth) {
                self.tls_client_auth_refused.add(ClientAuthReason(fault), count);
            }
        }
    }

    /// Counts a connection over a limit.
    pub(crate) fn record_limited(&self, limit: AdmissionError) {
        self.limited.inc(match limit {
            AdmissionError::ServerFull => ConnectionLimit::Total,
            AdmissionError::AddressFull => ConnectionLimit::PerAddress,
            AdmissionError::RateLimited(_) => ConnectionLimit::RatePerAddress,
        });
    }

    /// Counts a frame error if a size limit caused it.
    pub(crate) fn record_too_big(&self, error: &FrameError) {
        match error {
            FrameError::MessageTooBig { .. } => self.messages_too_big.inc(MessageLimit::Bytes),
            FrameError::TooManyFragments { .. } => self.messages_too_big.inc(MessageLimit::Fragments),
            _ => {}
        }
    }

    /// Counts a handshake that ended.
    pub(crate) fn record_handshake(&self, outcome: HandshakeOutcome) {
        self.handshakes.inc(outcome);
    }
}
