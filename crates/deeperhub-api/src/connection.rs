//! One connection: HTTP over hyper, with a timeout for every wait.
//!
//! The socket, the calls and the connection's task share a [`ConnectionState`]. The socket records
//! reads and writes; the calls record when a request begins and its response ends. The task
//! enforces the [deadline](ConnectionState::deadline) that follows from both. A connection ends
//! because of:
//!
//! - no request within the idle timeout, or no complete head within the step timeout;
//! - a body that does not arrive in time (the [`Body`](crate::body::Body) of a call responds 408);
//! - a peer that does not read its response: nothing within the step timeout, or less than
//!   [`MIN_BYTES_PER_SECOND`](state::MIN_BYTES_PER_SECOND) on average;
//! - eviction by another connection ([`crate::admission`]).
//!
//! After the last response the peer may still be sending. Closing a socket with unread input resets
//! the connection, and the peer loses the response. So the sending side is shut down first, and
//! input is discarded for a while ([`linger`]).

mod linger;
mod socket;
mod state;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use axum::Router;
use axum::http::StatusCode;
use hyper::server::conn::http1;
use tokio::time::Instant;

use self::linger::linger;
use self::socket::{MAX_HEAD_BYTES, Socket};
use self::state::Phase;
use crate::admission::{Activity, Command};
use crate::dispatch::CallService;
use crate::error::ApiError;
use crate::stream::Stream;

pub(crate) use self::state::{ConnectionState, Timeouts, transfer_deadline};

/// Reason why a connection is no longer served.
enum ConnectionEnd {
    /// Closed according to HTTP, after an error, or by the peer.
    Closed(hyper::Result<()>),
    /// Ended with [`Command::Kill`].
    Killed,
    /// A wait timed out in this phase.
    TimedOut(Phase),
}

/// Serves a connection to its end.
pub(crate) async fn serve_connection(
    stream: Stream,
    state: Arc<ConnectionState>,
    router: Router,
    max_held_bytes: usize,
) {
    let socket = Socket { stream, state: Arc::clone(&state), refusal: None };
    let calls = CallService::new(router, Arc::clone(&state), max_held_bytes);
    let mut http = http1::Builder::new();
    // A client may shut down its sending side after its request and still wait for the response.
    http.half_close(true).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = http.serve_connection(socket, calls);
    let mut is_draining = false;
    let ended = {
        let timer = tokio::time::sleep_until(Instant::now());
        tokio::pin!(timer);
        std::future::poll_fn(|cx| {
            match state.permit.poll_command(cx) {
                Command::Continue => {}
                Command::Drain if !is_draining => {
                    is_draining = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Command::Drain => {}
                Command::CloseIfIdle => {
                    let mut fields = state.lock();
                    if matches!(fields.phase, Phase::Idle | Phase::Head) {
                        fields.is_closing_if_idle = true;
                    }
                }
                Command::Kill => return Poll::Ready(ConnectionEnd::Killed),
            }
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(ConnectionEnd::Closed(result));
            }
            while let Some(deadline) = state.deadline() {
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(cx));
                if state.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                    return Poll::Ready(ConnectionEnd::TimedOut(state.lock().phase));
                }
            }
            Poll::Pending
        })
        .await
    };
    let (phase, is_closing_if_idle, is_eof, is_served) = {
        let mut fields = state.lock();
        let before = (fields.phase, fields.is_closing_if_idle, fields.is_eof, fields.is_served);
        fields.phase = Phase::End;
        before
    };
    let Socket { mut stream, refusal, .. } = connection.into_parts().io;
    let is_refused = refusal.is_some();
    // A client that has just connected expects a response. A client that got a response before
    // knows that idle connections end.
    let is_unanswered = match phase {
        Phase::Idle => !is_served,
        Phase::Head => true,
        Phase::Call | Phase::End => false,
    };
    let is_killed = matches!(ended, ConnectionEnd::Killed);
    let final_error = match ended {
        ConnectionEnd::Killed => is_unanswered.then(ApiError::too_many_connections),
        ConnectionEnd::TimedOut(Phase::Idle) => None,
        ConnectionEnd::TimedOut(Phase::Head) => {
            state.permit.metrics().timed_out();
            tracing::debug!(limit = "api_timeout", "Server API request head timed out");
            Some(ApiError::request_timeout("the request head did not arrive in time; send it without pauses"))
        }
        ConnectionEnd::TimedOut(Phase::Call | Phase::End) => {
            state.permit.metrics().timed_out();
            tracing::info!(limit = "api_timeout", "Server API caller stopped reading");
            return;
        }
        ConnectionEnd::Closed(Err(error)) => {
            tracing::debug!(%error, "Server API connection failed");
            if is_unanswered && is_closing_if_idle && error.is_incomplete_message() {
                Some(ApiError::too_many_connections())
            } else if is_unanswered && error.is_parse() && !is_refused {
                // hyper sends no response to a client that starts with HTTP/2.
                Some(ApiError::new(
                    StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                    "invalid_message",
                    "the server API supports HTTP/1.1 only; use HTTP/1.1",
                ))
            } else {
                None
            }
        }
        ConnectionEnd::Closed(Ok(())) => {
            (is_unanswered && is_closing_if_idle).then(ApiError::too_many_connections)
        }
    };
    if let Some(error) = final_error {
        if error.status() == StatusCode::SERVICE_UNAVAILABLE {
            state.permit.metrics().connection_refused();
        }
        // A response that does not fit into the empty socket buffer is not worth a wait.
        stream.write_without_waiting(&error.to_http());
    }
    // Shutdown must not wait for clients that keep idle connections open.
    let is_idle_on_shutdown = is_draining && phase == Phase::Idle;
    if !(is_eof || is_killed || is_idle_on_shutdown) {
        state.permit.set(Activity::Discarding);
        linger(&mut stream, &state.permit).await;
    }
}
