//! What a header of the PROXY protocol says, in either version.

use super::{v1, v2};
use std::net::SocketAddr;

/// What has come of a header so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parsed {
    /// All right so far; to be asked again with more, from the first byte on.
    Partial,
    /// The whole header.
    Complete {
        /// Its bytes; those after it are the client's.
        length: usize,
        /// The client's address and port; `None` where the proxy speaks for itself, as to check that the server is
        /// there (`LOCAL`), or forwards what has no IP address (`UNKNOWN`). Then it is the connection's own peer.
        source: Option<SocketAddr>,
    },
}

/// What came is no header that is read here. The connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// It starts differently: perhaps what connected is no proxy, or one that does not send the header.
    #[error("it does not start with the signature of the PROXY protocol")]
    Signature,
    /// It is of a version that there is not yet.
    #[error("it is neither of version 1 nor of version 2 of the PROXY protocol")]
    Version,
    /// The command is neither `LOCAL` nor `PROXY`.
    #[error("its command is not known")]
    Command,
    /// The addresses are of an unknown family, or not of a stream.
    #[error("its addresses are not of a stream over IPv4, IPv6 or Unix")]
    Family,
    /// An address or a port of version 1 is none, or there are more or fewer than four.
    #[error("its addresses and ports are not two of each")]
    Addresses,
    /// The length has no room for the addresses.
    #[error("it is too short for its addresses")]
    TooShort,
    /// Longer than [`v2::MAX_BYTES`], or than [`v1::MAX_BYTES`] in version 1.
    #[error("it is longer than {} bytes, or {} in version 1", v2::MAX_BYTES, v1::MAX_BYTES)]
    TooLong,
}

/// Reads the header that `bytes` start with, in the version that it has. Any number of bytes may follow it.
///
/// # Errors
///
/// [`ProxyError`] as soon as it is clear, whatever more would come.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    match bytes.first() {
        Some(b'P') => v1::parse(bytes),
        _ => v2::parse(bytes),
    }
}
