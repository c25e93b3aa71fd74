//! The servers and the load generator.

use std::env;
use std::error::Error;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::scenario::{Figures, Scenario};

/// Limits of deeperhub-ws that no scenario reaches. The rate limit stays on, so that its cost
/// counts.
const LIMITS: [&str; 12] = [
    "--max-connections",
    "20000",
    "--connection-rate-per-ip",
    "0",
    "--rate-limit",
    "1000000",
    "--rate-burst",
    "1000000",
    "--max-queue-bytes",
    "67108864",
    "--workers",
    "1",
];

/// A server program and its arguments.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// Folder of npm modules.
    modules: Option<PathBuf>,
}

/// The programs of the comparison.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Folder of the programs of this workspace.
    programs: PathBuf,
    /// Folder of the npm module `ws`; `None` without npm, or if the installation failed.
    modules: Option<PathBuf>,
    /// `true` if programs are pinned: the server and the load generator have one core each.
    pins: bool,
}

/// A process that is killed on drop.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that the process has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Tools {
    /// Builds the servers in the release profile, and installs `ws` if it is needed.
    pub(crate) fn build(wants_ws: bool) -> Result<Self, Box<dyn Error>> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args([
                "build",
                "--release",
                "--package",
                "deeperhub-ws",
                "--package",
                "deeperhub-benches",
                "--bins",
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()?;
        if !built.success() {
            return Err("the servers could not be built".into());
        }
        let own = env::current_exe()?;
        let programs = own.parent().ok_or("this program has no folder")?.to_owned();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let modules = if wants_ws { install_ws() } else { None };
        Ok(Self { programs, modules, pins: cores > 1 && runs("taskset", "--version") })
    }

    /// Returns the servers to compare.
    pub(crate) fn servers(&self) -> Vec<Server> {
        let own = |name, file: &str, flags: &[&str]| Server {
            name,
            program: self.programs.join(file),
            arguments: flags.iter().map(|&flag| flag.to_owned()).collect(),
            modules: None,
        };
        let mut flags = LIMITS.to_vec();
        flags.extend(["--api-listen", "off", "--port"]);
        let mut servers = vec![
            own("deeperhub-ws", "deeperhub-ws", &flags),
            own("tokio-tungstenite", "tungstenite-server", &[]),
        ];
        if let Some(modules) = &self.modules {
            servers.push(Server {
                name: "npm ws",
                program: "node".into(),
                arguments: vec![format!("{}/peers/ws.js", env!("CARGO_MANIFEST_DIR"))],
                modules: Some(modules.clone()),
            });
        }
        servers
    }

    /// Starts a server, runs a scenario against it, and kills it.
    pub(crate) fn measure(
        &self,
        server: &Server,
        scenario: &Scenario,
        seconds: u64,
    ) -> Result<Figures, Box<dyn Error>> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = self.on_core("0", &server.program);
        command.args(&server.arguments).arg(port.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(modules) = &server.modules {
            command.env("NODE_PATH", modules);
        }
        let running = Running(command.spawn()?);
        wait_for(port)?;
        self.bench(&running, port, scenario, seconds)
    }

    /// Moves this process, which polls the server's API, to the core of the load generator.
    pub(crate) fn move_off_server_core(&self) {
        if self.pins {
            let own = std::process::id().to_string();
            let moved = Command::new("taskset")
                .args(["--cpu-list", "--pid", "1", &own])
                .stdout(Stdio::null())
                .status();
            if !moved.is_ok_and(|status| status.success()) {
                eprintln!("cannot move this program off the server's core; figures include its CPU use");
            }
        }
    }

    /// Returns the limits of deeperhub-ws as flags.
    pub(crate) fn limits(&self) -> Vec<&str> {
        LIMITS.to_vec()
    }

    /// Starts a program of this workspace. Pins it to `core` if programs are pinned.
    pub(crate) fn start_on(
        &self,
        core: &str,
        program: &str,
        arguments: &[String],
        variables: &[(&str, String)],
    ) -> Result<Running, Box<dyn Error>> {
        let mut command = self.on_core(core, &self.programs.join(program));
        command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Running(command.spawn()?))
    }

    /// Runs a scenario against a running server.
    pub(crate) fn bench(
        &self,
        running: &Running,
        port: u16,
        scenario: &Scenario,
        seconds: u64,
    ) -> Result<Figures, Box<dyn Error>> {
        let mut bench = self.on_core("1", &self.programs.join("deeperhub-ws"));
        bench.arg("bench").args(scenario.flags).args(["--json", "--connect-timeout", "60s"]);
        bench.args(["--duration", &format!("{seconds}s")]);
        if !scenario.is_idle {
            bench.args(["--warmup", "500ms"]);
        }
        bench.args(["--server-pid", &running.0.id().to_string()]);
        bench.args(["--url", &format!("ws://127.0.0.1:{port}/")]);
        let output = bench.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        Ok(Figures::from_report(&serde_json::from_slice(&output.stdout)?))
    }

    /// Returns a command that runs `program`, pinned to `core` if programs are pinned. `taskset`
    /// replaces itself with the program, so the process id is the program's.
    fn on_core(&self, core: &str, program: &Path) -> Command {
        if !self.pins {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", core]).arg(program);
        command
    }
}

/// Waits until a server listens on a port.
pub(crate) fn wait_for(port: u16) -> Result<(), Box<dyn Error>> {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if Instant::now() > end {
            return Err("the server does not listen".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Installs `ws` outside of the repository and returns its folder.
fn install_ws() -> Option<PathBuf> {
    if !runs("node", "--version") || !runs("npm", "--version") {
        eprintln!("node or npm is missing: skipping `ws`");
        return None;
    }
    let folder = env::temp_dir().join("deeperhub-benches-npm");
    let installed = Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--no-save", "--silent", "--prefix"])
        .arg(&folder)
        .arg("ws@8")
        .status();
    if !installed.is_ok_and(|status| status.success()) {
        eprintln!("npm cannot install `ws`: skipping it");
        return None;
    }
    Some(folder.join("node_modules"))
}

/// Returns `true` if a program can be run.
fn runs(program: &str, argument: &str) -> bool {
    let status = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
