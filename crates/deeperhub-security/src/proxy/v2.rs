//! The PROXY protocol, version 2: a binary header that a TCP proxy sends before all other bytes,
//! with the addresses of the forwarded connection.
//!
//! Require the header only on connections from a trusted proxy. If the header were optional, a
//! client could send one itself and claim any address. Extension fields (TLVs) are skipped.
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

pub use super::{Parsed, ProxyError};

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Maximum length of a header in bytes. Limits the bytes that are buffered for one. Usual headers
/// have 28 or 52 bytes, and a few hundred with TLVs.
pub const MAX_BYTES: usize = 4096;

/// Start of each header; no HTTP request and no TLS record starts like this.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Length of the fixed part: signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;

/// Parses the header at the start of `bytes`. Any number of bytes may follow it.
///
/// # Errors
///
/// [`ProxyError`] as soon as no further bytes can make the header valid.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    let received = SIGNATURE.len().min(bytes.len());
    if bytes.get(..received) != SIGNATURE.get(..received) {
        return Err(ProxyError::Signature);
    }
    let command = match bytes.get(12) {
        None => return Ok(Parsed::Partial),
        Some(byte) if byte >> 4 != 2 => return Err(ProxyError::Version),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(_) => return Err(ProxyError::Command),
    };
    // The rest of a `LOCAL` header must be skipped, whatever it contains.
    let family = match (bytes.get(13), command) {
        (None, _) => return Ok(Parsed::Partial),
        (Some(_), Command::Local) | (Some(0x00), _) => Family::Unspecified,
        (Some(0x11), _) => Family::Ipv4,
        (Some(0x21), _) => Family::Ipv6,
        (Some(0x31), _) => Family::Unix,
        (Some(_), _) => return Err(ProxyError::Family),
    };
    let Some(&[high, low]) = bytes.get(14..FIXED_BYTES) else { return Ok(Parsed::Partial) };
    let variable_bytes = usize::from(u16::from_be_bytes([high, low]));
    if variable_bytes < family.address_bytes() {
        return Err(ProxyError::TooShort);
    }
    let length = FIXED_BYTES + variable_bytes;
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
    /// Returns the length of two addresses and two ports.
    const fn address_bytes(self) -> usize {
        match self {
            Self::Unspecified => 0,
            Self::Ipv4 => 12,
            Self::Ipv6 => 36,
            Self::Unix => 216,
        }
    }

    /// Parses the addresses: source address, destination address, source port, destination port.
    /// Returns the source.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, addresses].concat()
    }

    const IPV4: &[u8] = &[192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x34, 0x1f, 0x90];

    fn ipv6(source: &str) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        [&source.octets()[..], &[0; 16], &[0x12, 0x34, 0, 80]].concat()
    }

    #[track_caller]
    fn check(bytes: &[u8], source: Option<&str>) {
        let source = source.map(|source| source.parse().unwrap());
        assert_eq!(parse(bytes), Ok(Parsed::Complete { length: bytes.len(), source }));
        let followed = [bytes, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&followed), Ok(Parsed::Complete { length: bytes.len(), source }));
    }

    #[test]
    fn the_source_is_that_of_the_forwarded_connection() {
        check(&header(0x21, 0x11, IPV4), Some("192.0.2.1:4660"));
        check(&header(0x21, 0x21, &ipv6("2001:db8::1")), Some("[2001:db8::1]:4660"));
        check(&header(0x21, 0x21, &ipv6("::ffff:192.0.2.1")), Some("192.0.2.1:4660"));
    }

    #[test]
    fn what_the_proxy_adds_is_skipped() {
        let with_tlv = [IPV4, &[0x04, 0, 3, 1, 2, 3], &[0xff; 500]].concat();
        check(&header(0x21, 0x11, &with_tlv), Some("192.0.2.1:4660"));
        check(&header(0x21, 0x11, &[IPV4, &[0; MAX_BYTES - 28]].concat()), Some("192.0.2.1:4660"));
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_or_for_no_ip_address_tells_no_source() {
        check(&header(0x20, 0x00, &[]), None);
        check(&header(0x20, 0x11, IPV4), None);
        check(&header(0x20, 0xff, &[1, 2, 3]), None);
        check(&header(0x21, 0x00, &[9; 20]), None);
        check(&header(0x21, 0x31, &[b'/'; 216]), None);
    }

    #[test]
    fn what_is_no_such_header_is_refused_as_soon_as_that_is_clear() {
        let check = |bytes: &[u8], expected| assert_eq!(parse(bytes), Err(expected), "{bytes:?}");
        check(b"G", ProxyError::Signature);
        check(b"\r\n\r\nGET", ProxyError::Signature);
        check(&header(0x11, 0x11, IPV4), ProxyError::Version);
        check(&header(0x31, 0x11, IPV4), ProxyError::Version);
        check(&header(0x22, 0x11, IPV4), ProxyError::Command);
        for family in [0x01, 0x10, 0x12, 0x22, 0x32, 0x41, 0xff] {
            check(&header(0x21, family, &[0; 300]), ProxyError::Family);
        }
        check(&header(0x21, 0x11, &IPV4[1..]), ProxyError::TooShort);
        check(&header(0x21, 0x21, &[0; 35]), ProxyError::TooShort);
        check(&header(0x21, 0x31, &[0; 215]), ProxyError::TooShort);
        check(&header(0x21, 0x11, &[0; MAX_BYTES - 15])[..16], ProxyError::TooLong);
    }

    #[test]
    fn every_beginning_of_a_header_waits_for_more() {
        for whole in [header(0x21, 0x11, IPV4), header(0x21, 0x21, &ipv6("::1")), header(0x20, 0, &[])] {
            for cut in 0..whole.len() {
                assert_eq!(parse(&whole[..cut]), Ok(Parsed::Partial), "{cut}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Asserts that more bytes do not change the result for a prefix of a header.
        #[test]
        fn any_bytes_are_decided_the_same_however_they_come(
            command in prop_oneof![Just(0x20_u8), Just(0x21), any::<u8>()],
            family in prop_oneof![Just(0x11_u8), Just(0x21), Just(0x31), Just(0), any::<u8>()],
            addresses in prop::collection::vec(any::<u8>(), 0..300),
            declared in prop::option::of(any::<u16>()),
            noise in prop::option::of((0..16_usize, any::<u8>())),
        ) {
            let mut bytes = header(command, family, &addresses);
            if let Some(declared) = declared {
                bytes[14..16].copy_from_slice(&declared.to_be_bytes());
            }
            if let Some((at, byte)) = noise {
                bytes[at] = byte;
            }
            let whole = parse(&bytes);
            for cut in 0..bytes.len() {
                match (parse(&bytes[..cut]), whole) {
                    (Ok(Parsed::Partial), _) => {}
                    (Ok(Parsed::Complete { length, source }), Ok(Parsed::Complete { length: of_all, source: known })) => {
                        prop_assert!(length <= cut && length == of_all && source == known);
                    }
                    (Err(_), whole) => prop_assert!(whole.is_err()),
                    (Ok(complete), whole) => prop_assert!(false, "{complete:?}, then {whole:?}"),
                }
            }
            if let Ok(Parsed::Complete { length, .. }) = whole {
                prop_assert!(length <= bytes.len() && length <= MAX_BYTES);
            }
        }
    }
}
