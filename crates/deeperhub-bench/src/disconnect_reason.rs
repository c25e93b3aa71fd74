//! Why a connection ended or did not come about.

use std::borrow::Cow;
use std::io;

use crate::handshake::HandshakeError;

/// The end of a connection.
#[derive(Debug)]
pub(crate) enum DisconnectReason {
    /// We closed it.
    ClosedByUs,
    /// It could not be made.
    ConnectFailed(io::Error),
    /// It was not ready in time.
    OpenTimedOut,
    /// The server did not upgrade it.
    HandshakeFailed(HandshakeError),
    /// The server answered what opens a connection (subscribing) with an error of this code.
    Rejected(String),
    /// The server closed it with this code; 1005 for none.
    Closed(u16),
    /// It ended without a close frame.
    Eof,
    /// The socket or TLS failed.
    Io(io::Error),
    /// The server broke the protocol.
    Protocol(&'static str),
}

impl DisconnectReason {
    /// The kind under which it is counted: of a bounded set, but for codes that the server chooses.
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
