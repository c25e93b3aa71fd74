//! State of a connection that its socket, its calls and its task share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::admission::{Activity, ConnectionPermit};
use crate::metrics::HeldBytes;

/// Minimum rate of a body or a response in bytes per second, once the step timeout has passed.
/// Without it, slow peers could occupy connections without a time limit.
pub(crate) const MIN_BYTES_PER_SECOND: u32 = 4096;

/// Number of bytes of a head that are stored, to find the fault of an invalid head.
const KEPT_HEAD_BYTES: usize = 4096;

/// Maximum time that a reserved connection has to begin a request, and to complete its head.
const RESERVED_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Maximum wait for the next request.
    pub(crate) idle: Duration,
    /// Maximum wait for the rest of a head, and for the peer to read more of a response.
    pub(crate) step: Duration,
}

/// Phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No byte of the next request has arrived.
    Idle,
    /// A part of a head has arrived.
    Head,
    /// A request is being served.
    Call,
    /// No further request is served.
    End,
}

/// State that the socket, the calls and the task of a connection share.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    pub(crate) permit: ConnectionPermit,
    timeouts: Timeouts,
    fields: Mutex<Fields>,
}

#[derive(Debug)]
pub(super) struct Fields {
    pub(super) phase: Phase,
    since: Instant,
    /// `true` if hyper has the whole response.
    is_response_complete: bool,
    /// `true` if the response never ends by itself.
    pub(super) is_stream: bool,
    /// `true` if the body of the request was read, or there is none.
    is_body_read: bool,
    writing_since: Option<Instant>,
    written: u64,
    blocked_since: Option<Instant>,
    /// `true` if the connection was told to close unless a request has arrived.
    pub(super) is_closing_if_idle: bool,
    /// `true` if the peer has shut down its sending side.
    pub(super) is_eof: bool,
    /// `true` if a request was answered.
    pub(super) is_served: bool,
    /// First bytes of the head that is being read.
    pub(super) head: Vec<u8>,
    /// Bytes of the response, counted until it is written.
    held_bytes: Option<HeldBytes>,
}

impl ConnectionState {
    pub(crate) fn new(permit: ConnectionPermit, timeouts: Timeouts) -> Arc<Self> {
        let fields = Fields {
            phase: Phase::Idle,
            since: Instant::now(),
            is_response_complete: false,
            is_stream: false,
            is_body_read: true,
            writing_since: None,
            written: 0,
            blocked_since: None,
            is_closing_if_idle: false,
            is_eof: false,
            is_served: false,
            head: Vec::new(),
            held_bytes: None,
        };
        Arc::new(Self { permit, timeouts, fields: Mutex::new(fields) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Fields> {
        self.fields.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a TLS handshake begins, and returns its deadline.
    #[cfg(feature = "tls")]
    pub(crate) fn begin_handshake(&self) -> Instant {
        let time = if self.permit.is_regular() { self.timeouts.step } else { RESERVED_TIMEOUT };
        self.lock().since + time.min(self.timeouts.step)
    }

    /// Records that the TLS handshake is complete.
    #[cfg(feature = "tls")]
    pub(crate) fn end_handshake(&self) {
        self.lock().since = Instant::now();
    }

    /// Records that a call begins.
    pub(crate) fn begin_call(&self, has_body: bool) {
        let mut fields = self.lock();
        fields.phase = Phase::Call;
        fields.is_closing_if_idle = false;
        (fields.is_response_complete, fields.is_stream, fields.is_body_read) = (false, false, !has_body);
        (fields.writing_since, fields.written, fields.blocked_since) = (None, 0, None);
        fields.head = Vec::new();
    }

    /// Records that the call has read its body.
    pub(crate) fn end_body(&self) {
        self.lock().is_body_read = true;
    }

    pub(crate) fn is_body_read(&self) -> bool {
        self.lock().is_body_read
    }

    /// Records the kind of response that follows, and its bytes, which count until it is written.
    pub(crate) fn begin_response(&self, is_stream: bool, held_bytes: Option<HeldBytes>) {
        let mut fields = self.lock();
        fields.is_stream = is_stream;
        fields.held_bytes = held_bytes;
        // Writing `100 Continue` does not count: the body may have taken long since then.
        (fields.writing_since, fields.written, fields.blocked_since) = (None, 0, None);
    }

    /// Records that the response has ended.
    pub(crate) fn end_response(&self) {
        self.lock().is_response_complete = true;
    }

    pub(super) fn received(&self, bytes: &[u8]) {
        let mut fields = self.lock();
        if bytes.is_empty() {
            fields.is_eof = true;
            return;
        }
        if fields.phase == Phase::Idle {
            (fields.phase, fields.since) = (Phase::Head, Instant::now());
            self.permit.set(Activity::AwaitingRequest);
        }
        if fields.phase == Phase::Head {
            let room = KEPT_HEAD_BYTES - fields.head.len();
            fields.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        let mut fields = self.lock();
        fields.writing_since.get_or_insert_with(Instant::now);
        fields.written += bytes as u64;
        fields.blocked_since = None;
    }

    pub(super) fn blocked(&self) {
        let now = Instant::now();
        let mut fields = self.lock();
        fields.writing_since.get_or_insert(now);
        fields.blocked_since.get_or_insert(now);
    }

    /// Records that all pending output was written.
    pub(super) fn flushed(&self) {
        let mut fields = self.lock();
        fields.blocked_since = None;
        if fields.phase == Phase::Call && fields.is_response_complete {
            (fields.phase, fields.since) = (Phase::Idle, Instant::now());
            fields.held_bytes = None;
            fields.is_served = true;
            self.permit.set(Activity::Idle);
        }
    }

    /// Returns the deadline of the current wait; `None` if it has none.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let fields = self.lock();
        let of_request = |time: Duration| {
            let time = if self.permit.is_regular() { time } else { time.min(RESERVED_TIMEOUT) };
            Some(fields.since + time)
        };
        match fields.phase {
            Phase::Idle => of_request(self.timeouts.idle),
            Phase::Head => of_request(self.timeouts.step),
            Phase::Call | Phase::End => {
                let stalled = fields.blocked_since? + self.timeouts.step;
                match fields.writing_since {
                    Some(began) if !fields.is_stream => {
                        Some(stalled.min(transfer_deadline(began, self.timeouts.step, fields.written)))
                    }
                    _ => Some(stalled),
                }
            }
        }
    }
}

/// Returns the deadline of a transfer that began at `began`: one `step`, and a second for each
/// [`MIN_BYTES_PER_SECOND`] bytes so far.
pub(crate) fn transfer_deadline(began: Instant, step: Duration, bytes: u64) -> Instant {
    began + step + Duration::from_millis(bytes.saturating_mul(1000) / u64::from(MIN_BYTES_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::metrics::ApiMetrics;

    const STEP: Duration = Duration::from_secs(30);

    fn state() -> Arc<ConnectionState> {
        let permit = Admission::new(1, ApiMetrics::default()).admit(Instant::now());
        ConnectionState::new(permit, Timeouts { idle: STEP * 4, step: STEP })
    }

    /// Moves all recorded times into the past by `by`.
    fn age(state: &ConnectionState, by: Duration) {
        let mut fields = state.lock();
        fields.since -= by;
        fields.writing_since = fields.writing_since.map(|at| at - by);
        fields.blocked_since = fields.blocked_since.map(|at| at - by);
    }

    /// Returns the seconds until the current wait times out.
    fn left(state: &ConnectionState) -> Option<u64> {
        let left = state.deadline()?.saturating_duration_since(Instant::now());
        Some(left.as_secs_f64().ceil() as u64)
    }

    #[tokio::test]
    async fn each_wait_has_a_deadline() {
        let state = state();
        assert_eq!(left(&state), Some(120));
        state.received(b"GET /");
        assert_eq!(left(&state), Some(30));
        age(&state, Duration::from_secs(20));
        state.received(b"v1");
        assert_eq!(left(&state), Some(10), "more bytes of a head do not extend its deadline");
        state.begin_call(false);
        assert_eq!(left(&state), None, "a running call has no deadline here");
        state.begin_response(false, None);
        state.blocked();
        assert_eq!(left(&state), Some(30));
        age(&state, Duration::from_secs(20));
        state.sent(4096 * 5);
        state.blocked();
        assert_eq!(left(&state), Some(15), "at least 4 KiB a second on the whole");
        state.end_response();
        state.flushed();
        assert_eq!(left(&state), Some(120));
    }

    #[tokio::test]
    async fn a_stream_has_no_minimum_rate() {
        let state = state();
        state.begin_call(false);
        state.begin_response(true, None);
        state.sent(1);
        age(&state, STEP * 100);
        state.blocked();
        assert_eq!(left(&state), Some(30));
        age(&state, Duration::from_secs(20));
        state.sent(1);
        assert_eq!(left(&state), None);
    }

    #[tokio::test]
    async fn the_deadline_of_a_response_does_not_start_with_100_continue() {
        let state = state();
        state.begin_call(true);
        state.sent(25);
        age(&state, STEP * 2);
        state.begin_response(false, None);
        state.blocked();
        assert_eq!(left(&state), Some(30));
    }
}
