//! Certificate authorities, TLS clients and a TLS front for plaintext servers.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::{Server, TemporaryDir, wait_for};

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Identity {
    /// Returns the flags of a server with this certificate.
    pub(crate) fn flags(&self) -> [&str; 4] {
        ["--tls-cert", text(&self.cert), "--tls-key", text(&self.key)]
    }

    /// Overwrites `other` with this identity, like a renewal tool: each file whole, one after the
    /// other.
    pub(crate) fn replace(&self, other: &Self) {
        for (new, old) in [(&self.cert, &other.cert), (&self.key, &other.key)] {
            let staged = old.with_extension("new");
            std::fs::copy(new, &staged).expect("a file can be copied");
            std::fs::rename(&staged, old).expect("a file can be renamed");
        }
    }
}

/// Returns a path as text; the tests' own paths are UTF-8.
pub(crate) fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

/// A certificate authority of a test, made with the `openssl` command.
#[derive(Debug)]
pub(crate) struct Authority {
    dir: TemporaryDir,
    pub(crate) cert: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// Creates an authority.
    ///
    /// # Panics
    ///
    /// If `openssl` cannot be run.
    pub(crate) fn new() -> Self {
        let dir = TemporaryDir::new();
        let (cert, key) = (dir.path("ca.pem"), dir.path("ca.key"));
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout {} -out {}",
            text(&key),
            text(&cert)
        ));
        Self { dir, cert, key }
    }

    /// Issues a certificate for `localhost` and `127.0.0.1`.
    pub(crate) fn server(&self, name: &str) -> Identity {
        self.sign(name, "subjectAltName=DNS:localhost,IP:127.0.0.1")
    }

    /// Issues a client certificate.
    pub(crate) fn client(&self, name: &str) -> Identity {
        self.sign(name, "extendedKeyUsage=clientAuth")
    }

    /// Issues an expired client certificate.
    pub(crate) fn expired_client(&self, name: &str) -> Identity {
        self.sign_for(name, "extendedKeyUsage=clientAuth", "20200101000000Z", "20200102000000Z")
    }

    /// Issues a client certificate that expires in `seconds`.
    pub(crate) fn client_for(&self, name: &str, seconds: u64) -> Identity {
        let ends =
            Command::new("date").args(["-u", "-d", &format!("{seconds} seconds"), "+%Y%m%d%H%M%SZ"]).output();
        let ends = String::from_utf8(ends.expect("date can be run").stdout).expect("a date is text");
        self.sign_for(name, "extendedKeyUsage=clientAuth", "20200101000000Z", ends.trim())
    }

    /// Signs with `openssl ca`, which accepts both ends of the validity period.
    fn sign_for(&self, name: &str, extension: &str, starts: &str, ends: &str) -> Identity {
        let identity = self.request(name);
        let extensions = self.dir.write(&format!("{name}.ext"), extension);
        let index = self.dir.write(&format!("{name}.index"), "");
        let config = self.dir.write(
            &format!("{name}.cnf"),
            &format!(
                "[ca]\ndefault_ca=d\n[d]\ndatabase={}\nnew_certs_dir={}\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n\
                 [p]\ncommonName=supplied\n",
                text(&index),
                text(index.parent().expect("it lies in a directory")),
            ),
        );
        openssl(&format!(
            "ca -batch -config {} -in {} -cert {} -keyfile {} -extfile {} -startdate {starts} -enddate {ends} -out {} -notext",
            text(&config),
            text(&self.dir.path(&format!("{name}.csr"))),
            text(&self.cert),
            text(&self.key),
            text(&extensions),
            text(&identity.cert)
        ));
        identity
    }

    fn sign(&self, name: &str, extension: &str) -> Identity {
        let identity = self.request(name);
        let request = self.dir.path(&format!("{name}.csr"));
        let extensions = self.dir.write(&format!("{name}.ext"), extension);
        openssl(&format!(
            "x509 -req -days 2 -in {} -CA {} -CAkey {} -CAcreateserial -extfile {} -out {}",
            text(&request),
            text(&self.cert),
            text(&self.key),
            text(&extensions),
            text(&identity.cert)
        ));
        identity
    }

    /// Creates a key and a certificate signing request.
    fn request(&self, name: &str) -> Identity {
        let identity = Identity {
            cert: self.dir.path(&format!("{name}.pem")),
            key: self.dir.path(&format!("{name}.key")),
        };
        let request = self.dir.path(&format!("{name}.csr"));
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {} -out {}",
            text(&identity.key),
            text(&request)
        ));
        identity
    }

    /// Returns a client configuration that trusts this authority, with an optional client
    /// certificate.
    pub(crate) fn trusting(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(&self.cert).expect("the authority is a certificate");
        roots.add(authority).expect("the authority can sign");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the versions are known")
            .with_root_certificates(roots);
        Arc::new(match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let cert = CertificateDer::from_pem_file(&identity.cert).expect("a certificate");
                let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
                config.with_client_auth_cert(vec![cert], key).expect("certificate and key match")
            }
        })
    }
}

/// Runs `openssl` with arguments without spaces.
fn openssl(arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).output().expect("openssl can be run");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Opens a TLS connection to a server, before HTTP.
///
/// # Errors
///
/// Returns the TLS error.
pub(crate) async fn connect_tls(
    server: &Server,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = wait_for("a connection", TcpStream::connect(server.clients)).await?;
    over_tls(socket, config).await
}

/// Opens TLS over an existing connection.
///
/// # Errors
///
/// Returns the TLS error.
pub(crate) async fn over_tls(
    socket: TcpStream,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("localhost is a name");
    wait_for("the TLS handshake", TlsConnector::from(Arc::clone(config)).connect(name, socket)).await
}

/// A WebSocket client over TLS for the hub's messages.
#[derive(Debug)]
pub(crate) struct TlsClient {
    pub(crate) socket: WebSocketStream<TlsStream<TcpStream>>,
    /// The `welcome` message.
    pub(crate) welcome: Value,
}

impl TlsClient {
    /// Connects and reads the `welcome`.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub(crate) async fn connect(server: &Server, config: &Arc<ClientConfig>) -> Self {
        let stream = connect_tls(server, config).await.unwrap_or_else(|error| panic!("no TLS: {error}"));
        Self::over(stream, server.url("/")).await.unwrap_or_else(|error| panic!("refused: {error}"))
    }

    /// Upgrades an existing TLS connection and reads the `welcome`.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(crate) async fn over(
        stream: TlsStream<TcpStream>,
        request: impl IntoClientRequest + Unpin,
    ) -> Result<Self, Box<tungstenite::Error>> {
        let limits = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
        let handshake = tokio_tungstenite::client_async_with_config(request, stream, Some(limits));
        let (socket, _) = wait_for("the handshake", handshake).await?;
        let mut client = Self { socket, welcome: Value::Null };
        client.welcome = client.receive().await;
        assert_eq!(client.welcome["type"], "welcome", "{}", client.welcome);
        Ok(client)
    }

    /// Sends a message.
    pub(crate) async fn send(&mut self, message: &Value) {
        let message = Message::text(message.to_string());
        wait_for("sending", self.socket.send(message)).await.expect("the connection takes a message");
    }

    /// Sends a message and returns the next message received.
    pub(crate) async fn request(&mut self, message: &Value) -> Value {
        self.send(message).await;
        self.receive().await
    }

    /// Receives the next message; pings and pongs are skipped.
    ///
    /// # Panics
    ///
    /// If none arrives in time, if it is not JSON, or if the connection ends.
    pub(crate) async fn receive(&mut self) -> Value {
        let receive = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return serde_json::from_str(&text)
                            .unwrap_or_else(|error| panic!("{error} in {text}"));
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("a message was expected, not {other:?}"),
                }
            }
        };
        wait_for("a message", receive).await
    }
}

/// A TLS front for a plaintext server of a test.
#[derive(Debug)]
pub(crate) struct TlsFront {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl TlsFront {
    /// Serves `identity` and, if `clients` is given, requires a client certificate of that
    /// authority.
    pub(crate) async fn start(
        identity: &Identity,
        clients: Option<&Authority>,
        behind: std::net::SocketAddr,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the versions are known");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_file(&authority.cert).expect("a certificate"))
                    .expect("an authority");
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build();
                builder.with_client_cert_verifier(verifier.expect("a verifier"))
            }
        };
        let cert = CertificateDer::from_pem_file(&identity.cert).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
        let mut config = builder.with_single_cert(vec![cert], key).expect("certificate and key match");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // A client that disconnects or does not trust the certificate is part of a
                    // test.
                    let mut outside = acceptor.accept(socket).await?;
                    let mut inside = TcpStream::connect(behind).await?;
                    tokio::io::copy_bidirectional(&mut outside, &mut inside).await
                });
            }
        });
        Self { port, task }
    }

    /// Returns the URL with a name that the certificate has.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}
