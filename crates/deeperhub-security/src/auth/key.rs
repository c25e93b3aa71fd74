//! Keys that verify signatures, and which algorithm each is for.

use crate::Secret;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, DecodingKey};
use std::fmt;

/// Algorithms of a shared secret.
pub(super) const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

/// Algorithms of an RSA key that says no single one.
pub(super) const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Algorithms of elliptic-curve keys, one for each curve.
pub(super) const CURVES: &[Algorithm] = &[Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

/// The algorithm of a header or of a JWK; `None` for any that is not known here, such as `none`.
///
/// `Ed25519` is what RFC 9864 calls the one `EdDSA` that there is here.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "Ed25519" => Some(Algorithm::EdDSA),
        name => name.parse().ok(),
    }
}

/// One key. It verifies under its own algorithms only, whatever a token says.
#[derive(Clone)]
pub(super) struct Key {
    /// The `kid`: only tokens that name it, or none, are verified by this key.
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Key {
    pub(super) fn new(id: Option<String>, algorithms: &[Algorithm], key: DecodingKey) -> Self {
        Self { id, algorithms: algorithms.to_vec(), key }
    }

    /// The shared secret. It is the only one and has no name of its own, so it answers to any.
    pub(super) fn shared(secret: &Secret) -> Self {
        Self::new(None, HMAC, DecodingKey::from_secret(secret.expose()))
    }

    /// Whether a token with these in its header is one for this key.
    pub(super) fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        let named = HMAC.contains(&algorithm) || id.is_none_or(|id| self.id.as_deref() == Some(id));
        named && self.algorithms.contains(&algorithm)
    }

    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &Vec<u8>) -> bool {
        // The provider is named, not looked up: a process-wide default is the program's to choose, not a library's.
        (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.key)
            .is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Key").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}
