//! TLS for servers: builds a [`rustls::ServerConfig`] from PEM files, and replaces it at run time.
//!
//! Servers accept TLS 1.2 and 1.3 with rustls's default cipher suites of aws-lc-rs, and ALPN
//! `http/1.1`. Sessions resume with tickets. The keys of tickets rotate every six hours, and a new
//! configuration has new keys. Early data is disabled, because attackers could replay it.
//!
//! With a CA for clients, a client certificate is required ([`ClientAuth::Required`]) or optional
//! ([`ClientAuth::Optional`]). If it is optional, a client without one is accepted, and a token can
//! identify the client. A certificate that the CA did not sign, or that has expired, is refused in
//! either case; [`ClientAuthFault`] is the reason. [`user`] returns the user of a certificate.
//!
//! ```no_run
//! use deeperhub_security::tls::{Config, SharedTls};
//! use std::path::Path;
//! use std::time::SystemTime;
//!
//! let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
//! let config = Config::load(Path::new("cert.pem"), Path::new("key.pem"), None)?;
//! let server = config.build(now)?;
//! for warning in &server.warnings {
//!     eprintln!("{warning}");
//! }
//! let current = SharedTls::new(server);
//! let _for_a_connection = current.current();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod certificate;
mod client_auth;
mod error;
mod shared;

pub use certificate::{has_expired, user};
pub use client_auth::{ClientAuth, ClientAuthFault};
pub use error::{PemProblem, TlsError, Warning};
pub use shared::SharedTls;

use crate::files::{self, FileError};
use crate::{Secret, byte_order_mark};
use certificate::Validity;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroize;

/// Maximum number of cached sessions of clients that resume without tickets (TLS 1.2). Limits
/// memory use. Above the limit, a new session replaces an old one, whose client needs a full
/// handshake.
pub const MAX_TLS_SESSIONS: usize = 1024;

/// PEM text, and its name in errors.
#[derive(Clone)]
pub struct Pem {
    name: String,
    text: Secret,
}

impl Pem {
    /// Creates a value from PEM text, without its byte order marks. `name` is the name of the
    /// text's file or setting.
    #[must_use]
    pub fn new(name: impl Into<String>, text: Secret) -> Self {
        Self { name: name.into(), text: byte_order_mark::without_marks(text) }
    }

    /// Reads a file. The path becomes the name.
    ///
    /// # Errors
    ///
    /// [`FileError`] if the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Ok(Self::new(path.display().to_string(), files::read(path)?))
    }

    fn bytes(&self) -> Result<&[u8], TlsError> {
        let bytes = self.text.expose();
        if byte_order_mark::is_utf16(bytes) { Err(self.invalid(PemProblem::Utf16)) } else { Ok(bytes) }
    }

    fn invalid(&self, problem: PemProblem) -> TlsError {
        TlsError::Content { name: self.name.clone(), problem }
    }
}

/// Shows only the name.
impl fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pem").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Certificates and key of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server's certificate, followed by its chain up to a root that clients trust.
    pub certificates: Pem,
    /// The unencrypted private key: PKCS#8, SEC1 or PKCS#1.
    pub key: Pem,
    /// CAs that sign client certificates. If `None`, clients are not asked for a certificate.
    pub client_ca: Option<Pem>,
    /// Policy for client certificates, if there is a CA. Default: required.
    pub client_auth: ClientAuth,
}

/// A checked TLS setup, ready to accept connections.
#[derive(Debug)]
pub struct TlsSetup {
    /// The configuration that accepts connections.
    pub config: Arc<ServerConfig>,
    /// Expiry of the certificate, in seconds since 1970 (its `notAfter`).
    pub expires_at: u64,
    /// Warnings for the operator.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Reads the files. If a CA is given, clients must present a certificate.
    ///
    /// # Errors
    ///
    /// [`TlsError::File`] if a file cannot be read. [`build`](Self::build) checks their contents.
    pub fn load(certificates: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        Ok(Self {
            certificates: Pem::read(certificates)?,
            key: Pem::read(key)?,
            client_ca: client_ca.map(Pem::read).transpose()?,
            client_auth: ClientAuth::default(),
        })
    }

    /// Checks certificates and key at the time `now`, in seconds since 1970, and builds the setup.
    ///
    /// An expired certificate only causes a warning, because clients may accept it nevertheless.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if a file's content is invalid, or if the TLS library fails.
    pub fn build(&self, now: u64) -> Result<TlsSetup, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&self.certificates)?;
        let leaf = chain.first().ok_or_else(|| self.certificates.invalid(PemProblem::NoCertificate))?;
        let validity =
            Validity::of(leaf).ok_or_else(|| self.certificates.invalid(PemProblem::Certificate))?;
        let key = signing_key(&self.key)?;

        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(TlsError::Library)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                builder.with_client_cert_verifier(client_verifier(pem, self.client_auth, &provider)?)
            }
        };
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                self.key.invalid(PemProblem::KeyOfAnother { certificates: self.certificates.name.clone() })
            }
            rustls::Error::InvalidCertificate(_) => self.certificates.invalid(PemProblem::Certificate),
            _ => self.key.invalid(PemProblem::Key),
        })?;
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Library)?;
        config.session_storage = ServerSessionMemoryCache::new(MAX_TLS_SESSIONS);
        // A WebSocket client opens one connection, so one ticket is enough.
        config.send_tls13_tickets = 1;

        let warnings = validity.warning(now).map(|warning| warning(self.certificates.name.clone()));
        Ok(TlsSetup {
            config: Arc::new(config),
            expires_at: validity.expires_at,
            warnings: warnings.into_iter().collect(),
        })
    }
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.bytes()?).collect();
    let chain = chain.map_err(|_| pem.invalid(PemProblem::NotPem))?;
    if chain.is_empty() { Err(pem.invalid(PemProblem::NoCertificate)) } else { Ok(chain) }
}

fn signing_key(pem: &Pem) -> Result<Arc<dyn SigningKey>, TlsError> {
    let bytes = pem.bytes()?;
    let mut key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| {
        const ENCRYPTED: &[u8] = b"ENCRYPTED";
        let is_encrypted = bytes.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED);
        pem.invalid(match error {
            _ if is_encrypted => PemProblem::EncryptedKey,
            pem::Error::NoItemsFound => PemProblem::NoKey,
            _ => PemProblem::NotPem,
        })
    })?;
    let signing_key = any_supported_type(&key);
    // The signing key has its own copy of the bytes, which aws-lc overwrites on drop.
    key.zeroize();
    signing_key.map_err(|_| pem.invalid(PemProblem::Key))
}

fn client_verifier(
    pem: &Pem,
    client_auth: ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|_| pem.invalid(PemProblem::Ca))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let verifier = match client_auth {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => verifier.allow_unauthenticated(),
    };
    verifier.build().map_err(|_| pem.invalid(PemProblem::Ca))
}
