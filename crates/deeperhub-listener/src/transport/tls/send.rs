//! Encrypts and sends the output of a TLS connection.

use std::io::{self, IoSlice};

use rustls::unbuffered::{ConnectionState, EncryptError};

#[cfg(feature = "io-uring")]
use super::TLS_OVERHEAD;
use super::encode::append;
use super::{MAX_PLAIN_WRITE, Tls, TlsPhase, TlsScratch};

impl Tls {
    pub(in crate::transport) fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let sent = self.tcp.write(&self.outgoing)?;
            if sent == self.outgoing.len() {
                self.outgoing = Vec::new();
            } else {
                self.outgoing.drain(..sent);
            }
        }
        Ok(())
    }

    pub(in crate::transport) fn write(
        &mut self,
        bytes: &[u8],
        tls_scratch: &mut TlsScratch,
    ) -> io::Result<usize> {
        self.flush()?;
        let (_, encrypted) = tls_scratch.buffer().split_at_mut(MAX_PLAIN_WRITE);
        self.encrypt_and_send(bytes, encrypted)
    }

    pub(in crate::transport) fn write_vectored(
        &mut self,
        slices: &[IoSlice<'_>],
        tls_scratch: &mut TlsScratch,
    ) -> io::Result<usize> {
        self.flush()?;
        let (plain, encrypted) = tls_scratch.buffer().split_at_mut(MAX_PLAIN_WRITE);
        // Join the slices, so that short ones share a record. A record of its own would cost each
        // slice an encryption and at least 22 bytes.
        let mut plain_len = 0;
        for slice in slices {
            let copied = slice.len().min(MAX_PLAIN_WRITE - plain_len);
            plain[plain_len..][..copied].copy_from_slice(&slice[..copied]);
            plain_len += copied;
        }
        self.encrypt_and_send(&plain[..plain_len], encrypted)
    }

    /// Encrypts bytes into `encrypted` and sends them. Returns the number of plain bytes encrypted:
    /// all of them count as written, since encrypted bytes that the socket does not take are
    /// stored.
    fn encrypt_and_send(&mut self, bytes: &[u8], encrypted: &mut [u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(MAX_PLAIN_WRITE)];
        let len = self.encrypt(bytes, encrypted)?;
        let sent = loop {
            match self.tcp.write(&encrypted[..len]) {
                Ok(sent) => break sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.outgoing.extend_from_slice(&encrypted[sent..len]);
        Ok(bytes.len())
    }

    /// Encrypts `bytes` and appends the result to `staged`. The caller sends it, and then calls
    /// [`keep_unsent`](Self::keep_unsent). All earlier bytes must be [flushed](Self::is_flushed).
    #[cfg(feature = "io-uring")]
    pub(crate) fn stage(&mut self, bytes: &[u8], staged: &mut Vec<u8>) -> io::Result<()> {
        let start = staged.len();
        staged.resize(start + bytes.len() + TLS_OVERHEAD, 0);
        let result = self.encrypt(bytes, &mut staged[start..]);
        staged.truncate(start + result.as_ref().map_or(0, |&len| len));
        result.map(drop)
    }

    /// Stores the staged bytes after the first `sent` ones, which the socket took.
    #[cfg(feature = "io-uring")]
    pub(crate) fn keep_unsent(&mut self, staged: &[u8], sent: usize) {
        self.outgoing.extend_from_slice(&staged[sent..]);
    }

    #[cfg(feature = "io-uring")]
    pub(in crate::transport) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.tcp.descriptor()
    }

    /// Encrypts `bytes` into `out`, after pending TLS messages. Returns the length of the output.
    fn encrypt(&mut self, bytes: &[u8], out: &mut [u8]) -> io::Result<usize> {
        if !matches!(self.phase, TlsPhase::Open | TlsPhase::PeerClosed) || self.close_notify_sent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut written = 0;
        loop {
            match self.session.process_tls_records(&mut self.incoming).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return match traffic.encrypt(bytes, &mut out[written..]) {
                        Ok(encrypted) => Ok(written + encrypted),
                        Err(error) => Err(io::Error::other(error)),
                    };
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => match data.encode(&mut out[written..]) {
                    Ok(encoded) => written += encoded,
                    Err(error) => return Err(io::Error::other(error)),
                },
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.phase = TlsPhase::PeerClosed,
                Ok(_) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Queues `close_notify` (RFC 8446 section 6.1), and sends it if the socket takes it at once.
    /// The alert may be lost: the WebSocket close frame already announced the end to the peer.
    pub(in crate::transport) fn close_notify(&mut self) {
        if self.close_notify_sent
            || !matches!(self.phase, TlsPhase::Open | TlsPhase::PeerClosed)
            || !self.is_flushed()
        {
            return;
        }
        self.close_notify_sent = true;
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.session.process_tls_records(&mut self.incoming).state
        {
            let queue = |out: &mut [u8]| match traffic.queue_close_notify(out) {
                Ok(written) => Ok(written),
                Err(EncryptError::InsufficientSize(size)) => Err(size),
                Err(EncryptError::EncryptExhausted) => Ok(0),
            };
            if append(&mut self.outgoing, queue).is_ok() {
                let _ = self.flush();
            }
        }
    }
}
