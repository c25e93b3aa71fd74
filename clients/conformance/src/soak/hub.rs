//! The hub, which is restarted and killed at random times.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Result;
use super::arguments::Arguments;

/// Time between two ends of the hub, in seconds.
const LIFETIME: std::ops::Range<u64> = 20..120;

/// Addresses of the hub that runs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) clients: SocketAddr,
    pub(super) api: SocketAddr,
}

/// A folder that is removed with this value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts the hub, and restarts it while `has_faults`. `on_restart` is called before each end and
/// after each start. The task ends the hub when it is aborted.
pub(super) async fn keep_running(
    arguments: &Arguments,
    mut has_faults: watch::Receiver<bool>,
    mut random: fastrand::Rng,
    mut on_restart: impl FnMut() + Send + 'static,
) -> Result<(watch::Receiver<Addresses>, JoinHandle<Result>)> {
    let program = arguments.hub.clone();
    let name = format!("deeperhub-soak-{}-{:08x}", std::process::id(), fastrand::u32(..));
    let folder = arguments.on_disk.then(|| Folder(std::env::temp_dir().join(name)));
    let path = folder.as_ref().map(|folder| folder.0.clone());
    let (mut hub, addresses) = start(&program, path.as_deref()).await?;
    let (sender, receiver) = watch::channel(addresses);
    let task = tokio::spawn(async move {
        let _folder = folder;
        loop {
            let lifetime = Duration::from_secs(random.u64(LIFETIME));
            let is_over = async { has_faults.wait_for(|has_faults| !has_faults).await.is_ok() };
            if tokio::time::timeout(lifetime, is_over).await.is_ok() {
                std::future::pending::<()>().await;
            }
            on_restart();
            if random.bool() {
                hub.kill().await?;
            } else if let Some(id) = hub.id() {
                Command::new("kill").arg(id.to_string()).status().await?;
                hub.wait().await?;
            }
            let started = start(&program, path.as_deref()).await;
            let addresses = started.inspect_err(|error| eprintln!("soak: {error}"))?;
            hub = addresses.0;
            on_restart();
            sender.send_replace(addresses.1);
        }
    });
    Ok((receiver, task))
}

/// Starts the hub and reads its addresses from its first line.
async fn start(program: &Path, folder: Option<&Path>) -> Result<(Child, Addresses)> {
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", "0", "--api-listen", "127.0.0.1:0"]);
    command.args(["--rate-limit", "0", "--drain-timeout", "2s", "--log-level", "warn"]);
    match folder {
        Some(folder) => {
            command.args(["--topic", "soak.>: history=100000 history_bytes=64MiB ttl=1h ack=disk"]);
            command.args(["--history-store", "disk", "--history-dir"]).arg(folder);
        }
        None => {
            command.args(["--topic", "soak.>: history=100000 history_bytes=64MiB ttl=1h"]);
        }
    }
    let mut hub = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let stdout = hub.stdout.take().ok_or("the hub has no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = lines.next_line().await?.ok_or("the hub ended at its start")?;
    let address = |before: &str| {
        let (_, rest) = line.split_once(before)?;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    match (address("ws://"), address("API http://")) {
        (Some(clients), Some(api)) => Ok((hub, Addresses { clients, api })),
        _ => Err(format!("no addresses in the hub's first line: {line}").into()),
    }
}
