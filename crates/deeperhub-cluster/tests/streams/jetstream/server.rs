//! NATS servers with JetStream, and requests to their API.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::broker_process::BrokerProcess;
use crate::capability::Capability;
use crate::eventually;
use crate::ports::free_port;
use crate::store::Store;
use crate::temporary::TemporaryDir;

/// Settings that enable JetStream. `FOLDER` stands for the folder of the server.
pub(super) const JETSTREAM: &str = "jetstream { store_dir: \"FOLDER/js\" }";

/// A server; killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    process: BrokerProcess,
    files: TemporaryDir,
    /// `true` if requests to the API need the user `admin`.
    has_admin: bool,
}

impl Store for Server {
    const SCHEME: &str = "nats";
    const SHARES_OFFSETS: bool = true;
    const LARGE_MESSAGE_BYTES: usize = 500 << 10;

    fn start() -> Option<Self> {
        Self::start_with("")
    }

    fn process(&self) -> &BrokerProcess {
        &self.process
    }

    fn process_mut(&mut self) -> &mut BrokerProcess {
        &mut self.process
    }

    fn stored(&self) -> u64 {
        self.api(&format!("STREAM.INFO.{}", self.stream()), &Value::Null)["state"]["messages"]
            .as_u64()
            .unwrap()
    }

    fn remove_files(&self) {
        std::fs::remove_dir_all(self.files.path("js")).unwrap();
    }
}

impl Server {
    /// Starts a server with JetStream and further settings. Without a `nats-server` that is new
    /// enough, returns `None`: the test is skipped.
    pub(crate) fn start_with(settings: &str) -> Option<Self> {
        Some(Self::start_program(&program()?, &format!("{JETSTREAM}\n{settings}")))
    }

    /// Starts a server that keeps at most this number of bytes in its files.
    pub(crate) fn start_with_room(bytes: u64) -> Option<Self> {
        let settings = format!("jetstream {{ store_dir: \"FOLDER/js\", max_file_store: {bytes} }}");
        Some(Self::start_program(&program()?, &settings))
    }

    /// Starts a server without JetStream.
    pub(crate) fn start_without_jetstream() -> Option<Self> {
        Some(Self::start_program(&program()?, ""))
    }

    /// Starts a server with users. The first one may do everything.
    pub(crate) fn start_with_admin(settings: &str) -> Option<Self> {
        let mut server = Self::start_with(settings)?;
        server.has_admin = true;
        Some(server)
    }

    /// Starts a server of another program, with all of its settings.
    pub(crate) fn start_program(program: &Path, settings: &str) -> Self {
        let files = TemporaryDir::new();
        let process =
            BrokerProcess::start([127, 0, 0, 1], |address| command(program, address, settings, &files));
        Self { process, files, has_admin: false }
    }

    /// Starts three servers that replicate streams.
    pub(crate) fn start_cluster() -> Option<[Self; 3]> {
        let program = program()?;
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let members: [Member; 3] = std::array::from_fn(|_| Member { clients: address(), routes: address() });
        let routes: Vec<_> = members.iter().map(|member| format!("\"nats://{}\"", member.routes)).collect();
        Some(std::array::from_fn(|index| {
            let Member { clients, routes: own } = members[index];
            let settings = format!(
                "server_name: n{index}\n{JETSTREAM}\ncluster {{ name: c, listen: \"{own}\", routes: [{}] }}",
                routes.join(", ")
            );
            let files = TemporaryDir::new();
            let command = command(&program, clients, &settings, &files);
            let process = BrokerProcess::start_at(clients, command).expect("the server of a cluster starts");
            Self { process, files, has_admin: false }
        }))
    }

    pub(crate) fn url_of(&self, user: &str) -> String {
        format!("nats://{user}:secret@{}", self.address())
    }

    /// Copies all that the server has stored. The server must have been killed.
    pub(crate) fn copy_files(&self) -> PathBuf {
        let copy = self.files.path("copy");
        let status = Command::new("cp").arg("-a").arg(self.files.path("js")).arg(&copy).status();
        assert!(status.is_ok_and(|status| status.success()));
        copy
    }

    /// Replaces all that the server has stored by a copy. The server must have been killed.
    pub(crate) fn replace_files(&self, copy: &Path) {
        self.remove_files();
        std::fs::rename(copy, self.files.path("js")).unwrap();
    }

    /// Replaces the settings of a server by JetStream's and these, and lets it read them.
    pub(crate) fn reload_with(&self, settings: &str) {
        write_settings(self.address(), &format!("{JETSTREAM}\n{settings}"), &self.files);
        self.process.signal("HUP");
    }

    /// Makes a request, and returns the payload of the answer.
    fn request(&self, subject: &str, payload: &str) -> Vec<u8> {
        self.try_request(subject, payload, Duration::from_secs(30)).expect("the server answers")
    }

    /// Works like [`Self::request`]. Returns `None` if there is no answer in time.
    fn try_request(&self, subject: &str, payload: &str, timeout: Duration) -> Option<Vec<u8>> {
        let user = if self.has_admin { r#","user":"admin","pass":"secret""# } else { "" };
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(timeout)).unwrap();
        let commands = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true{user}}}\r\nSUB _INBOX.test 1\r\n\
             PUB {subject} _INBOX.test {}\r\n{payload}\r\n",
            payload.len()
        );
        stream.write_all(commands.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream);
        loop {
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(length) => assert!(length > 0, "the server closed the connection"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error}"),
            }
            let sizes: Vec<usize> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            match line.split_whitespace().next() {
                Some("MSG") => {
                    let mut payload = vec![0; sizes[1]];
                    lines.read_exact(&mut payload).unwrap();
                    return Some(payload);
                }
                // Nobody answers.
                Some("HMSG") => return Some(Vec::new()),
                Some("-ERR") => panic!("{line}"),
                _ => {}
            }
        }
    }

    /// Calls an operation of JetStream's API.
    pub(crate) fn api(&self, operation: &str, request: &Value) -> Value {
        let payload = if request.is_null() { String::new() } else { request.to_string() };
        let answer = self.request(&format!("$JS.API.{operation}"), &payload);
        serde_json::from_slice(&answer).unwrap_or_default()
    }

    /// Publishes a message.
    pub(crate) fn publish(&self, subject: &str, payload: &str) {
        assert!(!self.request(subject, payload).is_empty(), "no stream took the message");
    }

    /// Returns the names of all streams.
    pub(crate) fn streams(&self) -> Vec<String> {
        let answer = self.api("STREAM.NAMES", &Value::Null);
        let names = answer["streams"].as_array().cloned().unwrap_or_default();
        names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    /// Returns the only stream.
    pub(crate) fn stream(&self) -> String {
        let streams = self.streams();
        assert_eq!(streams.len(), 1, "{streams:?}");
        streams[0].clone()
    }

    /// Waits until the servers of a cluster accept streams with replicas.
    pub(crate) fn wait_for_cluster(&self) {
        eventually("a leader of the cluster", || {
            let settings =
                json!({ "name": "probe", "subjects": ["probe"], "num_replicas": 3, "storage": "memory" });
            // Servers without a leader do not answer.
            let create = self.try_request(
                "$JS.API.STREAM.CREATE.probe",
                &settings.to_string(),
                Duration::from_secs(2),
            );
            create.is_some_and(|answer| {
                let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
                answer["config"].is_object()
                    && self.api("STREAM.DELETE.probe", &Value::Null)["success"] == true
            })
        });
    }
}

/// Addresses of a server of a cluster.
struct Member {
    clients: SocketAddr,
    routes: SocketAddr,
}

/// Returns the server of the checkout's Python environment, which is new enough for streams.
fn program() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/nats-server");
    let found = if path.exists() { Ok(path) } else { Err("run tests/peers/install python for NATS 2.15") };
    Capability::Brokers.check(found)
}

/// Returns Debian's server, which is too old for streams.
pub(crate) fn old_program() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/sbin/nats-server");
    let found = if path.exists() { Ok(path) } else { Err("nats-server is not installed") };
    Capability::Brokers.check(found)
}

fn command(program: &Path, address: SocketAddr, settings: &str, files: &TemporaryDir) -> Command {
    let settings = write_settings(address, settings, files);
    let mut command = Command::new(program);
    command.arg("-c").arg(settings).arg("-l").arg(files.path("log"));
    command
}

/// Writes the file of settings, and returns its path.
fn write_settings(address: SocketAddr, settings: &str, files: &TemporaryDir) -> PathBuf {
    let folder = files.path("");
    let settings = settings.replace("FOLDER", folder.to_str().unwrap());
    files.write("settings", &format!("listen: \"{address}\"\n{settings}\n"))
}
