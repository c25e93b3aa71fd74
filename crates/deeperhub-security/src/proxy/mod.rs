//! The address of a client that comes through proxies.
//!
//! What a connection or a request says of its client is worth as much as who says it. [`TrustedProxies`] are the
//! networks whose word is taken; [`TrustedProxies::client`] finds the client in `Forwarded` or `X-Forwarded-For`, and
//! [`v2::parse`] reads the header that a proxy of TCP puts before everything else.
//!
//! ```
//! use deeperhub_security::proxy::{Header, TrustedProxies};
//!
//! let trusted = TrustedProxies::parse(["10.0.0.0/8", "::1"])?;
//! let client = trusted.client("10.0.0.7".parse()?, Header::XForwardedFor, ["6.6.6.6, 192.0.2.1, 10.0.0.9"]);
//! assert_eq!(client.to_string(), "192.0.2.1", "6.6.6.6 is what 192.0.2.1 said");
//!
//! let stranger = trusted.client("198.51.100.1".parse()?, Header::XForwardedFor, ["6.6.6.6"]);
//! assert_eq!(stranger.to_string(), "198.51.100.1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod forwarded;
mod network;
pub mod v2;

pub use forwarded::Header;
pub use network::{Network, NetworkError, NetworkProblem};

use std::net::IpAddr;

/// The networks of the proxies whose word on a client's address is taken. None by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// From texts such as `10.0.0.0/8`, `192.0.2.1`, `::1` and `2001:db8::/32`.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] names the text at fault and says what would be right.
    pub fn parse<T: AsRef<str>>(networks: impl IntoIterator<Item = T>) -> Result<Self, NetworkError> {
        networks.into_iter().map(|network| network.as_ref().parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether no proxy is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the address is a trusted proxy's.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The address of the client whose request came over a connection from `peer`, with these `values` of the header,
    /// in the order in which they stood in the request.
    ///
    /// Each proxy writes down at the right whom it got the request from. So the entries are read from the right, for
    /// as long as whoever wrote them is trusted: the first address that is not a trusted proxy's is the client's, and
    /// what stands left of it is its own invention. An entry that is no address (`unknown`, a hidden name, a mistake)
    /// ends it too: then it is the address of the proxy that wrote it. Where all are trusted it is the leftmost.
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
                Some(Some(before)) => address = before,
                Some(None) | None => break,
            }
        }
        address
    }
}
