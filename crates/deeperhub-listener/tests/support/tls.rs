//! TLS for tests: a certificate for `localhost`, and clients that trust it.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use deeperhub_listener::tls::{Config, SharedTls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Client side of a TLS connection.
pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Creates a certificate for `localhost` and its key with the `openssl` command.
fn create_certificate(certificate: &Path, key: &Path) {
    let made = Command::new("openssl")
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj".split(' '))
        .args("/CN=localhost -addext subjectAltName=DNS:localhost".split(' '))
        .args("-addext basicConstraints=critical,CA:FALSE".split(' '))
        .args(["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
        .output()
        .expect("`openssl` can be run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Returns the setup of a server, and a function that makes a TLS client of a socket. `name` is the
/// name of the test.
pub(crate) fn server_and_clients(name: &str) -> (Arc<SharedTls>, impl Fn(TcpStream) -> TlsStream) {
    let dir = std::env::temp_dir().join(format!("deeperhub-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    create_certificate(&certificate, &key);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let setup = Config::load(&certificate, &key, None).unwrap().build(now).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let client = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    let make_client = move |socket| {
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(Arc::clone(&client), name).unwrap(), socket)
    };
    (Arc::new(SharedTls::new(setup)), make_client)
}
