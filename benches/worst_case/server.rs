//! Starts the server to attack and measures its process.

use std::env;
use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::attack::Attack;

/// The server program and the core that it runs on.
#[derive(Debug)]
pub(crate) struct Tools {
    server: PathBuf,
    /// Secret for tokens.
    secret: PathBuf,
    /// `true` if the server and the attackers have one core each.
    pins: bool,
}

impl Tools {
    /// Builds the server unless one is given, and moves this process off the first core.
    pub(crate) fn prepare(server: Option<PathBuf>) -> Result<Self, Box<dyn Error>> {
        let server = match server {
            Some(server) => server,
            None => build()?,
        };
        let secret = env::temp_dir().join(format!("worst-case-{}.secret", std::process::id()));
        fs::write(&secret, "a secret of 32 bytes, which is enough\n")?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pins = cores > 1 && move_off_first_core();
        if !pins {
            eprintln!("the server and the attackers share their cores, so the figures say less");
        }
        Ok(Self { server, secret, pins })
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
        command.args(["--port", &port.to_string()]).args(Attack::HISTORY_FLAGS);
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

impl Drop for Tools {
    fn drop(&mut self) {
        // An error only leaves a file in the folder for temporary files.
        let _ = fs::remove_file(&self.secret);
    }
}

/// Builds the server in the release profile and returns its path.
fn build() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--package", "deeperhub-ws"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if !built.success() {
        return Err("the server could not be built".into());
    }
    let own = env::current_exe()?;
    Ok(own.parent().ok_or("this program has no folder")?.join("deeperhub-ws"))
}

/// Moves this process off the server's core; returns `true` on success.
fn move_off_first_core() -> bool {
    let own = std::process::id().to_string();
    let moved = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", "1", &own])
        .stdout(Stdio::null())
        .status();
    moved.is_ok_and(|status| status.success())
}

/// A running server; dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Address for clients.
    pub(crate) clients: SocketAddr,
}

impl Server {
    /// Returns the CPU time used so far.
    pub(crate) fn cpu_time(&self) -> Result<Duration, Box<dyn Error>> {
        /// `USER_HZ`, which is 100 on all supported architectures.
        const TICKS: u64 = 100;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The process name in parentheses may contain spaces.
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let (user, system) = (ticks().ok_or("no user time")?, ticks().ok_or("no system time")?);
        Ok(Duration::from_millis((user + system) * (1000 / TICKS)))
    }

    /// Returns the peak of resident memory.
    pub(crate) fn peak_resident_bytes(&self) -> Result<u64, Box<dyn Error>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.ok_or("no peak of memory in /proc/PID/status")? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
