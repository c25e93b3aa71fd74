//! The PROXY protocol, version 2: a header in binary that a proxy of TCP sends before everything else, with the
//! addresses of the connection that it forwards.
//!
//! A listener either expects it of a peer or does not look for it: where it is optional, a client can claim to be
//! anyone. What the proxy adds of its own (TLVs) is skipped. Version 1, in text, is told apart and refused.
//!
//! ```
//! use deeperhub_security::proxy::v2::{Parsed, parse};
//!
//! let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x12\x34\x1f\x90GET /";
//! let parsed = parse(header)?;
//! assert_eq!(parsed, Parsed::Complete { length: 28, source: Some("192.0.2.1:4660".parse()?) });
//! assert_eq!(parse(&header[..20])?, Parsed::Partial);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read. Usual ones have 28 or 52 bytes, and some hundred with TLVs.
pub const MAX_BYTES: usize = 4096;

/// The twelve bytes that each header starts with; no request in HTTP and no TLS does.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;

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
        /// there (`LOCAL`), or forwards what has no IP address. Then it is the connection's own peer.
        source: Option<SocketAddr>,
    },
}

/// What came is no header that is read here. The connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// It starts differently: perhaps what connected is no proxy, or one that does not send the header.
    #[error("it does not start with the signature of PROXY protocol version 2")]
    Signature,
    /// It is of version 1, or of one that there is not yet.
    #[error("it is not of version 2 of the PROXY protocol")]
    Version,
    /// The command is neither `LOCAL` nor `PROXY`.
    #[error("its command is not known")]
    Command,
    /// The addresses are of an unknown family, or not of a stream.
    #[error("its addresses are not of a stream over IPv4, IPv6 or Unix")]
    Family,
    /// The length has no room for the addresses.
    #[error("it is too short for its addresses")]
    TooShort,
    /// Longer than [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
}

/// Reads the header that `bytes` start with. Any number of bytes may follow it.
///
/// # Errors
///
/// [`ProxyError`] as soon as it is clear, whatever more would come.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    let shared = SIGNATURE.len().min(bytes.len());
    if bytes.get(..shared) != SIGNATURE.get(..shared) {
        let is_version_1 = bytes.starts_with(b"PROXY ");
        return Err(if is_version_1 { ProxyError::Version } else { ProxyError::Signature });
    }
    let command = match bytes.get(12) {
        None => return Ok(Parsed::Partial),
        Some(byte) if byte >> 4 != 2 => return Err(ProxyError::Version),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(_) => return Err(ProxyError::Command),
    };
    // Of a `LOCAL` header the rest is to be skipped, whatever it says.
    let family = match (bytes.get(13), command) {
        (None, _) => return Ok(Parsed::Partial),
        (Some(_), Command::Local) | (Some(0x00), _) => Family::Unspecified,
        (Some(0x11), _) => Family::Ipv4,
        (Some(0x21), _) => Family::Ipv6,
        (Some(0x31), _) => Family::Unix,
        (Some(_), _) => return Err(ProxyError::Family),
    };
    let Some(&[high, low]) = bytes.get(14..FIXED_BYTES) else { return Ok(Parsed::Partial) };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    if rest < family.address_bytes() {
        return Err(ProxyError::TooShort);
    }
    let length = FIXED_BYTES + rest;
    if length > MAX_BYTES {
        return Err(ProxyError::TooLong);
    }
    let Some(addresses) = bytes.get(FIXED_BYTES..length) else { return Ok(Parsed::Partial) };
    Ok(Parsed::Complete { length, source: family.source(addresses) })
}

#[derive(Clone, Copy)]
enum Command {
    Local,
    Proxy,
}

#[derive(Clone, Copy)]
enum Family {
    Unspecified,
    Ipv4,
    Ipv6,
    Unix,
}

impl Family {
    const fn address_bytes(self) -> usize {
        match self {
            Self::Unspecified => 0,
            Self::Ipv4 => 12,
            Self::Ipv6 => 36,
            Self::Unix => 216,
        }
    }

    /// Source address, destination address, source port, destination port.
    fn source(self, addresses: &[u8]) -> Option<SocketAddr> {
        let port = |at: usize| addresses.get(at..)?.first_chunk().copied().map(u16::from_be_bytes);
        match self {
            Self::Unspecified | Self::Unix => None,
            Self::Ipv4 => {
                let address: [u8; 4] = *addresses.first_chunk()?;
                Some((Ipv4Addr::from(address), port(8)?).into())
            }
            Self::Ipv6 => {
                let address: [u8; 16] = *addresses.first_chunk()?;
                Some((Ipv6Addr::from(address).to_canonical(), port(32)?).into())
            }
        }
    }
}
