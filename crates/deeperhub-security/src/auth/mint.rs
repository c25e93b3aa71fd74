//! Signs tokens for development.

use super::claims::MAX_PATTERNS;
use crate::grants::is_user;
use crate::{Grants, Secret};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use deeperhub_types::Subscription;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Signs a token (HS256) that an [`Authenticator`](super::Authenticator) with the same secret
/// accepts.
///
/// The token is valid from `now` (seconds since 1970) for `ttl` (whole seconds). It is meant for
/// development and tests: in production, the service that logs users in issues tokens.
///
/// # Errors
///
/// [`MintError`] if the arguments are invalid.
pub fn mint(
    secret: &Secret,
    user: &str,
    grants: &Grants,
    now: u64,
    ttl: Duration,
) -> Result<String, MintError> {
    mint_with(secret, user, grants, MintOptions::default(), now, ttl)
}

/// Optional claims of a token, for servers that check them ([`Config`](super::Config)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MintOptions<'a> {
    /// The token's `aud`. If `None`, the token has no such claim.
    pub audience: Option<&'a str>,
    /// The token's `iss`. If `None`, the token has no such claim.
    pub issuer: Option<&'a str>,
}

/// Signs a token like [`mint`], with the optional claims.
///
/// # Errors
///
/// [`MintError`] if the arguments are invalid.
pub fn mint_with(
    secret: &Secret,
    user: &str,
    grants: &Grants,
    options: MintOptions<'_>,
    now: u64,
    ttl: Duration,
) -> Result<String, MintError> {
    if secret.expose().is_empty() {
        return Err(MintError::EmptySecret);
    }
    if !is_user(user) {
        return Err(MintError::User);
    }
    if ttl.as_secs() == 0 {
        return Err(MintError::Ttl);
    }
    let mut claims = Map::new();
    claims.insert("sub".to_owned(), user.into());
    claims.insert("iat".to_owned(), now.into());
    claims.insert("exp".to_owned(), now.saturating_add(ttl.as_secs()).into());
    for (name, value) in [("aud", options.audience), ("iss", options.issuer)] {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value.into());
        }
    }
    if let (Some(subscribe), Some(publish)) = (grants.subscribe(), grants.publish()) {
        if subscribe.len().max(publish.len()) > MAX_PATTERNS {
            return Err(MintError::TooManyPatterns);
        }
        claims.insert(
            "deeperhub".to_owned(),
            json!({ "subscribe": texts(subscribe), "publish": texts(publish) }),
        );
    }
    let encode = |json: String| URL_SAFE_NO_PAD.encode(json);
    let header = json!({ "alg": "HS256", "typ": "JWT" }).to_string();
    let message = format!("{}.{}", encode(header), encode(Value::Object(claims).to_string()));
    let key = EncodingKey::from_secret(secret.expose());
    let signer =
        (DEFAULT_PROVIDER.signer_factory)(&Algorithm::HS256, &key).map_err(|_| MintError::Signing)?;
    let signature = signer.try_sign(message.as_bytes()).map_err(|_| MintError::Signing)?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn texts<'a>(subscriptions: &'a [Subscription<'_>]) -> Vec<&'a str> {
    subscriptions.iter().map(Subscription::as_str).collect()
}

/// Error of signing a token. Except for [`Signing`](Self::Signing), an argument is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum MintError {
    /// The secret has no bytes.
    #[error("the secret is empty")]
    EmptySecret,
    /// The user is empty, longer than 255 bytes, or has control characters.
    #[error("the user must have 1 to 255 bytes and no control characters")]
    User,
    /// The token would be valid for less than a second.
    #[error("the token must be valid for at least one second")]
    Ttl,
    /// A list has more than [`MAX_PATTERNS`] topics and patterns.
    #[error("a list may have at most {MAX_PATTERNS} patterns")]
    TooManyPatterns,
    /// The cryptographic library failed.
    #[error("the token cannot be signed")]
    Signing,
}
