//! Keys that verify signatures, each for certain algorithms.

use crate::Secret;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, DecodingKey};
use std::fmt;

/// Algorithms for a shared secret.
pub(super) const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

/// Algorithms for an RSA key without `alg`.
pub(super) const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Algorithms for elliptic-curve keys, one per curve.
pub(super) const CURVES: &[Algorithm] = &[Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

/// Returns the algorithm that a header or a JWK names. Returns `None` if the algorithm is not
/// supported, such as `none`.
///
/// `Ed25519` is the new name of `EdDSA` with that curve (RFC 9864).
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "Ed25519" => Some(Algorithm::EdDSA),
        name => name.parse().ok(),
    }
}

/// A verification key. It verifies tokens only with its own algorithms, so that a token's header
/// cannot choose another one.
#[derive(Clone)]
pub(super) struct Key {
    /// The `kid`. The key verifies tokens with this `kid` or without one. A shared secret has no
    /// `kid` and verifies tokens with any.
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Key {
    pub(super) fn new(id: Option<String>, algorithms: &[Algorithm], key: DecodingKey) -> Self {
        Self { id, algorithms: algorithms.to_vec(), key }
    }

    /// Returns the key of the shared secret.
    pub(super) fn shared(secret: &Secret) -> Self {
        Self::new(None, HMAC, DecodingKey::from_secret(secret.expose()))
    }

    /// Returns `true` if a token with this header may be verified with this key.
    pub(super) fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        let id_matches = HMAC.contains(&algorithm) || id.is_none_or(|id| self.id.as_deref() == Some(id));
        id_matches && self.algorithms.contains(&algorithm)
    }

    /// Returns `true` if the signature of the message is valid.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &Vec<u8>) -> bool {
        // The provider is named here, because the default provider of the process is the program's
        // choice.
        (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.key)
            .is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Key").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}
