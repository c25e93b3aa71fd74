//! The files in `deploy/`: load balancers run with them in front of real hubs, manifests are
//! checked against their schemas.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use rustls::ClientConfig;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, client_async};

use crate::proxies::PeerAddresses;
use crate::support::{
    Authority, Client, Identity, ROOT, Server, TemporaryDir, TlsClient, WAIT_TIMEOUT, free_port, http,
    install_named, over_tls, python_bin, run_peer, text, wait_for,
};

/// A load balancer with a configuration in `deploy/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BalancerKind {
    Nginx,
    Haproxy,
    Caddy,
}

/// Returns a file of `deploy/` with replaced addresses. Each replaced text must exist, so that the
/// tested file is the delivered one.
fn adapted(file: &str, replacements: &[(&str, String)]) -> String {
    let path = Path::new(ROOT).join("deploy").join(file);
    let mut content = std::fs::read_to_string(&path).expect("the file can be read");
    for (from, to) in replacements {
        assert!(content.contains(from), "{file} has no {from:?}");
        content = content.replace(from, to);
    }
    content
}

/// Returns the path of the load balancer's program; installs it if it is missing.
fn program(kind: BalancerKind) -> PathBuf {
    let name = match kind {
        BalancerKind::Nginx => "nginx",
        BalancerKind::Haproxy => "haproxy",
        BalancerKind::Caddy => return python_bin().join("caddy"),
    };
    install_named(name);
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}

/// A running load balancer; stopped on drop.
struct Balancer {
    plain: SocketAddr,
    /// `None` without a certificate.
    tls: Option<SocketAddr>,
    child: Child,
    files: TemporaryDir,
}

impl Balancer {
    /// Starts a load balancer in front of two hubs whose server APIs have the same port.
    fn start(kind: BalancerKind, hubs: [&Server; 2], identity: Option<&Identity>) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        // Another program may take the port meanwhile.
        for _ in 0..5 {
            let (plain, tls, files) = (address(), identity.map(|_| address()), TemporaryDir::new());
            let mut command = Self::command(kind, hubs, plain, identity.zip(tls), &files);
            let log = std::fs::File::create(files.path("log")).expect("a file can be created");
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file has copies")).stderr(log);
            let child = command.spawn().expect("what was installed can be started");
            let mut balancer = Self { plain, tls, child, files };
            if balancer.listens() {
                return balancer;
            }
            eprintln!("{kind:?} ended: {}", balancer.log());
        }
        panic!("{kind:?} did not start");
    }

    fn command(
        kind: BalancerKind,
        hubs: [&Server; 2],
        plain: SocketAddr,
        tls: Option<(&Identity, SocketAddr)>,
        files: &TemporaryDir,
    ) -> Command {
        let [one, two] = hubs.map(|hub| hub.clients.to_string());
        let api = hubs[0].api().port();
        assert_eq!(api, hubs[1].api().port());
        let mut command = Command::new(program(kind));
        match kind {
            BalancerKind::Nginx => {
                let mut replacements = vec![
                    ("listen 80;", format!("listen {plain};")),
                    ("server 127.0.0.1:8080 ", format!("server {one} ")),
                    ("# server 10.0.0.2:8080 ", format!("server {two} ")),
                    ("proxy_read_timeout 90s", "proxy_read_timeout 3s".to_owned()),
                    ("proxy_send_timeout 90s", "proxy_send_timeout 3s".to_owned()),
                ];
                if let Some((Identity { cert, key }, address)) = tls {
                    let own = format!(
                        "listen {address} ssl; ssl_certificate {}; ssl_certificate_key {};",
                        text(cert),
                        text(key)
                    );
                    replacements.push(("# listen 443 ssl; ssl_certificate …; ssl_certificate_key …;", own));
                }
                let site = files.write("site.conf", &adapted("nginx/deeperhub.conf", &replacements));
                let mut main = "worker_processes 1;\ndaemon off;\nevents {}\nhttp {\n".to_owned();
                for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
                    let path = files.path(name);
                    writeln!(main, "    {name}_temp_path {};", text(&path)).expect("a string takes text");
                }
                write!(main, "    include {};\n}}\n", text(&site)).expect("a string takes text");
                let main = files.write("nginx.conf", &main);
                let pid = format!("pid {}; error_log stderr;", text(&files.path("pid")));
                command.args(["-e", "stderr", "-c", text(&main), "-g", &pid]);
            }
            BalancerKind::Haproxy => {
                let mut replacements = vec![
                    ("bind :80\n", format!("bind {plain}\n")),
                    ("check port 8081 ", format!("check port {api} ")),
                    ("server hub-1 127.0.0.1:8080", format!("server hub-1 {one}")),
                    ("# server hub-2 10.0.0.2:8080", format!("server hub-2 {two}")),
                    ("timeout tunnel 90s", "timeout tunnel 3s".to_owned()),
                ];
                if let Some((Identity { cert, key }, address)) = tls {
                    let read = |path| std::fs::read_to_string(path).expect("a file can be read");
                    let both = files.write("both.pem", &format!("{}{}", read(cert), read(key)));
                    replacements.push((
                        "# bind :443 ssl crt /etc/haproxy/site.pem",
                        format!("bind {address} ssl crt {}", text(&both)),
                    ));
                }
                let config = files.write("haproxy.cfg", &adapted("haproxy/haproxy.cfg", &replacements));
                // As on a system with few file descriptors.
                let script = "ulimit -n 512 && exec \"$0\" -f \"$1\"";
                command = Command::new("sh");
                command.args(["-c", script]).arg(program(kind)).arg(config);
            }
            BalancerKind::Caddy => {
                let site = |first: String| {
                    adapted(
                        "caddy/Caddyfile",
                        &[
                            ("hub.example.com {", first),
                            ("reverse_proxy 127.0.0.1:8080 {", format!("reverse_proxy {one} {two} {{")),
                            ("health_port 8081", format!("health_port {api}")),
                        ],
                    )
                };
                let mut config = "{\n\tadmin off\n\tauto_https off\n}\n".to_owned();
                config.push_str(&site(format!("http://{plain} {{")));
                if let Some((Identity { cert, key }, address)) = tls {
                    // A separate site, because the other one has no TLS.
                    let (name, cert, key) =
                        (format!("https://localhost:{}", address.port()), text(cert), text(key));
                    config.push_str(&site(format!("{name} {{\n\ttls {cert} {key}")));
                }
                let config = files.write("Caddyfile", &config);
                let home = files.path("home");
                command.args(["run", "--adapter", "caddyfile", "--config", text(&config)]);
                command.env("HOME", &home).env("XDG_DATA_HOME", &home).env("XDG_CONFIG_HOME", &home);
            }
        }
        command
    }

    /// Waits until it accepts connections. Returns `false` if it has exited.
    fn listens(&mut self) -> bool {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while Instant::now() < deadline {
            if self.child.try_wait().expect("a child can be waited for").is_some() {
                return false;
            }
            let all = [Some(self.plain), self.tls];
            if all.iter().flatten().all(|address| std::net::TcpStream::connect(address).is_ok()) {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.files.path("log")).unwrap_or_default()
    }

    /// Connects a WebSocket client through the load balancer.
    async fn client(&self) -> Result<Client, Box<tungstenite::Error>> {
        Client::connect_with(format!("ws://{}/", self.plain)).await
    }

    /// Connects from the given address.
    async fn client_from(&self, address: [u8; 4]) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((address, 0))).unwrap();
        let stream = wait_for("a connection", socket.connect(self.plain)).await.unwrap();
        let handshake = client_async(format!("ws://{}/", self.plain), MaybeTlsStream::Plain(stream));
        let (socket, _) = wait_for("the handshake", handshake).await.unwrap();
        let mut client = Client { socket, welcome: json!(null) };
        client.welcome = client.receive().await;
        client
    }

    async fn tls_client(&self, config: &Arc<ClientConfig>) -> TlsClient {
        let address = self.tls.expect("it has a certificate");
        let stream = over_tls(TcpStream::connect(address).await.unwrap(), config).await.unwrap();
        TlsClient::over(stream, format!("wss://localhost:{}/", address.port())).await.unwrap()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // The nginx master stops its workers only if it is asked to stop.
        let script = format!("kill -TERM {}", self.child.id());
        let _ = Command::new("sh").args(["-c", &script]).status();
        let _ = self.child.wait();
    }
}

/// Starts two hubs whose APIs have the same port on different loopback addresses.
fn hubs() -> [Server; 2] {
    let flags = ["--trusted-proxy", "127.0.0.1", "--ping-interval", "500ms", "--drain-timeout", "1h"];
    let one = Server::start(&[&flags[..], &["--node-id", "one"]].concat());
    let api = format!("127.0.0.2:{}", one.api().port());
    let own = ["--node-id", "two", "--host", "127.0.0.2", "--api-listen", &api];
    let two = Server::start(&[&flags[..], &own].concat());
    [one, two]
}

fn node_of(client: &Client) -> &str {
    client.id().split('.').next().unwrap()
}

async fn serves_clients_of_two_hubs(kind: BalancerKind) {
    let [one, two] = hubs();
    let authority = Authority::new();
    let balancer = Balancer::start(kind, [&one, &two], Some(&authority.server("balancer")));

    // A health check may have to come first.
    wait_for("a reachable hub", async { while balancer.client().await.is_err() {} }).await;

    // Both hubs get clients and learn their addresses.
    let mut events = [PeerAddresses::watch(&one).await, PeerAddresses::watch(&two).await];
    let mut clients = Vec::new();
    for number in 0..6 {
        clients.push(balancer.client_from([127, 0, 0, 10 + number]).await);
        let [one, two] = &mut events;
        let peer = tokio::select! { peer = one.next() => peer, peer = two.next() => peer };
        assert!(peer.starts_with(&format!("127.0.0.{}:", 10 + number)), "{kind:?} {peer}");
    }
    for hub in ["one", "two"] {
        assert!(clients.iter().filter(|client| node_of(client) == hub).count() >= 2, "{kind:?}");
    }

    // Large messages pass in both directions.
    for payload in [json!("é"), json!("x".repeat(60_000))] {
        let echo = json!({"type": "echo", "id": 1, "data": payload});
        assert_eq!(clients[0].request(&echo).await, echo);
    }
    let mut secure = balancer.tls_client(&authority.trusting(None)).await;
    let echo = json!({"type": "echo", "data": 1});
    assert_eq!(secure.request(&echo).await, echo);

    // Pages of the balancer's own host may connect; others may not.
    for (origin, expected) in
        [(format!("http://{}", balancer.plain), 101), ("http://evil.example".to_owned(), 403)]
    {
        let mut request = format!("ws://{}/", balancer.plain).into_client_request().unwrap();
        request.headers_mut().insert("origin", origin.parse().unwrap());
        let status = match Client::connect_with(request).await {
            Ok(_) => 101,
            Err(error) => match *error {
                tungstenite::Error::Http(response) => response.status().as_u16(),
                other => panic!("{other}"),
            },
        };
        assert_eq!(status, expected, "{kind:?} {origin}");
    }

    // A client that only answers pings stays connected beyond the balancer's idle timeout.
    let mut idle = balancer.client().await.unwrap();
    let mut pings = 0;
    while pings < 10 {
        match wait_for("a ping", idle.socket.next()).await {
            Some(Ok(Message::Ping(_))) => pings += 1,
            other => panic!("{kind:?}: {other:?} after {pings} pings; {}", balancer.log()),
        }
    }
    assert_eq!(idle.request(&echo).await, echo);

    // A draining hub gets no more clients; the others continue.
    let stay = [Client::connect(&one).await, Client::connect(&one).await, Client::connect(&one).await];
    one.signal("TERM");
    wait_for("the drain", async {
        while http(one.api(), "GET /health/ready", &[], "").await.status != 503 {}
    })
    .await;
    let mut refused = 0;
    let mut newcomers = Vec::new();
    wait_for("new connections", async {
        while newcomers.len() < 6 {
            match balancer.client().await {
                Ok(client) => newcomers.push(client),
                Err(_) => refused += 1,
            }
        }
    })
    .await;
    assert!(newcomers.iter().all(|client| node_of(client) == "two"), "{kind:?}");
    drop(stay);
    // Caddy does not try the next node after a response.
    assert!(refused <= usize::from(kind == BalancerKind::Caddy), "{kind:?}: {refused} were refused");
}

#[tokio::test]
async fn nginx_serves_clients_of_two_hubs() {
    serves_clients_of_two_hubs(BalancerKind::Nginx).await;
}

#[tokio::test]
async fn haproxy_serves_clients_of_two_hubs() {
    serves_clients_of_two_hubs(BalancerKind::Haproxy).await;
}

#[tokio::test]
async fn caddy_serves_clients_of_two_hubs() {
    serves_clients_of_two_hubs(BalancerKind::Caddy).await;
}

/// Runs a program of the checkout's Python environment, which must succeed.
fn check(name: &str, arguments: &[&str]) {
    let finished = run_peer(python_bin().join(name), arguments);
    assert_eq!(finished.code, Some(0), "{name} {arguments:?}: {}{}", finished.stdout, finished.stderr);
}

fn deployed(file: &str) -> String {
    format!("{ROOT}/deploy/{file}")
}

#[test]
fn kubernetes_manifests_match_their_schemas() {
    let files = ["kubernetes/deeperhub-ws.yaml", "kubernetes/hpa.yaml"].map(deployed);
    for version in ["1.30", "1.37"] {
        check("kubernetes-validate", &["--strict", "-k", version, &files[0], &files[1]]);
    }
}

#[test]
fn the_compose_file_matches_the_specification() {
    let file = deployed("compose/docker-compose.yml");
    check("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", &file]);
}

#[test]
fn yaml_is_well_formed_without_duplicate_keys() {
    let rules = "{extends: default, rules: {line-length: disable, document-start: disable, braces: disable, \
                 comments: {min-spaces-from-content: 1}, brackets: disable}}";
    check("yamllint", &["--strict", "-d", rules, &deployed("")]);
}

#[test]
fn the_compose_haproxy_accepts_its_configuration() {
    let file = deployed("compose/haproxy.cfg");
    let finished = run_peer(program(BalancerKind::Haproxy), ["-c", "-f", &file]);
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
}

#[test]
fn systemd_accepts_the_unit() {
    install_named("systemd");
    let unit = adapted(
        "systemd/deeperhub-ws.service",
        &[("/usr/bin/deeperhub-ws", env!("CARGO_BIN_EXE_deeperhub-ws").to_owned())],
    );
    let files = TemporaryDir::new();
    let file = files.write("deeperhub-ws.service", &unit);
    let finished = run_peer("systemd-analyze", ["verify", text(&file)]);
    let output = format!("{}{}", finished.stdout, finished.stderr);
    // Other units on the machine may have faults of their own.
    let faults: Vec<_> = output.lines().filter(|line| line.contains("deeperhub-ws.service")).collect();
    assert!(finished.code == Some(0) && faults.is_empty(), "{output}");
}

#[test]
fn the_configuration_of_the_unit_is_valid() {
    let file = deployed("systemd/deeperhub.toml");
    let finished = crate::support::run(&["config", "check", "--config", &file], &[]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}
