//! Parsing of schemes, hosts and ports (RFC 6454 section 6.1, RFC 9110 section 7.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An origin: `scheme://host[:port]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) scheme: &'a str,
    pub(super) authority: Authority<'a>,
}

/// An authority: `host[:port]`, as in a `Host` header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Authority<'a> {
    pub(super) host: Host<'a>,
    pub(super) port: Option<u16>,
}

/// A host name as written, or an address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Host<'a> {
    Name(&'a str),
    Address(IpAddr),
}

impl<'a> Origin<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Some(Self { scheme: is_scheme(scheme).then_some(scheme)?, authority: Authority::parse(authority)? })
    }

    /// Returns the explicit port, or the scheme's default.
    pub(super) fn port(&self) -> Option<u16> {
        self.authority.port.or_else(|| default_port(self.scheme))
    }
}

impl<'a> Authority<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                (Host::Address(address.parse::<Ipv6Addr>().ok()?.into()), port)
            }
            None => {
                let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (Host::parse_name(name)?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None => port.is_empty().then_some(None)?,
        };
        Some(Self { host, port })
    }
}

impl<'a> Host<'a> {
    fn parse_name(text: &'a str) -> Option<Self> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        // Browsers send names in other scripts as `xn--…`. RFC 3986 allows more characters, but
        // names with them do not resolve.
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'%');
        (!text.is_empty() && text.bytes().all(allowed)).then_some(Self::Name(text))
    }

    /// Returns `true` if both are the same host.
    pub(super) fn is(&self, other: &Host<'_>) -> bool {
        match (self, other) {
            (Self::Name(a), Host::Name(b)) => a.eq_ignore_ascii_case(b),
            (Self::Address(a), Host::Address(b)) => a == b,
            _ => false,
        }
    }

    /// Returns `true` for a name that ends with `suffix`, which starts with a dot.
    pub(super) fn is_subdomain_of(&self, suffix: &str) -> bool {
        let Self::Name(name) = self else { return false };
        let start = name.len().checked_sub(suffix.len()).filter(|&start| start > 0);
        start.and_then(|start| name.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    }

    /// Returns `true` if the host means the local machine everywhere (RFC 6761 section 6.3, RFC
    /// 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    pub(super) fn is_loopback(&self) -> bool {
        match self {
            Self::Name(name) => name.eq_ignore_ascii_case("localhost") || self.is_subdomain_of(".localhost"),
            Self::Address(address) => address.to_canonical().is_loopback(),
        }
    }
}

/// Returns `true` for a valid scheme (RFC 3986 section 3.1).
pub(super) fn is_scheme(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Returns the default port of a scheme.
pub(super) fn default_port(scheme: &str) -> Option<u16> {
    let schemes = [("http", 80), ("https", 443)];
    schemes.iter().find(|(known, _)| scheme.eq_ignore_ascii_case(known)).map(|&(_, port)| port)
}

fn parse_port(text: &str) -> Option<u16> {
    // `parse` would accept a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
