//! Why a token, or the keys for tokens, are refused.

use deeperhub_types::ErrorCode;
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
    /// A set of keys in UTF-16.
    #[error("it is UTF-16, not UTF-8")]
    Utf16,
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
    /// The set has no keys at all.
    #[error("it has no keys")]
    EmptySet,
    /// No key of the set can verify tokens; this is the first one.
    #[error("it has no key that tokens can be verified with: {0}")]
    NoUsableKey(IgnoredKey),
}

impl KeyError {
    /// What would be right.
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

/// Fault of a key in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{field} {problem}")]
pub struct KeyFault {
    /// The member of the key that is at fault, such as `n`.
    pub field: &'static str,
    /// Problem with the member; a sentence when it follows the member's name.
    pub problem: &'static str,
}

/// A key of a set that cannot verify tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IgnoredKey {
    /// Position of the key in the set, counted from 1.
    pub position: usize,
    /// The key's `kid`, if it has one; a long one is truncated.
    pub id: Option<String>,
    /// Reason why the key is left out.
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

/// What an operator should know of keys that work. Nothing of a key stands in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyWarning {
    /// The secret is shorter than the 32 bytes that HS256 needs (RFC 7518 section 3.2), so it may be guessed.
    ShortSecret,
    /// The secret begins with a byte order mark, which counts as part of it.
    SecretMark,
    /// The secret is text that begins or ends with blanks, which count as part of it.
    SecretBlanks,
    /// The secret is text that ends with a line end, which counts as part of it. Of a file, only
    /// the last line end does not count.
    SecretLineEnd,
    /// More than [`MAX_TRIES`](super::MAX_TRIES) keys are for one algorithm. A token without a
    /// `kid` is tried with the first ones only.
    TooManyToTry,
    /// Public keys without an audience: a token that their issuer made for another service is accepted as well.
    AudienceNotChecked,
    /// A key of the JWKS is left out.
    KeyIgnored(IgnoredKey),
    /// A key of the JWKS has its private part with it, which belongs to the issuer alone.
    PrivateKey {
        /// Which one, counted from 1.
        position: usize,
    },
}

impl KeyWarning {
    /// Returns `true` if the advice is about the shared secret; otherwise it is about the set of
    /// keys.
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
                "the secret begins with a byte order mark, which counts as part of it: tokens that are signed \
                 without it are refused",
            ),
            Self::SecretBlanks => formatter.write_str(
                "the secret begins or ends with blanks, which count as part of it: tokens that are signed without \
                 them are refused",
            ),
            Self::SecretLineEnd => formatter.write_str(
                "the secret ends with more than one line end, and only the last is not part of it: tokens that are \
                 signed without the others are refused",
            ),
            Self::TooManyToTry => write!(
                formatter,
                "more than {} keys of the JWKS are for the same algorithm: tokens without a kid are tried with the \
                 first {0} only",
                super::MAX_TRIES
            ),
            Self::AudienceNotChecked => {
                formatter.write_str("no audience is set: tokens made for other services are accepted as well")
            }
            Self::KeyIgnored(key) => write!(formatter, "a key of the JWKS is left out: {key}"),
            Self::PrivateKey { position } => {
                write!(formatter, "key {position} of the JWKS has its private part with it")
            }
        }
    }
}
