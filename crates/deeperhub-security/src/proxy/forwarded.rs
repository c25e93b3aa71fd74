//! Parses `Forwarded` and `X-Forwarded-For`.

use std::iter;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The header in which proxies name the client's address. Trust only a header that your proxies
/// write or remove, because the client can send the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Header {
    /// `X-Forwarded-For`: comma-separated addresses, optionally with ports, IPv6 with or without
    /// brackets.
    XForwardedFor,
    /// `Forwarded` (RFC 7239): the `for` parameter of each element.
    Forwarded,
}

impl Header {
    /// Returns the header's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "X-Forwarded-For",
            Self::Forwarded => "Forwarded",
        }
    }

    /// Returns the addresses of a header value, starting with the last. An item is `None` if the
    /// entry is not an address.
    pub(super) fn entries_from_right(self, value: &str) -> impl Iterator<Item = Option<IpAddr>> {
        split_from_right(value, b',').map(move |entry| match self {
            Self::XForwardedFor => node(entry.trim()),
            Self::Forwarded => element(entry),
        })
    }
}

/// Splits at each separator outside of quotes, starting at the right end.
///
/// Trusted proxies append their entries at the right. If the split started at the left, a client
/// could hide these entries by opening a quote. Escaped quotes need no handling: no address
/// contains one, so such an entry is invalid and ends the search for the client.
fn split_from_right(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut unsplit = Some(text);
    iter::from_fn(move || {
        let text = unsplit?;
        let mut is_quoted = false;
        let position = text.bytes().rposition(|byte| {
            is_quoted ^= byte == b'"';
            byte == separator && !is_quoted
        });
        let (left, right) = match position.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?))) {
            Some((left, right)) => (Some(left), right),
            None => (None, text),
        };
        unsplit = left;
        Some(right)
    })
}

/// Returns the `for` parameter of a `Forwarded` element (RFC 7239 section 4), if there is exactly
/// one.
fn element(text: &str) -> Option<IpAddr> {
    let mut for_value = None;
    for pair in split_from_right(text, b';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("for") && for_value.replace(value.trim()).is_some() {
            return None;
        }
    }
    let value = for_value?;
    match value.strip_prefix('"') {
        Some(quoted) => node(quoted.strip_suffix('"')?),
        None => node(value),
    }
}

/// Parses a node: an address, optionally with a port (RFC 7239 section 6), or IPv6 without
/// brackets.
fn node(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse::<IpAddr>().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}
