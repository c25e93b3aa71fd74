//! Headers of the PROXY protocol, in either version.

use super::{v1, v2};
use std::net::SocketAddr;

/// Result of parsing a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parsed {
    /// Valid so far. Parse again from the first byte when more bytes have arrived.
    Partial,
    /// The header is complete.
    Complete {
        /// Length of the header in bytes; the client's bytes follow it.
        length: usize,
        /// Address and port of the client. `None` if the proxy speaks for itself, such as for a
        /// health check (`LOCAL`), or forwards a connection without IP addresses (`UNKNOWN`). Then
        /// the client is the connection's own peer.
        source: Option<SocketAddr>,
    },
}

/// Error for bytes that are not a valid header. The connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The signature is missing. The peer may be no proxy, or one that does not send the header.
    #[error("it does not start with the signature of the PROXY protocol")]
    Signature,
    /// The version is not supported.
    #[error("it is neither of version 1 nor of version 2 of the PROXY protocol")]
    Version,
    /// The command is neither `LOCAL` nor `PROXY`.
    #[error("its command is not known")]
    Command,
    /// The addresses are of an unknown family, or not of a stream.
    #[error("its addresses are not of a stream over IPv4, IPv6 or Unix")]
    Family,
    /// An address or a port of version 1 is invalid, or there are not two of each.
    #[error("its addresses and ports are not two of each")]
    Addresses,
    /// The length is too short for the addresses.
    #[error("it is too short for its addresses")]
    TooShort,
    /// The header is longer than [`v2::MAX_BYTES`], or than [`v1::MAX_BYTES`] in version 1.
    #[error("it is longer than {} bytes, or {} in version 1", v2::MAX_BYTES, v1::MAX_BYTES)]
    TooLong,
}

/// Parses the header at the start of `bytes`, in either version. Any number of bytes may follow it.
///
/// # Errors
///
/// [`ProxyError`] as soon as no further bytes can make the header valid.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    match bytes.first() {
        Some(b'P') => v1::parse(bytes),
        _ => v2::parse(bytes),
    }
}
