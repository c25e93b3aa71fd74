//! Unread outputs and blocking inputs do not block clients, server API calls or
//! signals.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    Client, Server, Starting, TemporaryDir, WAIT_TIMEOUT, free_port, http, metric, text, wait_for,
};

/// Causes refused handshakes; each one logs a line at `debug`.
async fn refuse_handshakes(server: &Server, count: usize) {
    let mut all = JoinSet::new();
    for _ in 0..50 {
        let (address, count) = (server.clients, count / 50);
        all.spawn(async move {
            for _ in 0..count {
                assert_eq!(http(address, "GET /nothing", &[], "").await.status, 404);
            }
        });
    }
    all.join_all().await;
}

async fn check_alive(server: &Server) {
    let mut client = Client::connect(server).await;
    let echo = json!({"type": "echo", "id": 1, "data": "x"});
    assert_eq!(client.request(&echo).await, echo);
    assert_eq!(http(server.api(), "GET /health/ready", &[], "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_standard_error_does_not_block_the_server() {
    for flags in [&[][..], &["--log-format", "json"]] {
        let own = ["--log-level", "debug", "--log-queue-bytes", "65536", "--drain-timeout", "5s"];
        let mut server = Server::start_unread(&[&own, flags].concat());
        refuse_handshakes(&server, 3000).await;
        check_alive(&server).await;
        assert!(metric(&server, "deeperhub_log_lines_lost_total").await > 500);
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_log_lines_are_reported_when_the_log_is_read_again() {
    let own = ["--log-level", "debug", "--log-queue-bytes", "4096"];
    let mut server = Server::start_unread(&own);
    refuse_handshakes(&server, 1000).await;
    server.read_stderr();
    server.wait_for_stderr("Log lines lost on slow standard error");
    refuse_handshakes(&server, 50).await;
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    // Lines logged during shutdown are written.
    server.wait_for_stderr("Server stopped");
}

/// Starts with a full, unread pipe for both outputs, as with `2>&1` into a pipe that another
/// process has filled.
#[tokio::test(flavor = "multi_thread")]
async fn an_unread_standard_output_does_not_block_the_server() {
    let (_reader, mut full) = std::io::pipe().expect("a pipe can be created");
    // Capacity of a pipe (pipe(7)).
    full.write_all(&vec![b'x'; 65_536]).expect("a pipe takes 64 KiB");
    let (port, api) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_deeperhub-ws"));
    command.args(["--port", &port.to_string(), "--api-listen", &api, "--log-level", "debug"]);
    let stderr = full.try_clone().expect("a pipe has room for another writer");
    let mut child = command.stdin(Stdio::null()).stdout(full).stderr(stderr).spawn().expect("it starts");
    let address: SocketAddr = api.parse().expect("it is an address");
    wait_for("readiness", async {
        while tokio::net::TcpStream::connect(address).await.is_err()
            || http(address, "GET /health/ready", &[], "").await.status != 200
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let ended = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", child.id())).status();
    assert!(ended.is_ok_and(|status| status.success()));
    let deadline = Instant::now() + WAIT_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}

/// A startup failure is the last line of the log and ends the process.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_the_last_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = taken.local_addr().expect("it has an address").port().to_string();
    let finished = Starting::new(&["--port", &port, "--log-level", "trace"]).wait();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: cannot listen on 127.0.0.1:"), "{finished:?}");
}

/// A named pipe; reading it blocks until a writer opens it.
struct Pipe(PathBuf);

impl Pipe {
    fn new(files: &TemporaryDir) -> Self {
        let path = files.path("hub.toml");
        let made = Command::new("mkfifo").arg(&path).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo makes {}", path.display());
        Self(path)
    }

    /// Waits for a reader and returns the writing end.
    fn opened(&self) -> File {
        const O_NONBLOCK: i32 = 0o4000;
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            match File::options().write(true).custom_flags(O_NONBLOCK).open(&self.0) {
                Ok(file) => return file,
                Err(error) => assert!(Instant::now() < deadline, "the pipe has no reader: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

#[test]
fn signals_during_startup_are_kept_or_end_it_at_once() {
    let files = TemporaryDir::new();
    let pipe = Pipe::new(&files);
    let flags = ["--config", text(pipe.path())];
    for signal in ["TERM", "INT"] {
        let starting = Starting::new(&flags);
        let opened = pipe.opened();
        starting.signal(signal);
        let finished = starting.wait();
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(0), ""), "SIG{signal}: {finished:?}");
        drop(opened);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_startup_that_waits_for_its_broker() {
    // A broker that accepts connections and sends nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let url = format!("nats://{}", silent.local_addr().expect("it has an address"));
    let starting = Starting::new(&["--cluster", &url]);
    let _connection = wait_for("the node", silent.accept()).await;
    starting.signal("TERM");
    let finished = starting.wait();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("Stopped during start"), "{finished:?}");
    assert_eq!(finished.stdout, "", "it does not say that it listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocking_file_delays_only_its_own_reload() {
    let files = TemporaryDir::new();
    let pipe = Pipe::new(&files);
    let starting = Starting::new(&["--config", text(pipe.path())]);
    let mut opened = pipe.opened();
    for signal in ["HUP", "USR1", "USR2", "PIPE", "HUP"] {
        starting.signal(signal);
    }
    opened.write_all(b"max_subscriptions = 3\n").expect("a pipe takes a line");
    drop(opened);
    let mut server = starting.ready();
    server.wait_for_stderr("Signal ignored signal=\"SIGUSR1\"");
    // The SIGHUP sent during startup reloads the settings, from a pipe without a writer.
    server.wait_for_stderr("Slow reload continues in the background");
    check_alive(&server).await;
    let mut opened = pipe.opened();
    opened.write_all(b"max_subscriptions = 4\n").expect("a pipe takes a line");
    drop(opened);
    server.wait_for_stderr("Setting changed setting=\"max_subscriptions\"");
    server.signal("HUP");
    drop(pipe.opened());
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.stderr());
}
