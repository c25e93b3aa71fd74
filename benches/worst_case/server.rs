//! The server that is attacked.

use std::env;
use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What was built, and where it may run.
#[derive(Debug)]
pub(crate) struct Tools {
    server: PathBuf,
    /// Keys of tokens, for what attacks them.
    secret: PathBuf,
    /// Whether server and attackers have a core each.
    pins: bool,
}

impl Tools {
    /// Builds the server, and leaves the first core to it.
    pub(crate) fn build() -> Result<Self, Box<dyn Error>> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--release", "--package", "deeperhub-ws"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()?;
        if !built.success() {
            return Err("the server could not be built".into());
        }
        let own = env::current_exe()?;
        let programs = own.parent().ok_or("this program lies nowhere")?;
        let secret = programs.join("worst-case.secret");
        fs::write(&secret, "a secret of 32 bytes, which is enough\n")?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pins = cores > 1 && moves_off_the_first_core();
        if !pins {
            eprintln!("server and attackers share their cores: the figures say less");
        }
        Ok(Self { server: programs.join("deeperhub-ws"), secret, pins })
    }

    /// Starts a server with default limits and one worker.
    pub(crate) fn start(&self, has_keys: bool) -> Result<Server, Box<dyn Error>> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = if self.pins {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", "0"]).arg(&self.server);
            command
        } else {
            Command::new(&self.server)
        };
        command.args(["--workers", "1", "--api-listen", "off", "--host", "127.0.0.1"]);
        command.args(["--port", &port.to_string()]);
        if has_keys {
            command.arg("--auth-secret-file").arg(&self.secret);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Server { child, clients: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(server.clients).is_err() {
            if Instant::now() > end {
                return Err("the server does not listen".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

/// Leaves the server's core to the server.
fn moves_off_the_first_core() -> bool {
    let own = std::process::id().to_string();
    let moved = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", "1", &own])
        .stdout(Stdio::null())
        .status();
    moved.is_ok_and(|status| status.success())
}

/// A server that runs; its process ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where clients connect.
    pub(crate) clients: SocketAddr,
}

impl Server {
    /// Time of processors that it has used so far.
    pub(crate) fn cpu_time(&self) -> Result<Duration, Box<dyn Error>> {
        /// Linux counts for all programs in hundredths of a second.
        const TICKS: u64 = 100;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in brackets may have blanks in it.
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let (user, system) = (ticks().ok_or("no user time")?, ticks().ok_or("no system time")?);
        Ok(Duration::from_millis((user + system) * (1000 / TICKS)))
    }

    /// The most memory that it had at a time.
    pub(crate) fn peak_resident_bytes(&self) -> Result<u64, Box<dyn Error>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.ok_or("no peak of memory in /proc/PID/status")? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
