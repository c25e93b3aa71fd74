//! Entries of `Forwarded` and `X-Forwarded-For`.

use std::iter;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The header that proxies write clients' addresses to. Only one is to be believed: the one that the proxies in front
/// write or remove; the other may come from the client as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Header {
    /// `X-Forwarded-For`: addresses with commas between them, some with a port, IPv6 with or without brackets.
    XForwardedFor,
    /// `Forwarded` (RFC 7239): the `for` of each element.
    Forwarded,
}

impl Header {
    /// The name as it stands in a request.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "X-Forwarded-For",
            Self::Forwarded => "Forwarded",
        }
    }

    /// The addresses of a header's value, the last first; `None` for an entry that has none.
    pub(super) fn entries_from_right(self, value: &str) -> impl Iterator<Item = Option<IpAddr>> {
        split_from_right(value, b',').map(move |entry| match self {
            Self::XForwardedFor => node(entry.trim()),
            Self::Forwarded => element(entry),
        })
    }
}

/// Cuts at each separator that stands in no quotes, from the right.
///
/// From the right, because there stands what trusted proxies wrote: a quote that a client opens at the left and does
/// not close must not swallow it. A backslash before a quote is not looked at; it makes a wrong entry of one that no
/// address has, and ends the search there.
fn split_from_right(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        let cut = text.bytes().rposition(|byte| {
            quoted ^= byte == b'"';
            byte == separator && !quoted
        });
        let (left, right) = match cut.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?))) {
            Some((left, right)) => (Some(left), right),
            None => (None, text),
        };
        rest = left;
        Some(right)
    })
}

/// The `for` of an element of `Forwarded`, RFC 7239 section 4, if it has one and only one.
fn element(text: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_from_right(text, b';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("for") && found.replace(value.trim()).is_some() {
            return None;
        }
    }
    let value = found?;
    node(value.strip_prefix('"').map_or(Some(value), |value| value.strip_suffix('"'))?)
}

/// An address, perhaps with a port: RFC 7239 section 6, and IPv6 without brackets.
fn node(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse::<IpAddr>().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}
