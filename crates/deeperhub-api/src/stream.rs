//! The byte stream of a connection: TCP, or TLS over TCP.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(feature = "tls")]
use tokio_rustls::server::TlsStream;

use crate::ApiConfig;
use crate::connection::ConnectionState;

/// A connection's byte stream.
pub(crate) enum Stream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Opens the stream of an accepted socket, with a TLS handshake if the API uses TLS. Returns
    /// `None` if the handshake failed.
    pub(crate) async fn open(
        socket: TcpStream,
        #[cfg_attr(not(feature = "tls"), expect(unused_variables))] state: &ConnectionState,
        #[cfg_attr(not(feature = "tls"), expect(unused_variables))] config: &ApiConfig,
    ) -> Option<Self> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &config.tls {
            return crate::tls::handshake(socket, state, tls).await;
        }
        Some(Self::Plain(socket))
    }

    /// Writes as many of the bytes as the socket takes at once. Bytes that do not fit are lost.
    pub(crate) fn write_without_waiting(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut this = Pin::new(self);
        if let Poll::Ready(Ok(_)) = this.as_mut().poll_write(&mut cx, bytes) {
            // TLS encrypts into a buffer of its own first.
            let _ = this.poll_flush(&mut cx);
        }
    }
}

/// Calls a method of the wrapped stream.
macro_rules! delegate {
    ($this:ident.$method:ident($($argument:expr),*)) => {
        match $this.get_mut() {
            Self::Plain(stream) => Pin::new(stream).$method($($argument),*),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.poll_shutdown(cx))
    }
}
