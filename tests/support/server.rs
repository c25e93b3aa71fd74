//! Servers and other runs of the program.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::broker_process::send_signal;
use super::{WAIT_TIMEOUT, text};

/// A finished program.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

/// Runs the program with these arguments and variables to its end.
///
/// # Panics
///
/// If it does not end in time.
pub(crate) fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
    let mut child = Running::start(arguments, variables);
    let status = child.wait();
    let stdout: Vec<_> = child.stdout.iter().collect();
    Finished {
        code: status.code(),
        stdout: stdout.iter().map(|line| format!("{line}\n")).collect(),
        stderr: child.into_stderr(),
    }
}

/// A running server on its own ports; killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    running: Running,
    /// The address for clients.
    pub(crate) clients: SocketAddr,
    /// The address of its API, unless it is off.
    pub(crate) api: Option<SocketAddr>,
    /// The line that it printed when it was ready.
    pub(crate) start_line: String,
}

impl Server {
    /// Starts a server with these flags, on free loopback ports unless the flags set others.
    ///
    /// # Panics
    ///
    /// If it does not print its start line in time, with its output.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, &[])
    }

    /// Starts like [`Self::start`], with environment variables.
    pub(crate) fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Starting::with(flags, variables, Reads::All).ready()
    }

    /// Starts a server with a file of settings, which also sets its ports.
    pub(crate) fn start_with_file(path: &Path) -> Self {
        Starting(Running::start(&["--config", text(path)], &[])).ready()
    }

    /// Starts like [`Self::start`], but another program, such as one of an earlier version.
    #[allow(dead_code, reason = "only the main suite runs other programs")]
    pub(crate) fn start_program(program: &Path, flags: &[&str]) -> Self {
        let arguments = Starting::arguments(flags);
        Starting(Running::start_program(program, &arguments, &[], Reads::All)).ready()
    }

    /// Starts like [`Self::start`], but leaves standard error unread until [`Self::read_stderr`].
    pub(crate) fn start_unread(flags: &[&str]) -> Self {
        Starting::with(flags, &[], Reads::Stdout).ready()
    }

    /// Returns the URL of a path for clients.
    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.start_line.contains("wss://") { "wss" } else { "ws" };
        format!("{scheme}://{}{path}", self.clients)
    }

    /// Returns the address of the API.
    ///
    /// # Panics
    ///
    /// If it is off.
    pub(crate) fn api(&self) -> SocketAddr {
        self.api.expect("the API is on")
    }

    /// Returns the resident memory of the process in bytes.
    ///
    /// # Panics
    ///
    /// If the system does not tell.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Returns the peak of resident memory in bytes.
    ///
    /// # Panics
    ///
    /// If the system does not tell.
    #[allow(dead_code, reason = "only the adversary suite measures peaks")]
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// Returns the ID of the process.
    #[allow(dead_code, reason = "only the main suite kills servers from outside")]
    pub(crate) fn process_id(&self) -> u32 {
        self.running.child.id()
    }

    fn status_bytes(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.running.child.id());
        let status = std::fs::read_to_string(path).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("the system tells how much memory it has") * 1024
    }

    /// Returns two totals over the live threads of the process: the time they ran and the time they
    /// waited for a CPU.
    ///
    /// # Panics
    ///
    /// If the system does not tell.
    #[allow(dead_code, reason = "only the adversary suite judges how busy the machine is")]
    pub(crate) fn scheduled(&self) -> (Duration, Duration) {
        let path = format!("/proc/{}/task", self.running.child.id());
        let threads = std::fs::read_dir(path).expect("the process runs").filter_map(Result::ok);
        let mut total = (Duration::ZERO, Duration::ZERO);
        for thread in threads {
            // A thread may have ended since the directory was read.
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let mut times = text.split(' ').map_while(|nanoseconds| nanoseconds.trim().parse().ok());
            total.0 += Duration::from_nanos(times.next().unwrap_or(0));
            total.1 += Duration::from_nanos(times.next().unwrap_or(0));
        }
        total
    }

    /// Returns the CPU time of all live threads.
    ///
    /// # Panics
    ///
    /// If the system does not tell.
    pub(crate) fn processor_time(&self) -> Duration {
        let path = format!("/proc/{}/task", self.running.child.id());
        let tasks = std::fs::read_dir(path).expect("the process runs");
        let nanoseconds = |task: std::io::Result<std::fs::DirEntry>| {
            let path = task.expect("the process runs").path().join("schedstat");
            // A thread may have ended since the directory was read.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or_default()
        };
        Duration::from_nanos(tasks.map(nanoseconds).sum())
    }

    /// Returns the number of open file descriptors of the process.
    ///
    /// # Panics
    ///
    /// If the system does not tell.
    pub(crate) fn open_files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.running.child.id());
        std::fs::read_dir(path).expect("the process runs").count()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        self.running.signal(name);
    }

    /// Starts to read standard error.
    pub(crate) fn read_stderr(&mut self) {
        self.running.read_stderr();
    }

    /// Waits for the server to exit.
    ///
    /// # Panics
    ///
    /// If it does not exit in time.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.running.wait()
    }

    /// Closes the reading end of its standard error after the next output.
    pub(crate) fn close_stderr(&self) {
        self.running.stop_reading.store(true, Ordering::Relaxed);
    }

    /// Returns its standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.running.stderr()
    }

    /// Returns the standard output since it was ready, as far as it has been read.
    pub(crate) fn stdout(&self) -> String {
        self.running.stdout.try_iter().map(|line| format!("{line}\n")).collect()
    }

    /// Waits until it has written a text to standard error.
    ///
    /// # Panics
    ///
    /// If the text does not appear in time, with the output instead.
    pub(crate) fn wait_for_stderr(&self, text: &str) {
        self.running.wait_for_stderr(text);
    }
}

/// Outputs of a program that are read so that their pipes do not fill up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    All,
    Stdout,
}

/// A server that may still be starting. It is killed on drop.
#[derive(Debug)]
pub(crate) struct Starting(Running);

impl Starting {
    /// Starts a server like [`Server::start`], without waiting for its start line.
    pub(crate) fn new(flags: &[&str]) -> Self {
        Self::with(flags, &[], Reads::All)
    }

    fn with(flags: &[&str], variables: &[(&str, &str)], reads: Reads) -> Self {
        Self(Running::start_reading(&Self::arguments(flags), variables, reads))
    }

    fn arguments<'f>(flags: &[&'f str]) -> Vec<&'f str> {
        let mut arguments = Vec::new();
        for (flag, free) in [("--port", "0"), ("--api-listen", "127.0.0.1:0")] {
            if !flags.contains(&flag) {
                arguments.extend([flag, free]);
            }
        }
        arguments.extend(flags);
        arguments
    }

    /// Waits for the start line.
    ///
    /// # Panics
    ///
    /// If it does not print the line in time, with its output.
    pub(crate) fn ready(self) -> Server {
        let Self(mut running) = self;
        let start_line = match running.stdout.recv_timeout(WAIT_TIMEOUT) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("no start line; output: {}", running.stderr()),
            Err(RecvTimeoutError::Disconnected) => {
                let status = running.wait();
                panic!("{status} before it was ready; output: {}", running.into_stderr());
            }
        };
        let after = |scheme: &str| {
            let rest = start_line.split_once(scheme)?.1;
            rest.split([' ', ')']).next()?.parse().ok()
        };
        let clients = after("ws://")
            .or_else(|| after("wss://"))
            .unwrap_or_else(|| panic!("no address in the start line: {start_line}"));
        let api = after("http://").or_else(|| after("https://"));
        Server { running, clients, api, start_line }
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        self.0.signal(name);
    }

    /// Waits for the exit and returns the output.
    ///
    /// # Panics
    ///
    /// If it does not exit in time.
    pub(crate) fn wait(mut self) -> Finished {
        let status = self.0.wait();
        let stdout: Vec<_> = self.0.stdout.iter().collect();
        Finished {
            code: status.code(),
            stdout: stdout.iter().map(|line| format!("{line}\n")).collect(),
            stderr: self.0.into_stderr(),
        }
    }
}

/// Interval of polling.
const POLL: Duration = Duration::from_millis(5);

/// A running program whose output is read continuously, so that no pipe fills up.
#[derive(Debug)]
struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: Option<JoinHandle<()>>,
    stop_reading: Arc<AtomicBool>,
    /// Standard error while it is unread.
    unread: Option<ChildStderr>,
}

impl Running {
    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_reading(arguments, variables, Reads::All)
    }

    fn start_reading(arguments: &[&str], variables: &[(&str, &str)], reads: Reads) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_deeperhub-ws"));
        Self::start_program(program, arguments, variables, reads)
    }

    fn start_program(program: &Path, arguments: &[&str], variables: &[(&str, &str)], reads: Reads) -> Self {
        let mut command = Command::new(program);
        // Variables of the person who runs the tests must not reach the program.
        for (name, _) in std::env::vars_os() {
            let name_bytes = name.as_encoded_bytes();
            if name_bytes.starts_with(b"DEEPERHUB_") || name_bytes.starts_with(b"OTEL_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(arguments)
            .env("COLUMNS", "100")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");

        let (lines, stdout) = channel();
        let from_child = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        std::thread::spawn(move || {
            from_child.lines().map_while(Result::ok).try_for_each(|line| lines.send(line).map_err(drop))
        });
        let unread = child.stderr.take();
        let mut running = Self {
            child,
            stdout,
            stderr: Arc::default(),
            stderr_reader: None,
            stop_reading: Arc::default(),
            unread,
        };
        if reads == Reads::All {
            running.read_stderr();
        }
        running
    }

    fn read_stderr(&mut self) {
        let mut from_child = self.unread.take().expect("standard error is a pipe that is not read yet");
        let (written, stop) = (Arc::clone(&self.stderr), Arc::clone(&self.stop_reading));
        self.stderr_reader = Some(std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from_child.read(&mut buffer) {
                written.lock().unwrap().extend_from_slice(&buffer[..length]);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }));
    }

    fn wait_for_stderr(&self, text: &str) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while !self.stderr().contains(text) {
            assert!(Instant::now() < deadline, "timed out waiting for {text:?}; output: {}", self.stderr());
            std::thread::sleep(POLL);
        }
    }

    fn signal(&self, name: &str) {
        send_signal(self.child.id(), name);
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "it did not exit; output: {}", self.stderr());
            std::thread::sleep(POLL);
        }
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// Returns all of its standard error; it must have exited.
    fn into_stderr(mut self) -> String {
        if let Some(reader) = self.stderr_reader.take() {
            let _ = reader.join();
        }
        self.stderr()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
