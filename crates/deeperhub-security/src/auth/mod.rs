//! Bearer tokens: JWTs (RFC 7519) signed with a shared secret or with one of a set of public keys.
//!
//! [`Keys`] reads the files, an [`Authenticator`] made of them verifies tokens and says what they are worth
//! ([`Claims`]), [`mint`] makes one for development. An authenticator never changes: whoever notices that a file did
//! ([`files::FileStamp`](crate::files::FileStamp)) makes a new one and swaps it in a [`SharedAuthenticator`].
//!
//! What is accepted:
//!
//! - HS256, HS384, HS512 by the secret; RS256 to RS512, PS256 to PS512, ES256, ES384 and EdDSA (Ed25519) by a key of the
//!   set that is of that type and, where the key has an `alg`, for that algorithm. A public key is never used as a secret,
//!   and there is no `none`.
//! - A token with a `kid` is verified by the keys of that name; one without by those that fit, [`MAX_TRIES`] at most.
//!   The shared secret has no name and answers to any.
//! - `sub` and `exp` are required. A token ends when its `exp` comes, to the second: connections are ended then, too. For
//!   `nbf` a little is allowed for clocks that differ ([`Config::leeway`]).
//! - `aud` and `iss` must be there and match where the configuration names some. Where it names none they are not
//!   looked at: the keys are taken to be this server's alone ([`KeyWarning::AudienceNotChecked`] says so for public keys).
//! - A header with `crit` asks for something unknown here and is refused, as are headers and claims with a key twice.
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
mod reloadable;

pub use claims::MAX_PATTERNS;
pub use error::{AuthError, IgnoredKey, KeyError, KeyFault, KeyWarning};
pub use jwks::{Jwks, MAX_KEYS};
pub use keys::{Keys, KeysError};
pub use mint::{MintError, MintOptions, mint, mint_with};
pub use reloadable::SharedAuthenticator;

use crate::{Claims, Secret, byte_order_mark};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claims::{Expected, invalid};
use key::Key;
use serde_json::Value;
use std::time::Duration;

/// Default of [`Config::max_token_bytes`], 16 KiB: tokens with a list of groups take more than 8
/// KiB.
pub const DEFAULT_MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The most keys that one token is tried with.
pub const MAX_TRIES: usize = 8;

/// What an [`Authenticator`] accepts. Without keys by default.
#[derive(Debug, Clone)]
pub struct Config {
    /// The shared secret, for HS256, HS384 and HS512.
    pub secret: Option<Secret>,
    /// Public keys, for all the others.
    pub jwks: Option<Jwks>,
    /// Names of this server, one of which a token's `aud` must have. Default: none, and `aud` is not looked at.
    pub audience: Vec<String>,
    /// Issuers, one of which a token's `iss` must be. Default: none, and `iss` is not looked at.
    pub issuer: Vec<String>,
    /// How far in the future a token's `nbf` may be, since clocks differ. Default: 10 s.
    pub leeway: Duration,
    /// Maximum length of a token in bytes; a longer one is refused before any other check. Default:
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

/// Verifies tokens. Does not change, and may be shared by any number of threads.
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
    /// An authenticator that accepts what `config` says.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoKeys`] and [`KeyError::EmptySecret`].
    pub fn new(config: Config) -> Result<Self, KeyError> {
        let mut warnings = Vec::new();
        let mut keys = Vec::new();
        if let Some(secret) = &config.secret {
            match secret.expose().len() {
                0 => return Err(KeyError::EmptySecret),
                1..32 => warnings.push(KeyWarning::ShortSecret),
                _ => {}
            }
            warnings.extend(oddity(secret.expose()));
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

    /// What the token says, at the time `now`, in seconds since 1970.
    ///
    /// Takes some microseconds with a secret, a hundred or so for each public key tried.
    ///
    /// # Errors
    ///
    /// [`AuthError`], in which nothing of the token stands.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, AuthError> {
        if token.len() > self.max_token_bytes {
            return Err(invalid("it is over max_token_bytes"));
        }
        // The compact serialisation, RFC 7515 section 3.1: what is signed is the text up to the second dot.
        let (message, signature) = token.rsplit_once('.').ok_or(NOT_A_JWT)?;
        let (header, payload) = message.split_once('.').ok_or(NOT_A_JWT)?;
        if payload.contains('.') {
            return Err(NOT_A_JWT);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| NOT_A_JWT);
        let (header, signature) = (decode(header)?, decode(signature)?);

        let header = json::object(&header)
            .ok_or(invalid("its header is not a JSON object in which each key stands once"))?;
        if header.contains_key("crit") {
            return Err(invalid("its header has crit"));
        }
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(key::algorithm);
        let algorithm = algorithm.ok_or(invalid("its alg is not one that is accepted"))?;
        let id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.as_str()),
            Some(_) => return Err(invalid("its kid is not a string")),
        };
        let mut fitting = self.keys.iter().filter(|key| key.fits(algorithm, id)).take(MAX_TRIES).peekable();
        if fitting.peek().is_none() {
            return Err(invalid("there is no key for its alg and kid"));
        }
        if !fitting.any(|key| key.verifies(algorithm, message.as_bytes(), &signature)) {
            return Err(invalid("its signature is not of a key that is accepted"));
        }

        let expected =
            Expected { audience: &self.audience, issuer: &self.issuer, leeway: self.leeway.as_secs_f64() };
        expected.read(&decode(payload)?, now)
    }

    /// What whoever keeps the keys should know; to be shown once, when they are loaded.
    #[must_use]
    pub fn warnings(&self) -> &[KeyWarning] {
        &self.warnings
    }
}

/// Returns advice on bytes at the ends of a secret that its owner may not know of. Random bytes may
/// be anything, so blanks and line ends are only reported for text.
fn oddity(secret: &[u8]) -> Option<KeyWarning> {
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
