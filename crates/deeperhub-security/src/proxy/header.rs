//! Headers of the PROXY protocol, versions 1 and 2.

use super::{v1, v2};
use std::net::SocketAddr;

/// Result of parsing a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parsed {
    /// The bytes are the start of a valid header. Parse again from the first byte when more bytes
    /// have arrived.
    Partial,
    /// The header is complete.
    Complete {
        /// Length of the header in bytes; the client's bytes follow it.
        length: usize,
        /// Address and port of the client. `None` if the proxy opened the connection itself, such
        /// as for a health check (`LOCAL`), or if the forwarded connection has no IP addresses
        /// (`UNKNOWN`). The peer of the connection is then the client.
        source: Option<SocketAddr>,
    },
}

/// Error for bytes that are not a valid header. The connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The signature is missing. The peer is not a proxy, or is one that does not send the header.
    #[error("it does not start with the signature of the PROXY protocol")]
    Signature,
    /// The version is not supported.
    #[error("its version of the PROXY protocol is neither 1 nor 2")]
    Version,
    /// The command is neither `LOCAL` nor `PROXY`.
    #[error("its command is unknown")]
    Command,
    /// The addresses are of an unknown family, or not of a stream.
    #[error("its address family is not TCP over IPv4 or IPv6, or a Unix stream")]
    Family,
    /// In version 1, an address or a port is invalid, or there are not two of each.
    #[error("it does not have two addresses and two ports")]
    Addresses,
    /// In version 2, the length is too short for the addresses.
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
