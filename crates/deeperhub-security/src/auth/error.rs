//! Why a token, or the keys for tokens, are refused.

use deeperhub_protocol::ErrorCode;
use std::fmt;

/// Why a token is refused. Nothing of the token or of a key stands in it, so it may be logged and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The token is not one that this server accepts, and will not become one. The client's fault, or its issuer's.
    #[error("the token is not valid: {reason}")]
    Invalid {
        /// What is wrong with it, in a few words.
        reason: &'static str,
    },
    /// The token was good and is past its `exp`: a new one helps.
    #[error("the token has expired")]
    Expired,
}

impl AuthError {
    /// The code that the client is told.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. } => ErrorCode::TokenInvalid,
            Self::Expired => ErrorCode::TokenExpired,
        }
    }
}

/// Why keys are refused. The operator's to mend; nothing of a key stands in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Neither a secret nor a set of keys was given.
    #[error("there is neither a secret nor a set of keys")]
    NoKeys,
    /// A secret of no bytes, or of a line's end alone.
    #[error("the secret is empty")]
    EmptySecret,
    /// What should be a set of keys is no JSON object, or a key of an object stands twice in it.
    #[error("it is not a JSON object in which each key stands once")]
    NotJson,
    /// It is JSON, and no set of keys.
    #[error("it is not a set of keys")]
    NotKeys,
    /// More keys than [`MAX_KEYS`](super::MAX_KEYS).
    #[error("it has more than {} keys", super::MAX_KEYS)]
    TooManyKeys,
    /// A shared secret stands among public keys.
    #[error("key {position} is a shared secret (kty oct)")]
    SharedSecretInSet {
        /// Which one, counted from 1.
        position: usize,
    },
    /// There is no key that a token could be verified with.
    #[error("it has no key that tokens can be verified with: {reason}")]
    NoUsableKey {
        /// Why the first one is none.
        reason: &'static str,
    },
}

impl KeyError {
    /// What would be right.
    #[must_use]
    pub const fn expected(&self) -> &'static str {
        match self {
            Self::NoKeys => "a secret, a JWKS, or both",
            Self::EmptySecret => "at least 32 random bytes, such as from: openssl rand -base64 32",
            Self::NotJson | Self::NotKeys | Self::TooManyKeys => {
                "a JWKS is {\"keys\": [{\"kty\": …}, …]} (RFC 7517), of 64 keys at most"
            }
            Self::SharedSecretInSet { .. } => {
                "a JWKS has public keys only; a shared secret goes into a file of its own"
            }
            Self::NoUsableKey { .. } => {
                "a public key for signatures: RSA of 2048 to 8192 bits, EC on P-256 or P-384, or Ed25519"
            }
        }
    }
}

/// What an operator should know of keys that work. Nothing of a key stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// The secret is shorter than the 32 bytes that HS256 needs (RFC 7518 section 3.2), so it may be guessed.
    ShortSecret,
    /// Public keys without an audience: a token that their issuer made for another service is accepted as well.
    AudienceNotChecked,
    /// A key of the JWKS is left out.
    KeyLeftOut {
        /// Which one, counted from 1.
        position: usize,
        /// Why.
        reason: &'static str,
    },
    /// A key of the JWKS has its private part with it, which belongs to the issuer alone.
    PrivateKey {
        /// Which one, counted from 1.
        position: usize,
    },
}

impl fmt::Display for Advice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortSecret => {
                formatter.write_str("the secret is shorter than 32 bytes and may be guessed")
            }
            Self::AudienceNotChecked => {
                formatter.write_str("no audience is set: tokens made for other services are accepted as well")
            }
            Self::KeyLeftOut { position, reason } => {
                write!(formatter, "key {position} of the JWKS is left out: {reason}")
            }
            Self::PrivateKey { position } => {
                write!(formatter, "key {position} of the JWKS has its private part with it")
            }
        }
    }
}
