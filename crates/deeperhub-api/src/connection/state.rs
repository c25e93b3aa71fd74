//! State of a connection that its socket, its calls and its task share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::admission::{Activity, ConnectionPermit};
use crate::metrics::Lease;

/// Minimum rate of a body or an answer in bytes per second, once the step timeout has passed.
/// Slower peers could hold their places for as long as they like.
pub(crate) const MIN_RATE: u32 = 4096;

/// Number of bytes of a head that are kept to find out what is wrong with it.
const KEPT_HEAD_BYTES: usize = 4096;

/// Maximum time that a reserved connection has to begin a request, and to complete its head.
const RESERVED_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Maximum wait for the next request.
    pub(crate) idle: Duration,
    /// Maximum wait for the rest of a head, and for the peer to read more of an answer.
    pub(crate) step: Duration,
}

/// Phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing of the next request has arrived.
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
pub(crate) struct Link {
    pub(crate) permit: ConnectionPermit,
    times: Times,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    since: Instant,
    /// `true` if hyper has the whole answer.
    is_answered: bool,
    /// `true` if the answer is a stream without an end of its own.
    pub(super) is_stream: bool,
    /// `true` if the body of the request was read, or there is none.
    is_body_read: bool,
    began_writing: Option<Instant>,
    written: u64,
    blocked_since: Option<Instant>,
    /// `true` if the connection was asked to leave.
    pub(super) is_leaving: bool,
    /// `true` if the peer has shut down its sending side.
    pub(super) is_eof: bool,
    /// `true` if a request was answered.
    pub(super) is_served: bool,
    /// First bytes of the head that is being read.
    pub(super) head: Vec<u8>,
    /// Lease on the bytes of the answer.
    lease: Option<Lease>,
}

impl Link {
    pub(crate) fn new(permit: ConnectionPermit, times: Times) -> Arc<Self> {
        let state = State {
            phase: Phase::Idle,
            since: Instant::now(),
            is_answered: false,
            is_stream: false,
            is_body_read: true,
            began_writing: None,
            written: 0,
            blocked_since: None,
            is_leaving: false,
            is_eof: false,
            is_served: false,
            head: Vec::new(),
            lease: None,
        };
        Arc::new(Self { permit, times, state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a TLS handshake begins, and returns its deadline.
    #[cfg(feature = "tls")]
    pub(crate) fn begin_handshake(&self) -> Instant {
        let time = if self.permit.is_regular() { self.times.step } else { RESERVED_TIMEOUT };
        self.lock().since + time.min(self.times.step)
    }

    /// Records that the TLS handshake is complete.
    #[cfg(feature = "tls")]
    pub(crate) fn end_handshake(&self) {
        self.lock().since = Instant::now();
    }

    /// Records that a call begins.
    pub(crate) fn begin_call(&self, has_body: bool) {
        let mut state = self.lock();
        state.phase = Phase::Call;
        state.is_leaving = false;
        (state.is_answered, state.is_stream, state.is_body_read) = (false, false, !has_body);
        (state.began_writing, state.written, state.blocked_since) = (None, 0, None);
        state.head = Vec::new();
    }

    /// Records that the call has read its body.
    pub(crate) fn body_read(&self) {
        self.lock().is_body_read = true;
    }

    pub(crate) fn is_body_read(&self) -> bool {
        self.lock().is_body_read
    }

    /// Records the kind of answer that follows, and the lease that it holds until it is written.
    pub(crate) fn begin_answer(&self, is_stream: bool, lease: Option<Lease>) {
        let mut state = self.lock();
        state.is_stream = is_stream;
        state.lease = lease;
        // Writing `100 Continue` does not count: the body may have taken long since then.
        (state.began_writing, state.written, state.blocked_since) = (None, 0, None);
    }

    /// Records that the answer has ended.
    pub(crate) fn end_answer(&self) {
        self.lock().is_answered = true;
    }

    pub(super) fn received(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if bytes.is_empty() {
            state.is_eof = true;
            return;
        }
        if state.phase == Phase::Idle {
            (state.phase, state.since) = (Phase::Head, Instant::now());
            self.permit.set(Activity::Silent);
        }
        if state.phase == Phase::Head {
            let room = KEPT_HEAD_BYTES - state.head.len();
            state.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        let mut state = self.lock();
        state.began_writing.get_or_insert_with(Instant::now);
        state.written += bytes as u64;
        state.blocked_since = None;
    }

    pub(super) fn blocked(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        state.began_writing.get_or_insert(now);
        state.blocked_since.get_or_insert(now);
    }

    /// Records that all pending output was written.
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        state.blocked_since = None;
        if state.phase == Phase::Call && state.is_answered {
            (state.phase, state.since) = (Phase::Idle, Instant::now());
            state.lease = None;
            state.is_served = true;
            self.permit.set(Activity::Idle);
        }
    }

    /// Returns the deadline of the current wait; `None` if it has none.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let of_request = |time: Duration| {
            let time = if self.permit.is_regular() { time } else { time.min(RESERVED_TIMEOUT) };
            Some(state.since + time)
        };
        match state.phase {
            Phase::Idle => of_request(self.times.idle),
            Phase::Head => of_request(self.times.step),
            Phase::Call | Phase::End => {
                let stalled = state.blocked_since? + self.times.step;
                match state.began_writing {
                    Some(began) if !state.is_stream => {
                        Some(stalled.min(allowance(began, self.times.step, state.written)))
                    }
                    _ => Some(stalled),
                }
            }
        }
    }
}

/// Returns the deadline of a transfer that began at `began`: one `step`, and a second for each
/// [`MIN_RATE`] bytes so far.
pub(crate) fn allowance(began: Instant, step: Duration, bytes: u64) -> Instant {
    began + step + Duration::from_millis(bytes.saturating_mul(1000) / u64::from(MIN_RATE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::metrics::ApiMetrics;

    const STEP: Duration = Duration::from_secs(30);

    fn link() -> Arc<Link> {
        let permit = Admission::new(1, ApiMetrics::default()).admit(Instant::now());
        Link::new(permit, Times { idle: STEP * 4, step: STEP })
    }

    /// Moves all recorded times into the past by `by`.
    fn age(link: &Link, by: Duration) {
        let mut state = link.lock();
        state.since -= by;
        state.began_writing = state.began_writing.map(|at| at - by);
        state.blocked_since = state.blocked_since.map(|at| at - by);
    }

    /// Returns the seconds until the current wait times out.
    fn left(link: &Link) -> Option<u64> {
        let left = link.deadline()?.saturating_duration_since(Instant::now());
        Some(left.as_secs_f64().ceil() as u64)
    }

    #[tokio::test]
    async fn each_wait_has_an_end() {
        let link = link();
        assert_eq!(left(&link), Some(120));
        link.received(b"GET /");
        assert_eq!(left(&link), Some(30));
        age(&link, Duration::from_secs(20));
        link.received(b"v1");
        assert_eq!(left(&link), Some(10), "more of a head is not more time");
        link.begin_call(false);
        assert_eq!(left(&link), None, "the call has an end of its own");
        link.begin_answer(false, None);
        link.blocked();
        assert_eq!(left(&link), Some(30));
        age(&link, Duration::from_secs(20));
        link.sent(4096 * 5);
        link.blocked();
        assert_eq!(left(&link), Some(15), "at least 4 KiB a second on the whole");
        link.end_answer();
        link.flushed();
        assert_eq!(left(&link), Some(120));
    }

    #[tokio::test]
    async fn a_stream_only_has_to_go_on() {
        let link = link();
        link.begin_call(false);
        link.begin_answer(true, None);
        link.sent(1);
        age(&link, STEP * 100);
        link.blocked();
        assert_eq!(left(&link), Some(30));
        age(&link, Duration::from_secs(20));
        link.sent(1);
        assert_eq!(left(&link), None);
    }

    #[tokio::test]
    async fn the_time_of_an_answer_does_not_begin_with_100_continue() {
        let link = link();
        link.begin_call(true);
        link.sent(25);
        age(&link, STEP * 2);
        link.begin_answer(false, None);
        link.blocked();
        assert_eq!(left(&link), Some(30));
    }
}
