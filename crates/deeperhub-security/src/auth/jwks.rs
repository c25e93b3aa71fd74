//! Sets of public keys (RFC 7517).

use super::error::{Advice, KeyError};
use super::json;
use super::key::{self, Key};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

/// The most keys that a set may have.
pub const MAX_KEYS: usize = 64;

/// Public keys that tokens may be signed with: RSA of 2048 to 8192 bits, EC on P-256 and P-384, and Ed25519.
#[derive(Debug, Clone)]
pub struct Jwks {
    keys: Vec<Key>,
    advice: Vec<Advice>,
}

impl Jwks {
    /// Reads a set (`{"keys": […]}`) or a single key.
    ///
    /// A key that tokens cannot be verified with here (of another type or curve, for encryption, incomplete) is left
    /// out with an [`Advice`], as RFC 7517 section 5 wants it, so that a provider may add new kinds of keys.
    ///
    /// # Errors
    ///
    /// [`KeyError`] for what is no set of keys, has no usable key or too many, and for a set with a shared secret
    /// (`oct`) in it: such sets are published, and who can read this one could make tokens.
    pub fn parse(json: &[u8]) -> Result<Self, KeyError> {
        let mut document = json::object(json).ok_or(KeyError::NotJson)?;
        let keys = match document.remove("keys") {
            Some(Value::Array(keys)) => keys,
            None if document.contains_key("kty") => vec![Value::Object(document)],
            _ => return Err(KeyError::NotKeys),
        };
        if keys.len() > MAX_KEYS {
            return Err(KeyError::TooManyKeys);
        }
        let mut set = Self { keys: Vec::new(), advice: Vec::new() };
        for (position, key) in (1..).zip(&keys) {
            let Value::Object(key) = key else { return Err(KeyError::NotKeys) };
            if key.get("kty").is_some_and(|kind| kind == "oct") {
                return Err(KeyError::SharedSecretInSet { position });
            }
            if key.contains_key("d") {
                set.advice.push(Advice::PrivateKey { position });
            }
            match verifying(key) {
                Ok(key) => set.keys.push(key),
                Err(reason) => set.advice.push(Advice::KeyLeftOut { position, reason }),
            }
        }
        if set.keys.is_empty() {
            let first = set.advice.iter().find_map(|advice| match advice {
                Advice::KeyLeftOut { reason, .. } => Some(*reason),
                _ => None,
            });
            return Err(KeyError::NoUsableKey { reason: first.unwrap_or("the set is empty") });
        }
        Ok(set)
    }

    /// How many keys there are to verify with.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none; never so after [`parse`](Self::parse).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What whoever keeps the file should know.
    #[must_use]
    pub fn advice(&self) -> &[Advice] {
        &self.advice
    }

    pub(super) fn into_keys(self) -> Vec<Key> {
        self.keys
    }
}

/// The key of a JWK, or why it is none to verify with.
fn verifying(jwk: &Map<String, Value>) -> Result<Key, &'static str> {
    if jwk.get("use").is_some_and(|purpose| purpose != "sig") {
        return Err("its use is not sig");
    }
    match jwk.get("key_ops") {
        None => {}
        Some(Value::Array(operations)) if operations.iter().any(|operation| operation == "verify") => {}
        Some(_) => return Err("its key_ops do not include verify"),
    }
    let id = match jwk.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(_) => return Err("its kid is not a string"),
    };
    let (possible, key): (&[Algorithm], _) = match text(jwk, "kty")? {
        "RSA" => (key::RSA, rsa(jwk)?),
        "EC" => match text(jwk, "crv")? {
            "P-256" => (&[Algorithm::ES256], ec(jwk, 32)?),
            "P-384" => (&[Algorithm::ES384], ec(jwk, 48)?),
            _ => return Err("its curve is neither P-256 nor P-384"),
        },
        "OKP" => match text(jwk, "crv")? {
            "Ed25519" => (&[Algorithm::EdDSA], ed25519(jwk)?),
            _ => return Err("its curve is not Ed25519"),
        },
        _ => return Err("its type is neither RSA nor EC nor OKP"),
    };
    let Some(named) = jwk.get("alg") else { return Ok(Key::new(id, possible, key)) };
    match named.as_str().and_then(key::algorithm) {
        Some(algorithm) if possible.contains(&algorithm) => Ok(Key::new(id, &[algorithm], key)),
        _ => Err("its alg is not one of its type that is known here"),
    }
}

fn rsa(jwk: &Map<String, Value>) -> Result<DecodingKey, &'static str> {
    let (n, e) = (bytes(jwk, "n")?, bytes(jwk, "e")?);
    // Some write a leading zero, as ASN.1 would need it.
    let n = n.iter().position(|&byte| byte != 0).and_then(|start| n.get(start..)).unwrap_or_default();
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err("it is not of 2048 to 8192 bits");
    }
    if e.is_empty() || e.len() > 4 || e.last().is_none_or(|last| last % 2 == 0) || e == [1] {
        return Err("its exponent is none of RSA");
    }
    Ok(DecodingKey::from_rsa_raw_components(n, &e))
}

fn ec(jwk: &Map<String, Value>, coordinate_bytes: usize) -> Result<DecodingKey, &'static str> {
    let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
    if x.len() != coordinate_bytes || y.len() != coordinate_bytes {
        return Err("its coordinates are not as long as its curve's");
    }
    // An uncompressed point: SEC 1 section 2.3.3.
    Ok(DecodingKey::from_ec_der(&[&[4], &*x, &*y].concat()))
}

fn ed25519(jwk: &Map<String, Value>) -> Result<DecodingKey, &'static str> {
    let x = bytes(jwk, "x")?;
    if x.len() != 32 {
        return Err("it is not 32 bytes long");
    }
    Ok(DecodingKey::from_ed_der(&x))
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<&'a str, &'static str> {
    jwk.get(name).and_then(Value::as_str).ok_or("it lacks a member that its type needs")
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    URL_SAFE_NO_PAD.decode(text(jwk, name)?).map_err(|_| "a member of it is not base64url")
}
