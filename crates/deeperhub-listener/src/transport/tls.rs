//! TLS on the worker threads. Connections of a worker share buffers, so an idle connection has
//! none.

use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::tls::{ClientAuthFault, has_expired};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{HandshakeKind, ServerConfig};

use super::{Tcp, TlsScratch};

/// Maximum plain bytes that one write encrypts: those of four records.
const MAX_PLAIN_WRITE: usize = 64 * 1024;

/// Buffer space for bytes that encryption adds: about 40 bytes per record, a key update and an
/// alert.
pub(crate) const TLS_OVERHEAD: usize = 1024;

/// Maximum bytes of incomplete records or handshake messages. It bounds the memory that a client
/// can cause before its messages are complete. A record has at most 18,437 bytes; a client's
/// certificate chain usually has a few thousand.
const MAX_INCOMPLETE_BYTES: usize = 32 * 1024;

/// Maximum bytes queued during the handshake for the server's certificates and other messages.
const MAX_QUEUED_HANDSHAKE_BYTES: usize = 128 * 1024;

impl TlsScratch {
    /// Returns the buffer, which is allocated on first use.
    fn buffer(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; MAX_PLAIN_WRITE + MAX_PLAIN_WRITE + TLS_OVERHEAD];
        }
        &mut self.bytes
    }
}

/// Phase of a connection's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TlsPhase {
    /// Plain bytes are read, which come before TLS.
    Preface,
    /// The TLS handshake is under way.
    Handshake,
    /// Both sides can send.
    Open,
    /// The peer has shut down its sending side, but may still read.
    PeerClosed,
    /// TLS failed, usually because the peer violated the protocol. `read` has not reported the
    /// error yet.
    Broken,
    /// `read` has reported the error. Further input is discarded.
    Abandoned,
}

/// Server side of a TLS connection.
pub(crate) struct Tls {
    tcp: Tcp,
    session: UnbufferedServerConnection,
    phase: TlsPhase,
    /// Reason for which the client's certificate was refused, until it is counted.
    client_auth_fault: Option<ClientAuthFault>,
    /// `true` if the last read of the socket got fewer bytes than fit.
    short_read: bool,
    /// `true` if `incoming` holds bytes that were read with the preface and not processed yet.
    has_unprocessed: bool,
    /// `true` if `close_notify` was queued.
    close_notify_sent: bool,
    /// `true` if further input is not decrypted, because the worker discards it.
    ignores_input: bool,
    /// Incomplete records or handshake messages. When empty, it has no allocation.
    incoming: Vec<u8>,
    /// Encrypted bytes that the kernel has not taken yet. When empty, it has no allocation.
    outgoing: Vec<u8>,
}

impl Tls {
    /// Creates a connection before its TLS handshake. If `has_preface` is `true`, plain bytes come
    /// before the handshake.
    pub(super) fn new(tcp: Tcp, config: Arc<ServerConfig>, has_preface: bool) -> Result<Self, rustls::Error> {
        Ok(Self {
            tcp,
            session: UnbufferedServerConnection::new(config)?,
            phase: if has_preface { TlsPhase::Preface } else { TlsPhase::Handshake },
            client_auth_fault: None,
            short_read: false,
            has_unprocessed: false,
            close_notify_sent: false,
            ignores_input: false,
            incoming: Vec::new(),
            outgoing: Vec::new(),
        })
    }

    pub(super) fn end_preface(&mut self, rest: Vec<u8>) {
        if self.phase == TlsPhase::Preface {
            self.phase = TlsPhase::Handshake;
            self.has_unprocessed = !rest.is_empty();
            self.incoming = rest;
        }
    }

    pub(super) fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    pub(super) fn tcp_mut(&mut self) -> &mut Tcp {
        &mut self.tcp
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.phase == TlsPhase::Handshake
    }

    pub(super) fn user(&self) -> Option<String> {
        deeperhub_security::tls::user(self.session.peer_certificates()?.first()?)
    }

    pub(super) fn clear_readiness(&mut self) -> bool {
        // In the other phases, the next read must still report the end or the error.
        let may_clear = matches!(self.phase, TlsPhase::Preface | TlsPhase::Handshake | TlsPhase::Open);
        self.short_read && may_clear && self.tcp.clear_readiness()
    }

    /// Reads from the socket at most once, so that the worker can bound how much of one peer's
    /// input it handles in a row. Decrypted bytes always fit into `buffer`, as they are fewer than
    /// the encrypted ones.
    pub(super) fn read(&mut self, buffer: &mut [u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        if self.ignores_input || self.phase == TlsPhase::Preface {
            let len = self.tcp.read(buffer)?;
            self.short_read = len < buffer.len();
            return Ok(len);
        }
        match self.phase {
            TlsPhase::Preface | TlsPhase::Handshake | TlsPhase::Open => {}
            TlsPhase::PeerClosed => return Ok(0),
            TlsPhase::Broken => return Err(self.abandon()),
            TlsPhase::Abandoned => return self.tcp.read(buffer),
        }
        // `input` gets the incomplete bytes of earlier reads, followed by the new bytes.
        let incomplete = self.incoming.len();
        let max_input = buffer.len().min(MAX_PLAIN_WRITE).max(incomplete);
        let input = tls_scratch.buffer();
        let received = if std::mem::take(&mut self.has_unprocessed) {
            self.short_read = false;
            0
        } else {
            let received = self.tcp.read(&mut input[incomplete..max_input])?;
            if received == 0 {
                return Ok(0);
            }
            self.short_read = incomplete + received < max_input;
            received
        };
        let input_len = incomplete + received;
        input[..incomplete].copy_from_slice(&self.incoming);
        let was_handshaking = self.is_handshaking();

        // No input is known to make rustls panic. If one did, only this connection would end.
        let result = catch_unwind(AssertUnwindSafe(|| self.process(&mut input[..input_len], buffer)));
        let Processed { consumed, plain } = result.unwrap_or_else(|_| {
            self.phase = TlsPhase::Broken;
            Processed { consumed: input_len, plain: 0 }
        });
        self.store_incomplete(&input[consumed..input_len]);
        tls_scratch.received_any = received > 0;

        if was_handshaking {
            tls_scratch.handshake_steps += 1;
            match (self.phase, self.session.handshake_kind()) {
                (TlsPhase::Handshake, _) => {}
                (TlsPhase::Open, Some(HandshakeKind::Resumed)) => tls_scratch.ended.resumed += 1,
                (TlsPhase::Open, _) => tls_scratch.ended.full += 1,
                _ => tls_scratch.ended.failed += 1,
            }
            if let Some(fault) = self.client_auth_fault.take() {
                tls_scratch.ended.client_auth[fault as usize] += 1;
            }
        }
        match self.phase {
            _ if plain > 0 => Ok(plain),
            TlsPhase::Broken => Err(self.abandon()),
            TlsPhase::PeerClosed => Ok(0),
            _ if self.short_read => {
                let _ = self.tcp.clear_readiness();
                Err(io::ErrorKind::WouldBlock.into())
            }
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Processes the records in `input`. Writes decrypted bytes to `plain`, and appends TLS
    /// messages for the peer to `outgoing`.
    fn process(&mut self, input: &mut [u8], plain: &mut [u8]) -> Processed {
        let mut processed = Processed { consumed: 0, plain: 0 };
        if self.phase == TlsPhase::Handshake && starts_like_http(input) {
            Refusal::bad_handshake("this port speaks TLS: connect with wss:// or https://")
                .write(&mut self.outgoing);
            self.phase = TlsPhase::Broken;
            processed.consumed = input.len();
            return processed;
        }
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut input[processed.consumed..]);
            let mut needs_input = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        plain[processed.plain..][..record.payload.len()].copy_from_slice(record.payload);
                        processed.plain += record.payload.len();
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    if append(&mut self.outgoing, |out| encode(&mut data, out)).is_err() {
                        self.phase = TlsPhase::Broken;
                    }
                }
                // The data is in `outgoing` and is sent with the next flush.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.phase = TlsPhase::PeerClosed;
                    needs_input = true;
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => {
                    needs_input = true;
                }
                // No other state can occur, since early data is not offered.
                Ok(_) => self.phase = TlsPhase::Broken,
                Err(error) => {
                    tracing::debug!(%error, "TLS connection failed");
                    if self.phase == TlsPhase::Handshake {
                        self.client_auth_fault = ClientAuthFault::of(&error);
                    }
                    self.phase = TlsPhase::Broken;
                    self.encode_alert(&mut input[processed.consumed..]);
                }
            }
            processed.consumed += discard;
            if self.phase == TlsPhase::Handshake && !self.session.is_handshaking() {
                self.phase = TlsPhase::Open;
                if self.resumes_expired_certificate() {
                    tracing::debug!("Client certificate expired in resumed TLS session");
                    self.client_auth_fault = Some(ClientAuthFault::Expired);
                    self.phase = TlsPhase::Broken;
                }
            }
            if matches!(self.phase, TlsPhase::Broken | TlsPhase::PeerClosed) {
                processed.consumed = input.len();
                return processed;
            }
            if needs_input {
                return processed;
            }
        }
    }

    /// Returns `true` if the handshake resumed a session whose client certificate has expired. The
    /// certificate was verified when the session began, perhaps hours ago, and is not verified
    /// again.
    fn resumes_expired_certificate(&self) -> bool {
        if self.session.handshake_kind() != Some(HandshakeKind::Resumed) {
            return false;
        }
        let Some(certificate) = self.session.peer_certificates().and_then(<[_]>::first) else { return false };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        has_expired(certificate, now.map_or(0, |now| now.as_secs()))
    }

    /// Queues the TLS alert for an error.
    fn encode_alert(&mut self, input: &mut [u8]) {
        while let Ok(ConnectionState::EncodeTlsData(mut data)) = self.session.process_tls_records(input).state
        {
            if append(&mut self.outgoing, |out| encode(&mut data, out)).is_err() {
                return;
            }
        }
    }

    /// Stores incomplete input until more arrives. More than [`MAX_INCOMPLETE_BYTES`] break the
    /// connection.
    fn store_incomplete(&mut self, incomplete: &[u8]) {
        if incomplete.len() > MAX_INCOMPLETE_BYTES {
            tracing::warn!(limit = MAX_INCOMPLETE_BYTES, "Unfinished TLS message over the size limit");
            self.phase = TlsPhase::Broken;
        } else if !incomplete.is_empty() {
            self.incoming.clear();
            self.incoming.extend_from_slice(incomplete);
            return;
        }
        self.incoming = Vec::new();
    }

    /// Returns the error of a broken connection, and makes later reads discard input.
    fn abandon(&mut self) -> io::Error {
        self.phase = TlsPhase::Abandoned;
        io::ErrorKind::InvalidData.into()
    }

    pub(super) fn ignore_input(&mut self) {
        self.ignores_input = true;
        self.incoming = Vec::new();
    }

    pub(super) fn buffered_bytes(&self) -> usize {
        self.incoming.capacity() + self.outgoing.capacity()
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
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

    pub(super) fn write(&mut self, bytes: &[u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        self.flush()?;
        let (_, encrypted) = tls_scratch.buffer().split_at_mut(MAX_PLAIN_WRITE);
        self.encrypt_and_send(bytes, encrypted)
    }

    pub(super) fn write_vectored(
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
    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
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
    pub(super) fn close_notify(&mut self) {
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

/// Result of [`Tls::process`].
struct Processed {
    /// Number of input bytes that are no longer needed.
    consumed: usize,
    /// Number of decrypted bytes.
    plain: usize,
}

/// Encodes a TLS message into `out` and returns its length. Returns the required size if `out` is
/// too short.
fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, out: &mut [u8]) -> Result<usize, InsufficientSizeError> {
    match data.encode(out) {
        Ok(len) => Ok(len),
        Err(EncodeError::InsufficientSize(size)) => Err(size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    }
}

/// Appends the output of `write` to `out`. Calls `write` again with more space if it needs more.
fn append(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, InsufficientSizeError>,
) -> Result<(), BufferLimit> {
    let start = out.len();
    let mut space = 0;
    loop {
        out.resize(start + space, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(InsufficientSizeError { required_size }) if required_size > space => {
                if start + required_size > MAX_QUEUED_HANDSHAKE_BYTES {
                    out.truncate(start);
                    return Err(BufferLimit);
                }
                space = required_size;
            }
            Err(_) => {
                out.truncate(start);
                return Err(BufferLimit);
            }
        }
    }
}

/// Error of output that would exceed [`MAX_QUEUED_HANDSHAKE_BYTES`].
struct BufferLimit;

/// Returns `true` if a connection starts with an HTTP method in capital letters. TLS would start
/// with the bytes 22 and 3.
fn starts_like_http(bytes: &[u8]) -> bool {
    let Some(&[method @ .., last]) = bytes.first_chunk::<4>() else { return false };
    method.iter().all(u8::is_ascii_uppercase) && (last == b' ' || last.is_ascii_uppercase())
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("phase", &self.phase).finish_non_exhaustive()
    }
}
