//! Processes of brokers on ports of their own. Tests of the crates include this file too.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::WAIT_TIMEOUT;
use super::ports::free_port;

/// A broker's process, which accepts connections; killed on drop.
#[derive(Debug)]
pub(crate) struct BrokerProcess {
    address: SocketAddr,
    command: Command,
    child: Child,
}

impl BrokerProcess {
    /// Starts a broker on a free port. `command` returns its command for an address.
    ///
    /// # Panics
    ///
    /// If it accepts no connections in time.
    pub(crate) fn start(host: impl Into<IpAddr>, mut command: impl FnMut(SocketAddr) -> Command) -> Self {
        let host = host.into();
        // Another program may take the port meanwhile.
        for _ in 0..5 {
            let address = SocketAddr::from((host, free_port()));
            if let Some(process) = Self::start_at(address, command(address)) {
                return process;
            }
        }
        panic!("a broker did not start");
    }

    /// Starts a broker on an address. Returns `None` if it has exited.
    ///
    /// # Panics
    ///
    /// If there is no such program.
    pub(crate) fn start_at(address: SocketAddr, mut command: Command) -> Option<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(&mut command);
        let mut process = Self { address, command, child };
        process.wait_until_it_listens().then_some(process)
    }

    /// Returns the address for clients.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the ID of the process.
    #[allow(dead_code, reason = "only the whole-server tests kill brokers from outside")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the broker without a clean shutdown.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the broker, and starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            self.kill();
            self.child = spawn(&mut self.command);
            if self.wait_until_it_listens() {
                return;
            }
            assert!(Instant::now() < deadline, "{:?} did not restart", self.command);
        }
    }

    /// Sends a signal by its name, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        send_signal(self.child.id(), name);
    }

    /// Waits until the broker accepts connections. Returns `false` if it has exited.
    fn wait_until_it_listens(&mut self) -> bool {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while Instant::now() < deadline {
            if self.child.try_wait().expect("a child can be waited for").is_some() {
                return false;
            }
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("{command:?} did not start: {error}"))
}

/// Sends a signal to a process by its name. After `STOP`, returns when all threads have stopped: one
/// of them must run to stop the others, which takes a while on a busy machine.
pub(crate) fn send_signal(process: u32, name: &str) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {process}")).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{name} to {process}");
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while name == "STOP" && !is_stopped(process) {
        assert!(Instant::now() < deadline, "{process} did not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns `true` if no thread of a process runs.
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("a process has threads");
    threads.flatten().all(|thread| {
        // The state follows the name, which stands in parentheses. A thread may have ended meanwhile.
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z', 'X']))
    })
}
