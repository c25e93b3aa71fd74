//! Errors of tokens and keys.

use deeperhub_types::ErrorCode;
use std::fmt;

/// Reason why a token is refused. Contains no part of a token or key, so it can be logged and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The token is not valid, for another reason than its expiry. A newer token of the same kind
    /// would be refused, too.
    #[error("the token is not valid: {reason}")]
    Invalid {
        /// The reason, as a short clause.
        reason: &'static str,
    },
    /// The token is past its `exp`. The client needs a new one.
    #[error("the token has expired")]
    Expired,
}

impl AuthError {
    /// Returns the error code for the client.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. } => ErrorCode::TokenInvalid,
            Self::Expired => ErrorCode::TokenExpired,
        }
    }
}

/// Reason why keys are refused. The operator must fix it. Contains no part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Neither a secret nor a JWKS was given.
    #[error("there is neither a secret nor a JWKS")]
    NoKeys,
    /// The secret has no bytes, or only a line end.
    #[error("the secret is empty")]
    EmptySecret,
    /// The JWKS is UTF-16 text.
    #[error("it is UTF-16, not UTF-8")]
    Utf16,
    /// The JWKS is not a JSON object, or an object in it has duplicate keys.
    #[error("it is not a JSON object with unique keys")]
    NotJson,
    /// The JSON object is not a JWKS.
    #[error("it is not a JWKS")]
    NotKeys,
    /// The JWKS has more than [`MAX_KEYS`](super::MAX_KEYS) keys.
    #[error("it has more than {} keys", super::MAX_KEYS)]
    TooManyKeys,
    /// The JWKS contains a shared secret.
    #[error("key {position} is a shared secret (kty oct)")]
    SharedSecretInSet {
        /// Position of the key, counted from 1.
        position: usize,
    },
    /// The JWKS is empty.
    #[error("it has no keys")]
    EmptySet,
    /// No key of the JWKS can verify tokens. Contains the first key and its fault.
    #[error("it has no key that can verify tokens: {0}")]
    NoUsableKey(IgnoredKey),
}

impl KeyError {
    /// Returns what is expected instead.
    #[must_use]
    pub const fn expected(&self) -> &'static str {
        match self {
            Self::NoKeys => "a secret, a JWKS, or both",
            Self::EmptySecret => "at least 32 random bytes, such as from: openssl rand -base64 32",
            Self::Utf16 => "save it as UTF-8",
            Self::NotJson | Self::NotKeys | Self::TooManyKeys | Self::EmptySet => {
                "a JWKS is {\"keys\": [{\"kty\": …}, …]} (RFC 7517), of 64 keys at most"
            }
            Self::SharedSecretInSet { .. } => {
                "a JWKS has public keys only; a shared secret goes into a file of its own"
            }
            Self::NoUsableKey(_) => {
                "a public key for signatures: RSA of 2048 to 8192 bits, EC on P-256 or P-384, or Ed25519"
            }
        }
    }
}

/// Fault of a key in a JWKS, for which the key is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{field} {problem}")]
pub struct KeyFault {
    /// The member of the key that is at fault, such as `n`.
    pub field: &'static str,
    /// The problem, as a phrase that follows the member's name in a sentence.
    pub problem: &'static str,
}

/// A key of a JWKS that is ignored because it cannot verify tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IgnoredKey {
    /// Position of the key in the JWKS, counted from 1.
    pub position: usize,
    /// The key's `kid`, if it has one; a long one is truncated.
    pub id: Option<String>,
    /// Reason why the key is ignored.
    pub fault: KeyFault,
}

impl fmt::Display for IgnoredKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "key {}", self.position)?;
        if let Some(id) = &self.id {
            write!(formatter, " (kid {id:?})")?;
        }
        write!(formatter, ": {}", self.fault)
    }
}

/// Warning about keys that are used nevertheless. Contains no part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyWarning {
    /// The secret is shorter than the 32 bytes that HS256 needs (RFC 7518 section 3.2), so it may
    /// be guessed.
    ShortSecret,
    /// The secret starts with a byte order mark, which is part of the secret.
    SecretMark,
    /// The secret is text that starts or ends with blanks, which are part of the secret.
    SecretBlanks,
    /// The secret is text that ends with a line end, which is part of the secret. A file of such a
    /// secret ends with several line ends, of which only the last is stripped.
    SecretLineEnd,
    /// More than [`MAX_TRIES`](super::MAX_TRIES) keys share an algorithm. A token without a `kid`
    /// is tried only with the first ones.
    TooManyToTry,
    /// No audience is configured, so public keys also accept tokens that were issued for other
    /// services.
    AudienceNotChecked,
    /// A key of the JWKS is ignored.
    KeyIgnored(IgnoredKey),
    /// A key of the JWKS includes its private part, which only the issuer should have.
    PrivateKey {
        /// Position of the key, counted from 1.
        position: usize,
    },
}

impl KeyWarning {
    /// Returns `true` if the warning is about the shared secret, `false` if it is about the JWKS.
    #[must_use]
    pub const fn is_about_secret(&self) -> bool {
        matches!(self, Self::ShortSecret | Self::SecretMark | Self::SecretBlanks | Self::SecretLineEnd)
    }
}

impl fmt::Display for KeyWarning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortSecret => {
                formatter.write_str("the secret is shorter than 32 bytes and may be guessed")
            }
            Self::SecretMark => formatter.write_str(
                "the secret starts with a byte order mark, which is part of the secret: tokens that are signed \
                 without it are refused",
            ),
            Self::SecretBlanks => formatter.write_str(
                "the secret starts or ends with blanks, which are part of the secret: tokens that are signed without \
                 them are refused",
            ),
            Self::SecretLineEnd => formatter.write_str(
                "the secret ends with several line ends, and all but the last are part of the secret: tokens that \
                 are signed without them are refused",
            ),
            Self::TooManyToTry => write!(
                formatter,
                "more than {} keys of the JWKS share an algorithm: tokens without a kid are tried only with the \
                 first {0}",
                super::MAX_TRIES
            ),
            Self::AudienceNotChecked => {
                formatter.write_str("no audience is set: tokens that were issued for other services are accepted too")
            }
            Self::KeyIgnored(key) => write!(formatter, "a key of the JWKS is ignored: {key}"),
            Self::PrivateKey { position } => {
                write!(formatter, "key {position} of the JWKS includes its private part")
            }
        }
    }
}
