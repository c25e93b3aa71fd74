//! Buffers and counts that the TLS connections of a worker share.

#[cfg(feature = "tls")]
use deeperhub_security::tls::ClientAuthFault;

/// Buffer and counts shared by the TLS connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct TlsScratch {
    /// Read and write buffer. Empty until the first TLS connection.
    #[cfg(feature = "tls")]
    pub(super) bytes: Vec<u8>,
    /// TLS handshake steps of the current round.
    pub(crate) handshake_steps: usize,
    /// `true` if the last read got any bytes, even only part of a record.
    pub(crate) received_any: bool,
    /// TLS handshakes that ended since the last metrics update.
    pub(crate) ended: TlsHandshakeCounts,
}

/// Counts of TLS handshakes by result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TlsHandshakeCounts {
    pub(crate) full: u64,
    pub(crate) resumed: u64,
    pub(crate) failed: u64,
    /// Handshakes refused because of the client's certificate, by reason. They count as `failed`,
    /// too.
    #[cfg(feature = "tls")]
    pub(crate) client_auth: [u64; ClientAuthFault::COUNT],
}
