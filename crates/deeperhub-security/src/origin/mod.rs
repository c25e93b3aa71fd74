//! Policy for web pages that connect.
//!
//! A browser lets any page open a WebSocket to any server, with the user's cookies and from the
//! user's network. The server can recognise the page only by the `Origin` header, which the browser
//! adds (RFC 6455 section 10.2). Other clients can send any origin, so this policy protects browser
//! users only.

mod allowed;
mod parts;
mod rebinding;

use self::allowed::AllowedOrigin;
use self::parts::{Authority, Origin, default_port};
use std::borrow::Cow;

/// Policy for origins. Pages of the server itself may connect, and pages of the origins in a list.
///
/// | `Origin` header | allowed |
/// |---|---|
/// | no such header | always, because the client is not a browser |
/// | host and port of the `Host` header | always |
/// | `localhost`, its subdomains, `127.0.0.0/8` or `[::1]`, on any port | if `Host` is one of these |
/// | any other | if a value of the list allows it |
///
/// Hosts and schemes are compared ignoring case. A missing port counts as the default of `http` or
/// `https` (80 or 443). A `Host` without a port on a connection without TLS matches both default
/// ports, because the request may have passed a TLS-terminating proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    allowed: Vec<AllowedOrigin>,
}

impl OriginPolicy {
    /// Parses a list of allowed origins.
    ///
    /// A value is a scheme, a host and optionally a port, such as `https://example.com:8443`.
    /// `https://*.example.com` allows all subdomains of `example.com`, but not `example.com`
    /// itself. `*` allows all origins, including `null`, the origin of sandboxed pages and files.
    ///
    /// # Errors
    ///
    /// [`OriginPolicyError`] with the first invalid value.
    pub fn parse<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> Result<Self, OriginPolicyError> {
        let allowed =
            values.into_iter().map(|value| AllowedOrigin::parse(value.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { allowed })
    }

    /// Checks the `Origin` and `Host` headers of a request. `tls` is `true` if the request arrived
    /// over TLS.
    ///
    /// # Errors
    ///
    /// [`OriginError`] if the page may not connect. Respond with 403 (RFC 6455 section 4.2.2).
    pub fn check(&self, origin: Option<&str>, host: Option<&str>, tls: bool) -> Result<(), OriginError> {
        self.check_by(origin, host, |origin, host| {
            origin.authority.host.is_loopback() && host.host.is_loopback() || is_own(origin, host, tls)
        })
    }

    /// Checks like [`Self::check`], but does not allow pages of other loopback origins. For servers
    /// that are not meant for web pages, such as an API for backends.
    ///
    /// # Errors
    ///
    /// [`OriginError`] if the page may not connect. Respond with 403.
    pub fn check_same_origin(
        &self,
        origin: Option<&str>,
        host: Option<&str>,
        tls: bool,
    ) -> Result<(), OriginError> {
        self.check_by(origin, host, |origin, host| is_own(origin, host, tls))
    }

    /// Allows the origins that `is_own` accepts as the server's, and those of the list.
    fn check_by(
        &self,
        origin: Option<&str>,
        host: Option<&str>,
        is_own: impl FnOnce(&Origin<'_>, &Authority<'_>) -> bool,
    ) -> Result<(), OriginError> {
        let Some(text) = origin else { return Ok(()) };
        let origin = Origin::parse(text);
        let is_own = match (&origin, host.and_then(Authority::parse)) {
            (Some(origin), Some(host)) => is_own(origin, &host),
            _ => false,
        };
        if is_own || self.allowed.iter().any(|allowed| allowed.allows(origin.as_ref())) {
            Ok(())
        } else if origin.is_some() || text == "null" {
            Err(OriginError::NotAllowed)
        } else {
            Err(OriginError::Malformed)
        }
    }
}

/// Returns `true` if the origin has the host and port of the request's `Host` header.
fn is_own(origin: &Origin<'_>, host: &Authority<'_>, tls: bool) -> bool {
    // Pages that are not from a web server, such as those of browser extensions, have no port.
    let Some(default) = default_port(origin.scheme) else { return false };
    let port = host.port.unwrap_or(if tls { 443 } else { default });
    origin.authority.host.is(&host.host) && origin.port() == Some(port)
}

/// Reason why a page may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OriginError {
    /// The origin is neither the server's own nor allowed by the list.
    #[error("this origin is neither the server's own nor an allowed one")]
    NotAllowed,
    /// The header is not a scheme, a host and optionally a port.
    #[error("the Origin header is malformed")]
    Malformed,
}

/// Error for an invalid value in a list of allowed origins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid origin: {expected}")]
pub struct OriginPolicyError {
    value: String,
    expected: Cow<'static, str>,
}

impl OriginPolicyError {
    /// Returns the invalid value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Returns what is expected instead.
    #[must_use]
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

#[cfg(test)]
mod tests;
