//! JSON Web Key Sets: public keys of token issuers (RFC 7517).

use super::error::{IgnoredKey, KeyError, KeyFault, KeyWarning};
use super::json;
use super::key::{self, Key};
use crate::byte_order_mark;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Accepts base64url with and without padding. RFC 7515 section 2 forbids padding, but some
/// encoders write it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Maximum length of a `kid` in messages, in bytes; a longer one is truncated.
const MAX_SHOWN_ID_BYTES: usize = 64;

/// Maximum number of keys in a JWKS. Limits the time and memory to load one.
pub const MAX_KEYS: usize = 64;

/// Public keys that verify tokens: RSA of 2048 to 8192 bits, EC on P-256 and P-384, and Ed25519.
#[derive(Debug, Clone)]
pub struct Jwks {
    keys: Vec<Key>,
    warnings: Vec<KeyWarning>,
}

impl Jwks {
    /// Parses a set (`{"keys": […]}`) or a single key.
    ///
    /// A key that cannot verify tokens is ignored with a [`KeyWarning`]: for example, a key of
    /// another type or curve, for encryption, or with a missing member. RFC 7517 section 5
    /// recommends that, because issuers may add new kinds of keys.
    ///
    /// Each key is checked for its use, so invalid keys (such as a point off its curve) are
    /// detected here. Numbers may have leading zeros, base64url may have padding, and the text may
    /// start with a byte order mark.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if the text is not a JWKS, or has no usable key or too many keys. A JWKS with a
    /// shared secret (`oct`) is refused, because a JWKS is usually public, and everyone who knows
    /// the secret could forge tokens.
    pub fn parse(json: &[u8]) -> Result<Self, KeyError> {
        let json = byte_order_mark::without_mark(json).map_err(|byte_order_mark::Utf16| KeyError::Utf16)?;
        let mut document = json::object(json).ok_or(KeyError::NotJson)?;
        let keys = match document.remove("keys") {
            Some(Value::Array(keys)) => keys,
            None if document.contains_key("kty") => vec![Value::Object(document)],
            _ => return Err(KeyError::NotKeys),
        };
        if keys.len() > MAX_KEYS {
            return Err(KeyError::TooManyKeys);
        }
        let mut set = Self { keys: Vec::new(), warnings: Vec::new() };
        let mut first_ignored = None;
        for (position, key) in (1..).zip(&keys) {
            let Value::Object(key) = key else { return Err(KeyError::NotKeys) };
            if key.get("kty").is_some_and(|kind| kind == "oct") {
                return Err(KeyError::SharedSecretInSet { position });
            }
            if key.contains_key("d") {
                set.warnings.push(KeyWarning::PrivateKey { position });
            }
            match verification_key(key) {
                Ok(key) => set.keys.push(key),
                Err(fault) => {
                    let ignored = IgnoredKey { position, id: shown_id(key), fault };
                    first_ignored.get_or_insert_with(|| ignored.clone());
                    set.warnings.push(KeyWarning::KeyIgnored(ignored));
                }
            }
        }
        if set.keys.is_empty() {
            return Err(first_ignored.map_or(KeyError::EmptySet, KeyError::NoUsableKey));
        }
        Ok(set)
    }

    /// Returns the number of keys that can verify tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns `true` if there are no keys. A parsed set has at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns warnings for the operator.
    #[must_use]
    pub fn warnings(&self) -> &[KeyWarning] {
        &self.warnings
    }

    pub(super) fn into_keys(self) -> Vec<Key> {
        self.keys
    }
}

/// Returns the `kid` of a key, truncated for messages.
fn shown_id(jwk: &Map<String, Value>) -> Option<String> {
    let id = jwk.get("kid")?.as_str()?;
    Some(id[..id.floor_char_boundary(MAX_SHOWN_ID_BYTES)].to_owned())
}

/// Returns the verification key of a JWK, or the fault for which the JWK is ignored.
fn verification_key(jwk: &Map<String, Value>) -> Result<Key, KeyFault> {
    if jwk.get("use").is_some_and(|purpose| purpose != "sig") {
        return Err(fault("use", "is not sig"));
    }
    match jwk.get("key_ops") {
        None => {}
        Some(Value::Array(operations)) if operations.iter().any(|operation| operation == "verify") => {}
        Some(_) => return Err(fault("key_ops", "does not include verify")),
    }
    let id = match jwk.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(_) => return Err(fault("kid", "is not a string")),
    };
    let (possible, key): (&[Algorithm], _) = match text(jwk, "kty")? {
        "RSA" => (key::RSA, rsa(jwk)?),
        "EC" => match text(jwk, "crv")? {
            "P-256" => (&[Algorithm::ES256], ec(jwk, 32, &ECDSA_P256_SHA256_FIXED)?),
            "P-384" => (&[Algorithm::ES384], ec(jwk, 48, &ECDSA_P384_SHA384_FIXED)?),
            _ => return Err(fault("crv", "is neither P-256 nor P-384")),
        },
        "OKP" => match text(jwk, "crv")? {
            "Ed25519" => (&[Algorithm::EdDSA], ed25519(jwk)?),
            _ => return Err(fault("crv", "is not Ed25519")),
        },
        _ => return Err(fault("kty", "is neither RSA nor EC nor OKP")),
    };
    let Some(alg) = jwk.get("alg") else { return Ok(Key::new(id, possible, key)) };
    match alg.as_str().and_then(key::algorithm) {
        Some(algorithm) if possible.contains(&algorithm) => Ok(Key::new(id, &[algorithm], key)),
        _ => Err(fault("alg", "is not a supported algorithm of its type")),
    }
}

fn rsa(jwk: &Map<String, Value>) -> Result<DecodingKey, KeyFault> {
    let (n, e) = (bytes(jwk, "n")?, bytes(jwk, "e")?);
    // Some encoders write leading zeros: one that ASN.1 needs, or as many as fill a word (`AAEAAQ`
    // for 65537). The cryptographic library accepts none.
    let (n, e) = (without_zeros(&n), without_zeros(&e));
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err(fault("n", "is not of 2048 to 8192 bits"));
    }
    if e.is_empty() || e.len() > 4 || e.last().is_none_or(|last| last % 2 == 0) || e == [1] {
        return Err(fault("e", "is not an RSA exponent"));
    }
    if n.last().is_none_or(|last| last % 2 == 0) {
        return Err(fault("n", "is even, so it is not a product of two primes"));
    }
    RsaPublicKeyComponents { n, e }
        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        .map_err(|_| fault("n", "does not form an RSA key with e"))?;
    Ok(DecodingKey::from_rsa_raw_components(n, e))
}

fn ec(
    jwk: &Map<String, Value>,
    coordinate_bytes: usize,
    algorithm: &'static dyn VerificationAlgorithm,
) -> Result<DecodingKey, KeyFault> {
    // Format of an uncompressed point: 4, then both coordinates (SEC 1 section 2.3.3).
    let mut point = vec![4];
    for field in ["x", "y"] {
        let coordinate = bytes(jwk, field)?;
        // RFC 7518 section 6.2.1.2 fixes the length of a coordinate. Some encoders omit leading
        // zeros, or add the one that ASN.1 needs.
        let digits = without_zeros(&coordinate);
        let Some(zeros) = coordinate_bytes.checked_sub(digits.len()) else {
            return Err(fault(field, "is longer than a coordinate of its curve"));
        };
        point.resize(point.len() + zeros, 0);
        point.extend_from_slice(digits);
    }
    ParsedPublicKey::new(algorithm, &point).map_err(|_| fault("x", "and y are not a point of its curve"))?;
    Ok(DecodingKey::from_ec_der(&point))
}

fn ed25519(jwk: &Map<String, Value>) -> Result<DecodingKey, KeyFault> {
    let x = bytes(jwk, "x")?;
    // The key is a byte string, so its zeros count. A zero byte before 32 others is the first byte
    // of an ASN.1 BIT STRING, which some encoders do not strip.
    let key = match x.split_first() {
        Some((0, key)) if key.len() == 32 => key,
        _ => &x,
    };
    if key.len() != 32 {
        return Err(fault("x", "is not 32 bytes long"));
    }
    ParsedPublicKey::new(&ED25519, key).map_err(|_| fault("x", "is no Ed25519 key"))?;
    Ok(DecodingKey::from_ed_der(key))
}

fn text<'a>(jwk: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, KeyFault> {
    match jwk.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(fault(field, "is not a string")),
        None => Err(fault(field, "is missing")),
    }
}

fn bytes(jwk: &Map<String, Value>, field: &'static str) -> Result<Vec<u8>, KeyFault> {
    let text = text(jwk, field)?;
    // Base64 is accepted, too. It differs from base64url only in `+` and `/`.
    let text = if text.contains(['+', '/']) {
        Cow::Owned(text.replace('+', "-").replace('/', "_"))
    } else {
        Cow::Borrowed(text)
    };
    BASE64.decode(text.as_bytes()).map_err(|_| fault(field, "is not base64url"))
}

/// Returns a big-endian number without its leading zeros.
fn without_zeros(number: &[u8]) -> &[u8] {
    number.iter().position(|&byte| byte != 0).and_then(|start| number.get(start..)).unwrap_or_default()
}

const fn fault(field: &'static str, problem: &'static str) -> KeyFault {
    KeyFault { field, problem }
}
