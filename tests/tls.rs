//! TLS: versions, resumption, client certificates, changing files, and peers that violate the
//! protocol.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Authority, Identity, Issuer, Server, TlsClient, WAIT_TIMEOUT, connect_tls, from_now, http, metric, run,
    text, wait_for, with_token,
};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Starts a server with TLS and its own authority.
fn start(flags: &[&str]) -> (Authority, Identity, Server) {
    let authority = Authority::new();
    let identity = authority.server("server");
    let server = Server::start(&[&identity.flags()[..], flags].concat());
    (authority, identity, server)
}

fn echo(data: impl Into<Value>) -> Value {
    json!({"type": "echo", "data": data.into()})
}

/// Waits until a metric has reached a value.
async fn wait_for_metric(server: &Server, name: &str, value: u64) {
    wait_for(name, async {
        while metric(server, name).await < value {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Requests an upgrade with `openssl s_client` and returns its output, at least up to the
/// `welcome`.
fn s_client(server: &Server, authority: &Authority, flags: &[&str]) -> String {
    let address = server.clients.to_string();
    let mut child = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &address,
            "-servername",
            "localhost",
            "-CAfile",
            text(&authority.cert),
        ])
        .args(["-verify_return_error", "-alpn", "h2,http/1.1"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl can be run");
    child.stdin.as_mut().expect("a pipe").write_all(REQUEST.as_bytes()).expect("it takes a request");
    let mut stdout = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        // With TLS 1.3, the ticket comes before the response.
        while !seen.windows(9).any(|window| window == b"\"welcome\"") {
            match stdout.read(&mut buffer) {
                Ok(read @ 1..) => seen.extend_from_slice(&buffer[..read]),
                _ => break,
            }
        }
        (seen, stdout)
    });
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !reader.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // The end of its input ends `s_client` and lets it write its session.
    drop(child.stdin.take());
    let (mut seen, mut stdout) = reader.join().expect("it can be read");
    let _ = stdout.read_to_end(&mut seen);
    let mut errors = String::new();
    let _ = child.stderr.take().expect("a pipe").read_to_string(&mut errors);
    child.wait().expect("it ends");
    String::from_utf8_lossy(&seen).into_owned() + &errors
}

#[tokio::test]
async fn openssl_connects_with_both_versions_and_resumes() {
    let (authority, _, server) = start(&[]);
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let session = authority.cert.with_extension(name);
        let seen = s_client(&server, &authority, &[version, "-sess_out", text(&session)]);
        assert!(seen.contains(&format!("New, {name}")), "{seen}");
        assert!(seen.contains("Verification: OK") && seen.contains("ALPN protocol: http/1.1"), "{seen}");
        assert!(seen.contains("101 Switching Protocols") && seen.contains("\"welcome\""), "{seen}");
        let seen = s_client(&server, &authority, &[version, "-sess_in", text(&session)]);
        assert!(seen.contains(&format!("Reused, {name}")) && seen.contains("\"welcome\""), "{seen}");
    }
    assert_eq!(metric(&server, "deeperhub_tls_handshakes_total{result=\"full\"}").await, 2);
    assert_eq!(metric(&server, "deeperhub_tls_handshakes_total{result=\"resumed\"}").await, 2);
}

#[test]
fn openssl_connects_with_each_strong_cipher_only() {
    let (authority, _, server) = start(&[]);
    for cipher in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let seen = s_client(&server, &authority, &["-tls1_3", "-ciphersuites", cipher]);
        assert!(seen.contains(&format!("New, TLSv1.3, Cipher is {cipher}")), "{seen}");
        assert!(seen.contains("\"welcome\""), "{seen}");
    }
    for cipher in
        ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"]
    {
        let seen = s_client(&server, &authority, &["-tls1_2", "-cipher", cipher]);
        assert!(seen.contains(&format!("New, TLSv1.2, Cipher is {cipher}")), "{seen}");
        assert!(seen.contains("\"welcome\""), "{seen}");
    }
    // Without forward secrecy, without authenticated encryption, without encryption at all.
    let others = "ALL:COMPLEMENTOFALL:!ECDHE+AESGCM:!ECDHE+CHACHA20:@SECLEVEL=0";
    for flags in
        [&["-tls1_2", "-cipher", others][..], &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_8_SHA256"]]
    {
        let seen = s_client(&server, &authority, flags);
        assert!(seen.contains("handshake failure") && !seen.contains("101 Switching"), "{seen}");
    }
}

#[test]
fn obsolete_tls_versions_are_refused() {
    let (authority, _, server) = start(&[]);
    let seen = s_client(&server, &authority, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    assert!(!seen.contains("101 Switching"), "{seen}");
}

#[tokio::test]
async fn the_start_line_says_that_tls_is_on() {
    let (authority, identity, server) = start(&[]);
    assert!(server.start_line.contains("wss://") && server.start_line.contains("TLS on ·"), "{server:?}");
    let asking = [&identity.flags()[..], &["--tls-client-ca", text(&authority.cert)]].concat();
    let server = Server::start(&asking);
    assert!(server.start_line.contains("TLS on, client certificates required ·"), "{server:?}");
    let server = Server::start(&[&asking[..], &["--tls-client-auth", "optional"]].concat());
    assert!(server.start_line.contains("TLS on, client certificates optional ·"), "{server:?}");
}

#[tokio::test]
async fn messages_of_all_sizes_are_echoed_whole() {
    let (authority, _, server) = start(&["--max-message-bytes", "3000000", "--rate-limit", "0"]);
    let mut client = TlsClient::connect(&server, &authority.trusting(None)).await;
    // Sizes around those of records and of encryption batches, and up to the limit.
    let overhead = echo("").to_string().len();
    let sizes =
        [0, 1, 125, 126, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 131_072, 1_000_003, 3_000_000];
    for size in sizes {
        let length = usize::saturating_sub(size, overhead);
        let pattern: String = (0..length).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        assert!(
            client.request(&echo(&*pattern)).await["data"] == *pattern,
            "{size} bytes were echoed wrongly"
        );
    }
}

/// More than the sockets hold goes both ways before anything is read, so that writes stop within
/// records.
#[tokio::test]
async fn a_slow_reader_gets_every_byte_in_order() {
    let (authority, _, server) = start(&[
        "--rate-limit",
        "0",
        "--max-queue-bytes",
        "67108864",
        "--max-message-bytes",
        "100000",
        "--no-compression",
    ]);
    let config = authority.trusting(None);
    let mut slow = TlsClient::connect(&server, &config).await;
    let mut publisher = TlsClient::connect(&server, &config).await;
    slow.request(&json!({"type": "subscribe", "data": {"topic": "t"}})).await;
    let sizes: Vec<usize> = (0..600).map(|n| [10, 200, 3000, 40_000, 90_000][n % 5] + n).collect();
    for (n, size) in sizes.iter().enumerate() {
        let message = json!({"n": n, "pad": "x".repeat(*size)});
        let publish = json!({"type": "publish", "id": n, "data": {"topic": "t", "message": message}});
        assert_eq!(publisher.request(&publish).await["type"], "published");
        // Its own messages arrive in between.
        if n % 50 == 0 {
            slow.send(&json!({"type": "echo", "id": n, "data": n})).await;
        }
    }
    let (mut deliveries, mut echoes) = (0, 0);
    while deliveries < sizes.len() || echoes < 12 {
        let message = slow.receive().await;
        if message["type"] == "echo" {
            assert_eq!(message["data"], echoes * 50);
            echoes += 1;
        } else {
            let delivered = &message["data"]["message"];
            assert_eq!(delivered["n"], deliveries);
            assert_eq!(delivered["pad"].as_str().map(str::len), Some(sizes[deliveries]), "{deliveries}");
            deliveries += 1;
        }
    }
}

/// Encrypts a fan-out for each client and writes it to many at once; some read only at the end.
#[tokio::test]
async fn a_fan_out_reaches_fast_and_slow_readers_whole_and_in_order() {
    const CLIENTS: usize = 24;
    const MESSAGES: usize = 1500;
    for io_uring in ["auto", "off"] {
        let (authority, _, server) = start(&[
            "--rate-limit",
            "0",
            "--max-queue-bytes",
            "67108864",
            "--no-compression",
            "--workers",
            "1",
            "--io-uring",
            io_uring,
        ]);
        let config = authority.trusting(None);
        let subscribe = json!({"type": "subscribe", "data": {"topic": "t"}});
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = TlsClient::connect(&server, &config).await;
            assert_eq!(client.request(&subscribe).await["type"], "subscribed");
            clients.push(client);
        }
        let size = |n: usize| [10, 200, 3000, 9000, 17_000][n % 5] + n;
        let (late, prompt) = clients.split_at_mut(CLIENTS / 2);
        let mut publisher = TlsClient::connect(&server, &config).await;
        let publish = async {
            for n in 0..MESSAGES {
                let message = json!({"n": n, "pad": "x".repeat(size(n))});
                let publish = json!({"type": "publish", "data": {"topic": "t", "message": message}});
                publisher.send(&publish).await;
            }
        };
        let read = async |client: &mut TlsClient| {
            for n in 0..MESSAGES {
                let delivered = &client.receive().await["data"]["message"];
                assert_eq!(delivered["n"], n);
                assert_eq!(delivered["pad"].as_str().map(str::len), Some(size(n)), "{n}");
            }
        };
        let read_promptly = async {
            futures_util::future::join_all(prompt.iter_mut().map(read)).await;
        };
        futures_util::future::join(publish, read_promptly).await;
        for client in late {
            read(client).await;
        }
    }
}

#[tokio::test]
async fn a_stalled_reader_is_closed_with_1013_and_the_others_continue() {
    let (authority, _, server) =
        start(&["--rate-limit", "0", "--max-queue-bytes", "200000", "--no-compression"]);
    let config = authority.trusting(None);
    let mut stuck = TlsClient::connect(&server, &config).await;
    let mut publisher = TlsClient::connect(&server, &config).await;
    stuck.request(&json!({"type": "subscribe", "data": {"topic": "t"}})).await;
    let publish = json!({"type": "publish", "id": 1, "data": {"topic": "t", "message": "x".repeat(60_000)}});
    wait_for("the end of all subscriptions", async {
        while publisher.request(&publish).await["data"]["subscribers"] == 1 {}
    })
    .await;
    // Data in flight arrives whole, then the reason.
    let end = async {
        loop {
            match stuck.socket.next().await {
                Some(Ok(Message::Text(_) | Message::Ping(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) => return u16::from(frame.code),
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(wait_for("the end", end).await, 1013);
}

#[tokio::test]
async fn connections_end_with_close_notify() {
    let (authority, _, server) = start(&[]);
    let config = authority.trusting(None);
    // A refused request and a closing connection.
    let mut refused = connect_tls(&server, &config).await.unwrap();
    refused.write_all(b"GET /elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut response = String::new();
    // An end without close_notify is an error here.
    wait_for("the end", refused.read_to_string(&mut response)).await.expect("the end is announced");
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");

    let mut client = TlsClient::connect(&server, &config).await;
    client.socket.close(None).await.unwrap();
    let end = async {
        while let Some(message) = client.socket.next().await {
            message.expect("it closes as it should");
        }
    };
    wait_for("the end", end).await;
    let mut rest = Vec::new();
    wait_for("the end", client.socket.get_mut().read_to_end(&mut rest)).await.expect("the end is announced");
}

#[tokio::test]
async fn a_drain_reaches_clients_over_tls() {
    let (authority, _, mut server) = start(&["--drain-timeout", "5s"]);
    let mut client = TlsClient::connect(&server, &authority.trusting(None)).await;
    server.signal("TERM");
    assert_eq!(client.receive().await["type"], "goodbye");
    match wait_for("the end", client.socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001),
        other => panic!("{other:?}"),
    }
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

/// Returns the certificate that a new connection gets.
async fn served_certificate(server: &Server, authority: &Authority) -> Vec<u8> {
    let stream = connect_tls(server, &authority.trusting(None)).await.unwrap();
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn certificates_are_reloaded_on_sighup_and_connections_stay() {
    let (authority, identity, server) = start(&[]);
    let mut client = TlsClient::connect(&server, &authority.trusting(None)).await;
    let first = served_certificate(&server, &authority).await;
    authority.server("second").replace(&identity);
    server.signal("HUP");
    server.wait_for_stderr("Reloaded what=\"TLS certificate\"");
    assert_ne!(served_certificate(&server, &authority).await, first);

    // An invalid certificate is reported, and the valid one stays.
    let second = served_certificate(&server, &authority).await;
    std::fs::write(&identity.key, "no key").unwrap();
    server.signal("HUP");
    server.wait_for_stderr(&format!("{}: it contains no private key", identity.key.display()));
    assert!(server.stderr().contains("Reload failed; previous values stay in effect"));
    assert_eq!(served_certificate(&server, &authority).await, second);
    assert_eq!(client.request(&echo(1)).await["data"], 1);
}

#[tokio::test]
async fn certificates_are_reloaded_when_their_files_change() {
    let (authority, identity, server) = start(&[]);
    let mut client = TlsClient::connect(&server, &authority.trusting(None)).await;
    let first = served_certificate(&server, &authority).await;
    authority.server("second").replace(&identity);
    server.wait_for_stderr("Reloaded");
    assert_ne!(served_certificate(&server, &authority).await, first);
    assert_eq!(client.request(&echo(1)).await["data"], 1);
    assert!(!server.stderr().contains("Cannot be read"), "{}", server.stderr());
}

/// Returns the users of all clients, sorted.
async fn users(server: &Server) -> Vec<Value> {
    let list = http(server.api(), "GET /v1/clients", &[], "").await.json();
    let clients = list["clients"].as_array().unwrap_or_else(|| panic!("{list}"));
    let mut users: Vec<_> = clients.iter().map(|client| client["user"].clone()).collect();
    users.sort_by_key(ToString::to_string);
    users
}

#[tokio::test]
async fn a_certificates_subject_is_the_user_unless_a_token_says_otherwise() {
    let authority = Authority::new();
    let identity = authority.server("server");
    let issuer = Issuer::new("a secret of the tests, of more than 32 bytes");
    let secret = issuer.file();
    let flags = ["--tls-client-ca", text(&authority.cert), "--auth-secret-file", &secret];
    let flags = [&flags[..], &["--tls-client-auth", "optional"]].concat();
    let server = Server::start(&[&identity.flags()[..], &flags].concat());
    let alice = authority.trusting(Some(&authority.client("alice")));
    let token = |user: &str| issuer.token(&json!({"sub": user, "exp": from_now(Duration::from_secs(600))}));

    let mut by_certificate = TlsClient::connect(&server, &alice).await;
    let _nobody = TlsClient::connect(&server, &authority.trusting(None)).await;
    let stream = connect_tls(&server, &alice).await.unwrap();
    let _by_token = TlsClient::over(stream, with_token(&server, &token("bob"))).await.unwrap();
    assert_eq!(users(&server).await, [json!("alice"), json!("bob"), json!(null)]);

    // A later token changes it too; renewals then need the new user.
    let log_in = |user: &str| json!({"type": "authenticate", "data": {"token": token(user)}});
    assert_eq!(by_certificate.request(&log_in("carol")).await["data"]["user"], "carol");
    assert_eq!(users(&server).await, [json!("bob"), json!("carol"), json!(null)]);
    assert_eq!(by_certificate.request(&log_in("dave")).await["data"]["code"], "token_invalid");
    for (user, clients) in [("alice", 0), ("carol", 1)] {
        let request = format!("POST /v1/users/{user}/messages");
        let sent = http(server.api(), &request, &[], r#"{"type":"hello"}"#).await.json();
        assert_eq!(sent, json!({"clients": clients}), "{user}");
    }
}

#[tokio::test]
async fn a_certificate_does_not_replace_a_required_token() {
    let authority = Authority::new();
    let issuer = Issuer::new("a secret of the tests, of more than 32 bytes");
    let secret = issuer.file();
    let flags = ["--tls-client-ca", text(&authority.cert), "--auth-secret-file", &secret, "--auth-required"];
    let server = Server::start(&[&authority.server("server").flags()[..], &flags].concat());
    let mut client = TlsClient::connect(&server, &authority.trusting(Some(&authority.client("alice")))).await;
    assert_eq!(client.request(&echo(1)).await["data"]["code"], "unauthorized");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let authority = Authority::new();
    let flags = ["--tls-client-ca", text(&authority.cert)];
    let server = Server::start(&[&authority.server("server").flags()[..], &flags].concat());
    let strangers = Authority::new();
    let stream = connect_tls(&server, &authority.trusting(Some(&strangers.client("alice")))).await;
    // With TLS 1.3, the client sees the rejection after its own handshake has finished.
    let refused = match stream {
        Err(_) => true,
        Ok(stream) => TlsClient::over(stream, server.url("/")).await.is_err(),
    };
    assert!(refused);
    wait_for_metric(&server, "deeperhub_tls_handshakes_total{result=\"failed\"}", 1).await;
    wait_for_metric(&server, "deeperhub_handshakes_total{outcome=\"tls_failed\"}", 1).await;
    assert_eq!(users(&server).await, Vec::<Value>::new());
}

/// Returns `true` if a client can connect with this certificate, or without one.
async fn can_connect(server: &Server, authority: &Authority, identity: Option<&Identity>) -> bool {
    // With TLS 1.3, the client sees the rejection after its own handshake has finished.
    match connect_tls(server, &authority.trusting(identity)).await {
        Err(_) => false,
        Ok(stream) => TlsClient::over(stream, server.url("/")).await.is_ok(),
    }
}

async fn refused_for(server: &Server, reason: &str, count: u64) {
    let name = format!("deeperhub_tls_client_auth_refused_total{{reason=\"{reason}\"}}");
    wait_for_metric(server, &name, count).await;
    assert_eq!(metric(server, &name).await, count, "{reason}");
}

#[tokio::test]
async fn clients_without_a_valid_certificate_are_refused_and_counted_by_reason() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let identity = authority.server("server");
    let (good, expired) = (authority.client("alice"), authority.expired_client("bob"));
    let foreign = strangers.client("alice");
    for (mode, without) in [
        (&[][..], false),
        (&["--tls-client-auth", "required"], false),
        (&["--tls-client-auth=optional"], true),
    ] {
        let flags = ["--tls-client-ca", text(&authority.cert)];
        let server = Server::start(&[&identity.flags()[..], &flags, mode].concat());
        assert!(can_connect(&server, &authority, Some(&good)).await, "{mode:?}");
        assert_eq!(can_connect(&server, &authority, None).await, without, "{mode:?}");
        assert!(!can_connect(&server, &authority, Some(&expired)).await, "{mode:?}");
        assert!(!can_connect(&server, &authority, Some(&foreign)).await, "{mode:?}");
        refused_for(&server, "absent", u64::from(!without)).await;
        refused_for(&server, "expired", 1).await;
        refused_for(&server, "unknown_ca", 1).await;
        refused_for(&server, "other", 0).await;
        let failed = 2 + u64::from(!without);
        wait_for_metric(&server, "deeperhub_tls_handshakes_total{result=\"failed\"}", failed).await;
        // The requirement still holds after a reload.
        authority.server("second").replace(&identity);
        server.signal("HUP");
        server.wait_for_stderr("Reloaded what=\"TLS certificate\"");
        assert_eq!(can_connect(&server, &authority, None).await, without, "{mode:?}");
        assert!(can_connect(&server, &authority, Some(&good)).await, "{mode:?}");
    }
}

/// Resumption does not verify certificates again; the client's may have expired since.
#[tokio::test]
async fn a_session_is_not_resumed_when_its_clients_certificate_has_expired() {
    let authority = Authority::new();
    let flags = ["--tls-client-ca", text(&authority.cert)];
    let server = Server::start(&[&authority.server("server").flags()[..], &flags].concat());
    // One shared configuration keeps the tickets: each connection resumes and gets the next one.
    let config = authority.trusting(Some(&authority.client_for("alice", 12)));
    let can_connect = async || match connect_tls(&server, &config).await {
        Err(_) => false,
        Ok(stream) => TlsClient::over(stream, server.url("/")).await.is_ok(),
    };
    assert!(can_connect().await);
    wait_for("the expiry of the certificate", async {
        while can_connect().await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert!(metric(&server, "deeperhub_tls_handshakes_total{result=\"resumed\"}").await > 0);
    refused_for(&server, "expired", 1).await;
}

#[tokio::test]
async fn openssl_sees_the_required_certificate_alert_with_both_versions() {
    let authority = Authority::new();
    let flags = ["--tls-client-ca", text(&authority.cert)];
    let server = Server::start(&[&authority.server("server").flags()[..], &flags].concat());
    let client = authority.client("alice");
    let shown = ["-cert", text(&client.cert), "-key", text(&client.key)];
    for (n, version) in ["-tls1_2", "-tls1_3"].into_iter().enumerate() {
        let seen = s_client(&server, &authority, &[&[version][..], &shown].concat());
        assert!(seen.contains("\"welcome\""), "{seen}");
        let seen = s_client(&server, &authority, &[version]);
        assert!(!seen.contains("101 Switching") && seen.contains("alert"), "{seen}");
        refused_for(&server, "absent", n as u64 + 1).await;
    }
}

#[tokio::test]
async fn plain_http_on_a_tls_port_gets_an_explanation() {
    let (_, _, server) = start(&[]);
    let response = http(server.clients, "GET /", &[], "").await;
    assert_eq!((response.status, &response.json()["error"]["code"]), (400, &json!("bad_handshake")));
    assert!(response.json()["error"]["message"].as_str().unwrap().contains("wss://"), "{response:?}");
}

/// Reads a socket to its end, including resets.
async fn read_to_end(mut socket: TcpStream) -> Vec<u8> {
    let mut response = Vec::new();
    let _ = wait_for("the end", socket.read_to_end(&mut response)).await;
    response
}

#[tokio::test]
async fn slow_half_open_and_broken_handshakes_affect_nobody_else() {
    let (authority, _, server) = start(&["--handshake-timeout", "2s", "--rate-limit", "0", "--workers", "1"]);
    let config = authority.trusting(None);
    let mut healthy = TlsClient::connect(&server, &config).await;
    let hello = client_hello(&config);

    let mut attackers = Vec::new();
    for n in 0..150_usize {
        let mut socket = wait_for("a connection", TcpStream::connect(server.clients)).await.unwrap();
        let start: Vec<u8> = match n % 6 {
            // Nothing at all, a hello in parts, a hello without the rest, an announced record that
            // never comes.
            0 => Vec::new(),
            1 => hello[..n].to_vec(),
            2 => hello.clone(),
            3 => b"\x16\x03\x01\x40\x00\x01\x00\xff\xff".to_vec(),
            // Not TLS, and records of the wrong type.
            4 => (0..=255).cycle().take(3000 + n).map(|byte: u8| byte.wrapping_mul(37)).collect(),
            _ => b"\x17\x03\x03\x00\x02hi".repeat(50),
        };
        let _ = socket.write_all(&start).await;
        attackers.push(tokio::spawn(read_to_end(socket)));
        assert_eq!(healthy.request(&echo(n as u64)).await["data"], n);
    }
    let mut n = 0;
    while attackers.iter().any(|attacker| !attacker.is_finished()) {
        assert_eq!(healthy.request(&echo(n)).await["data"], n);
        n += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let alerts = futures_util::future::join_all(attackers).await;
    // Protocol violations are reported with an alert (21), unencrypted.
    let broken = alerts.iter().skip(4).step_by(6).chain(alerts.iter().skip(5).step_by(6));
    for response in broken {
        let response = response.as_ref().unwrap();
        assert_eq!(response.first(), Some(&21), "{response:?}");
    }
    assert_eq!(metric(&server, "deeperhub_connections_active").await, 1);
    assert!(metric(&server, "deeperhub_handshakes_total{outcome=\"timed_out\"}").await >= 100);
    assert_eq!(metric(&server, "deeperhub_handshakes_total{outcome=\"tls_failed\"}").await, 50);
    assert_eq!(metric(&server, "deeperhub_worker_restarts_total").await, 0);
    assert_eq!(healthy.request(&echo("still here")).await["data"], "still here");
}

/// Returns a client's first flight.
fn client_hello(config: &std::sync::Arc<rustls::ClientConfig>) -> Vec<u8> {
    let name = "localhost".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::clone(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// An endless handshake message, in whole records.
#[tokio::test]
async fn an_endless_tls_handshake_is_closed() {
    let (_, _, server) = start(&[]);
    let mut socket = TcpStream::connect(server.clients).await.unwrap();
    let mut record = vec![0x16, 3, 3, 0x40, 0];
    record.extend([0; 0x4000]);
    // The first record announces a hello of 65,000 bytes.
    record[5..9].copy_from_slice(&[1, 0, 0xfd, 0xe8]);
    for _ in 0..4 {
        if socket.write_all(&record).await.is_err() {
            break;
        }
        record[5..9].fill(0);
    }
    let response = read_to_end(socket).await;
    assert!(!response.starts_with(b"\x16"), "{response:?}");
    wait_for_metric(&server, "deeperhub_tls_handshakes_total{result=\"failed\"}", 1).await;
}

#[tokio::test]
async fn tampered_records_end_the_connection() {
    let (authority, _, server) = start(&[]);
    let mut client = TlsClient::connect(&server, &authority.trusting(None)).await;
    client.request(&echo(1)).await;
    let (socket, _) = client.socket.get_mut().get_mut();
    socket.write_all(b"\x17\x03\x03\x00\x20 this was never encrypted by us!!").await.unwrap();
    wait_for("the end", async { while let Some(Ok(_)) = client.socket.next().await {} }).await;
    wait_for("the end of the client", async { while !users(&server).await.is_empty() {} }).await;
    assert_eq!(metric(&server, "deeperhub_connections_active").await, 0);
}

#[tokio::test]
async fn frames_across_records_and_records_with_several_frames_are_read() {
    let (authority, _, server) = start(&["--rate-limit", "0"]);
    let mut client = TlsClient::connect(&server, &authority.trusting(None)).await;
    for n in 0..500 {
        // Without a flush, several frames share a record.
        client.socket.feed(Message::text(echo(n).to_string())).await.unwrap();
    }
    client.socket.flush().await.unwrap();
    for n in 0..500 {
        assert_eq!(client.receive().await["data"], n);
    }
}

#[test]
fn bench_runs_over_tls() {
    let (authority, _, server) = start(&["--rate-limit", "0"]);
    let ca = text(&authority.cert);
    let url = server.url("/");
    let bench = |flags: &[&str], env: &[(&str, &str)]| {
        let common = [
            "bench",
            "fanout",
            "--url",
            &url,
            "--connections",
            "10",
            "--messages",
            "200",
            "--json",
            "--fail-on-loss",
        ];
        run(&[&common[..], flags].concat(), env)
    };
    // A file of authorities as a flag, and as the system's trust store.
    for finished in [bench(&["--ca", ca], &[]), bench(&[], &[("SSL_CERT_FILE", ca), ("SSL_CERT_DIR", "")])] {
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let figures: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(figures["messages"]["delivered"], 2000, "{figures}");
    }
    let untrusted = bench(&["--ca", text(&Authority::new().cert)], &[]);
    assert_eq!(untrusted.code, Some(1), "{untrusted:?}");
    assert!(untrusted.stderr.contains("tls ("), "{untrusted:?}");
    let empty_store = bench(&[], &[("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "")]);
    assert_eq!(empty_store.code, Some(2), "{empty_store:?}");
    assert!(empty_store.stderr.contains("--ca"), "{empty_store:?}");
}

#[track_caller]
fn check_refused(flags: &[&str], expected: &str) {
    for subcommand in [&["serve"][..], &["config", "check"]] {
        let finished = run(&[subcommand, flags].concat(), &[]);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.contains(expected), "{expected}: {}", finished.stderr);
    }
}

#[test]
fn invalid_tls_files_exit_with_2_and_name_file_and_reason() {
    let authority = Authority::new();
    let (one, other) = (authority.server("one"), authority.server("other"));
    let (cert, key) = (text(&one.cert), text(&one.key));
    check_refused(&["--tls-cert", cert], "--tls-cert needs --tls-key");
    check_refused(&["--tls-key", key], "--tls-key needs --tls-cert");
    let without_ca = ["--tls-cert", cert, "--tls-key", key, "--tls-client-auth", "optional"];
    check_refused(&without_ca, "--tls-client-auth needs --tls-client-ca");
    check_refused(
        &["--tls-cert", cert, "--tls-key", text(&other.key)],
        &format!(
            "invalid value '{}' for --tls-key: its private key does not match the certificate in {cert}",
            other.key.display()
        ),
    );
    check_refused(
        &["--tls-cert", "/nowhere.pem", "--tls-key", key],
        "invalid value '/nowhere.pem' for --tls-cert: cannot be read: No such file",
    );
    check_refused(
        &["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", key],
        &format!("invalid value '{key}' for --tls-client-ca: it contains no certificate"),
    );
    assert!(Path::new(cert).exists());
}
