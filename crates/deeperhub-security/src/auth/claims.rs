//! Validation of a token's claims.

use super::error::AuthError;
use super::json;
use crate::grants::is_user;
use crate::{Claims, Grants};
use deeperhub_types::Subscription;
use serde_json::{Map, Value};

/// Maximum number of patterns in each list of a token's `deeperhub` claim. Limits the time of each
/// check of a topic.
pub const MAX_PATTERNS: usize = 256;

/// Values that claims are compared with.
pub(super) struct Expected<'a> {
    pub(super) audience: &'a [String],
    pub(super) issuer: &'a [String],
    /// Tolerance for `nbf` in seconds.
    pub(super) leeway: f64,
}

impl Expected<'_> {
    /// Parses and checks the claims of a token whose signature is valid.
    pub(super) fn read(&self, payload: &[u8], now: u64) -> Result<Claims, AuthError> {
        let claims =
            json::object(payload).ok_or(invalid("its claims are not a JSON object with unique keys"))?;
        let user = match claims.get("sub") {
            Some(Value::String(user)) if is_user(user) => user,
            Some(Value::String(_)) => {
                return Err(invalid("sub is empty, longer than 255 bytes, or has control characters"));
            }
            _ => return Err(invalid("sub must be a string")),
        };
        let expires_at = expiry(&claims)?;
        let grants = claims.get("deeperhub").map_or(Ok(Grants::unrestricted()), grants)?;
        if !self.has_started(&claims, now)? {
            return Err(invalid("nbf is in the future"));
        }
        if !self.issuer.is_empty() && !claims.get("iss").is_some_and(|issuer| is_one_of(issuer, self.issuer))
        {
            return Err(invalid("iss is not an accepted issuer"));
        }
        if !self.audience.is_empty() && !claims.get("aud").is_some_and(|aud| self.is_audience(aud)) {
            return Err(invalid("aud does not name this server"));
        }
        // Expiry is checked last, because `Expired` tells the client that a newer token of the same
        // kind would be accepted.
        if now >= expires_at {
            return Err(AuthError::Expired);
        }
        Ok(Claims { user: user.as_str().into(), expires_at, grants })
    }

    /// Returns `true` if the token has no `nbf`, or one that has passed.
    fn has_started(&self, claims: &Map<String, Value>, now: u64) -> Result<bool, AuthError> {
        let Some(not_before) = claims.get("nbf") else { return Ok(true) };
        let not_before = not_before.as_f64().ok_or(invalid("nbf must be a number"))?;
        // A float holds whole seconds exactly for the next 285 million years.
        Ok(not_before <= now as f64 + self.leeway)
    }

    fn is_audience(&self, value: &Value) -> bool {
        match value {
            Value::Array(values) => values.iter().any(|value| is_one_of(value, self.audience)),
            value => is_one_of(value, self.audience),
        }
    }
}

fn is_one_of(value: &Value, accepted: &[String]) -> bool {
    value.as_str().is_some_and(|value| accepted.iter().any(|accepted| accepted == value))
}

/// Returns the `exp` claim, a NumericDate (RFC 7519 section 2), rounded down to seconds. Dates
/// before 1970 become 0.
fn expiry(claims: &Map<String, Value>) -> Result<u64, AuthError> {
    let expiry = claims.get("exp").ok_or(invalid("exp is missing"))?;
    // `as` saturates floats beyond the range of integers.
    let seconds = expiry.as_u64().or_else(|| expiry.as_f64().map(|seconds| seconds as u64));
    seconds.ok_or(invalid("exp must be a number"))
}

fn grants(claim: &Value) -> Result<Grants, AuthError> {
    let Value::Object(claim) = claim else { return Err(invalid("deeperhub must be an object")) };
    let grants = Grants::only(patterns(claim.get("subscribe"))?, patterns(claim.get("publish"))?);
    Ok(match claim.get("history") {
        None => grants,
        history => grants.with_history(patterns(history)?),
    })
}

fn patterns(list: Option<&Value>) -> Result<Vec<Subscription<'static>>, AuthError> {
    let list = match list {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MAX_PATTERNS => list,
        Some(Value::Array(_)) => return Err(invalid("a list of deeperhub has more than 256 patterns")),
        Some(_) => return Err(invalid("subscribe, publish and history of deeperhub must be lists")),
    };
    let pattern = |value: &Value| Subscription::parse(value.as_str()?.to_owned()).ok();
    let patterns: Option<Vec<_>> = list.iter().map(pattern).collect();
    patterns.ok_or(invalid("a list of deeperhub contains an invalid topic or pattern"))
}

pub(super) const fn invalid(reason: &'static str) -> AuthError {
    AuthError::Invalid { reason }
}
