//! Bearer tokens: JWTs (RFC 7519), signed with a shared secret or a private key.
//!
//! [`Keys`] reads key files. An [`Authenticator`] verifies tokens with these keys and returns their
//! [`Claims`]. [`mint`] signs tokens for development. An authenticator is immutable. When a file
//! has changed ([`files::FileStamp`](crate::files::FileStamp)), create a new authenticator and put
//! it into a [`SharedAuthenticator`].
//!
//! Rules for tokens:
//!
//! - HS256, HS384 and HS512 are verified with the secret. RS256 to RS512, PS256 to PS512, ES256,
//!   ES384 and EdDSA (Ed25519) are verified with the JWKS keys of their type. A key with an `alg`
//!   verifies only that algorithm. A public key is never used as a secret, and `none` is refused.
//! - A token with a `kid` is verified only with the keys of that `kid`, or with the shared secret,
//!   which accepts any `kid`. At most [`MAX_TRIES`] keys are tried.
//! - `sub` and `exp` are required. A token expires at the second of its `exp`. `nbf` may be up to
//!   [`Config::leeway`] in the future, since clocks differ.
//! - `aud` and `iss` must match if the configuration names accepted values. Otherwise they are
//!   ignored, and the keys are assumed to be used for this server only
//!   ([`KeyWarning::AudienceNotChecked`] reports this for public keys).
//! - Headers with `crit` (an extension unknown here), and duplicate keys in header or claims, are
//!   refused.
//!
//! ```
//! use deeperhub_security::auth::{Authenticator, Config, AuthError, mint};
//! use deeperhub_security::{Grants, Secret};
//! use std::time::Duration;
//!
//! let secret = Secret::new("for the example, and long enough: 32");
//! let authenticator = Authenticator::new(Config { secret: Some(secret.clone()), ..Config::default() })?;
//!
//! let now = 1_800_000_000;
//! let token = mint(&secret, "ada", &Grants::unrestricted(), now, Duration::from_secs(60))?;
//! let claims = authenticator.verify(&token, now)?;
//! assert_eq!((&*claims.user, claims.expires_at), ("ada", now + 60));
//!
//! assert_eq!(authenticator.verify(&token, now + 60), Err(AuthError::Expired));
//! assert!(authenticator.verify("a.b.c", now).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod claims;
mod error;
mod json;
mod jwks;
mod key;
mod keys;
mod mint;
mod shared;

pub use claims::MAX_PATTERNS;
pub use error::{AuthError, IgnoredKey, KeyError, KeyFault, KeyWarning};
pub use jwks::{Jwks, MAX_KEYS};
pub use keys::{Keys, KeysError};
pub use mint::{MintError, MintOptions, mint, mint_with};
pub use shared::SharedAuthenticator;

use crate::{Claims, Secret, byte_order_mark};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claims::{Expected, invalid};
use key::Key;
use serde_json::Value;
use std::time::Duration;

/// Default of [`Config::max_token_bytes`]: 16 KiB, because tokens with a list of groups exceed 8
/// KiB.
pub const DEFAULT_MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Maximum number of keys that one token is tried with. Limits the CPU time that a forged token can
/// cause.
pub const MAX_TRIES: usize = 8;

/// Configuration of an [`Authenticator`]. The default has no keys.
#[derive(Debug, Clone)]
pub struct Config {
    /// The shared secret, for HS256, HS384 and HS512.
    pub secret: Option<Secret>,
    /// Public keys, for all other algorithms.
    pub jwks: Option<Jwks>,
    /// Accepted values of `aud`. If empty, which is the default, `aud` is not checked.
    pub audience: Vec<String>,
    /// Accepted values of `iss`. If empty, which is the default, `iss` is not checked.
    pub issuer: Vec<String>,
    /// Maximum time that a token's `nbf` may be in the future, since clocks differ. Default: 10 s.
    pub leeway: Duration,
    /// Maximum length of a token in bytes, checked before anything else. Default:
    /// [`DEFAULT_MAX_TOKEN_BYTES`].
    pub max_token_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            secret: None,
            jwks: None,
            audience: Vec::new(),
            issuer: Vec::new(),
            leeway: Duration::from_secs(10),
            max_token_bytes: DEFAULT_MAX_TOKEN_BYTES,
        }
    }
}

/// Verifier of tokens. Immutable, so threads can share it.
#[derive(Debug)]
pub struct Authenticator {
    keys: Vec<Key>,
    audience: Vec<String>,
    issuer: Vec<String>,
    leeway: Duration,
    max_token_bytes: usize,
    warnings: Vec<KeyWarning>,
}

impl Authenticator {
    /// Creates an authenticator.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoKeys`] if there are no keys, and [`KeyError::EmptySecret`] if the secret is
    /// empty.
    pub fn new(config: Config) -> Result<Self, KeyError> {
        let mut warnings = Vec::new();
        let mut keys = Vec::new();
        if let Some(secret) = &config.secret {
            match secret.expose().len() {
                0 => return Err(KeyError::EmptySecret),
                1..32 => warnings.push(KeyWarning::ShortSecret),
                _ => {}
            }
            warnings.extend(secret_warning(secret.expose()));
            keys.push(Key::shared(secret));
        }
        if let Some(jwks) = config.jwks {
            warnings.extend_from_slice(jwks.warnings());
            if config.audience.is_empty() {
                warnings.push(KeyWarning::AudienceNotChecked);
            }
            keys.extend(jwks.into_keys());
            if key::RSA.iter().chain(key::CURVES).any(|&algorithm| {
                keys.iter().filter(|key| key.fits(algorithm, None)).nth(MAX_TRIES).is_some()
            }) {
                warnings.push(KeyWarning::TooManyToTry);
            }
        }
        if keys.is_empty() {
            return Err(KeyError::NoKeys);
        }
        Ok(Self {
            keys,
            audience: config.audience,
            issuer: config.issuer,
            leeway: config.leeway,
            max_token_bytes: config.max_token_bytes,
            warnings,
        })
    }

    /// Verifies a token at the time `now`, in seconds since 1970, and returns its claims.
    ///
    /// Takes a few microseconds with a secret, and about a hundred for each public key tried.
    ///
    /// # Errors
    ///
    /// [`AuthError`], which contains no part of the token.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, AuthError> {
        if token.len() > self.max_token_bytes {
            return Err(invalid("it is longer than max_token_bytes"));
        }
        // In the compact serialisation (RFC 7515 section 3.1), the signed message is the text
        // before the second dot.
        let (message, signature) = token.rsplit_once('.').ok_or(NOT_A_JWT)?;
        let (header, payload) = message.split_once('.').ok_or(NOT_A_JWT)?;
        if payload.contains('.') {
            return Err(NOT_A_JWT);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| NOT_A_JWT);
        let (header, signature) = (decode(header)?, decode(signature)?);

        let header =
            json::object(&header).ok_or(invalid("its header is not a JSON object with unique keys"))?;
        if header.contains_key("crit") {
            return Err(invalid("its header has crit"));
        }
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(key::algorithm);
        let algorithm = algorithm.ok_or(invalid("its alg is not supported"))?;
        let id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.as_str()),
            Some(_) => return Err(invalid("its kid is not a string")),
        };
        let mut fitting = self.keys.iter().filter(|key| key.fits(algorithm, id)).take(MAX_TRIES).peekable();
        if fitting.peek().is_none() {
            return Err(invalid("no key fits its alg and kid"));
        }
        if !fitting.any(|key| key.verifies(algorithm, message.as_bytes(), &signature)) {
            return Err(invalid("its signature does not match any key"));
        }

        let expected =
            Expected { audience: &self.audience, issuer: &self.issuer, leeway: self.leeway.as_secs_f64() };
        expected.read(&decode(payload)?, now)
    }

    /// Returns warnings for the operator, to be shown once when the keys are loaded.
    #[must_use]
    pub fn warnings(&self) -> &[KeyWarning] {
        &self.warnings
    }
}

/// Returns a warning if a secret starts or ends with bytes that are probably unintended. Reports
/// blanks and line ends of text only, because random bytes can have any value.
fn secret_warning(secret: &[u8]) -> Option<KeyWarning> {
    if secret.starts_with(byte_order_mark::MARK) || byte_order_mark::is_utf16(secret) {
        return Some(KeyWarning::SecretMark);
    }
    let is_text = secret.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    let (first, last) = (secret.first()?, secret.last()?);
    match last {
        _ if !is_text => None,
        b'\n' | b'\r' => Some(KeyWarning::SecretLineEnd),
        last if last.is_ascii_whitespace() || first.is_ascii_whitespace() => Some(KeyWarning::SecretBlanks),
        _ => None,
    }
}

const NOT_A_JWT: AuthError = invalid("it is not three parts in base64url");
