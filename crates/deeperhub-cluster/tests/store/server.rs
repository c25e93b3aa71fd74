//! A Redis server for one test, and commands to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::WAIT_TIMEOUT;
use crate::capability::Capability;

/// Number of servers and ports that this process has tried.
static TRIED: AtomicU16 = AtomicU16::new(0);

/// A server; killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    flags: Vec<String>,
    directory: PathBuf,
}

/// A reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Status(String),
    Error(String),
    Number(i64),
    Bytes(Vec<u8>),
    List(Vec<Self>),
}

impl Reply {
    pub(crate) fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            other => panic!("expected a number, got {other:?}"),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            other => panic!("expected bytes, got {other:?}"),
        }
    }
}

impl Server {
    /// Starts a server with further flags. Without `redis-server`, returns `None`: the test is
    /// skipped.
    pub(crate) fn start(flags: &[&str]) -> Option<Self> {
        let program = Capability::Brokers.check(program())?;
        // Another program may take the port meanwhile.
        for _ in 0..5 {
            let number = TRIED.fetch_add(1, Ordering::Relaxed);
            let directory =
                Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("redis-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let child = spawn(&program, address, &flags, &directory);
            let mut server = Self { address, child, flags, directory };
            if server.listens() {
                return Some(server);
            }
        }
        panic!("redis-server did not start");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Kills the server and starts an empty one on the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            self.child = spawn(&program().unwrap(), self.address, &self.flags, &self.directory);
            if self.listens() {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server did not restart");
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

    /// Sends a command and returns its reply.
    pub(crate) fn run(&self, command: &[&str]) -> Reply {
        let mut stream = TcpStream::connect(self.address).expect("Redis accepts connections");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        stream.write_all(encode(command).as_bytes()).expect("Redis takes a command");
        read(&mut BufReader::new(stream))
    }

    /// Opens a connection of the default user, which has a password.
    pub(crate) fn admin(&self, password: &str) -> Admin {
        let stream = TcpStream::connect(self.address).expect("Redis accepts connections");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut admin = Admin(BufReader::new(stream));
        admin.command(&["AUTH", password]);
        admin
    }

    /// Sends a command that does not wait for its reply.
    pub(crate) fn run_later(&self, command: &'static [&'static str]) -> std::thread::JoinHandle<()> {
        let mut stream = TcpStream::connect(self.address).expect("Redis accepts connections");
        stream.write_all(format!("{}\r\n", command.join(" ")).as_bytes()).expect("Redis takes a command");
        std::thread::spawn(move || {
            let _ = stream.set_read_timeout(Some(WAIT_TIMEOUT));
            let _ = BufReader::new(stream).read_line(&mut String::new());
        })
    }

    /// Returns the IDs of the connections whose last command was `command`.
    pub(crate) fn clients(&self, command: &str) -> Vec<String> {
        let list = self.run(&["CLIENT", "LIST"]);
        let list = String::from_utf8_lossy(list.bytes()).into_owned();
        let field = |line: &str, name: &str| {
            line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
        };
        let is_of = |line: &&str| field(line, "cmd").is_some_and(|cmd| cmd.starts_with(command));
        list.lines().filter(is_of).filter_map(|line| field(line, "id")).collect()
    }
}

/// A connection that stays open.
#[derive(Debug)]
pub(crate) struct Admin(BufReader<TcpStream>);

impl Admin {
    /// Sends a command that must succeed.
    pub(crate) fn command(&mut self, command: &[&str]) {
        self.0.get_mut().write_all(encode(command).as_bytes()).expect("Redis takes a command");
        assert_eq!(read(&mut self.0), Reply::Status("OK".to_owned()), "{command:?}");
    }
}

fn encode(command: &[&str]) -> String {
    let arguments = command.iter().map(|argument| format!("${}\r\n{argument}\r\n", argument.len()));
    format!("*{}\r\n", command.len()) + &arguments.collect::<String>()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn program() -> Result<PathBuf, String> {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let mut paths = places.iter().map(|place| Path::new(place).join("redis-server"));
    paths.find(|path| path.exists()).ok_or_else(|| "redis-server is not installed".to_owned())
}

fn spawn(program: &Path, address: SocketAddr, flags: &[String], directory: &Path) -> Child {
    Command::new(program)
        .args(["--bind", "127.0.0.1", "--protected-mode", "no", "--save", "", "--port"])
        .arg(address.port().to_string())
        .args(["--enable-debug-command", "yes", "--dir"])
        .arg(directory)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server can be started")
}

/// Returns a port that is free now, below those that the system gives to clients.
fn free_port() -> u16 {
    const FIRST: u32 = 11_000;
    const COUNT: u32 = 20_000;
    let start = std::process::id().wrapping_mul(7919) % COUNT;
    for _ in 0..COUNT {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + (start + tried) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of loopback is free");
}

fn read(stream: &mut BufReader<TcpStream>) -> Reply {
    let mut line = String::new();
    stream.read_line(&mut line).expect("Redis answers");
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).expect("Redis answers");
    let length = || rest.parse::<i64>().expect("a length");
    match kind {
        "+" => Reply::Status(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Number(length()),
        "$" if length() < 0 => Reply::Nil,
        "$" => {
            let mut bytes = vec![0; length() as usize + 2];
            stream.read_exact(&mut bytes).expect("Redis answers");
            bytes.truncate(length() as usize);
            Reply::Bytes(bytes)
        }
        "*" if length() < 0 => Reply::Nil,
        "*" => Reply::List((0..length()).map(|_| read(stream)).collect()),
        other => panic!("unknown reply {other}"),
    }
}
