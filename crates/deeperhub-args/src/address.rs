//! Hosts and addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::whole;

/// A host: an IP address or a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A host name. [`Address::resolve`] looks up its IP address.
    Name(String),
}

/// The host name of the IPv4 and IPv6 loopback addresses (RFC 6761).
const LOCALHOST: &str = "localhost";

impl Host {
    /// Returns the host name `localhost`, which resolves to the IPv4 and IPv6 loopback addresses.
    pub fn localhost() -> Self {
        Self::Name(LOCALHOST.to_owned())
    }

    /// The IPv4 loopback address, 127.0.0.1.
    pub const LOOPBACK: Self = Self::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// Returns `true` for loopback addresses and for `localhost`. Does not look up other names.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.to_canonical().is_loopback(),
            Self::Name(name) => name.eq_ignore_ascii_case(LOCALHOST),
        }
    }

    /// Returns `true` if two sockets cannot listen on the same port of both hosts. Does not look up
    /// names, so the result is `false` for a name and an IP address, except for `localhost`.
    fn overlaps(&self, other: &Self) -> bool {
        let addresses = |host: &Self| -> Vec<IpAddr> {
            match host {
                Self::Ip(ip) => vec![*ip],
                Self::Name(_) if host.is_loopback() => {
                    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
                }
                Self::Name(_) => Vec::new(),
            }
        };
        // An unspecified address includes all addresses of its family; `::` also includes IPv4.
        let includes = |one: IpAddr, other: IpAddr| {
            one == other || one.is_unspecified() && (one.is_ipv6() || other.is_ipv4())
        };
        match (self, other) {
            (Self::Name(one), Self::Name(other)) if one.eq_ignore_ascii_case(other) => true,
            _ => addresses(self).iter().any(|&one| {
                addresses(other).iter().any(|&other| includes(one, other) || includes(other, one))
            }),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = unbracketed.parse() {
            return Ok(Self::Ip(ip));
        }
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        // A text of digits and dots only is a mistyped IP address, not a name.
        let is_numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_numeric || text.len() > 253 || !text.split('.').all(is_label) {
            return Err(
                "expected an IP address or a host name, such as 127.0.0.1, 0.0.0.0, :: or localhost, \
                        without a port"
                    .to_owned(),
            );
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

impl Address {
    /// Returns `true` if two sockets cannot listen on both addresses at the same time. Does not
    /// look up names. Port 0 never conflicts, because the system then chooses a free port.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.port != 0 && self.port == other.port && self.host.overlaps(&other.host)
    }

    /// Returns the socket address, after looking up the host if it is a name. If the name has
    /// several addresses, prefers an IPv4 address.
    ///
    /// # Errors
    ///
    /// Returns the resolver's error, or [`NotFound`](std::io::ErrorKind::NotFound) if the name has
    /// no address.
    pub fn resolve(&self) -> std::io::Result<SocketAddr> {
        let name = match &self.host {
            Host::Ip(ip) => return Ok(SocketAddr::new(*ip, self.port)),
            Host::Name(name) => name,
        };
        let addresses: Vec<_> = (name.as_str(), self.port).to_socket_addrs()?.collect();
        addresses
            .iter()
            .find(|address| address.is_ipv4())
            .or_else(|| addresses.first())
            .copied()
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected an address and a port, such as 127.0.0.1:8081 or [::1]:8081".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(expected());
        }
        Ok(Self {
            host: host.parse().map_err(|_| expected())?,
            port: whole(0, 65_535)(port).map_err(|_| expected())?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn hosts_are_addresses_or_names() {
        for (input, expected) in [
            ("127.0.0.1", Some("127.0.0.1")),
            ("::", Some("::")),
            ("[::1]", Some("::1")),
            ("localhost", Some("localhost")),
            ("hub-1.example.com", Some("hub-1.example.com")),
            ("", None),
            ("127.0.0", None),
            ("300.0.0.1", None),
            ("localhost:8080", None),
            ("http://localhost", None),
            ("a b", None),
            ("a..b", None),
        ] {
            check::<Host>(input, expected);
        }
    }

    #[test]
    fn loopback_addresses_and_localhost_are_loopback() {
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("LocalHost", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("hub.example.com", false),
        ] {
            assert_eq!(host.parse::<Host>().map(|host| host.is_loopback()), Ok(expected), "{host}");
        }
    }

    #[test]
    fn overlapping_addresses_are_detected() {
        for (one, other, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("localhost:1", "127.0.0.1:1", true),
            ("localhost:1", "[::1]:1", true),
            ("localhost:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "localhost:1", true),
            ("Hub.example.com:1", "hub.example.com:1", true),
            ("hub.example.com:1", "127.0.0.1:1", false),
        ] {
            let [one, other] = [one, other].map(|text| text.parse::<Address>().unwrap());
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (expected, expected), "{one} {other}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (input, expected) in [
            ("127.0.0.1:8081", Some("127.0.0.1:8081")),
            ("[::1]:0", Some("[::1]:0")),
            ("localhost:1", Some("localhost:1")),
            ("127.0.0.1", None),
            ("::1", None),
            ("::1:8081", None),
            (":8081", None),
            ("8081", None),
            ("127.0.0.1:65536", None),
            ("127.0.0.1:", None),
            ("on", None),
        ] {
            check::<Address>(input, expected);
        }
    }
}
