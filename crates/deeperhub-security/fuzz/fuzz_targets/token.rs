//! Any bytes as a token, as a header and claims that are signed, as a set of keys and as a
//! certificate: nothing panics, nothing unsigned is accepted, and what is accepted is within its
//! limits.

#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use deeperhub_security::auth::{Authenticator, Config, Jwks, MAX_KEYS, MAX_PATTERNS};
use deeperhub_security::{MAX_USER_BYTES, Secret, tls};
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, EncodingKey};
use libfuzzer_sys::fuzz_target;

const SECRET: &[u8] = b"a secret for fuzzing, of 32 bytes";
const NOW: u64 = 1_800_000_000;

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let jwks = include_bytes!("../../tests/fixtures/jwks.json");
    Authenticator::new(Config {
        secret: Some(Secret::new(SECRET)),
        jwks: Some(Jwks::parse(jwks).expect("the set of the tests")),
        ..Config::default()
    })
    .expect("keys")
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(AUTHENTICATOR.verify(text, NOW).is_err(), "an unsigned token was accepted");
    }
    check_signed(b"{\"alg\":\"HS256\"}", bytes);
    check_signed(bytes, b"{\"sub\":\"ada\",\"exp\":1900000000}");
    let mut parts = bytes.splitn(3, |&byte| byte == b'\n');
    if let (Some(header), Some(claims), Some(signature)) = (parts.next(), parts.next(), parts.next()) {
        check_signed(header, claims);
        let token = [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        assert!(AUTHENTICATOR.verify(&token, NOW).is_err(), "an unsigned token was accepted");
    }
    if let Ok(jwks) = Jwks::parse(bytes) {
        assert!(!jwks.is_empty() && jwks.len() <= MAX_KEYS);
    }
    if let Some(user) = tls::user(&bytes.into()) {
        assert!(!user.is_empty() && user.len() <= MAX_USER_BYTES && !user.contains(char::is_control));
    }
});

fn check_signed(header: &[u8], claims: &[u8]) {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET);
    let signer = (DEFAULT_PROVIDER.signer_factory)(&Algorithm::HS256, &key).expect("a signer");
    let signature = signer.try_sign(message.as_bytes()).expect("a signature");
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
    if let Ok(claims) = AUTHENTICATOR.verify(&token, NOW) {
        assert!(!claims.user.is_empty() && claims.user.len() <= MAX_USER_BYTES);
        assert!(!claims.user.contains(char::is_control) && claims.expires_at > NOW);
        let lists = [claims.grants.subscribe(), claims.grants.publish()];
        assert!(lists.into_iter().flatten().all(|list| list.len() <= MAX_PATTERNS));
    }
}
