//! The byte stream of a connection: a TCP socket, with or without TLS.

mod scratch;
#[cfg(test)]
mod scripted;
mod tcp;
#[cfg(feature = "tls")]
mod tls;

pub(crate) use scratch::{TlsHandshakeCounts, TlsScratch};
#[cfg(test)]
pub(crate) use scripted::Scripted;
pub(crate) use tcp::Tcp;
#[cfg(all(feature = "tls", feature = "io-uring"))]
pub(crate) use tls::TLS_OVERHEAD;
#[cfg(feature = "tls")]
pub(crate) use tls::Tls;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use deeperhub_uring::SendProgress;

use crate::config::Config;

/// A non-blocking byte stream.
///
/// Operations return `WouldBlock` instead of waiting. `arm_read` and `arm_write` then request a
/// wake-up.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(Tcp),
    /// A TLS connection. Boxed, so that plain connections stay small.
    #[cfg(feature = "tls")]
    Tls(Box<Tls>),
    /// A stream whose input, output and failures a test scripts.
    #[cfg(test)]
    Scripted(Scripted),
}

impl Transport {
    /// Registers a non-blocking socket with the reactor of the current thread.
    ///
    /// If `has_preface` is `true`, plain bytes are read until [`end_preface`](Self::end_preface) is
    /// called, even if the connection uses TLS.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn new(socket: std::net::TcpStream, config: &Config, has_preface: bool) -> io::Result<Self> {
        let tcp = Tcp::new(socket)?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &config.tls {
            let tls = Tls::new(tcp, tls.current(), has_preface).map_err(io::Error::other)?;
            return Ok(Self::Tls(Box::new(tls)));
        }
        Ok(Self::Tcp(tcp))
    }

    /// Ends the preface. `rest` are bytes that were read after it. A plain connection returns them;
    /// a TLS connection processes them in the next read.
    pub(crate) fn end_preface(&mut self, rest: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::Tcp(_) => Some(rest),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => {
                tls.end_preface(rest);
                None
            }
            #[cfg(test)]
            Self::Scripted(_) => Some(rest),
        }
    }

    /// Reads available bytes. Returns 0 if the peer has shut down its sending side. After each
    /// call, TLS messages may have to be [flushed](Self::is_flushed).
    ///
    /// # Errors
    ///
    /// Returns `InvalidData` if the peer violated TLS. An alert may then have to be flushed, and
    /// further input must be read and discarded.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn read(&mut self, buffer: &mut [u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.read(buffer, tls_scratch),
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.read(buffer),
        }
    }

    /// Writes at least one of the bytes and returns how many. With TLS, written bytes may still
    /// have to be [flushed](Self::is_flushed).
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn write(&mut self, bytes: &[u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write(bytes, tls_scratch),
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.write(bytes),
        }
    }

    /// Writes bytes of several slices like [`write`](Self::write).
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
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.write_vectored(slices),
        }
    }

    /// Returns `true` if the kernel has taken all written bytes.
    pub(crate) fn is_flushed(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.is_flushed(),
            #[cfg(test)]
            Self::Scripted(_) => true,
        }
    }

    /// Returns the number of written bytes that the kernel has not taken yet. With TLS, these are
    /// encrypted bytes.
    pub(crate) fn unflushed_bytes(&self) -> usize {
        match self {
            Self::Tcp(_) => 0,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.unflushed_bytes(),
            #[cfg(test)]
            Self::Scripted(_) => 0,
        }
    }

    /// Sets whether writes try the socket even if the reactor has not reported it writable yet. The
    /// reactor notices only between rounds that a socket has become writable.
    pub(crate) fn set_bypass_readiness(&mut self, bypasses: bool) {
        match self {
            #[cfg(test)]
            Self::Scripted(_) => {}
            _ => self.tcp_mut().set_bypass_readiness(bypasses),
        }
    }

    /// Returns how many of the bytes given to the kernel the peer has acknowledged.
    pub(crate) fn progress(&self) -> io::Result<SendProgress> {
        match self {
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.progress(),
            _ => self.tcp().progress(),
        }
    }

    /// Stops decrypting input, because decryption takes memory. Later reads return raw bytes, which
    /// the caller must discard. Does nothing on a plain connection.
    pub(crate) fn ignore_input(&mut self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.ignore_input(),
            #[cfg(test)]
            Self::Scripted(_) => {}
        }
    }

    /// Returns the heap bytes of incomplete input and unflushed output.
    pub(crate) fn buffered_bytes(&self) -> usize {
        match self {
            Self::Tcp(_) => 0,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.buffered_bytes(),
            #[cfg(test)]
            Self::Scripted(_) => 0,
        }
    }

    /// Passes all written bytes to the kernel.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(),
            #[cfg(test)]
            Self::Scripted(_) => Ok(()),
        }
    }

    /// Returns the descriptor of the socket. With TLS, only encrypted bytes may be sent to it.
    #[cfg(feature = "io-uring")]
    pub(crate) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.descriptor(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.descriptor(),
            #[cfg(test)]
            Self::Scripted(_) => unreachable!("a scripted stream has no descriptor"),
        }
    }

    /// Clears the read readiness after a short read, and returns `true`. This saves the system call
    /// that would find the socket empty. Returns `false` if the last read does not prove that the
    /// socket is empty.
    pub(crate) fn clear_readiness(&mut self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.clear_readiness(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.clear_readiness(),
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.clear_readiness(),
        }
    }

    /// Requests a wake-up when the socket becomes readable. Returns `Ready` if it is readable now.
    pub(crate) fn arm_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.arm_read(cx),
            _ => self.tcp_mut().arm_read(cx),
        }
    }

    /// Requests a wake-up when the socket becomes writable. Returns `Ready` if it is writable now.
    pub(crate) fn arm_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.arm_write(cx),
            _ => self.tcp_mut().arm_write(cx),
        }
    }

    /// Shuts down the sending side. All written bytes must be [flushed](Self::is_flushed).
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        self.close_notify();
        match self {
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.shutdown_write(),
            _ => self.tcp_mut().shutdown_write(),
        }
    }

    /// Sends `close_notify` if the connection uses TLS and the socket takes it at once.
    pub(crate) fn close_notify(&mut self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.close_notify(),
            #[cfg(test)]
            Self::Scripted(_) => {}
        }
    }

    /// Returns `true` if the connection is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(_) => true,
            #[cfg(test)]
            Self::Scripted(_) => false,
        }
    }

    /// Returns `true` during the TLS handshake, which costs much more than a message.
    pub(crate) fn is_handshaking(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.is_handshaking(),
            #[cfg(test)]
            Self::Scripted(_) => false,
        }
    }

    /// Returns the user that the client's certificate names.
    pub(crate) fn user(&self) -> Option<String> {
        match self {
            Self::Tcp(_) => None,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.user(),
            #[cfg(test)]
            Self::Scripted(_) => None,
        }
    }

    fn tcp(&self) -> &Tcp {
        match self {
            Self::Tcp(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.tcp(),
            #[cfg(test)]
            Self::Scripted(_) => unreachable!("a scripted stream has no socket"),
        }
    }

    fn tcp_mut(&mut self) -> &mut Tcp {
        match self {
            Self::Tcp(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.tcp_mut(),
            #[cfg(test)]
            Self::Scripted(_) => unreachable!("a scripted stream has no socket"),
        }
    }
}
