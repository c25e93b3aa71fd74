//! A Redis server for one test, and commands to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::WAIT_TIMEOUT;
use crate::broker_process::BrokerProcess;
use crate::capability::Capability;
use crate::store::Store;
use crate::temporary::TemporaryDir;

/// A server; killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    process: BrokerProcess,
    files: TemporaryDir,
}

/// Key of the list of messages of the topic `t`.
pub(super) const LIST: &str = "{deeperhub:h:t}";

/// Key of the newest position of the topic `t`.
pub(super) const META: &str = "{deeperhub:h:t}m";

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

impl Store for Server {
    const SCHEME: &str = "redis";
    const SHARES_OFFSETS: bool = false;
    const LARGE_MESSAGE_BYTES: usize = 2 << 20;

    fn start() -> Option<Self> {
        // Redis would otherwise answer up to two seconds before it writes.
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    fn process(&self) -> &BrokerProcess {
        &self.process
    }

    fn process_mut(&mut self) -> &mut BrokerProcess {
        &mut self.process
    }

    fn stored(&self) -> u64 {
        self.run(&["LLEN", LIST]).number().cast_unsigned()
    }

    fn remove_files(&self) {
        std::fs::remove_dir_all(self.files.path("appendonlydir")).unwrap();
    }
}

impl Server {
    /// Starts a server with further flags. Without `redis-server`, returns `None`: the test is
    /// skipped.
    pub(crate) fn start_with(flags: &[&str]) -> Option<Self> {
        let program = Capability::Brokers.check(program())?;
        let files = TemporaryDir::new();
        let process =
            BrokerProcess::start([127, 0, 0, 1], |address| command(&program, address, flags, &files));
        Some(Self { process, files })
    }

    /// Sends a command and returns its reply.
    pub(crate) fn run(&self, command: &[&str]) -> Reply {
        let mut stream = TcpStream::connect(self.address()).expect("Redis accepts connections");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        stream.write_all(encode(command).as_bytes()).expect("Redis takes a command");
        read(&mut BufReader::new(stream))
    }

    /// Opens a connection of the default user, which has a password.
    pub(crate) fn admin(&self, password: &str) -> Admin {
        let stream = TcpStream::connect(self.address()).expect("Redis accepts connections");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut admin = Admin(BufReader::new(stream));
        admin.command(&["AUTH", password]);
        admin
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

fn program() -> Result<PathBuf, String> {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let mut paths = places.iter().map(|place| Path::new(place).join("redis-server"));
    paths.find(|path| path.exists()).ok_or_else(|| "redis-server is not installed".to_owned())
}

fn command(program: &Path, address: SocketAddr, flags: &[&str], files: &TemporaryDir) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--bind", "127.0.0.1", "--protected-mode", "no", "--save", "", "--port"])
        .arg(address.port().to_string())
        .arg("--dir")
        .arg(files.path("."))
        .args(flags);
    command
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
