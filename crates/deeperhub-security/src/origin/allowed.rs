//! A value of the list of allowed origins.

use super::OriginPolicyError;
use super::parts::{Authority, Host, Origin, default_port, is_scheme};
use std::borrow::Cow;
use std::net::IpAddr;

/// An allowed origin, or a set of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AllowedOrigin {
    /// `*`.
    Any,
    /// `https://example.com:8443`, `https://*.example.com`.
    Origin { scheme: Box<str>, hosts: Hosts, port: Option<u16> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hosts {
    Name(Box<str>),
    Address(IpAddr),
    /// The suffix, with its leading dot.
    SubdomainsOf(Box<str>),
}

impl AllowedOrigin {
    pub(super) fn parse(value: &str) -> Result<Self, OriginPolicyError> {
        let fault = |expected: Cow<'static, str>| OriginPolicyError { value: value.to_owned(), expected };
        match value {
            "*" => return Ok(Self::Any),
            "" => return Err(fault("an origin such as https://example.com".into())),
            "null" => return Err(fault("only * allows pages without an origin".into())),
            _ => {}
        }
        let Some((scheme, rest)) = value.split_once("://") else {
            let host = value.trim_matches('/');
            return Err(fault(match Authority::parse(host) {
                Some(_) => format!("an origin starts with its scheme: https://{host}").into(),
                None => "scheme, host and port, such as https://example.com:8443".into(),
            }));
        };
        if !is_scheme(scheme) {
            return Err(fault("a scheme such as https before the ://".into()));
        }
        if rest.contains(|c: char| c == ',' || c.is_whitespace()) {
            return Err(fault(
                "a host and optionally a port after the ://; each origin is a separate value".into(),
            ));
        }
        if let Some(end) = rest.find(['/', '?', '#']) {
            let origin = value.get(..scheme.len() + "://".len() + end).unwrap_or(value);
            return Err(fault(format!("an origin has no path: {origin}").into()));
        }
        if rest.contains('@') {
            return Err(fault("an origin has no user: only scheme, host and port".into()));
        }
        if !rest.is_ascii() {
            return Err(fault("a host name in ASCII, as browsers send it: xn--…".into()));
        }
        let (below, authority) = match rest.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        if authority.contains('*') {
            return Err(fault("* alone, for all origins, or first, as in https://*.example.com".into()));
        }
        let Some(Authority { host, port }) = Authority::parse(authority) else {
            return Err(fault(
                "a host and optionally a port after the ://, such as https://example.com:8443".into(),
            ));
        };
        let hosts = match (host, below) {
            (Host::Name(name), false) => Hosts::Name(name.to_ascii_lowercase().into()),
            (Host::Name(name), true) => Hosts::SubdomainsOf(format!(".{}", name.to_ascii_lowercase()).into()),
            (Host::Address(address), false) => Hosts::Address(address),
            (Host::Address(_), true) => {
                return Err(fault("a name after *., not an address".into()));
            }
        };
        let scheme: Box<str> = scheme.to_ascii_lowercase().into();
        let port = port.or_else(|| default_port(&scheme));
        Ok(Self::Origin { scheme, hosts, port })
    }

    /// Returns `true` if pages of the host are allowed with any scheme or port.
    pub(super) fn is_at(&self, host: &Host<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Origin { hosts, .. } => hosts.contain(host),
        }
    }

    /// Returns `true` if pages of the origin are allowed. `None` stands for `null` and malformed origins.
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
