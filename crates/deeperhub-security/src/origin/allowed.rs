//! Values of the list of allowed origins.

use super::OriginPolicyError;
use super::parts::{Authority, Host, Origin, default_port, is_scheme};
use std::borrow::Cow;
use std::net::IpAddr;

/// An allowed origin, or a set of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AllowedOrigin {
    /// All origins, written as `*`.
    Any,
    /// One origin, such as `https://example.com:8443`, or all subdomains of a host, such as
    /// `https://*.example.com`.
    Origin { scheme: Box<str>, hosts: Hosts, port: Option<u16> },
}

/// The hosts of an allowed origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hosts {
    Name(Box<str>),
    Address(IpAddr),
    /// The suffix, with its leading dot.
    SubdomainsOf(Box<str>),
}

impl AllowedOrigin {
    pub(super) fn parse(value: &str) -> Result<Self, OriginPolicyError> {
        let invalid = |expected: Cow<'static, str>| OriginPolicyError { value: value.to_owned(), expected };
        match value {
            "*" => return Ok(Self::Any),
            "" => return Err(invalid("an origin such as https://example.com".into())),
            "null" => return Err(invalid("only * allows pages without an origin".into())),
            _ => {}
        }
        let Some((scheme, rest)) = value.split_once("://") else {
            let host = value.trim_matches('/');
            return Err(invalid(match Authority::parse(host) {
                Some(_) => format!("an origin starts with its scheme: https://{host}").into(),
                None => "scheme, host and port, such as https://example.com:8443".into(),
            }));
        };
        if !is_scheme(scheme) {
            return Err(invalid("a scheme such as https before the ://".into()));
        }
        if rest.contains(|c: char| c == ',' || c.is_whitespace()) {
            return Err(invalid(
                "a host and optionally a port after the ://; each origin is a separate value".into(),
            ));
        }
        if let Some(end) = rest.find(['/', '?', '#']) {
            let origin = value.get(..scheme.len() + "://".len() + end).unwrap_or(value);
            return Err(invalid(format!("an origin has no path: {origin}").into()));
        }
        if rest.contains('@') {
            return Err(invalid("an origin has no user: only scheme, host and port".into()));
        }
        if !rest.is_ascii() {
            return Err(invalid("a host name in ASCII, as browsers send it: xn--…".into()));
        }
        let (is_wildcard, authority) = match rest.strip_prefix("*.") {
            Some(authority) => (true, authority),
            None => (false, rest),
        };
        if authority.contains('*') {
            return Err(invalid("* alone, for all origins, or first, as in https://*.example.com".into()));
        }
        let Some(Authority { host, port }) = Authority::parse(authority) else {
            return Err(invalid(
                "a host and optionally a port after the ://, such as https://example.com:8443".into(),
            ));
        };
        let hosts = match (host, is_wildcard) {
            (Host::Name(name), false) => Hosts::Name(name.to_ascii_lowercase().into()),
            (Host::Name(name), true) => Hosts::SubdomainsOf(format!(".{}", name.to_ascii_lowercase()).into()),
            (Host::Address(address), false) => Hosts::Address(address),
            (Host::Address(_), true) => {
                return Err(invalid("a name after *., not an address".into()));
            }
        };
        let scheme: Box<str> = scheme.to_ascii_lowercase().into();
        let port = port.or_else(|| default_port(&scheme));
        Ok(Self::Origin { scheme, hosts, port })
    }

    /// Returns `true` if pages of the host are allowed with some scheme and port.
    pub(super) fn allows_host(&self, host: &Host<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Origin { hosts, .. } => hosts.contain(host),
        }
    }

    /// Returns `true` if pages of the origin are allowed. `origin` is `None` for `null` and for a
    /// malformed origin.
    pub(super) fn allows(&self, origin: Option<&Origin<'_>>) -> bool {
        match (self, origin) {
            (Self::Any, _) => true,
            (Self::Origin { .. }, None) => false,
            (Self::Origin { scheme, hosts, port }, Some(origin)) => {
                origin.scheme.eq_ignore_ascii_case(scheme)
                    && origin.port() == *port
                    && hosts.contain(&origin.authority.host)
            }
        }
    }
}

impl Hosts {
    fn contain(&self, host: &Host<'_>) -> bool {
        match self {
            Self::Name(name) => host.is(&Host::Name(name)),
            Self::Address(address) => host.is(&Host::Address(*address)),
            Self::SubdomainsOf(suffix) => host.is_subdomain_of(suffix),
        }
    }
}
