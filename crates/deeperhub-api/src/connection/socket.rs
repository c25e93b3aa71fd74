//! Socket of a connection as hyper sees it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::linger::READ_BUFFER_BYTES;
use super::state::{ConnectionState, Phase};
use crate::error::ApiError;
use crate::stream::Stream;

/// Maximum bytes of a request head, and of the part of a response that hyper buffers before it
/// polls the body for more.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Socket that records its reads and writes in its [`ConnectionState`].
pub(super) struct Socket {
    pub(super) stream: Stream,
    pub(super) state: Arc<ConnectionState>,
    /// Response sent instead of hyper's own, and the number of its bytes sent so far.
    pub(super) refusal: Option<(Vec<u8>, usize)>,
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut space = [const { MaybeUninit::uninit() }; READ_BUFFER_BYTES];
        let len = space.len().min(buf.remaining());
        let mut read = ReadBuf::uninit(&mut space[..len]);
        match Pin::new(&mut this.stream).poll_read(cx, &mut read) {
            Poll::Ready(result) => {
                result?;
                this.state.received(read.filled());
                buf.put_slice(read.filled());
                Poll::Ready(Ok(()))
            }
            // There is no input, so no request gets lost: act as if the peer had shut down its
            // side.
            Poll::Pending if this.state.lock().is_closing_if_idle => Poll::Ready(Ok(())),
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
        let is_hypers_own = matches!(this.state.lock().phase, Phase::Idle | Phase::Head);
        if is_hypers_own && this.refusal.is_none() {
            this.refusal = Some((this.refusal_bytes(bufs), 0));
        }
        let Some((bytes, done)) = &mut this.refusal else {
            return match Pin::new(&mut this.stream).poll_write_vectored(cx, bufs) {
                Poll::Ready(result) => {
                    this.state.sent(*result.as_ref().unwrap_or(&0));
                    Poll::Ready(result)
                }
                Poll::Pending => {
                    this.state.blocked();
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

    /// Records that nothing is left to write. Hyper calls this method when all output is written,
    /// and whenever hyper polls the connection.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // TLS may have encrypted more than the socket took.
        match Pin::new(&mut this.stream).poll_flush(cx) {
            Poll::Ready(result) => result?,
            Poll::Pending => {
                this.state.blocked();
                return Poll::Pending;
            }
        }
        this.state.flushed();
        if this.state.lock().is_stream {
            // No request may follow the request of a stream. The end of input means that the
            // caller has disconnected.
            let mut space = [const { MaybeUninit::uninit() }; READ_BUFFER_BYTES];
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

    /// Does nothing. The connection's task shuts the socket down, because the task may first send a
    /// response and discard input.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket {
    /// Returns the response to a head that hyper cannot parse. Hyper's own response has no body.
    fn refusal_bytes(&self, bufs: &[IoSlice<'_>]) -> Vec<u8> {
        let status = bufs.first().and_then(|buf| buf.get(9..12));
        let status = status.and_then(|status| StatusCode::from_bytes(status).ok());
        let error = match status {
            Some(status @ (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG)) => {
                tracing::info!(
                    limit = "api_head_bytes",
                    max = MAX_HEAD_BYTES,
                    "Server API request head too long"
                );
                ApiError::new(
                    status,
                    "message_too_big",
                    "the request head is too long; send a shorter path or fewer headers",
                )
            }
            _ if has_unsupported_coding(&self.state.lock().head) => ApiError::unsupported_transfer_coding(),
            _ => ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_message",
                "the request head is not valid HTTP/1.1",
            ),
        };
        error.to_http()
    }
}

/// Returns `true` if a head names a transfer coding other than `chunked`.
fn has_unsupported_coding(head: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_codings_are_found_in_a_head() {
        for (head, expected) in [
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", true),
            ("POST / HTTP/1.1\r\ntransfer-encoding:chunked , x\r\n", true),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n", false),
            ("POST /transfer-encoding:gzip HTTP/1.1\r\nX: transfer-encoding: gzip\r\n", false),
            ("", false),
        ] {
            assert_eq!(has_unsupported_coding(head.as_bytes()), expected, "{head}");
        }
    }
}
