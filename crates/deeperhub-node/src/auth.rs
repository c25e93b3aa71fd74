//! Who a connection's user is, and what the user may do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deeperhub_protocol::handshake::{Refusal, Request};
use deeperhub_protocol::{Subscription, Topic};
use deeperhub_security::auth::{AuthError, Reloadable};
use deeperhub_security::{Claims, Grants};

/// Subprotocols that begin so carry a token.
const BEARER_SUBPROTOCOL_PREFIX: &str = "bearer.";

/// Whether clients must say who they are, and how that is checked.
///
/// ```
/// use deeperhub_node::Config;
/// use deeperhub_security::Secret;
/// use deeperhub_security::auth::{self, Authenticator, Reloadable};
/// use std::sync::Arc;
///
/// let mut keys = auth::Config::default();
/// keys.secret = Some(Secret::new("for the example, and long enough: 32"));
/// let authenticator = Arc::new(Reloadable::new(Authenticator::new(keys)?));
///
/// let mut config = Config::default();
/// config.auth.authenticator = Some(Arc::clone(&authenticator));
/// config.auth.required = true;
/// // When there are other keys: authenticator.replace(Authenticator::new(keys)?);
/// # Ok::<(), auth::KeyError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuthConfig {
    /// Verifies tokens; its keys may be swapped at any time, which ends no connection. `None`: no token is taken for
    /// good, the default.
    pub authenticator: Option<Arc<Reloadable>>,
    /// Whether a connection without a token may do nothing but bring one. Needs an authenticator. Default: no.
    pub required: bool,
    /// How long such a connection may stay without a token; then it is closed with 4001. Default 10 s.
    pub grace: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { authenticator: None, required: false, grace: Duration::from_secs(10) }
    }
}

impl AuthConfig {
    /// What a token says at `now`, in seconds since 1970.
    pub(crate) fn verify(&self, token: &str, now: u64) -> Result<Claims, AuthError> {
        match &self.authenticator {
            Some(authenticator) => authenticator.current().verify(token, now),
            None => Err(AuthError::Invalid { reason: "this server has no keys to check tokens with" }),
        }
    }

    /// The login of a handshake; `None` where it brings no token.
    ///
    /// # Errors
    ///
    /// 401 for a token that is not good, and for several that are not the same.
    pub(crate) fn authenticate_handshake(&self, request: &Request) -> Result<Option<Login>, Refusal> {
        let Some(token) = handshake_token(request)? else { return Ok(None) };
        match self.verify(&token, unix_seconds()) {
            Ok(claims) => Ok(Some(Login::from_token(claims))),
            Err(error) => Err(Refusal::unauthorized(error.to_string())),
        }
    }
}

/// Who a connection's user is.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) user: Arc<str>,
    grants: Grants,
    /// The `exp` of the token, in seconds since 1970; `None` when a certificate tells the user.
    expires_at: Option<u64>,
}

impl Login {
    pub(crate) fn from_token(claims: Claims) -> Self {
        let Claims { user, expires_at, grants } = claims;
        Self { user, grants, expires_at: Some(expires_at) }
    }

    /// The user that a client's certificate is for. It ends with the connection, as TLS checked it at the start, and
    /// is no token: where one is required it does not do.
    pub(crate) fn from_certificate(user: Arc<str>) -> Self {
        Self { user, grants: Grants::unrestricted(), expires_at: None }
    }

    pub(crate) fn is_from_token(&self) -> bool {
        self.expires_at.is_some()
    }

    /// When the token ends; 0 without one.
    pub(crate) fn expires_at(&self) -> u64 {
        self.expires_at.unwrap_or(0)
    }

    pub(crate) fn has_expired(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|expires_at| now >= expires_at)
    }

    pub(crate) fn may_subscribe(&self, to: &Subscription<'_>) -> bool {
        self.grants.may_subscribe(to)
    }

    pub(crate) fn may_publish(&self, to: &Topic<'_>) -> bool {
        self.grants.may_publish(to)
    }

    pub(crate) fn is_unrestricted(&self) -> bool {
        self.grants.is_unrestricted()
    }
}

/// Seconds since 1970, which is what tokens count in.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The token that a handshake brings as `Authorization: Bearer`, as a subprotocol `bearer.TOKEN` and as `?token=`.
fn handshake_token(request: &Request) -> Result<Option<String>, Refusal> {
    let mut found: Option<String> = None;
    let headers = request.raw_headers("authorization").filter_map(|value| {
        let (scheme, token) = value.split_at_checked(6)?;
        // Other schemes are for what stands between the client and this server.
        let is_bearer =
            scheme.eq_ignore_ascii_case(b"bearer") && token.first().is_none_or(|&byte| byte == b' ');
        is_bearer.then(|| str::from_utf8(token.trim_ascii()).ok())
    });
    let subprotocols =
        request.subprotocols().filter_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL_PREFIX)).map(Some);
    let queries: Vec<_> = request.query_values("token").collect();
    let queries = queries.iter().map(|value| value.as_deref());
    for token in headers.chain(subprotocols).chain(queries) {
        let token = token.ok_or_else(|| Refusal::unauthorized("the token is not valid: it is not text"))?;
        match &found {
            None => found = Some(token.to_owned()),
            Some(found) if found == token => {}
            // Which of them counts would be a guess, and a proxy in front might have guessed otherwise.
            Some(_) => return Err(Refusal::unauthorized("the request brings several tokens that differ")),
        }
    }
    Ok(found)
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
        let found = handshake_token(&request);
        let found = found.as_ref().map(Option::as_deref).map_err(|refusal| {
            assert_eq!((refusal.status, refusal.code), (401, "unauthorized"));
            refusal.message.as_ref()
        });
        assert_eq!(found, expected, "{target} {headers}");
    }

    #[test]
    fn a_token_comes_in_one_of_three_places() {
        check("/", "", Ok(None));
        check("/", "Authorization: Bearer a.b.c\r\n", Ok(Some("a.b.c")));
        check("/", "authorization: bearer   a.b.c\r\n", Ok(Some("a.b.c")));
        check("/", "Sec-WebSocket-Protocol: deeperhub.v1.json, bearer.a.b.c\r\n", Ok(Some("a.b.c")));
        check("/?x=1&token=a.b.c", "", Ok(Some("a.b.c")));
    }

    #[test]
    fn other_schemes_bring_no_token() {
        check("/", "Authorization: Basic Zm9vOmJhcg==\r\n", Ok(None));
        check("/", "Authorization: Bearers a\r\n", Ok(None));
        check("/", "Sec-WebSocket-Protocol: bearer\r\n", Ok(None));
    }

    #[test]
    fn the_same_token_twice_is_one_and_two_that_differ_are_refused() {
        let differ = Err("the request brings several tokens that differ");
        check("/?token=a", "Authorization: Bearer a\r\nSec-WebSocket-Protocol: bearer.a\r\n", Ok(Some("a")));
        check("/?token=a", "Authorization: Bearer b\r\n", differ);
        check("/?token=a&token=b", "", differ);
        check("/", "Sec-WebSocket-Protocol: bearer.a, bearer.b\r\n", differ);
        check("/", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", differ);
        check("/?token=", "Authorization: Bearer b\r\n", differ);
    }

    #[test]
    fn a_token_that_is_empty_or_no_text_is_one_all_the_same() {
        check("/?token=", "", Ok(Some("")));
        check("/", "Authorization: Bearer\r\n", Ok(Some("")));
        check("/", "Sec-WebSocket-Protocol: bearer.\r\n", Ok(Some("")));
        check("/?token=%ff", "", Err("the token is not valid: it is not text"));
        check("/", "Authorization: Bearer ~\r\n", Err("the token is not valid: it is not text"));
    }
}
