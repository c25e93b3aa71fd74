//! Which web pages may connect.
//!
//! A browser lets any page open a WebSocket to any server, with the user's cookies and from the user's network; all
//! that it adds is the `Origin` header (RFC 6455 section 10.2). Whoever is no browser can write there what it likes, so
//! this protects users of browsers, and nobody else.

mod allowed;
mod parts;
mod rebinding;

use self::allowed::AllowedOrigin;
use self::parts::{Authority, Origin, default_port};
use std::borrow::Cow;

/// Which origins may connect: always the server's own, besides those of a list.
///
/// | `Origin` | passes |
/// |---|---|
/// | none | always: the client is no browser |
/// | host and port of the `Host` header | always |
/// | `localhost`, a name below it, `127.0.0.0/8` or `[::1]`, on any port | when `Host` is one of these |
/// | any other | when a value of the list allows it |
///
/// Hosts and schemes are compared without regard to case, ports with the defaults of `http` and `https` (80 and 443). A
/// `Host` without a port on a connection without TLS may have come through a proxy that ends TLS, so it is both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    allowed: Vec<AllowedOrigin>,
}

impl OriginPolicy {
    /// Reads a list of allowed origins.
    ///
    /// A value is a scheme, a host and perhaps a port, such as `https://example.com:8443`; `https://*.example.com`
    /// stands for all names below `example.com`, without itself; `*` for everything, also for `null`, the origin of
    /// sandboxed pages and of files.
    ///
    /// # Errors
    ///
    /// [`OriginPolicyError`] with the first value that is none of these.
    pub fn parse<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> Result<Self, OriginPolicyError> {
        let allowed =
            values.into_iter().map(|value| AllowedOrigin::parse(value.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { allowed })
    }

    /// Whether a request with these headers `Origin` and `Host` may pass; `tls` is whether it came over TLS.
    ///
    /// # Errors
    ///
    /// [`OriginError`], to be answered with 403 (RFC 6455 section 4.2.2).
    pub fn check(&self, origin: Option<&str>, host: Option<&str>, tls: bool) -> Result<(), OriginError> {
        self.check_by(origin, host, |origin, host| {
            origin.authority.host.is_loopback() && host.host.is_loopback() || is_own(origin, host, tls)
        })
    }

    /// As [`Self::check`], but a page from loopback passes only if it comes from this very host and port: for a server
    /// that is no web page's business, such as one for backends.
    ///
    /// # Errors
    ///
    /// [`OriginError`], to be answered with 403.
    pub fn check_same_origin(
        &self,
        origin: Option<&str>,
        host: Option<&str>,
        tls: bool,
    ) -> Result<(), OriginError> {
        self.check_by(origin, host, |origin, host| is_own(origin, host, tls))
    }

    fn check_by(
        &self,
        origin: Option<&str>,
        host: Option<&str>,
        is_own: impl FnOnce(&Origin<'_>, &Authority<'_>) -> bool,
    ) -> Result<(), OriginError> {
        let Some(text) = origin else { return Ok(()) };
        let origin = Origin::parse(text);
        let own = origin.as_ref().zip(host.and_then(Authority::parse));
        let own = own.is_some_and(|(origin, host)| is_own(origin, &host));
        if own || self.allowed.iter().any(|allowed| allowed.allows(origin.as_ref())) {
            Ok(())
        } else if origin.is_some() || text == "null" {
            Err(OriginError::NotAllowed)
        } else {
            Err(OriginError::Malformed)
        }
    }
}

fn is_own(origin: &Origin<'_>, host: &Authority<'_>, tls: bool) -> bool {
    // Only pages from a web server have a port to compare.
    let Some(default) = default_port(origin.scheme) else { return false };
    let port = host.port.unwrap_or(if tls { 443 } else { default });
    origin.authority.host.is(&host.host) && origin.port() == Some(port)
}

/// Why a page may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OriginError {
    /// Neither the server's own origin nor one of the list.
    #[error("this origin is neither the server's own nor one that it allows")]
    NotAllowed,
    /// The header is not a scheme, a host and perhaps a port.
    #[error("the Origin header is no origin")]
    Malformed,
}

/// A value in a list of allowed origins is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no origin to allow: {expected}")]
pub struct OriginPolicyError {
    value: String,
    expected: Cow<'static, str>,
}

impl OriginPolicyError {
    /// The value as given.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What would be right.
    #[must_use]
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

#[cfg(test)]
mod tests;
