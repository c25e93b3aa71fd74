//! The socket of a connection, as the worker sees it.

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

/// What the TLS connections of a worker share: a buffer for the records under way, and what to count.
#[derive(Debug, Default)]
pub(crate) struct TlsScratch {
    /// Empty until the first connection with TLS comes.
    #[cfg(feature = "tls")]
    bytes: Vec<u8>,
    /// Steps of handshakes since this was reset.
    pub(crate) handshake_steps: usize,
    /// Whether the last read brought any bytes, even a part of a record.
    pub(crate) received_any: bool,
    /// Handshakes that ended since this was reset.
    pub(crate) ended: TlsHandshakeCounts,
}

/// TLS handshakes by how they ended.
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
/// Everything but `arm_read` and `arm_write` is synchronous and answers `WouldBlock` when it cannot go on. Another
/// reactor or another protocol below HTTP would be another variant.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(Tcp),
    /// Boxed: plain connections are not to be as large as encrypted ones.
    #[cfg(feature = "tls")]
    Tls(Box<Tls>),
}

impl Transport {
    /// Registers a non-blocking socket with the reactor of the current thread.
    ///
    /// With a `preface`, something comes before TLS: it is read as it is until [`end_preface`](Self::end_preface).
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

    /// What was read of the preface is over, but for `rest`. Gives it back where that is plain; otherwise the next read
    /// starts with it.
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

    /// Reads what is there. `Ok(0)`: the peer has ended its side. `InvalidData`: it broke the protocol below HTTP; what
    /// there is to say about it waits for [`flush`](Self::flush), and the rest of what it sends is to be read and
    /// thrown away.
    ///
    /// After each call something may wait to be [flushed](Self::is_flushed).
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn read(&mut self, buffer: &mut [u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.read(buffer, tls_scratch),
        }
    }

    /// Takes some of the bytes, at least one. They may wait to be [flushed](Self::is_flushed).
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn write(&mut self, bytes: &[u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write(bytes, tls_scratch),
        }
    }

    /// As [`write`](Self::write), from several slices.
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

    /// Whether all that was taken is with the kernel.
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

    /// From now on reads say only that something came, and the end. Nothing of what came is kept.
    pub(crate) fn ignore_input(&mut self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.ignore_input(),
        }
    }

    /// Heap bytes of what came and is not complete, and of what was taken and is not with the kernel.
    pub(crate) fn buffered_bytes(&self) -> usize {
        match self {
            Self::Tcp(_) => 0,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.buffered_bytes(),
        }
    }

    /// Gives the kernel what was taken before.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Where the bytes go that were encrypted for it, or bytes of a plain connection.
    #[cfg(feature = "io-uring")]
    pub(crate) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.descriptor(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.descriptor(),
        }
    }

    /// Says that a read came back short, so the socket is empty: readiness is cleared without the system call that
    /// would find that out. False: a short read says nothing here.
    pub(crate) fn clear_readiness(&mut self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.clear_readiness(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.clear_readiness(),
        }
    }

    /// Asks for a wake-up when the socket is readable. `Ready`: it is now.
    pub(crate) fn arm_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp_mut().arm_read(cx)
    }

    /// Asks for a wake-up when the socket is writable. `Ready`: it is now.
    pub(crate) fn arm_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp_mut().arm_write(cx)
    }

    /// Ends the sending side, so that the peer reads the end after all that was written. To be called when all is
    /// [flushed](Self::is_flushed).
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        self.close_notify();
        self.tcp_mut().shutdown_write()
    }

    /// Tells the peer that nothing more comes, where the protocol has a word for it; for a connection that is dropped
    /// next.
    pub(crate) fn close_notify(&mut self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.close_notify(),
        }
    }

    /// Whether the connection is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// Whether its handshake is under way, which costs much more than a message.
    pub(crate) fn is_handshaking(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.is_handshaking(),
        }
    }

    /// The user that the client's certificate is for.
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
