//! Authentication of connections, and the permissions of their users.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deeperhub_protocol::handshake::{Refusal, Request};
use deeperhub_protocol::{Subscription, Topic};
use deeperhub_security::auth::{AuthError, SharedAuthenticator};
use deeperhub_security::{Claims, Grants};

/// Prefix of a subprotocol that carries a token.
const BEARER_SUBPROTOCOL_PREFIX: &str = "bearer.";

/// Authentication of clients by token.
///
/// ```
/// use deeperhub_node::security::Secret;
/// use deeperhub_node::security::auth::{self, Authenticator, SharedAuthenticator};
/// use deeperhub_node::{AuthConfig, Config};
/// use std::sync::Arc;
///
/// let mut keys = auth::Config::default();
/// keys.secret = Some(Secret::new("for the example, and long enough: 32"));
/// let authenticator = Arc::new(SharedAuthenticator::new(Authenticator::new(keys)?));
///
/// let config = Config::default().with_auth(AuthConfig::required(Arc::clone(&authenticator)));
/// // To replace the keys later: authenticator.replace(Authenticator::new(keys)?);
/// # Ok::<(), auth::KeyError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuthConfig {
    /// Authenticator that verifies tokens. Its keys can be replaced at any time without closing
    /// connections. With `None`, the default, no token is valid.
    pub authenticator: Option<Arc<SharedAuthenticator>>,
    /// `true` if a connection must authenticate before its other messages are accepted. This
    /// requires an authenticator. Default `false`.
    pub required: bool,
    /// Time after which a connection without a required token is closed with 4001. Default 10 s.
    pub grace: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { authenticator: None, required: false, grace: Duration::from_secs(10) }
    }
}

impl AuthConfig {
    /// Returns a configuration that accepts tokens, and connections without a token.
    #[must_use]
    pub fn optional(authenticator: Arc<SharedAuthenticator>) -> Self {
        Self { authenticator: Some(authenticator), ..Self::default() }
    }

    /// Returns a configuration that requires a token from each connection, in the handshake or
    /// within the grace time.
    #[must_use]
    pub fn required(authenticator: Arc<SharedAuthenticator>) -> Self {
        Self { required: true, ..Self::optional(authenticator) }
    }

    /// Verifies a token at `now`, in Unix seconds.
    pub(crate) fn verify(&self, token: &str, now: u64) -> Result<Claims, AuthError> {
        match &self.authenticator {
            Some(authenticator) => authenticator.current().verify(token, now),
            None => Err(AuthError::Invalid { reason: "this server has no keys to verify tokens" }),
        }
    }

    /// Returns the login of a handshake, or `None` without a token.
    ///
    /// # Errors
    ///
    /// Refuses the handshake with 401 if the token is invalid, or if the request has several
    /// different tokens.
    pub(crate) fn authenticate_handshake(&self, request: &Request) -> Result<Option<Login>, Refusal> {
        let Some(token) = handshake_token(request)? else { return Ok(None) };
        match self.verify(&token, unix_seconds()) {
            Ok(claims) => Ok(Some(Login::from_token(claims))),
            Err(error) => Err(Refusal::unauthorized(error.to_string())),
        }
    }
}

/// User of a connection, with the user's permissions and their expiry.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) user: Arc<str>,
    grants: Grants,
    /// The token's `exp` in Unix seconds. `None` if the login is that of a certificate.
    expires_at: Option<u64>,
}

impl Login {
    pub(crate) fn from_token(claims: Claims) -> Self {
        let Claims { user, expires_at, grants } = claims;
        Self { user, grants, expires_at: Some(expires_at) }
    }

    /// Returns the login of a client certificate. TLS verified the certificate at the start, so the
    /// login lasts as long as the connection. It does not replace a required token.
    pub(crate) fn from_certificate(user: Arc<str>) -> Self {
        Self { user, grants: Grants::unrestricted(), expires_at: None }
    }

    pub(crate) fn is_from_token(&self) -> bool {
        self.expires_at.is_some()
    }

    /// Returns the expiry of the token in Unix seconds, or 0 without one.
    pub(crate) fn expires_at(&self) -> u64 {
        self.expires_at.unwrap_or(0)
    }

    pub(crate) fn has_expired(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|expires_at| now >= expires_at)
    }

    pub(crate) fn may_subscribe(&self, subscription: &Subscription<'_>) -> bool {
        self.grants.may_subscribe(subscription)
    }

    pub(crate) fn may_publish(&self, topic: &Topic<'_>) -> bool {
        self.grants.may_publish(topic)
    }

    pub(crate) fn may_read_history(&self, of: &Subscription<'_>) -> bool {
        self.grants.may_read_history(of)
    }

    pub(crate) fn is_unrestricted(&self) -> bool {
        self.grants.is_unrestricted()
    }
}

/// Returns the current time in Unix seconds, the unit of token expiry.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Returns the token of a handshake. A client may send it in `Authorization: Bearer`, in a
/// subprotocol `bearer.TOKEN`, or in `?token=`. Several of these must have the same token.
fn handshake_token(request: &Request) -> Result<Option<String>, Refusal> {
    let mut first_token: Option<String> = None;
    let headers = request.raw_headers("authorization").filter_map(|value| {
        let (scheme, token) = value.split_at_checked(6)?;
        // Other schemes belong to proxies between the client and this server.
        let is_bearer =
            scheme.eq_ignore_ascii_case(b"bearer") && token.first().is_none_or(|&byte| byte == b' ');
        is_bearer.then(|| str::from_utf8(token.trim_ascii()).ok())
    });
    let subprotocols =
        request.subprotocols().filter_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL_PREFIX)).map(Some);
    let queries: Vec<_> = request.query_values("token").collect();
    let queries = queries.iter().map(|value| value.as_deref());
    for token in headers.chain(subprotocols).chain(queries) {
        let token =
            token.ok_or_else(|| Refusal::unauthorized("the token is not valid: it is not UTF-8 text"))?;
        match &first_token {
            None => first_token = Some(token.to_owned()),
            Some(first_token) if first_token == token => {}
            // The server must not guess: a proxy in front of it may have checked the other token.
            Some(_) => return Err(Refusal::unauthorized("the request has several different tokens")),
        }
    }
    Ok(first_token)
}

#[cfg(test)]
mod tests {
    use deeperhub_protocol::handshake::Parsed;

    use super::*;

    fn check(target: &str, headers: &str, expected: Result<Option<&str>, &str>) {
        let head =
            [b"GET ", target.as_bytes(), b" HTTP/1.1\r\nHost: x\r\n", headers.as_bytes(), b"\r\n"].concat();
        let head: Vec<u8> = head.iter().map(|&byte| if byte == b'~' { 0xff } else { byte }).collect();
        let Ok(Parsed::Complete { request, .. }) = Request::parse(&head) else {
            panic!("{target} {headers}")
        };
        let result = handshake_token(&request);
        let token = result.as_ref().map(Option::as_deref).map_err(|refusal| {
            assert_eq!((refusal.status, refusal.code), (401, "unauthorized"));
            refusal.message.as_ref()
        });
        assert_eq!(token, expected, "{target} {headers}");
    }

    #[test]
    fn a_token_is_read_from_header_subprotocol_or_query() {
        check("/", "", Ok(None));
        check("/", "Authorization: Bearer a.b.c\r\n", Ok(Some("a.b.c")));
        check("/", "authorization: bearer   a.b.c\r\n", Ok(Some("a.b.c")));
        check("/", "Sec-WebSocket-Protocol: deeperhub.v1.json, bearer.a.b.c\r\n", Ok(Some("a.b.c")));
        check("/?x=1&token=a.b.c", "", Ok(Some("a.b.c")));
    }

    #[test]
    fn other_schemes_have_no_token() {
        check("/", "Authorization: Basic Zm9vOmJhcg==\r\n", Ok(None));
        check("/", "Authorization: Bearers a\r\n", Ok(None));
        check("/", "Sec-WebSocket-Protocol: bearer\r\n", Ok(None));
    }

    #[test]
    fn equal_tokens_count_once_and_different_tokens_are_refused() {
        let differ = Err("the request has several different tokens");
        check("/?token=a", "Authorization: Bearer a\r\nSec-WebSocket-Protocol: bearer.a\r\n", Ok(Some("a")));
        check("/?token=a", "Authorization: Bearer b\r\n", differ);
        check("/?token=a&token=b", "", differ);
        check("/", "Sec-WebSocket-Protocol: bearer.a, bearer.b\r\n", differ);
        check("/", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", differ);
        check("/?token=", "Authorization: Bearer b\r\n", differ);
    }

    #[test]
    fn an_empty_or_non_utf8_token_is_still_a_token() {
        check("/?token=", "", Ok(Some("")));
        check("/", "Authorization: Bearer\r\n", Ok(Some("")));
        check("/", "Sec-WebSocket-Protocol: bearer.\r\n", Ok(Some("")));
        check("/?token=%ff", "", Err("the token is not valid: it is not UTF-8 text"));
        check("/", "Authorization: Bearer ~\r\n", Err("the token is not valid: it is not UTF-8 text"));
    }
}
