//! TLS on the worker threads. Connections of a worker share buffers, so an idle connection has
//! none.

mod encode;
mod receive;
mod send;

use std::sync::Arc;

use deeperhub_security::tls::ClientAuthFault;
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;

use super::{Tcp, TlsScratch};

/// Maximum plain bytes that one write encrypts: those of four records.
const MAX_PLAIN_WRITE: usize = 64 * 1024;

/// Buffer space for bytes that encryption adds: about 40 bytes per record, a key update and an
/// alert.
pub(crate) const TLS_OVERHEAD: usize = 1024;

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

    pub(super) fn unflushed_bytes(&self) -> usize {
        self.outgoing.len()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("phase", &self.phase).finish_non_exhaustive()
    }
}
