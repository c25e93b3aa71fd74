//! TLS on a worker. Records use buffers of the worker, so an idle connection has none.

use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::tls::{ClientAuthFault, has_expired};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{HandshakeKind, ServerConfig};

use super::{Tcp, TlsScratch};

/// Maximum plain bytes that one write encrypts: four records.
const MAX_PLAIN_WRITE: usize = 64 * 1024;

/// Space for what encryption adds: about 40 bytes per record, and a key update or an alert.
pub(crate) const TLS_OVERHEAD: usize = 1024;

/// Maximum bytes of incomplete records or handshake messages. A record has at most 18,437; a client's
/// certificate chain has a few thousand.
const MAX_INCOMPLETE_BYTES: usize = 32 * 1024;

/// Maximum bytes queued during the handshake: the server's certificates and related messages.
const MAX_HANDSHAKE_FLIGHT: usize = 128 * 1024;

impl TlsScratch {
    fn buffer(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; MAX_PLAIN_WRITE + MAX_PLAIN_WRITE + TLS_OVERHEAD];
        }
        &mut self.bytes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Plain bytes come before TLS.
    Preface,
    Handshake,
    Open,
    /// The peer has ended its side but may still read.
    PeerClosed,
    /// The peer violated the protocol; `read` has not reported it yet.
    Broken,
    /// The violation was reported; further input is discarded.
    Abandoned,
}

/// Server side of a TLS connection.
pub(crate) struct Tls {
    tcp: Tcp,
    session: UnbufferedServerConnection,
    phase: Phase,
    /// Fault for which the client's certificate was refused, until it is counted.
    client_auth_fault: Option<ClientAuthFault>,
    /// Whether the last read of the socket was short.
    short_read: bool,
    /// Whether `incoming` holds bytes from the preface that were not processed yet.
    has_unprocessed: bool,
    /// Whether `close_notify` was queued.
    close_notify_sent: bool,
    /// Whether further input is discarded.
    ignores_input: bool,
    /// Incomplete records or handshake messages; unallocated when empty.
    incoming: Vec<u8>,
    /// Encrypted bytes not with the kernel yet; unallocated when empty.
    outgoing: Vec<u8>,
}

impl Tls {
    /// Creates a connection before its handshake, and before a preface if there is one.
    pub(super) fn new(tcp: Tcp, config: Arc<ServerConfig>, preface: bool) -> Result<Self, rustls::Error> {
        Ok(Self {
            tcp,
            session: UnbufferedServerConnection::new(config)?,
            phase: if preface { Phase::Preface } else { Phase::Handshake },
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
        if self.phase == Phase::Preface {
            self.phase = Phase::Handshake;
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
        self.phase == Phase::Handshake
    }

    pub(super) fn user(&self) -> Option<String> {
        deeperhub_security::tls::user(self.session.peer_certificates()?.first()?)
    }

    pub(super) fn clear_readiness(&mut self) -> bool {
        // An end or error behind the data must still be reported by a read.
        let is_to_end = matches!(self.phase, Phase::Preface | Phase::Handshake | Phase::Open);
        self.short_read && is_to_end && self.tcp.clear_readiness()
    }

    /// Reads the socket at most once, so that the worker bounds what one peer sends in a row. Decrypted
    /// bytes always fit, as they are fewer than encrypted ones.
    pub(super) fn read(&mut self, buffer: &mut [u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        match self.phase {
            _ if self.ignores_input => {
                let read = self.tcp.read(buffer)?;
                self.short_read = read < buffer.len();
                return Ok(read);
            }
            Phase::Handshake | Phase::Open => {}
            Phase::Preface => {
                let read = self.tcp.read(buffer)?;
                self.short_read = read < buffer.len();
                return Ok(read);
            }
            Phase::PeerClosed => return Ok(0),
            Phase::Broken => return Err(self.abandon()),
            Phase::Abandoned => return self.tcp.read(buffer),
        }
        let held = self.incoming.len();
        let room = buffer.len().min(MAX_PLAIN_WRITE).max(held);
        let input = tls_scratch.buffer();
        let read = if std::mem::take(&mut self.has_unprocessed) {
            self.short_read = false;
            0
        } else {
            let read = self.tcp.read(&mut input[held..room])?;
            if read == 0 {
                return Ok(0);
            }
            self.short_read = held + read < room;
            read
        };
        let received_any = read > 0;
        input[..held].copy_from_slice(&self.incoming);
        let was_handshaking = self.is_handshaking();

        // No input is known to make rustls panic; if one does, it costs only this connection.
        let result = catch_unwind(AssertUnwindSafe(|| self.process(&mut input[..held + read], buffer)));
        let Processed { consumed, plain } = result.unwrap_or_else(|_| {
            self.phase = Phase::Broken;
            Processed { consumed: held + read, plain: 0 }
        });
        self.keep_incomplete(&input[consumed..held + read]);
        tls_scratch.received_any = received_any;

        if was_handshaking {
            tls_scratch.handshake_steps += 1;
            match (self.phase, self.session.handshake_kind()) {
                (Phase::Handshake, _) => {}
                (Phase::Open, Some(HandshakeKind::Resumed)) => tls_scratch.ended.resumed += 1,
                (Phase::Open, _) => tls_scratch.ended.full += 1,
                _ => tls_scratch.ended.failed += 1,
            }
            if let Some(fault) = self.client_auth_fault.take() {
                tls_scratch.ended.client_auth[fault as usize] += 1;
            }
        }
        match self.phase {
            _ if plain > 0 => Ok(plain),
            Phase::Broken => Err(self.abandon()),
            Phase::PeerClosed => Ok(0),
            _ if self.short_read => {
                let _ = self.tcp.clear_readiness();
                Err(io::ErrorKind::WouldBlock.into())
            }
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Processes the records in `input`: decrypted bytes go to `plain`, answers to `outgoing`.
    fn process(&mut self, input: &mut [u8], plain: &mut [u8]) -> Processed {
        let mut processed = Processed { consumed: 0, plain: 0 };
        if self.phase == Phase::Handshake && starts_like_http(input) {
            Refusal::bad_handshake("this port speaks TLS: connect with wss:// or https://")
                .write(&mut self.outgoing);
            self.phase = Phase::Broken;
            processed.consumed = input.len();
            return processed;
        }
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut input[processed.consumed..]);
            let mut done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        plain[processed.plain..][..record.payload.len()].copy_from_slice(record.payload);
                        processed.plain += record.payload.len();
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let encode = |room: &mut [u8]| match data.encode(room) {
                        Ok(written) => Ok(written),
                        Err(EncodeError::InsufficientSize(size)) => Err(size),
                        Err(EncodeError::AlreadyEncoded) => Ok(0),
                    };
                    if append(&mut self.outgoing, encode).is_err() {
                        self.phase = Phase::Broken;
                    }
                }
                // It goes out with the next flush.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.phase = Phase::PeerClosed;
                    done = true;
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => done = true,
                // Early data is not offered.
                Ok(_) => self.phase = Phase::Broken,
                Err(error) => {
                    tracing::debug!(%error, "TLS connection failed");
                    if self.phase == Phase::Handshake {
                        self.client_auth_fault = ClientAuthFault::of(&error);
                    }
                    self.phase = Phase::Broken;
                    self.encode_alert(&mut input[processed.consumed..]);
                }
            }
            processed.consumed += discard;
            if self.phase == Phase::Handshake && !self.session.is_handshaking() {
                self.phase = Phase::Open;
                if self.resumes_expired_certificate() {
                    tracing::debug!("Client certificate expired in resumed TLS session");
                    self.client_auth_fault = Some(ClientAuthFault::Expired);
                    self.phase = Phase::Broken;
                }
            }
            if matches!(self.phase, Phase::Broken | Phase::PeerClosed) {
                processed.consumed = input.len();
                return processed;
            }
            if done {
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

    /// Queues the alert for an error.
    fn encode_alert(&mut self, input: &mut [u8]) {
        while let Ok(ConnectionState::EncodeTlsData(mut data)) = self.session.process_tls_records(input).state
        {
            let encode = |room: &mut [u8]| match data.encode(room) {
                Ok(written) => Ok(written),
                Err(EncodeError::InsufficientSize(size)) => Err(size),
                Err(EncodeError::AlreadyEncoded) => Ok(0),
            };
            if append(&mut self.outgoing, encode).is_err() {
                return;
            }
        }
    }

    /// Keeps incomplete input until more arrives.
    fn keep_incomplete(&mut self, rest: &[u8]) {
        if rest.len() > MAX_INCOMPLETE_BYTES {
            tracing::warn!(limit = MAX_INCOMPLETE_BYTES, "Unfinished TLS message over the size limit");
            self.phase = Phase::Broken;
        } else if !rest.is_empty() {
            self.incoming.clear();
            self.incoming.extend_from_slice(rest);
            return;
        }
        self.incoming = Vec::new();
    }

    fn abandon(&mut self) -> io::Error {
        self.phase = Phase::Abandoned;
        io::ErrorKind::InvalidData.into()
    }

    /// Discards further input.
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
            let taken = self.tcp.write(&self.outgoing)?;
            if taken == self.outgoing.len() {
                self.outgoing = Vec::new();
            } else {
                self.outgoing.drain(..taken);
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8], tls_scratch: &mut TlsScratch) -> io::Result<usize> {
        self.flush()?;
        let (_, room) = tls_scratch.buffer().split_at_mut(MAX_PLAIN_WRITE);
        self.encrypt_and_send(bytes, room)
    }

    pub(super) fn write_vectored(
        &mut self,
        slices: &[IoSlice<'_>],
        tls_scratch: &mut TlsScratch,
    ) -> io::Result<usize> {
        self.flush()?;
        let (plain, room) = tls_scratch.buffer().split_at_mut(MAX_PLAIN_WRITE);
        // Small pieces share a record: one each would cost an encryption and at least 22 bytes.
        let mut gathered = 0;
        for slice in slices {
            let taken = slice.len().min(MAX_PLAIN_WRITE - gathered);
            plain[gathered..][..taken].copy_from_slice(&slice[..taken]);
            gathered += taken;
        }
        self.encrypt_and_send(&plain[..gathered], room)
    }

    /// Encrypts into `room` and sends. Bytes that the socket does not take are kept, so all count as
    /// written.
    fn encrypt_and_send(&mut self, bytes: &[u8], room: &mut [u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(MAX_PLAIN_WRITE)];
        let written = self.encrypt(bytes, room)?;
        let sent = loop {
            match self.tcp.write(&room[..written]) {
                Ok(sent) => break sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.outgoing.extend_from_slice(&room[sent..written]);
        Ok(bytes.len())
    }

    /// Encrypts `bytes` to the end of `staged`. The caller sends them and reports the result with
    /// [`staged_sent`](Self::staged_sent). Requires that all earlier bytes are
    /// [flushed](Self::is_flushed).
    #[cfg(feature = "io-uring")]
    pub(crate) fn stage(&mut self, bytes: &[u8], staged: &mut Vec<u8>) -> io::Result<()> {
        let start = staged.len();
        staged.resize(start + bytes.len() + TLS_OVERHEAD, 0);
        let written = self.encrypt(bytes, &mut staged[start..]);
        staged.truncate(start + written.as_ref().map_or(0, |&written| written));
        written.map(drop)
    }

    /// Keeps the staged bytes beyond the `sent` ones that the socket took.
    #[cfg(feature = "io-uring")]
    pub(crate) fn staged_sent(&mut self, staged: &[u8], sent: usize) {
        self.outgoing.extend_from_slice(&staged[sent..]);
    }

    #[cfg(feature = "io-uring")]
    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.tcp.descriptor()
    }

    fn encrypt(&mut self, bytes: &[u8], room: &mut [u8]) -> io::Result<usize> {
        if !matches!(self.phase, Phase::Open | Phase::PeerClosed) || self.close_notify_sent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut written = 0;
        loop {
            match self.session.process_tls_records(&mut self.incoming).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return match traffic.encrypt(bytes, &mut room[written..]) {
                        Ok(encrypted) => Ok(written + encrypted),
                        Err(error) => Err(io::Error::other(error)),
                    };
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => match data.encode(&mut room[written..]) {
                    Ok(encoded) => written += encoded,
                    Err(error) => return Err(io::Error::other(error)),
                },
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.phase = Phase::PeerClosed,
                Ok(_) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Sends `close_notify` (RFC 8446 section 6.1) if the socket takes it at once. The peer already knows
    /// the end from the WebSocket close frame.
    pub(super) fn close_notify(&mut self) {
        if self.close_notify_sent
            || !matches!(self.phase, Phase::Open | Phase::PeerClosed)
            || !self.is_flushed()
        {
            return;
        }
        self.close_notify_sent = true;
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.session.process_tls_records(&mut self.incoming).state
        {
            let queue = |room: &mut [u8]| match traffic.queue_close_notify(room) {
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

/// Result of [`Tls::process`]: input bytes consumed and plain bytes produced.
struct Processed {
    consumed: usize,
    plain: usize,
}

/// Appends the output of `write`, growing `out` to the size that `write` asks for.
fn append(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, InsufficientSizeError>,
) -> Result<(), BufferLimit> {
    let start = out.len();
    let mut room = 0;
    loop {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(InsufficientSizeError { required_size }) if required_size > room => {
                if start + required_size > MAX_HANDSHAKE_FLIGHT {
                    out.truncate(start);
                    return Err(BufferLimit);
                }
                room = required_size;
            }
            Err(_) => {
                out.truncate(start);
                return Err(BufferLimit);
            }
        }
    }
}

/// The output would exceed [`MAX_HANDSHAKE_FLIGHT`].
struct BufferLimit;

/// Returns `true` if a connection starts with an HTTP method in capital letters. TLS starts with the
/// bytes 22 and 3.
fn starts_like_http(bytes: &[u8]) -> bool {
    let Some(&[method @ .., last]) = bytes.first_chunk::<4>() else { return false };
    method.iter().all(u8::is_ascii_uppercase) && (last == b' ' || last.is_ascii_uppercase())
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("phase", &self.phase).finish_non_exhaustive()
    }
}
