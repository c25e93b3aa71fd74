//! Reads and decrypts the input of a TLS connection.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::tls::{ClientAuthFault, has_expired};
use rustls::HandshakeKind;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};

use super::encode::{append, encode};
use super::{MAX_PLAIN_WRITE, Tls, TlsPhase, TlsScratch};

/// Maximum bytes of incomplete records or handshake messages. It bounds the memory that a client
/// can cause before its messages are complete. A record has at most 18,437 bytes; a client's
/// certificate chain usually has a few thousand.
const MAX_INCOMPLETE_BYTES: usize = 32 * 1024;

impl Tls {
    /// Reads from the socket at most once, so that the worker can bound how much of one peer's
    /// input it handles in a row. Decrypted bytes always fit into `buffer`, as they are fewer than
    /// the encrypted ones.
    pub(in crate::transport) fn read(
        &mut self,
        buffer: &mut [u8],
        tls_scratch: &mut TlsScratch,
    ) -> io::Result<usize> {
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
}

/// Result of [`Tls::process`].
struct Processed {
    /// Number of input bytes that are no longer needed.
    consumed: usize,
    /// Number of decrypted bytes.
    plain: usize,
}

/// Returns `true` if a connection starts with an HTTP method in capital letters. TLS would start
/// with the bytes 22 and 3.
fn starts_like_http(bytes: &[u8]) -> bool {
    let Some(&[method @ .., last]) = bytes.first_chunk::<4>() else { return false };
    method.iter().all(u8::is_ascii_uppercase) && (last == b' ' || last.is_ascii_uppercase())
}
