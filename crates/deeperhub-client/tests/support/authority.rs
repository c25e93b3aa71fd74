//! A certificate authority, made with the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A self-signed certificate for `localhost`, in a directory of its own.
pub(crate) struct Authority(PathBuf);

impl Authority {
    /// Creates a certificate. Returns `None`, and says so, on a machine without `openssl`.
    pub(crate) fn new() -> Option<Self> {
        let dir = std::env::temp_dir().join(format!("deeperhub-client-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the directory can be created");
        let authority = Self(dir);
        let status = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(authority.path("key.pem"))
            .arg("-out")
            .arg(authority.path("cert.pem"))
            .stderr(Stdio::null())
            .status();
        if !status.is_ok_and(|status| status.success()) {
            println!("skipped: openssl cannot be run");
            return None;
        }
        Some(authority)
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.0).join(name)
    }

    fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("cert.pem")).expect("it is a certificate")
    }

    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate()).expect("it can be trusted");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them");
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from_pem_file(self.path("key.pem")).expect("it is a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them");
        let config = builder.with_no_client_auth().with_single_cert(vec![self.certificate()], key);
        Arc::new(config.expect("certificate and key match"))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
