//! Reasons why connections ended or did not open.

use std::borrow::Cow;
use std::io;

use crate::handshake::HandshakeError;

/// The reason why a connection ended or did not open.
#[derive(Debug)]
pub(crate) enum DisconnectReason {
    /// The load generator closed the connection.
    ClosedByUs,
    /// The TCP connection failed.
    ConnectFailed(io::Error),
    /// The connection did not open within `--connect-timeout`.
    OpenTimedOut,
    /// The server did not upgrade the connection.
    HandshakeFailed(HandshakeError),
    /// The server sent an error with this code before the connection was open.
    Rejected(String),
    /// A topic of `recover` has no history.
    NoHistory,
    /// The server sent a close frame with this code. A frame without a code counts as 1005.
    Closed(u16),
    /// The stream ended without a close frame.
    Eof,
    /// The socket or TLS failed.
    Io(io::Error),
    /// The server violated RFC 6455.
    Protocol(&'static str),
}

impl DisconnectReason {
    /// Returns the key under which the report counts the reason.
    pub(crate) fn kind(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::ClosedByUs => "closed_by_us",
            Self::ConnectFailed(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "connect_refused",
                io::ErrorKind::TimedOut => "connect_timed_out",
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => "connect_no_free_port",
                io::ErrorKind::ConnectionReset => "connect_reset",
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "connect_unreachable",
                _ => return Cow::Owned(format!("connect_failed ({error})")),
            },
            Self::OpenTimedOut => "open_timed_out",
            Self::HandshakeFailed(HandshakeError::Status(status)) => {
                return Cow::Owned(format!("http_{status}"));
            }
            Self::HandshakeFailed(HandshakeError::Invalid(reason)) => {
                return Cow::Owned(format!("bad_handshake ({reason})"));
            }
            Self::Rejected(code) => return Cow::Owned(format!("error_{code}")),
            Self::NoHistory => "no_history",
            Self::Closed(code) => return Cow::Owned(format!("closed_{code}")),
            Self::Eof => "cut_without_close",
            Self::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionReset => "connection_reset",
                io::ErrorKind::BrokenPipe => "connection_broken",
                io::ErrorKind::InvalidData => return Cow::Owned(format!("tls ({error})")),
                _ => return Cow::Owned(format!("connection_failed ({error})")),
            },
            Self::Protocol(reason) => return Cow::Owned(format!("bad_frame ({reason})")),
        })
    }
}

impl From<HandshakeError> for DisconnectReason {
    fn from(error: HandshakeError) -> Self {
        Self::HandshakeFailed(error)
    }
}
