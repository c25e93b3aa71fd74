//! Addresses of clients behind proxies.
//!
//! [`TrustedProxies`] are the networks of proxies that may name the client's address.
//! [`TrustedProxies::client`] finds the client in `Forwarded` or `X-Forwarded-For`. [`parse`]
//! parses the header of the PROXY protocol, which a TCP proxy sends before all other bytes.
//!
//! ```
//! use deeperhub_security::proxy::{Header, TrustedProxies};
//!
//! let trusted = TrustedProxies::parse(["10.0.0.0/8", "::1"])?;
//! let client = trusted.client("10.0.0.7".parse()?, Header::XForwardedFor, ["6.6.6.6, 192.0.2.1, 10.0.0.9"]);
//! assert_eq!(client.to_string(), "192.0.2.1", "6.6.6.6 is a claim of the untrusted 192.0.2.1");
//!
//! let stranger = trusted.client("198.51.100.1".parse()?, Header::XForwardedFor, ["6.6.6.6"]);
//! assert_eq!(stranger.to_string(), "198.51.100.1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod forwarded;
mod header;
mod network;
pub mod v1;
pub mod v2;

pub use forwarded::Header;
pub use header::{Parsed, ProxyError, parse};
pub use ipnet::IpNet;
pub use network::{NetworkError, NetworkProblem, parse_network};

use std::net::IpAddr;

/// Networks of proxies that may name the client's address. Default: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Parses networks such as `10.0.0.0/8`, `192.0.2.1`, `::1` and `2001:db8::/32`.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] names the invalid text and what is expected.
    pub fn parse<T: AsRef<str>>(networks: impl IntoIterator<Item = T>) -> Result<Self, NetworkError> {
        networks
            .into_iter()
            .map(|network| parse_network(network.as_ref()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Returns `true` if no proxy is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns `true` if the address belongs to a trusted proxy.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns the address of the client that sent a request. The request's connection is from
    /// `peer`. `values` are the values of the header in the order of the request.
    ///
    /// Each proxy appends the address that it received the request from. So the entries are read
    /// from the right as long as the proxy that wrote them is trusted. The first address that is
    /// not a trusted proxy's is the client's; the client itself may have written the entries left
    /// of it. An entry that is not an address (`unknown`, an obfuscated name) ends the search, and
    /// the address of the proxy that wrote it is returned. If all addresses are trusted, the
    /// leftmost is returned.
    #[must_use]
    pub fn client<'a>(
        &self,
        peer: IpAddr,
        header: Header,
        values: impl IntoIterator<Item = &'a str, IntoIter: DoubleEndedIterator>,
    ) -> IpAddr {
        let mut address = peer.to_canonical();
        let mut entries = values.into_iter().rev().flat_map(|value| header.entries_from_right(value));
        while self.trusts(address) {
            match entries.next() {
                Some(Some(previous)) => address = previous,
                Some(None) | None => break,
            }
        }
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trusted() -> TrustedProxies {
        TrustedProxies::parse(["10.0.0.0/8", "2001:db8:aaaa::/48", "::1"]).unwrap()
    }

    #[track_caller]
    fn check(header: Header, peer: &str, values: &[&str], expected: &str) {
        let client = trusted().client(peer.parse().unwrap(), header, values.iter().copied());
        assert_eq!(client.to_string(), expected, "{values:?}");
    }

    #[test]
    fn the_rightmost_address_that_is_not_a_proxys_is_the_clients() {
        let check = |values: &[&str], expected| check(Header::XForwardedFor, "10.0.0.1", values, expected);
        check(&["192.0.2.1"], "192.0.2.1");
        check(&["6.6.6.6, 192.0.2.1"], "192.0.2.1");
        check(&["6.6.6.6,192.0.2.1 ,10.1.1.1, 10.2.2.2"], "192.0.2.1");
        check(&["6.6.6.6", "192.0.2.1", "10.1.1.1"], "192.0.2.1");
        check(&["6.6.6.6, 192.0.2.1", "10.1.1.1,::1"], "192.0.2.1");
        check(&["10.3.3.3, 10.1.1.1"], "10.3.3.3");
        check(&[], "10.0.0.1");
    }

    #[test]
    fn what_a_stranger_says_is_not_taken() {
        check(Header::XForwardedFor, "198.51.100.1", &["192.0.2.1"], "198.51.100.1");
        check(Header::Forwarded, "2001:db8:bbbb::1", &["for=192.0.2.1"], "2001:db8:bbbb::1");
        let none = TrustedProxies::default();
        assert!(none.is_empty() && !trusted().is_empty());
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(none.client(peer, Header::XForwardedFor, ["192.0.2.1"]), peer);
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_search_at_the_proxy_that_wrote_it() {
        for entry in ["unknown", "", "_hidden", "192.0.2.1.9", "192.0.2.1:x", "[::2", "\"192.0.2.1\"", "a b"]
        {
            let value = format!("192.0.2.1, {entry}, 10.1.1.1");
            check(Header::XForwardedFor, "10.0.0.1", &[&value], "10.1.1.1");
        }
        for element in
            ["", "for=unknown", "for=_x", "proto=https", "for=192.0.2.1;for=192.0.2.2", "for", "192.0.2.1"]
        {
            let value = format!("for=192.0.2.9, {element}, for=10.1.1.1");
            check(Header::Forwarded, "10.0.0.1", &[&value], "10.1.1.1");
        }
    }

    #[test]
    fn addresses_come_with_ports_brackets_and_as_ipv4_in_ipv6() {
        for (entry, expected) in [
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:DB8::1]:443", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:1", "192.0.2.1"),
        ] {
            check(Header::XForwardedFor, "::1", &[entry], expected);
            check(Header::XForwardedFor, "::ffff:10.0.0.1", &[entry], expected);
            check(Header::Forwarded, "::1", &[&format!("for=\"{entry}\"")], expected);
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        let check = |values: &[&str], expected| check(Header::Forwarded, "10.0.0.1", values, expected);
        check(&["for=192.0.2.60;proto=http;by=203.0.113.43"], "192.0.2.60");
        check(&["For=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17");
        check(&["for=192.0.2.43, FOR = 198.51.100.17 ;host=\"a,b;c\""], "198.51.100.17");
        check(&["for=192.0.2.43", "proto=https; for=10.9.9.9"], "192.0.2.43");
    }

    #[test]
    fn a_quote_that_a_client_leaves_open_swallows_nothing() {
        for started in ["for=\"", "for=\"6.6.6.6", "for=6.6.6.6;x=\"", "\"", "for=6.6.6.6;x=\"\\"] {
            let value = format!("{started}, for=192.0.2.1");
            check(Header::Forwarded, "10.0.0.1", &[&value], "192.0.2.1");
            check(Header::Forwarded, "10.0.0.1", &[started, "for=192.0.2.1"], "192.0.2.1");
            let value = format!("{started}, for=192.0.2.1;host=\"x\", for=10.1.1.1");
            check(Header::Forwarded, "10.0.0.1", &[&value], "192.0.2.1");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_writes_changes_nothing(theirs in prop::collection::vec("[ -~]{0,30}", 0..4), forwarded: bool) {
            let (header, ours) = if forwarded {
                (Header::Forwarded, "for=192.0.2.1;proto=https, for=\"[2001:db8:aaaa::9]:1\"")
            } else {
                (Header::XForwardedFor, "192.0.2.1, 2001:db8:aaaa::9")
            };
            let peer = "10.0.0.1".parse().unwrap();
            let mut values: Vec<&str> = theirs.iter().map(String::as_str).collect();
            values.push(ours);
            prop_assert_eq!(trusted().client(peer, header, values).to_string(), "192.0.2.1");
            // Most proxies join all entries in one line.
            let joined = format!("{}, {ours}", theirs.join(", "));
            prop_assert_eq!(trusted().client(peer, header, [&*joined]).to_string(), "192.0.2.1");
        }

        #[test]
        fn any_text_gives_some_address(text in "\\PC{0,60}", forwarded: bool) {
            let header = if forwarded { Header::Forwarded } else { Header::XForwardedFor };
            let _ = trusted().client("10.0.0.1".parse().unwrap(), header, [&*text]);
        }
    }
}
