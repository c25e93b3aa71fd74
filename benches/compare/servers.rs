//! The servers that are compared, and the generator.

use std::env;
use std::error::Error;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::scenario::{Figures, Scenario};

/// Whatever is asked for: no limit of our server is to be what is measured. The rate limit counts all the same.
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

/// A server that can be started.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// Where Node finds the library.
    modules: Option<PathBuf>,
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Where the programs of this workspace are.
    programs: PathBuf,
    /// Where npm has installed `ws`; `None` where there is no npm or it failed.
    modules: Option<PathBuf>,
    /// Whether server and generator can have a core each.
    pins: bool,
}

/// Ends the process when it is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Tools {
    /// Builds the servers in this profile, and fetches `ws` if it is wanted.
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
        let programs = own.parent().ok_or("this program lies nowhere")?.to_owned();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let modules = if wants_ws { install_ws() } else { None };
        Ok(Self { programs, modules, pins: cores > 1 && runs("taskset", "--version") })
    }

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

    /// Starts a server, drives it, and ends it.
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

    /// Leaves the server's core to the server: what asks its API runs beside the generator.
    pub(crate) fn step_aside(&self) {
        if self.pins {
            let own = std::process::id().to_string();
            let moved = Command::new("taskset")
                .args(["--cpu-list", "--pid", "1", &own])
                .stdout(Stdio::null())
                .status();
            if !moved.is_ok_and(|status| status.success()) {
                eprintln!("this program cannot be moved off the server's core");
            }
        }
    }

    /// The flags of our server for what is not to limit it.
    pub(crate) fn limits(&self) -> Vec<&str> {
        LIMITS.to_vec()
    }

    /// Starts one of this workspace's programs on a core of its own, where there are two.
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

    /// Drives a server that runs.
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
        Ok(Figures::of(&serde_json::from_slice(&output.stdout)?))
    }

    /// `taskset` becomes the program that it is given, so the process id is the program's.
    fn on_core(&self, core: &str, program: &Path) -> Command {
        if !self.pins {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", core]).arg(program);
        command
    }
}

/// Waits until something listens.
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

/// Installs `ws` outside of the repository, and answers where.
fn install_ws() -> Option<PathBuf> {
    if !runs("node", "--version") || !runs("npm", "--version") {
        eprintln!("without node and npm: `ws` is left out");
        return None;
    }
    let folder = env::temp_dir().join("deeperhub-benches-npm");
    let installed = Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--no-save", "--silent", "--prefix"])
        .arg(&folder)
        .arg("ws@8")
        .status();
    if !installed.is_ok_and(|status| status.success()) {
        eprintln!("npm cannot install `ws`: it is left out");
        return None;
    }
    Some(folder.join("node_modules"))
}

fn runs(program: &str, argument: &str) -> bool {
    let status = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
