//! Why a connection ended or did not come about.

use std::borrow::Cow;
use std::io;

use super::handshake::Refused;

/// The end of a connection.
#[derive(Debug)]
pub(super) enum End {
    /// We closed it.
    Finished,
    /// It could not be made.
    Connect(io::Error),
    /// It was not ready in time.
    TimedOut,
    /// The server did not upgrade it.
    Refused(Refused),
    /// The server answered what opens a connection (subscribing) with an error of this code.
    Rejected(String),
    /// The server closed it with this code; 1005 for none.
    Closed(u16),
    /// It ended without a close frame.
    Cut,
    /// The socket or TLS failed.
    Io(io::Error),
    /// The server broke the protocol.
    Protocol(&'static str),
}

impl End {
    /// The kind under which it is counted: of a bounded set, but for codes that the server chooses.
    pub(super) fn kind(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Finished => "closed_by_us",
            Self::Connect(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "connect_refused",
                io::ErrorKind::TimedOut => "connect_timed_out",
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => "connect_no_free_port",
                io::ErrorKind::ConnectionReset => "connect_reset",
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "connect_unreachable",
                _ => return Cow::Owned(format!("connect_failed ({error})")),
            },
            Self::TimedOut => "open_timed_out",
            Self::Refused(Refused::Status(status)) => return Cow::Owned(format!("http_{status}")),
            Self::Refused(Refused::Invalid(reason)) => {
                return Cow::Owned(format!("bad_handshake ({reason})"));
            }
            Self::Rejected(code) => return Cow::Owned(format!("error_{code}")),
            Self::Closed(code) => return Cow::Owned(format!("closed_{code}")),
            Self::Cut => "cut_without_close",
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

impl From<Refused> for End {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}
