//! One connection: HTTP over hyper, with a timeout for every wait.
//!
//! [`Link`] is the state that the socket, the calls and the connection's task share. The socket
//! records what was read and written; the calls record when a request begins and its answer ends.
//! The task enforces the [deadline](Link::deadline) that follows from both. A connection ends
//! because of:
//!
//! - no request within the idle timeout, or no complete head within the step timeout;
//! - a body that does not arrive in time (the [`Body`](crate::body::Body) of a call answers 408);
//! - a peer that does not read its answer: nothing within the step timeout, or less than
//!   [`MIN_RATE`] on average;
//! - another connection that needs its place ([`crate::admission`]).
//!
//! After the last answer the peer may still be sending. Closing a socket with unread input resets
//! the connection, and the peer loses the answer. So the sending side is shut down first, and input
//! is discarded for a while ([`linger`]).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::admission::{Activity, Command, ConnectionPermit};
use crate::dispatch::Calls;
use crate::error::ApiError;
use crate::metrics::Lease;
use crate::stream::Stream;

/// Minimum rate of a body or an answer in bytes per second, once the step timeout has passed.
/// Slower peers could hold their places for as long as they like.
pub(crate) const MIN_RATE: u32 = 4096;

/// Maximum length of a request head in bytes; also of the part of an answer that hyper buffers
/// before it polls the body for more.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Number of bytes of a head that are kept to find out what is wrong with it.
const KEPT_HEAD_BYTES: usize = 4096;

/// Maximum number of bytes in one read.
const READ_BYTES: usize = 8 * 1024;

/// Limits on discarding input after the last answer: total time, longest pause, and bytes. Clients
/// that send a whole body before they read need all of it. 64 MiB take half a second on a fast
/// network.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_PAUSE: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 << 20;

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
enum Phase {
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
struct State {
    phase: Phase,
    since: Instant,
    /// `true` if hyper has the whole answer.
    is_answered: bool,
    /// `true` if the answer is a stream without an end of its own.
    is_stream: bool,
    /// `true` if the body of the request was read, or there is none.
    is_body_read: bool,
    began_writing: Option<Instant>,
    written: u64,
    blocked_since: Option<Instant>,
    /// `true` if the connection was asked to leave.
    is_leaving: bool,
    /// `true` if the peer has shut down its sending side.
    is_eof: bool,
    /// `true` if a request was answered.
    is_served: bool,
    /// First bytes of the head that is being read.
    head: Vec<u8>,
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

    fn lock(&self) -> MutexGuard<'_, State> {
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

    fn received(&self, bytes: &[u8]) {
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

    fn sent(&self, bytes: usize) {
        let mut state = self.lock();
        state.began_writing.get_or_insert_with(Instant::now);
        state.written += bytes as u64;
        state.blocked_since = None;
    }

    fn blocked(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        state.began_writing.get_or_insert(now);
        state.blocked_since.get_or_insert(now);
    }

    /// Records that all pending output was written.
    fn flushed(&self) {
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
    fn deadline(&self) -> Option<Instant> {
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

/// Socket that records its reads and writes in its [`Link`].
struct Socket {
    stream: Stream,
    link: Arc<Link>,
    /// Answer sent instead of one of hyper's own, and the number of its bytes sent so far.
    instead: Option<(Vec<u8>, usize)>,
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut space = [const { MaybeUninit::uninit() }; READ_BYTES];
        let len = space.len().min(buf.remaining());
        let mut read = ReadBuf::uninit(&mut space[..len]);
        match Pin::new(&mut this.stream).poll_read(cx, &mut read) {
            Poll::Ready(result) => {
                result?;
                this.link.received(read.filled());
                buf.put_slice(read.filled());
                Poll::Ready(Ok(()))
            }
            // Without input no request gets lost, so act as if the peer had shut down its side.
            Poll::Pending if this.link.lock().is_leaving => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let is_of_hyper = matches!(this.link.lock().phase, Phase::Idle | Phase::Head);
        if is_of_hyper && this.instead.is_none() {
            this.instead = Some((this.refusal(bufs), 0));
        }
        let Some((bytes, done)) = &mut this.instead else {
            return match Pin::new(&mut this.stream).poll_write_vectored(cx, bufs) {
                Poll::Ready(result) => {
                    this.link.sent(*result.as_ref().unwrap_or(&0));
                    Poll::Ready(result)
                }
                Poll::Pending => {
                    this.link.blocked();
                    Poll::Pending
                }
            };
        };
        while *done < bytes.len() {
            // The deadline of the head still applies meanwhile.
            *done += ready!(Pin::new(&mut this.stream).poll_write(cx, &bytes[*done..]))?;
        }
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Records that nothing is left to write. Hyper calls it when all is written, and whenever it
    /// polls the connection.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // TLS may have encrypted more than the socket took.
        match Pin::new(&mut this.stream).poll_flush(cx) {
            Poll::Ready(result) => result?,
            Poll::Pending => {
                this.link.blocked();
                return Poll::Pending;
            }
        }
        this.link.flushed();
        if this.link.lock().is_stream {
            // Nothing may follow the request of a stream, but end of input means that its caller is
            // gone.
            let mut space = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut read = ReadBuf::uninit(&mut space);
            if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(cx, &mut read) {
                result?;
                if read.filled().is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the connection's task shuts down, since it may still send an answer and
    /// discard input.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket {
    /// Returns the answer to a head that hyper cannot read. Hyper's own answer has no body.
    fn refusal(&self, bufs: &[IoSlice<'_>]) -> Vec<u8> {
        let status = bufs.first().and_then(|buf| buf.get(9..12));
        let status = status.and_then(|status| StatusCode::from_bytes(status).ok());
        let error = match status {
            Some(status @ (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG)) => {
                tracing::info!(
                    limit = "api_head_bytes",
                    max = MAX_HEAD_BYTES,
                    "Server API request head too long"
                );
                ApiError::new(status, "message_too_big", "the head of the request is too long")
            }
            _ if has_unknown_coding(&self.link.lock().head) => ApiError::unknown_coding(),
            _ => ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_message",
                "the head of the request is not as HTTP/1.1 wants it",
            ),
        };
        error.to_http()
    }
}

/// Returns `true` if a head names a transfer coding other than `chunked`.
fn has_unknown_coding(head: &[u8]) -> bool {
    head.split(|&byte| byte == b'\n').any(|line| {
        let mut parts = line.splitn(2, |&byte| byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        name.eq_ignore_ascii_case(b"transfer-encoding")
            && value.split(|&byte| byte == b',').any(|coding| {
                let coding = coding.trim_ascii();
                !coding.is_empty() && !coding.eq_ignore_ascii_case(b"chunked")
            })
    })
}

/// Reason why a connection is no longer served.
enum Ended {
    /// Closed by HTTP's rules, by a fault, or by the peer.
    Closed(hyper::Result<()>),
    /// Ended by a command.
    Killed,
    /// A wait that timed out in this phase.
    TimedOut(Phase),
}

/// Serves a connection to its end.
pub(crate) async fn serve_connection(stream: Stream, link: Arc<Link>, router: Router, max_bytes: usize) {
    let socket = Socket { stream, link: Arc::clone(&link), instead: None };
    let calls = Calls::new(router, Arc::clone(&link), max_bytes);
    let mut http = http1::Builder::new();
    // A client may shut down its sending side after its request and still wait for the answer.
    http.half_close(true).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = http.serve_connection(socket, calls);
    let mut is_draining = false;
    let ended = {
        let timer = tokio::time::sleep_until(Instant::now());
        tokio::pin!(timer);
        std::future::poll_fn(|cx| {
            match link.permit.poll_command(cx) {
                Command::Stay => {}
                Command::Drain if !is_draining => {
                    is_draining = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Command::Drain => {}
                Command::Leave => {
                    let mut state = link.lock();
                    if matches!(state.phase, Phase::Idle | Phase::Head) {
                        state.is_leaving = true;
                    }
                }
                Command::Kill => return Poll::Ready(Ended::Killed),
            }
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Ended::Closed(result));
            }
            while let Some(deadline) = link.deadline() {
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(cx));
                if link.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                    return Poll::Ready(Ended::TimedOut(link.lock().phase));
                }
            }
            Poll::Pending
        })
        .await
    };
    let (phase, is_leaving, is_eof, is_served) = {
        let mut state = link.lock();
        let before = (state.phase, state.is_leaving, state.is_eof, state.is_served);
        state.phase = Phase::End;
        before
    };
    let Socket { mut stream, instead, .. } = connection.into_parts().io;
    let is_refused = instead.is_some();
    // A client that has just connected expects an answer; one that was answered before knows that
    // idle connections end.
    let is_unanswered = match phase {
        Phase::Idle => !is_served,
        Phase::Head => true,
        Phase::Call | Phase::End => false,
    };
    let is_killed = matches!(ended, Ended::Killed);
    let last_words = match ended {
        Ended::Killed => is_unanswered.then(ApiError::too_many_connections),
        Ended::TimedOut(Phase::Idle) => None,
        Ended::TimedOut(Phase::Head) => {
            link.permit.metrics().timed_out();
            tracing::debug!(limit = "api_timeout", "Server API request head timed out");
            Some(ApiError::timeout("the head of the request did not arrive in time"))
        }
        Ended::TimedOut(Phase::Call | Phase::End) => {
            link.permit.metrics().timed_out();
            tracing::info!(limit = "api_timeout", "Server API caller stopped reading");
            return;
        }
        Ended::Closed(Err(error)) => {
            tracing::debug!(%error, "Server API connection failed");
            if is_unanswered && is_leaving && error.is_incomplete_message() {
                Some(ApiError::too_many_connections())
            } else if is_unanswered && error.is_parse() && !is_refused {
                // hyper sends no answer to a client that starts with HTTP/2.
                Some(ApiError::new(
                    StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                    "invalid_message",
                    "the server API speaks HTTP/1.1",
                ))
            } else {
                None
            }
        }
        Ended::Closed(Ok(())) => (is_unanswered && is_leaving).then(ApiError::too_many_connections),
    };
    if let Some(error) = last_words {
        if error.status() == StatusCode::SERVICE_UNAVAILABLE {
            link.permit.metrics().connection_refused();
        }
        // An answer that does not fit into the empty socket buffer is not worth a wait.
        stream.write_without_waiting(&error.to_http());
    }
    // The server's shutdown must not wait for clients that keep idle connections open.
    let is_idle_at_the_end = is_draining && phase == Phase::Idle;
    if !(is_eof || is_killed || is_idle_at_the_end) {
        link.permit.set(Activity::Discarding);
        linger(&mut stream, &link.permit).await;
    }
}

/// Shuts down the sending side, and discards input until the peer does the same or a limit is
/// reached.
async fn linger(stream: &mut Stream, permit: &ConnectionPermit) {
    let discard = async {
        if std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await.is_err() {
            return;
        }
        let mut discarded = 0;
        while discarded < LINGER_BYTES {
            let read = std::future::poll_fn(|cx| {
                // Not stored in the future, which every connection keeps for its whole life.
                let mut space = [const { MaybeUninit::uninit() }; READ_BYTES];
                let mut read = ReadBuf::uninit(&mut space);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
                Poll::Ready(io::Result::Ok(read.filled().len()))
            });
            match tokio::time::timeout(LINGER_PAUSE, read).await {
                Ok(Ok(bytes @ 1..)) => discarded += bytes as u64,
                _ => return,
            }
        }
    };
    let told_to_end = std::future::poll_fn(|cx| match permit.poll_command(cx) {
        Command::Kill => Poll::Ready(()),
        _ => Poll::Pending,
    });
    tokio::select! {
        () = discard => {}
        () = tokio::time::sleep(LINGER) => {}
        () = told_to_end => {}
    }
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

    #[test]
    fn transfer_codings_are_found_in_a_head() {
        for (head, expected) in [
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", true),
            ("POST / HTTP/1.1\r\ntransfer-encoding:chunked , x\r\n", true),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n", false),
            ("POST /transfer-encoding:gzip HTTP/1.1\r\nX: transfer-encoding: gzip\r\n", false),
            ("", false),
        ] {
            assert_eq!(has_unknown_coding(head.as_bytes()), expected, "{head}");
        }
    }
}
