//! Handshakes in memory, with what a configuration makes of the files.

#![cfg(feature = "tls")]
// Helpers here stand outside of test functions, where the lint cannot tell that they are tests.
#![allow(clippy::unwrap_used)]

use deeperhub_security::Secret;
use deeperhub_security::files::FileStamp;
use deeperhub_security::tls::{
    ClientAuth, ClientAuthFault, Config, MAX_TLS_SESSIONS, Pem, PemProblem, SharedTls, TlsError, Warning,
    has_expired, user,
};
use proptest::prelude::*;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection};
use rustls::{ProtocolVersion, SupportedProtocolVersion};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NOW: u64 = 1_900_000_000;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn config(certificates: &str, key: &str, client_ca: Option<&str>) -> Config {
    Config::load(&fixture(certificates), &fixture(key), client_ca.map(fixture).as_deref()).unwrap()
}

fn server(client_ca: Option<&str>) -> Arc<ServerConfig> {
    config("server.pem", "server.sec1.key", client_ca).build(NOW).unwrap().config
}

#[derive(Default)]
struct Client {
    versions: Option<&'static SupportedProtocolVersion>,
    certificate: Option<(&'static str, &'static str)>,
    alpn: &'static [&'static str],
    no_tickets: bool,
}

impl Client {
    fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(fixture("ca.pem")).unwrap()).unwrap();
        let versions = self.versions.map_or(rustls::ALL_VERSIONS.to_vec(), |version| vec![version]);
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_file(fixture(certificate)).unwrap()];
                let key = PrivateKeyDer::from_pem_file(fixture(key)).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        if self.no_tickets {
            config.resumption = Resumption::in_memory_sessions(8)
                .tls12_resumption(rustls::client::Tls12Resumption::SessionIdOnly);
        }
        Arc::new(config)
    }
}

/// Both sides after the handshake and a message each way.
fn connect(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    server.writer().write_all(b"hello from the server").unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = &*wire;
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = &*wire;
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    let mut text = [0; 21];
    client.reader().read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello from the server");
    Ok((server, client))
}

#[test]
fn both_versions_of_tls_and_each_form_of_a_key_are_served() {
    for (certificates, key) in
        [("server.pem", "server.sec1.key"), ("server.pem", "server.pkcs8.key"), ("rsa.pem", "rsa.pkcs1.key")]
    {
        let server = config(certificates, key, None).build(NOW).unwrap();
        assert!(server.warnings.is_empty());
        for version in rustls::ALL_VERSIONS {
            let client = Client { versions: Some(version), ..Client::default() };
            let (connection, _) = connect(&server.config, &client.config()).unwrap();
            assert_eq!(connection.protocol_version(), Some(version.version), "{key}");
        }
    }
    assert_eq!(rustls::ALL_VERSIONS.len(), 2);
    assert_eq!(rustls::version::TLS12.version, ProtocolVersion::TLSv1_2);
}

#[test]
fn http_1_1_is_agreed_on_where_the_client_names_protocols() {
    let server = server(None);
    let agreed = |alpn| {
        let client = Client { alpn, ..Client::default() }.config();
        connect(&server, &client).map(|(server, _)| server.alpn_protocol().map(<[u8]>::to_vec))
    };
    assert_eq!(agreed(&[]).unwrap(), None);
    assert_eq!(agreed(&["h2", "http/1.1"]).unwrap().as_deref(), Some(&b"http/1.1"[..]));
    assert!(agreed(&["h2"]).is_err());
}

#[test]
fn sessions_resume_with_and_without_tickets_until_the_configuration_is_another() {
    for version in rustls::ALL_VERSIONS {
        for no_tickets in [false, true] {
            let server = server(None);
            let client = Client { versions: Some(version), no_tickets, ..Client::default() }.config();
            let kind = |server: &Arc<ServerConfig>| connect(server, &client).unwrap().0.handshake_kind();
            assert_eq!(kind(&server), Some(HandshakeKind::Full));
            assert_eq!(kind(&server), Some(HandshakeKind::Resumed), "{version:?}");
            let newer = self::server(None);
            assert_eq!(kind(&newer), Some(HandshakeKind::Full));
        }
    }
}

#[test]
fn tickets_are_given_and_as_many_sessions_are_remembered_as_are_said() {
    let server = server(None);
    assert!(server.ticketer.enabled());
    let sessions = || (0..=MAX_TLS_SESSIONS as u32).map(|n| n.to_be_bytes().to_vec());
    for session in sessions() {
        assert!(server.session_storage.put(session.clone(), session));
    }
    let remembered = sessions().filter(|session| server.session_storage.get(session).is_some()).count();
    assert_eq!(remembered, MAX_TLS_SESSIONS);
}

#[test]
fn a_client_may_show_a_certificate_of_the_ca_or_none_where_that_is_optional() {
    let mut config = config("server.pem", "server.sec1.key", Some("ca.pem"));
    config.client_auth = ClientAuth::Optional;
    let server = config.build(NOW).unwrap().config;
    for version in rustls::ALL_VERSIONS {
        let connected = |certificate| {
            let client = Client { versions: Some(version), certificate, ..Client::default() };
            connect(&server, &client.config())
                .map(|(server, _)| server.peer_certificates().and_then(<[_]>::first).and_then(user))
        };
        assert_eq!(connected(None).unwrap(), None);
        assert_eq!(connected(Some(("client.pem", "client.key"))).unwrap().as_deref(), Some("ada lövelace"));
        assert!(connected(Some(("stranger.pem", "client.key"))).is_err(), "signed by itself");
        let nameless = Some(("client-nameless.pem", "server.sec1.key"));
        assert_eq!(connected(nameless).unwrap(), None);
    }
}

#[test]
fn a_client_must_show_a_certificate_of_the_ca_unless_that_is_optional() {
    let server = server(Some("ca.pem"));
    for version in rustls::ALL_VERSIONS {
        let connected = |certificate| {
            let client = Client { versions: Some(version), certificate, ..Client::default() };
            connect(&server, &client.config()).map(drop).map_err(|error| ClientAuthFault::of(&error))
        };
        assert_eq!(connected(Some(("client.pem", "client.key"))), Ok(()));
        assert_eq!(connected(None), Err(Some(ClientAuthFault::Absent)));
        // One that is signed by itself may not be one of a CA's, whoever knows it.
        assert_eq!(connected(Some(("stranger.pem", "client.key"))), Err(Some(ClientAuthFault::Other)));
    }
    assert_eq!(ClientAuthFault::NAMES[ClientAuthFault::Absent as usize], "absent");
    assert_eq!(ClientAuthFault::NAMES[ClientAuthFault::Other as usize], "other");
    assert_eq!(ClientAuthFault::of(&rustls::Error::DecryptError), None);
}

#[test]
fn a_certificate_expires_when_its_time_is_over() {
    let certificate = CertificateDer::from_pem_file(fixture("server.pem")).unwrap();
    let ends = config("server.pem", "server.sec1.key", None).build(NOW).unwrap().expires_at;
    assert!(!has_expired(&certificate, ends) && has_expired(&certificate, ends + 1));
    assert!(has_expired(&CertificateDer::from(vec![1, 2, 3]), 0), "one that cannot be read");
}

/// As editors and shells of other systems write them, and as files are joined.
#[test]
fn pem_loads_with_marks_other_line_ends_comments_and_further_sections() {
    let text = |name: &str| std::fs::read_to_string(fixture(name)).unwrap();
    let build = |certificates: &str, key: &str, ca: &str| {
        let pem = |name: &str, text: &str| Pem::new(name, Secret::new(text));
        let config = Config {
            certificates: pem("cert", certificates),
            key: pem("key", key),
            client_ca: Some(pem("ca", ca)),
            client_auth: ClientAuth::Required,
        };
        config.build(NOW).map(drop).map_err(|error| error.to_string())
    };
    let (certificates, ca) = (text("server.pem"), text("ca.pem"));
    let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    for key in [text("server.pkcs8.key"), parameters.to_owned() + &text("server.sec1.key")] {
        let forms: [&dyn Fn(&str) -> String; 6] = [
            &|text| text.to_owned(),
            &|text| format!("\u{feff}{text}"),
            &|text| text.replace('\n', "\r\n"),
            &|text| {
                format!("\u{feff}subject=/CN=someone\r\nBag Attributes\r\n{}", text.replace('\n', "\r\n"))
            },
            &|text| text.replace("-----\n", "----- \n"),
            &|text| text.trim_end().to_owned(),
        ];
        for (n, form) in forms.iter().enumerate() {
            assert_eq!(build(&form(&certificates), &form(&key), &form(&ca)), Ok(()), "{n}");
        }
    }
    let joined = format!("\u{feff}{certificates}\u{feff}{ca}");
    assert_eq!(build(&joined, &text("server.pkcs8.key"), &ca), Ok(()));
}

#[test]
fn pem_in_utf_16_is_told_so() {
    let text: String = std::fs::read_to_string(fixture("server.pem")).unwrap();
    let utf16: Vec<u8> =
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let mut config = config("server.pem", "server.sec1.key", None);
    config.certificates = Pem::new("cert", Secret::new(utf16));
    let error = config.build(NOW).unwrap_err().to_string();
    assert_eq!(error, "cert: it is UTF-16, not UTF-8; save it as UTF-8 or ASCII");
}

#[test]
fn a_certificate_names_a_user_by_its_one_common_name() {
    let user = |name: &str| user(&CertificateDer::from_pem_file(fixture(name)).unwrap());
    assert_eq!(user("client.pem").as_deref(), Some("ada lövelace"));
    assert_eq!(user("stranger.pem").as_deref(), Some("ada"));
    assert_eq!(user("client-nameless.pem"), None);
    assert_eq!(user("client-two-names.pem"), None);
}

#[test]
fn a_certificate_out_of_its_time_is_served_with_a_warning() {
    let config = config("server.pem", "server.sec1.key", None);
    let ends = config.build(NOW).unwrap().expires_at;
    assert!(ends > NOW);
    let name = fixture("server.pem").display().to_string();
    let warnings = |now| config.build(now).unwrap().warnings;
    assert_eq!(warnings(ends), []);
    assert_eq!(warnings(ends + 1), [Warning::Expired { name: name.clone() }]);
    assert_eq!(warnings(1_000_000_000), [Warning::NotYetValid { name }]);
}

#[test]
fn what_is_wrong_is_told_with_the_file_and_what_would_be_right() {
    let check =
        |certificates: &str, key: &str, ca: Option<&str>, at_fault: &str, expected: PemProblem| match config(
            certificates,
            key,
            ca,
        )
        .build(NOW)
        {
            Err(error @ TlsError::Content { .. }) => {
                let text = error.to_string();
                assert!(text.contains(&*fixture(at_fault).to_string_lossy()), "{text}");
                assert!(text.ends_with(expected.expected()), "{text}");
                let TlsError::Content { problem, .. } = error else { unreachable!() };
                assert_eq!(problem, expected);
            }
            other => panic!("{other:?} instead of {expected:?}"),
        };
    let other = PemProblem::KeyOfAnother { certificates: fixture("server.pem").display().to_string() };
    check("server.pem", "rsa.pkcs1.key", None, "rsa.pkcs1.key", other);
    check("server.pem", "server.encrypted.key", None, "server.encrypted.key", PemProblem::EncryptedKey);
    check("server.pem", "server.pem", None, "server.pem", PemProblem::NoKey);
    check("server.pem", "README.md", None, "README.md", PemProblem::NoKey);
    check("server.sec1.key", "server.sec1.key", None, "server.sec1.key", PemProblem::NoCertificate);
    check("README.md", "server.sec1.key", None, "README.md", PemProblem::NoCertificate);
    check("server.pem", "server.sec1.key", Some("client.key"), "client.key", PemProblem::NoCertificate);

    let missing = Config::load(&fixture("none.pem"), &fixture("server.sec1.key"), None).unwrap_err();
    assert!(missing.to_string().contains("none.pem"), "{missing}");
}

/// The key's and the certificate's texts, with something cut out or changed.
#[test]
fn damaged_files_are_refused() {
    let text = |name: &str| std::fs::read(fixture(name)).unwrap();
    let build = |certificates: Vec<u8>, key: Vec<u8>| {
        let pem = |name: &str, text: Vec<u8>| Pem::new(name, Secret::new(text));
        let client_auth = ClientAuth::default();
        let (certificates, key) = (pem("cert", certificates), pem("key", key));
        Config { certificates, key, client_ca: None, client_auth }.build(NOW)
    };
    let (certificates, key) = (text("server.pem"), text("server.pkcs8.key"));
    assert!(build(certificates.clone(), key.clone()).is_ok());
    assert!(build(certificates[..certificates.len() / 4].to_vec(), key.clone()).is_err());
    for cut in 0..key.len() - 2 {
        assert!(build(certificates.clone(), key[..cut].to_vec()).is_err(), "{cut}");
    }
    // In the middle of the base64.
    for at in 60..key.len() - 60 {
        let mut changed = key.clone();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let error = build(certificates.clone(), changed).unwrap_err().to_string();
        assert!(error.starts_with("key: "), "{error}");
    }
}

#[test]
fn nothing_of_a_key_is_shown() {
    let key = std::fs::read_to_string(fixture("server.pkcs8.key")).unwrap();
    let line = key.lines().nth(1).unwrap();
    let config = config("server.pem", "server.pkcs8.key", None);
    let der = PrivateKeyDer::from_pem_file(fixture("server.pkcs8.key")).unwrap();
    let bytes = format!("{:?}", &der.secret_der()[40..60]);
    let server = config.build(NOW).unwrap();
    let damaged = Config { key: Pem::new("key", Secret::new(key.replace("\nM", "\n?"))), ..config.clone() };
    let reloadable = SharedTls::new(config.build(NOW).unwrap());
    let shown =
        format!("{config:?} {config:#?} {server:?} {reloadable:?} {damaged:?} {:?}", damaged.build(NOW));
    assert!(!shown.contains(line) && !shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    assert!(!shown.contains(&line[10..30]), "{shown}");
}

#[test]
fn connections_made_after_a_swap_get_the_new_configuration() {
    let build = || config("server.pem", "server.pkcs8.key", None).build(NOW).unwrap();
    let (old, mut new) = (build(), build());
    new.expires_at += 1;
    let (old_config, new_config) = (Arc::clone(&old.config), Arc::clone(&new.config));
    let (old_ends, new_ends) = (old.expires_at, new.expires_at);
    let reloadable = SharedTls::new(old);
    let kept = reloadable.current();
    assert!(Arc::ptr_eq(&kept, &old_config));
    assert_eq!(reloadable.expires_at(), old_ends);
    reloadable.replace(new);
    assert!(Arc::ptr_eq(&reloadable.current(), &new_config) && Arc::ptr_eq(&kept, &old_config));
    assert_eq!(reloadable.expires_at(), new_ends);
}

#[test]
fn a_stamp_changes_with_its_files_and_only_then() {
    let directory = std::env::temp_dir().join(format!("deeperhub-security-tls-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(directory.join("1")).unwrap();
    let (file, other) = (directory.join("1/key"), directory.join("other"));
    let stamp = || FileStamp::of([&file, &other]);
    let mut last = stamp();
    let mut changed = |what: &str, expected: bool| {
        let now = stamp();
        assert_eq!(now != last, expected, "{what}");
        last = now;
    };
    changed("both absent", false);
    std::fs::write(&file, "one").unwrap();
    changed("made", true);
    changed("left alone", false);
    std::fs::read(&file).unwrap();
    changed("read", false);
    std::fs::write(&file, "longer").unwrap();
    changed("written", true);
    // As long as before, with the same time of modification, under the same name.
    let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
    let newer = directory.join("newer");
    std::fs::write(&newer, "LONGER").unwrap();
    std::fs::File::options().write(true).open(&newer).unwrap().set_modified(modified).unwrap();
    std::fs::rename(&newer, &file).unwrap();
    #[cfg(unix)]
    changed("replaced by another", true);
    std::fs::write(&other, "").unwrap();
    changed("the other one made", true);
    std::fs::remove_file(&file).unwrap();
    changed("removed", true);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// As Kubernetes mounts secrets: files are links into a directory, and that is a link that is
/// swapped.
#[cfg(unix)]
#[test]
fn a_stamp_changes_when_the_directory_behind_a_link_is_swapped() {
    use std::os::unix::fs::symlink;
    let directory = std::env::temp_dir().join(format!("deeperhub-security-links-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    for version in ["..1", "..2"] {
        std::fs::create_dir_all(directory.join(version)).unwrap();
        std::fs::write(directory.join(version).join("tls.key"), "same length").unwrap();
    }
    symlink("..1", directory.join("..data")).unwrap();
    symlink("..data/tls.key", directory.join("tls.key")).unwrap();
    let before = FileStamp::of([directory.join("tls.key")]);
    assert_eq!(FileStamp::of([directory.join("tls.key")]), before);
    symlink("..2", directory.join("..next")).unwrap();
    std::fs::rename(directory.join("..next"), directory.join("..data")).unwrap();
    assert_ne!(FileStamp::of([directory.join("tls.key")]), before);
    std::fs::remove_dir_all(&directory).unwrap();
}

proptest! {
    #[test]
    fn any_bytes_as_a_certificate_name_nobody_or_somebody(at in any::<prop::sample::Index>(), byte: u8, bytes in any::<Vec<u8>>()) {
        let _ = user(&CertificateDer::from(bytes));
        let mut certificate = CertificateDer::from_pem_file(fixture("client.pem")).unwrap().to_vec();
        let at = at.index(certificate.len());
        certificate[at] = byte;
        let _ = user(&CertificateDer::from(certificate));
    }
}
