//! Tokens for tests.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Request;

use super::{ROOT, Server, TemporaryDir};

/// Issues tokens with a secret that is stored in a file.
#[derive(Debug)]
pub(crate) struct Issuer {
    directory: TemporaryDir,
    secret: String,
}

impl Issuer {
    /// Creates an issuer with the given secret.
    pub(crate) fn new(secret: &str) -> Self {
        let issuer = Self { directory: TemporaryDir::new(), secret: secret.to_owned() };
        issuer.write(secret);
        issuer
    }

    /// Returns the path of the secret's file for a flag.
    pub(crate) fn file(&self) -> String {
        self.directory.path("secret").display().to_string()
    }

    /// Overwrites the file; tokens are still signed with the first secret.
    pub(crate) fn write(&self, text: &str) {
        self.directory.write("secret", &format!("{text}\n"));
    }

    /// Returns a token with these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let key = EncodingKey::from_secret(self.secret.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).expect("a token can be created")
    }
}

/// Returns the file of the public keys for [`signed`].
pub(crate) fn jwks_file() -> PathBuf {
    fixtures().join("jwks.json")
}

/// Returns a token signed with one of the private keys of `jwks_file`; `kid` goes into its header.
pub(crate) fn signed(file: &str, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
    let key = PrivateKeyDer::from_pem_file(fixtures().join(file)).expect("a private key");
    let der = key.secret_der();
    let key = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_der(der),
        Algorithm::EdDSA => EncodingKey::from_ed_der(der),
        _ => EncodingKey::from_rsa_der(der),
    };
    let header = Header { kid: kid.map(ToOwned::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &key).expect("a token can be created")
}

/// Returns the time `after` from now, in seconds since 1970.
pub(crate) fn from_now(after: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    (now + after).as_secs()
}

/// Returns a request with a token in its header.
pub(crate) fn with_token(server: &Server, token: &str) -> Request<()> {
    let mut request = server.url("/").into_client_request().expect("a URL makes a request");
    let value = format!("Bearer {token}").parse().expect("a token fits into a header");
    request.headers_mut().insert("authorization", value);
    request
}

fn fixtures() -> PathBuf {
    Path::new(ROOT).join("crates/deeperhub-security/tests/fixtures")
}
