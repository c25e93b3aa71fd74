//! Tokens and keys as an issuer makes them, and as an attacker would.

#![cfg(feature = "auth")]
// Helpers here stand outside of test functions, where the lint cannot tell that they are tests.
#![allow(clippy::unwrap_used)]

use deeperhub_security::auth::{
    AuthError, Authenticator, Config, DEFAULT_MAX_TOKEN_BYTES, IgnoredKey, Jwks, KeyError, KeyFault,
    KeyWarning, Keys, MAX_KEYS, MAX_PATTERNS, MintError, MintOptions, SharedAuthenticator, mint, mint_with,
};
use deeperhub_security::{Claims, Grants, Secret};
use deeperhub_types::{ErrorCode, Subscription, Topic};
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "a secret for tests, of 32 bytes.";

fn secret() -> Secret {
    Secret::new(SECRET)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn fixture_bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn jwks() -> Jwks {
    Jwks::parse(&fixture_bytes("jwks.json")).unwrap()
}

fn with_secret() -> Authenticator {
    Authenticator::new(Config { secret: Some(secret()), ..Config::default() }).unwrap()
}

fn with_both() -> Authenticator {
    Authenticator::new(Config { secret: Some(secret()), jwks: Some(jwks()), ..Config::default() }).unwrap()
}

fn private_der(name: &str) -> Vec<u8> {
    PrivateKeyDer::from_pem_file(fixture(name)).unwrap().secret_der().to_vec()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn signed_text(header: &str, payload: &str, algorithm: Algorithm, key: &EncodingKey) -> String {
    let message = format!("{}.{}", base64(header.as_bytes()), base64(payload.as_bytes()));
    let signer = (DEFAULT_PROVIDER.signer_factory)(&algorithm, key).unwrap();
    format!("{message}.{}", base64(&signer.try_sign(message.as_bytes()).unwrap()))
}

/// A token that the secret signs, whatever its claims are.
fn with_claims(claims: &str) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed_text(r#"{"alg":"HS256"}"#, claims, Algorithm::HS256, &key)
}

fn with_header(header: &str) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed_text(header, &good().to_string(), Algorithm::HS256, &key)
}

fn good() -> Value {
    json!({ "sub": "ada", "exp": NOW + 60 })
}

fn changed(change: Value) -> String {
    let mut claims = good();
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    with_claims(&claims.to_string())
}

#[track_caller]
fn refused(authenticator: &Authenticator, token: &str, expected: &str) {
    match authenticator.verify(token, NOW) {
        Err(AuthError::Invalid { reason }) => assert!(reason.contains(expected), "{reason}"),
        other => panic!("{other:?} instead of {expected}"),
    }
}

#[test]
fn a_token_says_who_until_when_and_what() {
    let claims = with_secret().verify(&with_claims(&good().to_string()), NOW).unwrap();
    let expected = Claims { user: "ada".into(), expires_at: NOW + 60, grants: Grants::unrestricted() };
    assert_eq!(claims, expected);
}

#[test]
fn each_algorithm_is_verified_by_a_key_of_its_kind() {
    let authenticator = with_both();
    let rsa = EncodingKey::from_rsa_der(&private_der("jwt-rsa.key"));
    let keys = [
        (EncodingKey::from_secret(SECRET.as_bytes()), &["HS256", "HS384", "HS512"][..]),
        (rsa, &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (EncodingKey::from_ec_der(&private_der("jwt-p256.key")), &["ES256"]),
        (EncodingKey::from_ec_der(&private_der("jwt-p384.key")), &["ES384"]),
        (EncodingKey::from_ed_der(&private_der("jwt-ed25519.key")), &["EdDSA"]),
    ];
    for (key, names) in &keys {
        for name in *names {
            let token = signed_text(
                &json!({ "alg": name, "typ": "JWT" }).to_string(),
                &good().to_string(),
                name.parse().unwrap(),
                key,
            );
            assert!(authenticator.verify(&token, NOW).is_ok(), "{name}");
            // The same with another's name in the header.
            for other in keys.iter().flat_map(|(_, names)| *names).filter(|other| other != &name) {
                let (_, rest) = token.split_once('.').unwrap();
                let header = base64(json!({ "alg": other }).to_string().as_bytes());
                assert!(authenticator.verify(&format!("{header}.{rest}"), NOW).is_err(), "{name} as {other}");
            }
        }
    }
    let ed = EncodingKey::from_ed_der(&private_der("jwt-ed25519.key"));
    let token = signed_text(r#"{"alg":"Ed25519"}"#, &good().to_string(), Algorithm::EdDSA, &ed);
    assert!(authenticator.verify(&token, NOW).is_ok(), "by its name of RFC 9864");
}

/// The signatures are good, so what is complained of comes after them.
#[test]
fn the_examples_of_the_rfcs_are_verified() {
    // RFC 7515 appendix A.1.
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    use base64::Engine;
    let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(key).unwrap();
    let config = Config { secret: Some(Secret::new(key)), ..Config::default() };
    let hs256 = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6\
                 Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    refused(&Authenticator::new(config).unwrap(), hs256, "sub must be a string");

    // RFC 7515 appendix A.3.
    let es256 = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc\
                 19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU\
                 1Q";
    let key = json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" });
    refused(&with_key(&key), es256, "sub must be a string");

    // RFC 8037 appendix A.4: what is signed is no JSON.
    let eddsa = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR\
                 6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    refused(&with_key(&key), eddsa, "its claims are not a JSON object");
}

fn with_key(key: &Value) -> Authenticator {
    let jwks = Jwks::parse(key.to_string().as_bytes()).unwrap();
    Authenticator::new(Config { jwks: Some(jwks), ..Config::default() }).unwrap()
}

#[test]
fn a_public_key_is_never_a_secret() {
    let set: Value = serde_json::from_slice(&fixture_bytes("jwks.json")).unwrap();
    let only_public = Authenticator::new(Config { jwks: Some(jwks()), ..Config::default() }).unwrap();
    let guesses = set["keys"].as_array().unwrap().iter().flat_map(|key| {
        let texts = ["n", "x", "y", "kid"].into_iter().filter_map(|name| key[name].as_str());
        texts.map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>()
    });
    for guess in guesses.chain([fixture_bytes("jwks.json")]) {
        let key = EncodingKey::from_secret(&guess);
        for header in [json!({ "alg": "HS256" }), json!({ "alg": "HS256", "kid": "rsa" })] {
            let token = signed_text(&header.to_string(), &good().to_string(), Algorithm::HS256, &key);
            refused(&only_public, &token, "no key fits its alg and kid");
            refused(&with_both(), &token, "its signature does not match any key");
        }
    }
}

#[test]
fn unsigned_tokens_and_unknown_algorithms_are_refused() {
    for algorithm in ["none", "None", "NONE", "HS1", "ES512", "ES256K", "", "hs256"] {
        let header = base64(json!({ "alg": algorithm }).to_string().as_bytes());
        let payload = base64(good().to_string().as_bytes());
        for signature in ["", "AAAA"] {
            refused(&with_both(), &format!("{header}.{payload}.{signature}"), "alg");
        }
    }
    refused(&with_secret(), &with_header(r#"{"typ":"JWT"}"#), "alg");
    refused(&with_secret(), &with_header(r#"{"alg":["HS256"]}"#), "alg");
}

#[test]
fn a_key_is_found_by_its_name_or_by_its_kind() {
    let rsa = EncodingKey::from_rsa_der(&private_der("jwt-rsa.key"));
    let token = |header: Value| signed_text(&header.to_string(), &good().to_string(), Algorithm::RS256, &rsa);
    let authenticator = with_both();
    assert!(authenticator.verify(&token(json!({ "alg": "RS256", "kid": "rsa" })), NOW).is_ok());
    assert!(authenticator.verify(&token(json!({ "alg": "RS256" })), NOW).is_ok());
    for id in ["", "RSA", "other", "P-256"] {
        refused(&authenticator, &token(json!({ "alg": "RS256", "kid": id })), "no key fits");
    }
    refused(&authenticator, &token(json!({ "alg": "RS256", "kid": 1 })), "kid is not a string");
    // The secret has no name.
    assert!(authenticator.verify(&with_header(r#"{"alg":"HS256","kid":"any"}"#), NOW).is_ok());
}

/// A set in which the right key is one of many that fit.
#[test]
fn few_keys_are_tried_for_a_token_without_a_name() {
    let set: Value = serde_json::from_slice(&fixture_bytes("jwks.json")).unwrap();
    let right = set["keys"].as_array().unwrap().iter().find(|key| key["kid"] == "ed25519").unwrap();
    let ed = EncodingKey::from_ed_der(&private_der("jwt-ed25519.key"));
    let token = |header: Value| signed_text(&header.to_string(), &good().to_string(), Algorithm::EdDSA, &ed);
    for (position, found) in [(0, true), (7, true), (8, false), (40, false)] {
        let mut keys: Vec<Value> = (0_u8..41)
            .map(|n| json!({ "kty": "OKP", "crv": "Ed25519", "kid": format!("{n}"), "x": base64(&[n; 32]) }))
            .collect();
        keys[position] = right.clone();
        let authenticator = with_key(&json!({ "keys": keys }));
        assert_eq!(authenticator.verify(&token(json!({ "alg": "EdDSA" })), NOW).is_ok(), found, "{position}");
        assert!(authenticator.verify(&token(json!({ "alg": "EdDSA", "kid": "ed25519" })), NOW).is_ok());
    }
}

#[test]
fn what_a_key_says_of_its_use_is_honoured() {
    let set: Value = serde_json::from_slice(&fixture_bytes("jwks.json")).unwrap();
    let rsa = EncodingKey::from_rsa_der(&private_der("jwt-rsa.key"));
    let token = |algorithm: Algorithm| {
        signed_text(&json!({ "alg": algorithm }).to_string(), &good().to_string(), algorithm, &rsa)
    };
    let key = |name: &str, value: Value| {
        let mut key = set["keys"][0].clone();
        key.as_object_mut().unwrap().remove("use");
        key[name] = value;
        key
    };
    let only = with_key(&key("alg", "PS256".into()));
    assert!(only.verify(&token(Algorithm::PS256), NOW).is_ok());
    refused(&only, &token(Algorithm::RS256), "no key fits");
    assert!(with_key(&key("key_ops", json!(["verify"]))).verify(&token(Algorithm::RS256), NOW).is_ok());
    for (name, value) in [
        ("use", json!("enc")),
        ("use", json!(1)),
        ("key_ops", json!(["sign"])),
        ("key_ops", json!("verify")),
        ("alg", json!("HS256")),
        ("alg", json!("ES256")),
        ("alg", json!("RSA-OAEP")),
        ("alg", Value::Null),
        ("kid", json!(1)),
        ("kty", json!("XYZ")),
        ("e", json!("AA")),
        ("e", json!("AQ")),
        ("n", json!("AQAB")),
        ("n", json!("not base64url")),
    ] {
        let error = Jwks::parse(key(name, value.clone()).to_string().as_bytes()).unwrap_err();
        assert!(matches!(error, KeyError::NoUsableKey(_)), "{name}: {value}");
    }
}

#[test]
fn who_and_until_when_are_required() {
    let authenticator = with_secret();
    for (change, expected) in [
        (json!({ "sub": null }), "sub must be a string"),
        (json!({ "sub": 7 }), "sub must be a string"),
        (json!({ "sub": "" }), "sub is empty"),
        (json!({ "sub": "a\nb" }), "control"),
        (json!({ "sub": "a\u{85}b" }), "control"),
        (json!({ "sub": "é".repeat(128) }), "longer than 255"),
        (json!({ "exp": null }), "exp is missing"),
        (json!({ "exp": "1900000000" }), "exp must be a number"),
        (json!({ "exp": true }), "exp must be a number"),
    ] {
        refused(&authenticator, &changed(change), expected);
    }
    assert!(authenticator.verify(&changed(json!({ "sub": "é".repeat(127) })), NOW).is_ok());
    refused(&authenticator, &with_claims("[]"), "claims are not a JSON object");
    refused(&authenticator, &with_claims(r#"{"sub":"a","exp":1e999}"#), "claims are not a JSON object");
}

#[test]
fn a_token_ends_at_its_exp_and_starts_a_little_before_its_nbf() {
    let authenticator = with_secret();
    let expires = |exp: Value| authenticator.verify(&changed(json!({ "exp": exp })), NOW);
    assert_eq!(expires(json!(NOW)), Err(AuthError::Expired));
    assert_eq!(expires(json!(NOW - 1)), Err(AuthError::Expired));
    assert_eq!(expires(json!(0)), Err(AuthError::Expired));
    assert_eq!(expires(json!(-1)), Err(AuthError::Expired));
    assert_eq!(expires(json!(NOW as f64 + 0.9)), Err(AuthError::Expired), "to the second");
    assert_eq!(expires(json!(NOW + 1)).unwrap().expires_at, NOW + 1);
    assert_eq!(expires(json!(NOW as f64 + 1.9)).unwrap().expires_at, NOW + 1);
    assert_eq!(expires(json!(u64::MAX)).unwrap().expires_at, u64::MAX);
    assert_eq!(expires(json!(1e300)).unwrap().expires_at, u64::MAX);

    for (nbf, good) in [(json!(NOW + 10), true), (json!(NOW + 11), false), (json!(NOW as f64 + 10.5), false)]
    {
        let verified = authenticator.verify(&changed(json!({ "nbf": nbf })), NOW);
        assert_eq!(verified.is_ok(), good, "{nbf}");
    }
    refused(&authenticator, &changed(json!({ "nbf": "0" })), "nbf must be a number");
    refused(&authenticator, &changed(json!({ "nbf": NOW + 50, "exp": 1 })), "nbf is in the future");
}

#[test]
fn audience_and_issuer_are_checked_if_configured() {
    let set = Config {
        secret: Some(secret()),
        audience: vec!["hub".to_owned(), "hub.net".to_owned()],
        issuer: vec!["https://id.example".to_owned()],
        ..Config::default()
    };
    let set = Authenticator::new(set).unwrap();
    let token = |aud: Value, iss: Value| changed(json!({ "aud": aud, "iss": iss }));
    let issuer = json!("https://id.example");
    for aud in [json!("hub"), json!(["x", "hub.net"])] {
        assert!(set.verify(&token(aud.clone(), issuer.clone()), NOW).is_ok(), "{aud}");
        assert!(with_secret().verify(&token(aud, json!("anyone")), NOW).is_ok());
    }
    for aud in [Value::Null, json!("HUB"), json!([]), json!(["x"]), json!({ "hub": 1 }), json!([["hub"]])] {
        refused(&set, &token(aud, issuer.clone()), "aud does not name this server");
    }
    for iss in [Value::Null, json!("https://id.example/"), json!(["https://id.example"])] {
        refused(&set, &token(json!("hub"), iss), "iss is not an accepted issuer");
    }
}

#[test]
fn the_grants_are_those_of_the_claim() {
    let authenticator = with_secret();
    let grants = |claim: Value| authenticator.verify(&changed(json!({ "deeperhub": claim })), NOW);
    let granted = grants(json!({ "subscribe": ["room.*", "own"], "publish": ["own"] })).unwrap().grants;
    assert!(granted.may_subscribe(&Subscription::parse("room.a").unwrap()));
    assert!(!granted.may_subscribe(&Subscription::parse("room.>").unwrap()));
    assert!(granted.may_publish(&Topic::parse("own").unwrap()));
    assert!(!granted.may_publish(&Topic::parse("room.a").unwrap()));

    let only_subscribe = grants(json!({ "subscribe": [">"] })).unwrap().grants;
    assert!(only_subscribe.may_subscribe(&Subscription::parse(">").unwrap()));
    assert!(!only_subscribe.may_publish(&Topic::parse("own").unwrap()), "a list left out allows nothing");
    let nothing = grants(json!({ "later": 1 })).unwrap().grants;
    assert!(!nothing.is_unrestricted() && !nothing.may_publish(&Topic::parse("own").unwrap()));

    for claim in [
        json!([]),
        json!("all"),
        json!({ "subscribe": "room.*" }),
        json!({ "subscribe": null }),
        json!({ "subscribe": [1] }),
        json!({ "subscribe": ["a*"] }),
        json!({ "publish": ["own", ""] }),
        json!({ "publish": vec!["own"; MAX_PATTERNS + 1] }),
    ] {
        assert_eq!(grants(claim.clone()).unwrap_err().code(), ErrorCode::TokenInvalid, "{claim}");
    }
    assert!(grants(json!({ "publish": vec!["own"; MAX_PATTERNS] })).is_ok());
    refused(&authenticator, &with_claims(r#"{"sub":"a","exp":1900000000,"deeperhub":null}"#), "an object");
}

#[test]
fn headers_that_ask_for_more_and_keys_that_stand_twice_are_refused() {
    let authenticator = with_secret();
    refused(&authenticator, &with_header(r#"{"alg":"HS256","crit":["exp"],"exp":1}"#), "crit");
    refused(&authenticator, &with_header(r#"{"alg":"HS256","crit":[]}"#), "crit");
    refused(&authenticator, &with_header(r#"{"alg":"none","alg":"HS256"}"#), "unique keys");
    refused(&authenticator, &with_header("HS256"), "header");
    for claims in [
        r#"{"sub":"ada","sub":"eve","exp":1900000000}"#,
        r#"{"sub":"ada","exp":1900000000,"s\u0075b":"eve"}"#,
        r#"{"sub":"ada","exp":1900000000,"deeperhub":{"publish":[],"publish":["a"]}}"#,
    ] {
        refused(&authenticator, &with_claims(claims), "unique keys");
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let authenticator = with_secret();
    let good = with_claims(&good().to_string());
    for token in ["", ".", "..", "...", "a", "a.b", "a.b.c", " ", "é.é.é", "e30.e30.e30.e30.e30"] {
        assert!(authenticator.verify(token, NOW).is_err(), "{token}");
    }
    for token in [
        format!("{good}="),
        format!("{good} "),
        format!(" {good}"),
        format!("{good}."),
        format!(".{good}"),
        format!("Bearer {good}"),
        good.replace('.', ".."),
        good.to_ascii_uppercase(),
    ] {
        assert!(authenticator.verify(&token, NOW).is_err(), "{token}");
    }
}

/// One with 157 groups has 8,516 bytes.
#[test]
fn a_token_may_be_as_long_as_is_said() {
    let padded = |bytes: usize| {
        let rest = changed(json!({ "x": "" })).len();
        (0..4)
            .map(|more| changed(json!({ "x": "x".repeat((bytes - rest) / 4 * 3 + more) })))
            .collect::<Vec<_>>()
    };
    for max_token_bytes in [300, 8 * 1024, DEFAULT_MAX_TOKEN_BYTES, 60_000] {
        let config = Config { secret: Some(secret()), max_token_bytes, ..Config::default() };
        let authenticator = Authenticator::new(config).unwrap();
        for token in padded(max_token_bytes) {
            let verified = authenticator.verify(&token, NOW);
            assert_eq!(
                verified.is_ok(),
                token.len() <= max_token_bytes,
                "{} of {max_token_bytes}",
                token.len()
            );
            if verified.is_err() {
                refused(&authenticator, &token, "longer than max_token_bytes");
            }
        }
    }
    let groups: Vec<_> = (0..157).map(|n| format!("6f1c2d3e-0000-4000-8000-{n:012}")).collect();
    let token = changed(json!({ "groups": groups }));
    assert!(token.len() > 8 * 1024 && with_secret().verify(&token, NOW).is_ok());
}

/// The forms of a number or of bytes that encoders write; each key verifies what its private key
/// signs.
#[test]
fn numbers_with_and_without_leading_zeros_and_padding_are_the_same_key() {
    use base64::Engine;
    let set: Value = serde_json::from_slice(&fixture_bytes("jwks.json")).unwrap();
    let named =
        |id: &str| set["keys"].as_array().unwrap().iter().find(|key| key["kid"] == id).unwrap().clone();
    let decoded = |key: &Value, field: &str| {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(key[field].as_str().unwrap()).unwrap()
    };
    let padded = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE.encode(bytes);
    let standard = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let check = |mut key: Value, field: &str, value: String, algorithm: Algorithm, private: &EncodingKey| {
        key[field] = value.clone().into();
        let token =
            signed_text(&json!({ "alg": algorithm }).to_string(), &good().to_string(), algorithm, private);
        assert!(with_key(&key).verify(&token, NOW).is_ok(), "{field}: {value}");
    };
    let rsa = EncodingKey::from_rsa_der(&private_der("jwt-rsa.key"));
    let key = named("rsa");
    for e in ["AQAB", "AAEAAQ", "AAEAAQ==", "AAAAAAABAAE"] {
        check(key.clone(), "e", e.to_owned(), Algorithm::RS256, &rsa);
        check(key.clone(), "e", e.to_owned(), Algorithm::PS512, &rsa);
    }
    let n = decoded(&key, "n");
    for n in [[&[0], &*n].concat(), [&[0; 9], &*n].concat(), n] {
        for text in [base64(&n), padded(&n), standard(&n)] {
            check(key.clone(), "n", text, Algorithm::RS256, &rsa);
        }
    }
    for (id, file, algorithm) in
        [("P-256", "jwt-p256.key", Algorithm::ES256), ("P-384", "jwt-p384.key", Algorithm::ES384)]
    {
        let (key, private) = (named(id), EncodingKey::from_ec_der(&private_der(file)));
        for field in ["x", "y"] {
            let coordinate = decoded(&key, field);
            for bytes in [[&[0], &*coordinate].concat(), [&[0; 3], &*coordinate].concat(), coordinate] {
                for text in [base64(&bytes), padded(&bytes), standard(&bytes)] {
                    check(key.clone(), field, text, algorithm, &private);
                }
            }
        }
    }
    let (key, private) = (named("ed25519"), EncodingKey::from_ed_der(&private_der("jwt-ed25519.key")));
    let x = decoded(&key, "x");
    for bytes in [[&[0], &*x].concat(), x] {
        for text in [base64(&bytes), padded(&bytes), standard(&bytes)] {
            check(key.clone(), "x", text, Algorithm::EdDSA, &private);
        }
    }
}

/// Some encoders write a coordinate as a number, without leading zeros.
#[test]
fn a_coordinate_without_its_leading_zero_is_filled_up() {
    use aws_lc_rs::encoding::AsBigEndian;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    // One key in 128 has such a coordinate; a thousand without one do not happen.
    let found = (0..10_000).find_map(|_| {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        (point[1] == 0 || point[33] == 0).then_some((pair, point))
    });
    let (pair, point) = found.unwrap();
    let short = |coordinate: &[u8]| base64(coordinate.strip_prefix(&[0]).unwrap_or(coordinate));
    let key = json!({ "kty": "EC", "crv": "P-256", "x": short(&point[1..33]), "y": short(&point[33..]) });
    let private: aws_lc_rs::encoding::EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().unwrap();
    let scalar = private.as_ref().to_vec();
    let signed = sign_with(&scalar, &point);
    assert!(with_key(&key).verify(&signed, NOW).is_ok(), "{key}");
}

/// An ES256 token by a private scalar and its point.
fn sign_with(scalar: &[u8], point: &[u8]) -> String {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let pair = EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, scalar, point);
    let message = format!(
        "{}.{}",
        base64(json!({ "alg": "ES256" }).to_string().as_bytes()),
        base64(good().to_string().as_bytes())
    );
    let signature = pair.unwrap().sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    format!("{message}.{}", base64(signature.as_ref()))
}

#[test]
fn a_key_that_cannot_work_is_named_with_its_field() {
    let point =
        json!({ "kty": "EC", "crv": "P-256", "kid": "k1", "x": base64(&[7; 32]), "y": base64(&[9; 32]) });
    let change = |field: &str, value: Value| {
        let mut key = point.clone();
        key[field] = value;
        key
    };
    for (key, expected) in [
        (point.clone(), "key 1 (kid \"k1\"): x and y are not a point of its curve"),
        (change("y", Value::Null), "key 1 (kid \"k1\"): y is not a string"),
        (change("y", json!("?")), "key 1 (kid \"k1\"): y is not base64url"),
        (
            change("y", json!(base64(&[1; 33]))),
            "key 1 (kid \"k1\"): y is longer than a coordinate of its curve",
        ),
        (
            change("kid", json!("x".repeat(100))),
            &*format!("key 1 (kid {:?}): x and y are not", "x".repeat(64)),
        ),
        (json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(&[1; 31]) }), "key 1: x is not 32 bytes long"),
        (json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(&[1; 33]) }), "key 1: x is not 32 bytes long"),
        (json!({ "kty": "OKP", "crv": "Ed25519" }), "key 1: x is missing"),
        (json!({ "kty": "RSA", "n": base64(&[2; 300]), "e": "AQAB" }), "key 1: n is even"),
    ] {
        let error = Jwks::parse(key.to_string().as_bytes()).unwrap_err();
        let expected = format!("it has no key that can verify tokens: {expected}");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[test]
fn a_set_of_keys_loads_behind_a_byte_order_mark_and_not_as_utf_16() {
    let bytes = fixture_bytes("jwks.json");
    assert_eq!(Jwks::parse(&[b"\xef\xbb\xbf", &*bytes].concat()).unwrap().len(), 4);
    let utf16: Vec<u8> = std::iter::once(0xfeff)
        .chain(String::from_utf8(bytes).unwrap().encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    assert_eq!(Jwks::parse(&utf16).unwrap_err(), KeyError::Utf16);
}

#[test]
fn what_a_secret_has_at_its_ends_is_told_and_not_shown() {
    let long = "a secret for tests, of 32 bytes.";
    let binary = [0x8f_u8; 32];
    let advice = |secret: &[u8]| {
        let config = Config { secret: Some(Secret::new(secret)), ..Config::default() };
        Authenticator::new(config).unwrap().warnings().to_vec()
    };
    assert_eq!(advice(long.as_bytes()), []);
    for (before, after, expected) in [
        ("\u{feff}", "", KeyWarning::SecretMark),
        (" ", "", KeyWarning::SecretBlanks),
        ("", "\t", KeyWarning::SecretBlanks),
        ("", "\n", KeyWarning::SecretLineEnd),
        ("", " \r\n", KeyWarning::SecretLineEnd),
    ] {
        let told = advice(format!("{before}{long}{after}").as_bytes());
        assert_eq!(told, [expected], "{before:?} {after:?}");
        assert!(told[0].is_about_secret() && !told[0].to_string().contains(long));
    }
    assert_eq!(advice(&[b"\xff\xfe", &binary[..]].concat()), [KeyWarning::SecretMark]);
    // Bytes of chance may be blanks.
    assert_eq!(advice(&[&binary[..], b" \n"].concat()), []);
}

#[test]
fn more_keys_than_are_tried_are_warned_about() {
    let advice = |count: u8| {
        let key = |n| json!({ "kty": "OKP", "crv": "Ed25519", "kid": format!("{n}"), "x": base64(&[n; 32]) });
        let keys: Vec<_> = (0..count).map(key).collect();
        with_key(&json!({ "keys": keys })).warnings().to_vec()
    };
    assert_eq!(advice(8), [KeyWarning::AudienceNotChecked]);
    assert_eq!(advice(9), [KeyWarning::AudienceNotChecked, KeyWarning::TooManyToTry]);
}

#[test]
fn sets_of_keys_leave_out_what_is_of_no_use_and_say_so() {
    let mut set: Value = serde_json::from_slice(&fixture_bytes("jwks.json")).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    keys[1]["d"] = json!("AAAA");
    keys.push(json!({ "kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA" }));
    keys.push(serde_json::from_slice(&fixture_bytes("jwk-rsa1024.json")).unwrap());
    let jwks = Jwks::parse(set.to_string().as_bytes()).unwrap();
    assert_eq!(jwks.len(), 4);
    let advice = [
        KeyWarning::PrivateKey { position: 2 },
        left_out(5, None, "crv", "is neither P-256 nor P-384"),
        left_out(6, Some("short"), "n", "is not of 2048 to 8192 bits"),
    ];
    assert_eq!(jwks.warnings(), advice);
    let authenticator = Authenticator::new(Config {
        secret: Some(Secret::new("short")),
        jwks: Some(jwks),
        ..Config::default()
    });
    let advised = authenticator.unwrap();
    assert_eq!(advised.warnings().first(), Some(&KeyWarning::ShortSecret));
    assert_eq!(advised.warnings().last(), Some(&KeyWarning::AudienceNotChecked));
}

fn left_out(position: usize, id: Option<&str>, field: &'static str, problem: &'static str) -> KeyWarning {
    let (id, fault) = (id.map(str::to_owned), KeyFault { field, problem });
    KeyWarning::KeyIgnored(IgnoredKey { position, id, fault })
}

#[test]
fn what_is_no_set_of_keys_is_refused_with_what_would_be_right() {
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(&[1; 32]) });
    let check = |json: &str, expected: KeyError| {
        let error = Jwks::parse(json.as_bytes()).unwrap_err();
        assert_eq!(error, expected, "{json}");
        assert!(!error.expected().is_empty());
    };
    check("", KeyError::NotJson);
    check("-----BEGIN PUBLIC KEY-----", KeyError::NotJson);
    check("[]", KeyError::NotJson);
    check(r#"{"keys":[],"keys":[]}"#, KeyError::NotJson);
    check("{}", KeyError::NotKeys);
    check(r#"{"keys":{}}"#, KeyError::NotKeys);
    check(r#"{"keys":[1]}"#, KeyError::NotKeys);
    check(r#"{"keys":[]}"#, KeyError::EmptySet);
    check(&json!({ "keys": vec![&key; MAX_KEYS + 1] }).to_string(), KeyError::TooManyKeys);
    let shared = json!({ "keys": [key, { "kty": "oct", "k": "c2VjcmV0" }] });
    check(&shared.to_string(), KeyError::SharedSecretInSet { position: 2 });
    assert_eq!(Authenticator::new(Config::default()).unwrap_err(), KeyError::NoKeys);
    let empty = Config { secret: Some(Secret::new("")), ..Config::default() };
    assert_eq!(Authenticator::new(empty).unwrap_err(), KeyError::EmptySecret);
}

#[test]
fn keys_are_read_from_files_and_errors_name_the_file() {
    let directory = std::env::temp_dir().join(format!("deeperhub-security-auth-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("secret");
    for (content, secret) in [
        ("s3cret", Some("s3cret")),
        ("s3cret\n", Some("s3cret")),
        ("s3cret\r\n", Some("s3cret")),
        ("s3cret\n\n", Some("s3cret\n")),
        (" s3cret ", Some(" s3cret ")),
        ("", None),
        ("\n", None),
        ("\r\n", None),
    ] {
        std::fs::write(&file, content).unwrap();
        match (Keys::load(Some(&file), None), secret) {
            (Ok(keys), Some(expected)) => {
                assert!(keys.secret.unwrap().matches(expected.as_bytes()), "{content:?}")
            }
            (Err(error), None) => {
                let text = error.to_string();
                assert!(text.contains(&*file.to_string_lossy()) && text.contains("openssl rand"), "{text}");
            }
            (other, _) => panic!("{content:?}: {other:?}"),
        }
    }
    let both = Keys::load(None, Some(&fixture("jwks.json"))).unwrap();
    assert_eq!(both.jwks.as_ref().map(Jwks::len), Some(4));
    assert!(Authenticator::new(both.into_config()).is_ok());
    for missing in [&directory, &directory.join("none")] {
        let error = Keys::load(None, Some(missing)).unwrap_err();
        assert!(error.to_string().contains(&*missing.to_string_lossy()), "{error}");
    }
    std::fs::write(&file, vec![b'x'; deeperhub_security::files::MAX_BYTES + 1]).unwrap();
    assert!(Keys::load(Some(&file), None).is_err());
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_token_is_not_made_where_it_would_be_refused() {
    let make = |secret: &str, user: &str, ttl: Duration| {
        mint(&Secret::new(secret), user, &Grants::unrestricted(), NOW, ttl).map(drop)
    };
    assert_eq!(make("", "ada", Duration::from_secs(1)), Err(MintError::EmptySecret));
    assert_eq!(make("s", "", Duration::from_secs(1)), Err(MintError::User));
    assert_eq!(make("s", "a\tb", Duration::from_secs(1)), Err(MintError::User));
    assert_eq!(make("s", "ada", Duration::from_millis(999)), Err(MintError::Ttl));
    assert_eq!(make("s", "ada", Duration::MAX), Ok(()));
    let many = vec![Subscription::parse("a").unwrap(); MAX_PATTERNS + 1];
    let grants = Grants::only(many, Vec::new());
    let ttl = Duration::from_secs(1);
    assert_eq!(mint(&secret(), "ada", &grants, NOW, ttl), Err(MintError::TooManyPatterns));
}

/// Everything that can be shown, of what holds keys or tells of tokens.
#[test]
fn a_token_is_made_for_an_audience_and_from_an_issuer() {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let authenticator = Authenticator::new(Config {
        secret: Some(secret()),
        audience: names(&["hub", "other"]),
        issuer: names(&["me"]),
        ..Config::default()
    });
    let authenticator = authenticator.unwrap();
    let made = |audience, issuer| {
        let recipient = MintOptions { audience, issuer };
        mint_with(&secret(), "ada", &Grants::default(), recipient, NOW, Duration::from_secs(9)).unwrap()
    };
    assert_eq!(&*authenticator.verify(&made(Some("hub"), Some("me")), NOW).unwrap().user, "ada");
    refused(&authenticator, &made(None, Some("me")), "aud does not name");
    refused(&authenticator, &made(Some("hub"), Some("you")), "iss is not an accepted issuer");
}

#[test]
fn a_swapped_authenticator_verifies_with_the_new_keys_only() {
    let new = Secret::new("another secret for tests: 32 b.");
    let reloadable = SharedAuthenticator::new(with_secret());
    let token =
        |secret: &Secret| mint(secret, "ada", &Grants::default(), NOW, Duration::from_secs(9)).unwrap();
    let verify = |token: &str| reloadable.current().verify(token, NOW).map(|claims| claims.user);
    assert!(verify(&token(&secret())).is_ok() && verify(&token(&new)).is_err());
    reloadable
        .replace(Authenticator::new(Config { secret: Some(new.clone()), ..Config::default() }).unwrap());
    assert!(verify(&token(&secret())).is_err() && verify(&token(&new)).is_ok());
}

#[test]
fn nothing_of_a_token_or_a_key_is_shown() {
    let hidden = "correcthorsebatterystaple";
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(&[1; 32]), "d": hidden });
    let jwks = Jwks::parse(key.to_string().as_bytes()).unwrap();
    let config = Config { secret: Some(Secret::new(hidden)), jwks: Some(jwks.clone()), ..Config::default() };
    let keys = Keys { secret: config.secret.clone(), jwks: config.jwks.clone() };
    let authenticator = Authenticator::new(config.clone()).unwrap();
    let mut shown = vec![
        format!("{config:?} {config:#?} {keys:?} {jwks:?} {authenticator:?} {authenticator:#?}"),
        format!("{:?}", authenticator.warnings()),
    ];
    shown.extend(authenticator.warnings().iter().map(ToString::to_string));
    let claims = json!({ "sub": hidden, "exp": hidden, "aud": hidden, hidden: hidden });
    let tokens = [
        hidden.to_owned(),
        format!("{hidden}.{hidden}.{hidden}"),
        with_claims(&claims.to_string()),
        signed_text(
            &json!({ "alg": "HS256" }).to_string(),
            &claims.to_string(),
            Algorithm::HS256,
            &EncodingKey::from_secret(hidden.as_bytes()),
        ),
        with_header(&json!({ "alg": hidden }).to_string()),
        with_header(&json!({ "alg": "HS256", "kid": hidden, "crit": [hidden] }).to_string()),
    ];
    for token in &tokens {
        let error = authenticator.verify(token, NOW).unwrap_err();
        shown.push(format!("{error} {error:?} {error:#?}"));
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!format!("{error} {error:?}").contains(part), "{error:?}");
        }
    }
    for set in [
        hidden.to_owned(),
        json!({ hidden: hidden }).to_string(),
        json!({ "keys": hidden }).to_string(),
        json!({ "keys": [{ "kty": "oct", "k": hidden }] }).to_string(),
        json!({ "keys": [{ "kty": hidden, "d": hidden }] }).to_string(),
        json!({ "keys": [{ "kty": "RSA", "n": hidden, "e": hidden }] }).to_string(),
    ] {
        let error = Jwks::parse(set.as_bytes()).unwrap_err();
        shown.push(format!("{error} {error:?} {}", error.expected()));
    }
    let encoded = base64(hidden.as_bytes());
    let bytes = format!("{:?}", hidden.as_bytes());
    for text in shown {
        for form in [hidden, &*encoded, bytes.trim_matches(['[', ']']), &*base64(&[1; 32])] {
            assert!(!text.contains(form), "{text}");
        }
    }
}

static MINTED: LazyLock<String> =
    LazyLock::new(|| mint(&secret(), "ada", &Grants::unrestricted(), NOW, Duration::from_secs(60)).unwrap());

fn patterns() -> impl Strategy<Value = Vec<Subscription<'static>>> {
    let level = prop_oneof![Just("*".to_owned()), "[a-zé]{1,4}"];
    let pattern = (prop::collection::vec(level, 1..4), any::<bool>()).prop_map(|(mut levels, rest)| {
        if rest {
            levels.push(">".to_owned());
        }
        Subscription::parse(levels.join(".")).unwrap()
    });
    prop::collection::vec(pattern, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_minted_is_verified(user in "[^\\p{Cc}]{1,60}", lists in prop::option::of((patterns(), patterns())),
                                  now in 0..u64::MAX / 2, ttl in 1..100_000_000_u64, key in "\\PC{1,80}") {
        let grants = lists.map_or(Grants::unrestricted(), |(subscribe, publish)| Grants::only(subscribe, publish));
        let secret = Secret::new(key);
        let token = mint(&secret, &user, &grants, now, Duration::from_secs(ttl)).unwrap();
        let authenticator =
            Authenticator::new(Config { secret: Some(secret), ..Config::default() }).unwrap();
        let claims = Claims { user: user.into(), expires_at: now + ttl, grants };
        prop_assert_eq!(authenticator.verify(&token, now), Ok(claims.clone()));
        prop_assert_eq!(authenticator.verify(&token, now + ttl - 1), Ok(claims));
        prop_assert_eq!(authenticator.verify(&token, now + ttl), Err(AuthError::Expired));
        prop_assert!(with_secret().verify(&token, now).is_err(), "another secret");
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in "\\PC{0,200}", parts in prop::collection::vec(any::<Vec<u8>>(), 0..5)) {
        let encoded = parts.iter().map(|part| base64(part)).collect::<Vec<_>>().join(".");
        for token in [text, encoded] {
            prop_assert!(with_both().verify(&token, NOW).is_err());
        }
    }

    /// Signed, so that what lies behind the signature is reached.
    #[test]
    fn any_claims_and_headers_are_decided_without_a_panic(header in "[{}\\[\\]:,\"a-z0-9]{0,40}", claims in any::<Vec<u8>>()) {
        let _ = with_secret().verify(&with_header(&header), NOW);
        let _ = with_secret().verify(&with_claims(&String::from_utf8_lossy(&claims)), NOW);
    }

    #[test]
    fn any_set_of_keys_is_decided_without_a_panic(bytes in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), byte: u8) {
        let _ = Jwks::parse(&bytes);
        let mut set = fixture_bytes("jwks.json");
        let at = at.index(set.len());
        set[at] = byte;
        let _ = Jwks::parse(&set);
    }
}

/// Every other character at every place: no two texts are the same token.
#[test]
fn a_token_with_one_character_changed_is_refused() {
    let authenticator = with_secret();
    assert!(authenticator.verify(&MINTED, NOW).is_ok());
    for at in 0..MINTED.len() {
        for byte in 0..128 {
            let mut token = MINTED.clone().into_bytes();
            if token[at] != byte {
                token[at] = byte;
                let token = String::from_utf8(token).unwrap();
                assert!(authenticator.verify(&token, NOW).is_err(), "{at}: {token}");
            }
        }
        assert!(authenticator.verify(&MINTED[..at], NOW).is_err(), "the first {at}");
    }
}
