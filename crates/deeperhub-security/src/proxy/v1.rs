//! The PROXY protocol, version 1: a line of text that a TCP proxy sends before all other bytes,
//! with the addresses of the forwarded connection.
//!
//! ```
//! use deeperhub_security::proxy::{Parsed, v1::parse};
//!
//! let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 4660 8080\r\nGET /";
//! let parsed = parse(header)?;
//! assert_eq!(parsed, Parsed::Complete { length: 42, source: Some("192.0.2.1:4660".parse()?) });
//! assert_eq!(parse(&header[..20])?, Parsed::Partial);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::{Parsed, ProxyError};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Maximum length of a header in bytes: two IPv6 addresses, two ports and the line end.
pub const MAX_BYTES: usize = 107;

/// Start of each header; HTTP has no such method.
const SIGNATURE: &[u8] = b"PROXY ";

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
    let Some(rest) = bytes.get(SIGNATURE.len()..) else { return Ok(Parsed::Partial) };
    let family = Family::of(rest)?;
    let longest_line = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let Some(end) = longest_line.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < MAX_BYTES { Ok(Parsed::Partial) } else { Err(ProxyError::TooLong) };
    };
    let line = bytes.get(SIGNATURE.len()..end).unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::Addresses)?;
    let source = match family {
        // The line ended before its family was known.
        None => return Err(ProxyError::Family),
        // The protocol requires receivers to skip the rest of the line.
        Some(Family::Unknown) => None,
        Some(Family::Tcp4) => Some(source::<Ipv4Addr>("TCP4", line)?),
        Some(Family::Tcp6) => Some(source::<Ipv6Addr>("TCP6", line)?),
    };
    Ok(Parsed::Complete { length: end + 2, source })
}

#[derive(Clone, Copy)]
enum Family {
    Tcp4,
    Tcp6,
    Unknown,
}

impl Family {
    /// Returns the family that a line starts with. Returns `None` if more bytes are needed to know
    /// it.
    fn of(line: &[u8]) -> Result<Option<Self>, ProxyError> {
        let mut is_partial = false;
        for (name, family) in [("TCP4", Self::Tcp4), ("TCP6", Self::Tcp6), ("UNKNOWN", Self::Unknown)] {
            let name = name.as_bytes();
            match line.strip_prefix(name) {
                Some([b' ' | b'\r', ..]) => return Ok(Some(family)),
                Some([]) => is_partial = true,
                Some(_) => {}
                None => is_partial |= name.starts_with(line),
            }
        }
        if is_partial { Ok(None) } else { Err(ProxyError::Family) }
    }
}

/// Parses family, source and destination address, source and destination port, separated by single
/// blanks. Returns the source.
fn source<A: FromStr + Into<IpAddr>>(family: &str, line: &str) -> Result<SocketAddr, ProxyError> {
    let mut parts = line.split(' ');
    if parts.next() != Some(family) {
        return Err(ProxyError::Addresses);
    }
    let mut address = || parts.next()?.parse::<A>().ok();
    let (source, destination) = (address(), address());
    let mut port = || {
        // `parse` would accept a sign and leading zeros.
        let digits = parts.next().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        (digits == "0" || !digits.starts_with('0')).then(|| digits.parse::<u16>().ok())?
    };
    let (source_port, destination_port) = (port(), port());
    match (source, destination, source_port, destination_port, parts.next()) {
        (Some(source), Some(_), Some(port), Some(_), None) => {
            Ok(SocketAddr::new(source.into().to_canonical(), port))
        }
        _ => Err(ProxyError::Addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(line: &str, expected: Result<Option<&str>, ProxyError>) {
        let header = format!("{line}\r\n");
        let expected = expected.map(|source| Parsed::Complete {
            length: header.len(),
            source: source.map(|source| source.parse().unwrap()),
        });
        assert_eq!(parse(header.as_bytes()), expected, "{line}");
        assert_eq!(parse(format!("{header}GET / HTTP/1.1\r\n").as_bytes()), expected, "{line}");
    }

    #[test]
    fn the_source_is_that_of_the_forwarded_connection() {
        check("PROXY TCP4 192.0.2.1 192.0.2.2 4660 80", Ok(Some("192.0.2.1:4660")));
        check("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535", Ok(Some("255.255.255.255:65535")));
        check("PROXY TCP4 192.0.2.1 192.0.2.2 0 0", Ok(Some("192.0.2.1:0")));
        check("PROXY TCP6 2001:db8::1 ::1 4660 80", Ok(Some("[2001:db8::1]:4660")));
        check("PROXY TCP6 ::ffff:192.0.2.1 ::1 4660 80", Ok(Some("192.0.2.1:4660")));
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        check(
            &format!("PROXY TCP6 {longest} {longest} 65535 65535"),
            Ok(Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
        );
    }

    #[test]
    fn a_proxy_that_does_not_know_tells_no_source() {
        check("PROXY UNKNOWN", Ok(None));
        check("PROXY UNKNOWN and whatever else", Ok(None));
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY UNKNOWN {longest} {longest} 65535 65535");
        assert_eq!(line.len() + 2, MAX_BYTES);
        check(&line, Ok(None));
    }

    #[test]
    fn what_is_no_such_header_is_refused() {
        for line in [
            "PROXY TCP4",
            "PROXY TCP4 ",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2",
            "PROXY TCP4 ::1 ::1 1 2",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2",
            "PROXY TCP4 192.0.2.1\t192.0.2.2 1 2",
            "PROXY TCP4\rX 192.0.2.1 192.0.2.2 1 2",
        ] {
            check(line, Err(ProxyError::Addresses));
        }
        for line in
            ["PROXY UDP4 192.0.2.1 192.0.2.2 1 2", "PROXY  TCP4", "PROXY TCP", "PROXY TCP44 ", "PROXY "]
        {
            check(line, Err(ProxyError::Family));
        }
        for line in ["PROPFIND / HTTP/1.1", "POST / HTTP/1.1", "proxy TCP4 "] {
            check(line, Err(ProxyError::Signature));
        }
        let without_end = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(parse(without_end.as_bytes()), Err(ProxyError::TooLong));
        let late_end = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_BYTES - 15));
        assert_eq!(parse(late_end.as_bytes()), Err(ProxyError::TooLong));
        // A line feed alone does not end the line.
        assert_eq!(parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n"), Ok(Parsed::Partial));
    }

    #[test]
    fn every_beginning_of_a_header_waits_for_more() {
        for whole in
            ["PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY UNKNOWN\r\n", "PROXY TCP6 :: :: 1 2\r\n"]
        {
            for cut in 0..whole.len() {
                assert_eq!(parse(&whole.as_bytes()[..cut]), Ok(Parsed::Partial), "{cut} of {whole}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Checks that a decision on a prefix still holds when more bytes arrive.
        #[test]
        fn any_bytes_are_decided_the_same_however_they_come(
            start in prop_oneof![Just(""), Just("PROXY "), Just("PROXY TCP4 "), Just("PROXY UNKNOWN")],
            rest in "[ 0-9a-f:.TCPU\r\n\u{e4}]{0,120}",
            is_ended: bool,
        ) {
            let mut text = format!("{start}{rest}");
            if is_ended {
                text += "\r\n";
            }
            let bytes = text.as_bytes();
            let whole = parse(bytes);
            for cut in 0..bytes.len() {
                match parse(&bytes[..cut]) {
                    Ok(Parsed::Partial) => {}
                    decided => prop_assert_eq!(decided, whole, "{}", cut),
                }
            }
            if let Ok(Parsed::Complete { length, .. }) = whole {
                prop_assert!(length <= bytes.len() && length <= MAX_BYTES);
            }
        }

        #[test]
        fn what_is_written_is_read(source: (u32, u16), destination: (u32, u16), v6: bool) {
            let address = |bits: u32| -> IpAddr {
                if v6 { Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(bits)).into() } else { Ipv4Addr::from_bits(bits).into() }
            };
            let (from, to) = (address(source.0), address(destination.0));
            let family = if v6 { "TCP6" } else { "TCP4" };
            let header = format!("PROXY {family} {from} {to} {} {}\r\n", source.1, destination.1);
            let expected = Parsed::Complete { length: header.len(), source: Some(SocketAddr::new(from, source.1)) };
            prop_assert_eq!(parse(header.as_bytes()), Ok(expected));
        }
    }
}
