//! The TLS handshake that comes before HTTP.

use std::task::Poll;

use axum::http::StatusCode;
use deeperhub_security::tls::SharedTls;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::admission::Command;
use crate::connection::ConnectionState;
use crate::error::ApiError;
use crate::stream::Stream;

/// Performs the handshake of a new connection. Returns `None` if it failed, timed out, or if the
/// connection was told to close.
pub(crate) async fn handshake(socket: TcpStream, state: &ConnectionState, tls: &SharedTls) -> Option<Stream> {
    let metrics = state.permit.metrics();
    let deadline = state.begin_handshake();
    let closed_by_command = std::future::poll_fn(|cx| match state.permit.poll_command(cx) {
        Command::Continue => Poll::Pending,
        Command::Drain | Command::CloseIfIdle | Command::Kill => Poll::Ready(()),
    });
    let result = tokio::select! {
        result = accept(socket, tls) => result,
        () = closed_by_command => return None,
        () = tokio::time::sleep_until(deadline) => {
            metrics.timed_out();
            tracing::debug!(limit = "api_timeout", "Server API TLS handshake timed out");
            return None;
        }
    };
    match result {
        Ok(stream) => {
            state.end_handshake();
            Some(stream)
        }
        Err(error) => {
            metrics.tls_handshake_failed();
            tracing::debug!(%error, "Server API TLS handshake failed");
            None
        }
    }
}

async fn accept(socket: TcpStream, tls: &SharedTls) -> std::io::Result<Stream> {
    // A request without TLS gets a response that names the mistake. Every TLS record starts with a
    // content type below 32 (RFC 8446, section 5.1), every HTTP method with a letter.
    let mut first = [0];
    socket.peek(&mut first).await?;
    if first[0].is_ascii_alphabetic() {
        let error = ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_message",
            "the server API uses TLS; use an https:// URL",
        );
        let _ = socket.try_write(&error.to_http());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "plain HTTP instead of TLS"));
    }
    let acceptor = TlsAcceptor::from(tls.current());
    Ok(Stream::Tls(Box::new(acceptor.accept(socket).await?)))
}
