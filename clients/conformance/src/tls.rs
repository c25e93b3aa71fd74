//! TLS before the scripted server, with certificates that are good or bad.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::failure::{Failure, Result, ensure};

/// Time from which a certificate with a life of no day has expired: certificates count in seconds.
const EXPIRED_AFTER: Duration = Duration::from_millis(2100);

/// A certificate of the server for `localhost`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Certificate {
    Good,
    Expired,
    /// The certificate is for another name.
    OtherName,
    /// The certificate is of an authority that the client does not trust.
    OtherAuthority,
}

impl Certificate {
    fn file(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Expired => "expired",
            Self::OtherName => "other-name",
            Self::OtherAuthority => "other-authority",
        }
    }
}

/// An authority whose certificate the drivers trust, made with the `openssl` command.
pub(crate) struct Authority {
    directory: PathBuf,
    made_at: Instant,
}

impl Authority {
    /// Makes an authority and its certificates.
    pub(crate) fn create() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("deeperhub-conformance-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let authority = Self { directory, made_at: Instant::now() };
        for name in ["root", "other-root"] {
            authority.openssl(&["req", "-x509", "-days", "2", "-subj", "/CN=conformance kit"], name, true)?;
        }
        authority.sign("good", "localhost", "root", "2")?;
        authority.sign("expired", "localhost", "root", "0")?;
        authority.sign("other-name", "other.example", "root", "2")?;
        authority.sign("other-authority", "localhost", "other-root", "2")?;
        Ok(authority)
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.directory.join(name).with_extension(extension)
    }

    fn openssl(&self, arguments: &[&str], name: &str, makes_key: bool) -> Result {
        let mut command = Command::new("openssl");
        command.args(arguments).arg("-out").arg(self.path(name, "pem"));
        if makes_key {
            command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout"]);
            command.arg(self.path(name, "key"));
        }
        let output = command.current_dir(&self.directory).stdin(Stdio::null()).output();
        let output = output.map_err(|error| Failure::new(format!("openssl cannot be run: {error}")))?;
        ensure(output.status.success(), || {
            format!("openssl {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// Makes a certificate for a host, with a life of some days.
    fn sign(&self, name: &str, host: &str, root: &str, days: &str) -> Result {
        self.openssl(&["req", "-subj", &format!("/CN={host}")], name, true)?;
        let request = self.path(name, "csr");
        std::fs::rename(self.path(name, "pem"), &request)?;
        let extensions = format!("subjectAltName=DNS:{host}\nbasicConstraints=critical,CA:FALSE\n");
        std::fs::write(self.path(name, "ext"), extensions)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (authority, key) = (text(&self.path(root, "pem")), text(&self.path(root, "key")));
        let (request, extensions) = (text(&request), text(&self.path(name, "ext")));
        let signing = ["x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &key];
        let life = ["-CAcreateserial", "-days", days, "-extfile", &extensions];
        self.openssl(&[&signing[..], &life[..]].concat(), name, false)
    }

    /// Returns the file with the certificate that drivers trust.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("root", "pem")
    }

    fn acceptor(&self, certificate: Certificate) -> Result<TlsAcceptor> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format!("the certificate {} cannot be used: {error}", certificate.file()))
        };
        let chain = CertificateDer::from_pem_file(self.path(certificate.file(), "pem"));
        let key = PrivateKeyDer::from_pem_file(self.path(certificate.file(), "key"));
        let (chain, key) = (chain.map_err(|error| failed(&error))?, key.map_err(|error| failed(&error))?);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![chain], key))
            .map_err(|error| failed(&error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // The system empties its directory of temporary files sooner or later.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A port that speaks TLS and passes on what it carries.
pub(crate) struct Gate {
    authority: Arc<Authority>,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    attempts: Arc<AtomicU32>,
    port: u16,
    task: JoinHandle<()>,
}

impl Gate {
    /// Opens a port before a server.
    pub(crate) async fn open(
        authority: Arc<Authority>,
        certificate: Certificate,
        server: SocketAddr,
    ) -> Result<Self> {
        if certificate == Certificate::Expired {
            tokio::time::sleep(EXPIRED_AFTER.saturating_sub(authority.made_at.elapsed())).await;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let acceptor = Arc::new(Mutex::new(authority.acceptor(certificate)?));
        let attempts = Arc::new(AtomicU32::new(0));
        let (current, count) = (Arc::clone(&acceptor), Arc::clone(&attempts));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let acceptor = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(stream).await else { return };
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    // An end on one side ends the other one.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Ok(Self { authority, acceptor, attempts, port, task })
    }

    /// Returns the address for clients.
    pub(crate) fn url(&self) -> String {
        format!("wss://localhost:{}/", self.port)
    }

    /// Shows another certificate from now on.
    pub(crate) fn change(&self, certificate: Certificate) -> Result {
        let acceptor = self.authority.acceptor(certificate)?;
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }

    /// Returns how often a client has connected.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}
