//! NATS servers with JetStream, and requests to their API.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::capability::Capability;
use crate::{WAIT_TIMEOUT, eventually};

/// Number of servers and ports that this process has tried.
static TRIED: AtomicU16 = AtomicU16::new(0);

/// A server; killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    program: PathBuf,
    directory: PathBuf,
    /// `true` if requests to the API need the user `admin`.
    has_admin: bool,
}

/// A server of three or of one, with its address and that of its routes.
type Member = (SocketAddr, SocketAddr);

impl Server {
    /// Starts a server with further settings. Without a `nats-server` that is new enough, returns
    /// `None`: the test is skipped.
    pub(crate) fn start(settings: &str) -> Option<Self> {
        Some(Self::start_program(
            &program()?,
            &format!("jetstream {{ store_dir: \"FOLDER/js\" }}\n{settings}"),
        ))
    }

    /// Starts a server without JetStream.
    pub(crate) fn start_without_jetstream() -> Option<Self> {
        Some(Self::start_program(&program()?, ""))
    }

    /// Starts a server with users. The first one may do everything.
    pub(crate) fn start_with_admin(settings: &str) -> Option<Self> {
        let mut server = Self::start(settings)?;
        server.has_admin = true;
        Some(server)
    }

    /// Starts a server of another program, with all of its settings.
    pub(crate) fn start_program(program: &Path, settings: &str) -> Self {
        // Another program may take the port meanwhile.
        for _ in 0..5 {
            let address = free_address();
            if let Some(server) = Self::start_at(program, address, settings) {
                return server;
            }
        }
        panic!("nats-server did not start");
    }

    fn start_at(program: &Path, address: SocketAddr, settings: &str) -> Option<Self> {
        let number = TRIED.fetch_add(1, Ordering::Relaxed);
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nats-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let settings = settings.replace("FOLDER", directory.to_str().unwrap());
        std::fs::write(directory.join("settings"), format!("listen: \"{address}\"\n{settings}\n")).unwrap();
        let child = spawn(program, &directory);
        let program = program.to_owned();
        let mut server = Self { address, child, program, directory, has_admin: false };
        server.listens().then_some(server)
    }

    /// Starts three servers that replicate streams.
    pub(crate) fn start_cluster() -> Option<[Self; 3]> {
        let program = program()?;
        let members: [Member; 3] = std::array::from_fn(|_| (free_address(), free_address()));
        let routes: Vec<_> = members.iter().map(|(_, route)| format!("\"nats://{route}\"")).collect();
        Some(std::array::from_fn(|index| {
            let (address, route) = members[index];
            let settings = format!(
                "server_name: n{index}\njetstream {{ store_dir: \"FOLDER/js\" }}\n\
                 cluster {{ name: c, listen: \"{route}\", routes: [{}] }}",
                routes.join(", ")
            );
            Self::start_at(&program, address, &settings).expect("the server of a cluster starts")
        }))
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) fn url_of(&self, user: &str) -> String {
        format!("nats://{user}:secret@{}", self.address)
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts the server again on the same port.
    pub(crate) fn start_again(&mut self) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            self.child = spawn(&self.program, &self.directory);
            if self.listens() {
                return;
            }
            assert!(Instant::now() < deadline, "nats-server did not restart");
        }
    }

    /// Copies what the server has stored, to be put back later.
    pub(crate) fn copy_store(&self) -> PathBuf {
        let copy = self.directory.join("copy");
        let status = Command::new("cp").arg("-a").arg(self.directory.join("js")).arg(&copy).status();
        assert!(status.is_ok_and(|status| status.success()));
        copy
    }

    /// Replaces what the server has stored. The server must be killed.
    pub(crate) fn put_back(&self, copy: Option<&Path>) {
        std::fs::remove_dir_all(self.directory.join("js")).unwrap();
        if let Some(copy) = copy {
            std::fs::rename(copy, self.directory.join("js")).unwrap();
        }
    }

    /// Replaces the further settings of a server with [`Self::start`]'s, and lets it read them.
    pub(crate) fn reload(&self, settings: &str) {
        let address = self.address;
        let store = self.directory.join("js");
        let settings = format!(
            "listen: \"{address}\"\njetstream {{ store_dir: \"{}\" }}\n{settings}\n",
            store.display()
        );
        std::fs::write(self.directory.join("settings"), settings).unwrap();
        self.signal("HUP");
    }

    /// Sends a signal by its name, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{name}");
    }

    fn listens(&mut self) -> bool {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Makes a request, and returns the payload of the answer.
    fn request(&self, subject: &str, payload: &str) -> Vec<u8> {
        self.try_request(subject, payload, Duration::from_secs(30)).expect("the server answers")
    }

    /// Works like [`Self::request`]. Returns `None` if there is no answer in time.
    fn try_request(&self, subject: &str, payload: &str, timeout: Duration) -> Option<Vec<u8>> {
        let user = if self.has_admin { r#","user":"admin","pass":"secret""# } else { "" };
        let mut stream = TcpStream::connect(self.address).unwrap();
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

    /// Returns the number of messages in the only stream.
    pub(crate) fn stored(&self) -> u64 {
        self.api(&format!("STREAM.INFO.{}", self.stream()), &Value::Null)["state"]["messages"]
            .as_u64()
            .unwrap()
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

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
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

fn spawn(program: &Path, directory: &Path) -> Child {
    Command::new(program)
        .arg("-c")
        .arg(directory.join("settings"))
        .arg("-l")
        .arg(directory.join("log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server can be started")
}

/// Returns an address that is free now, with a port below those that the system gives to clients.
fn free_address() -> SocketAddr {
    const FIRST: u32 = 11_000;
    const COUNT: u32 = 20_000;
    let start = std::process::id().wrapping_mul(7919) % COUNT;
    for _ in 0..COUNT {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from(([127, 0, 0, 1], (FIRST + (start + tried) % COUNT) as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port of loopback is free");
}
