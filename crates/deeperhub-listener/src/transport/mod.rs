//! Socket of a connection, with or without TLS.

mod tcp;
#[cfg(feature = "tls")]
mod tls;

pub(crate) use tcp::Tcp;
#[cfg(all(feature = "tls", feature = "io-uring"))]
pub(crate) use tls::TLS_OVERHEAD;
#[cfg(feature = "tls")]
pub(crate) use tls::Tls;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

#[cfg(feature = "tls")]
use deeperhub_security::tls::ClientAuthFault;
use deeperhub_uring::SendProgress;

use crate::config::Config;

/// Buffer and counts shared by the TLS connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct TlsScratch {
    /// Empty until the first connection with TLS comes.
    #[cfg(feature = "tls")]
    bytes: Vec<u8>,
    /// TLS handshake steps since the last reset.
    pub(crate) handshake_steps: usize,
    /// Whether the last read got any bytes, even part of a record.
    pub(crate) received_any: bool,
    /// Handshakes that ended since the last reset.
    pub(crate) ended: TlsHandshakeCounts,
}

/// Counts of TLS handshakes by result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TlsHandshakeCounts {
    pub(crate) full: u64,
    pub(crate) resumed: u64,
    pub(crate) failed: u64,
    /// Failed handshakes refused for the client's certificate, by reason.
    #[cfg(feature = "tls")]
    pub(crate) client_auth: [u64; ClientAuthFault::COUNT],
}

/// A non-blocking byte stream whose readiness comes through a waker.
///
/// Everything but `arm_read` and `arm_write` is synchronous and returns `WouldBlock` instead of waiting.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(Tcp),
    /// Boxed, so that plain connections stay small.
    #[cfg(feature = "tls")]
    Tls(Box<Tls>),
}

impl Transport {
    /// Registers a non-blocking socket with the reactor of the current thread.
    ///
    /// With `preface`, plain bytes come before TLS until [`end_preface`](Self::end_preface) is called.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn new(socket: std::net::TcpStream, config: &Config, preface: bool) -> io::Result<Self> {
        let tcp = Tcp::new(socket)?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &config.tls {
            let tls = Tls::new(tcp, tls.current(), preface).map_err(io::Error::other)?;
            return Ok(Self::Tls(Box::new(tls)));
        }
        Ok(Self::Tcp(tcp))
    }

    /// Ends the preface; `rest` was read beyond it. Returns `rest` on a plain connection. With TLS, the
    /// next read starts with it.
    pub(crate) fn end_preface(&mut self, rest: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::Tcp(_) => Some(rest),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => {
                tls.end_preface(rest);
                None
            }
        }
    }

    /// Reads available bytes. `Ok(0)`: the peer has ended its side. `InvalidData`: it violated TLS. An
    /// alert may then wait to be flushed, and further input must be read and discarded.
    ///
    /// Bytes may wait to be [flushed](Self::is_flushed) after each call.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn read(&mut self, buffer: &mut [u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.read(buffer, tls_scratch),
        }
    }

    /// Writes at least one of the bytes. They may wait to be [flushed](Self::is_flushed).
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn write(&mut self, bytes: &[u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write(bytes, tls_scratch),
        }
    }

    /// Writes like [`write`](Self::write), from several slices.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn write_vectored(
        &mut self,
        slices: &[IoSlice<'_>],
        tls_scratch: &mut TlsScratch,
    ) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write_vectored(slices),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write_vectored(slices, tls_scratch),
        }
    }

    /// Returns `true` if all written bytes are with the kernel.
    pub(crate) fn is_flushed(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.is_flushed(),
        }
    }

    /// Sets whether writes try the socket even if the reactor has not reported it writable yet. A
    /// socket that just became writable shows only when the reactor is polled.
    pub(crate) fn set_bypass_readiness(&mut self, asks: bool) {
        self.tcp_mut().set_bypass_readiness(asks);
    }

    /// Returns the peer's progress with the bytes given to the kernel.
    pub(crate) fn progress(&self) -> io::Result<SendProgress> {
        self.tcp().progress()
    }

    /// Discards further input. Reads then report only that bytes came, and the end.
    pub(crate) fn ignore_input(&mut self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.ignore_input(),
        }
    }

    /// Returns the heap bytes of incomplete input and unflushed output.
    pub(crate) fn buffered_bytes(&self) -> usize {
        match self {
            Self::Tcp(_) => 0,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.buffered_bytes(),
        }
    }

    /// Passes written bytes to the kernel.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Returns the descriptor of the socket, for plain or encrypted bytes.
    #[cfg(feature = "io-uring")]
    pub(crate) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.descriptor(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.descriptor(),
        }
    }

    /// Clears read readiness after a short read, which saves the system call that would find the socket
    /// empty. Returns `false` if a short read does not prove that.
    pub(crate) fn clear_readiness(&mut self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.clear_readiness(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.clear_readiness(),
        }
    }

    /// Requests a wake-up when the socket is readable. `Ready`: it is readable now.
    pub(crate) fn arm_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp_mut().arm_read(cx)
    }

    /// Requests a wake-up when the socket is writable. `Ready`: it is writable now.
    pub(crate) fn arm_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp_mut().arm_write(cx)
    }

    /// Shuts down the sending side, behind all written bytes. Requires that all are
    /// [flushed](Self::is_flushed).
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        self.close_notify();
        self.tcp_mut().shutdown_write()
    }

    /// Sends `close_notify` on a TLS connection that is about to be dropped.
    pub(crate) fn close_notify(&mut self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.close_notify(),
        }
    }

    /// Returns `true` if the connection is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// Returns `true` during the TLS handshake, which costs much more than a message.
    pub(crate) fn is_handshaking(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.is_handshaking(),
        }
    }

    /// Returns the user named by the client's certificate.
    pub(crate) fn user(&self) -> Option<String> {
        match self {
            Self::Tcp(_) => None,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.user(),
        }
    }

    fn tcp(&self) -> &Tcp {
        match self {
            Self::Tcp(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.tcp(),
        }
    }

    fn tcp_mut(&mut self) -> &mut Tcp {
        match self {
            Self::Tcp(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.tcp_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_pays_nothing_for_tls() {
        assert!(size_of::<Transport>() <= size_of::<Tcp>() + size_of::<usize>());
    }
}
