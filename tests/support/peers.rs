//! Third-party programs that the tests run.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Capability, Finished, ROOT};

/// A third-party program that tests use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Python with the packages of `tests/peers/requirements.txt`.
    Python,
    /// Node.js with the packages of `tests/peers/package.json`.
    Node,
    /// Installs certificates where browsers look for them.
    Certutil,
    /// Prometheus and its `promtool`.
    Prometheus,
}

/// Installs those of these peers that are missing; takes no time if none is.
///
/// # Panics
///
/// If one cannot be installed, with the installer's output.
pub(crate) fn install(peers: &[Peer]) {
    install_all(peers.iter().map(|peer| match peer {
        Peer::Python => "python",
        Peer::Node => "node",
        Peer::Certutil => "certutil",
        Peer::Prometheus => "prometheus",
    }));
}

/// Installs one program by its name in `tests/peers/install`.
///
/// # Panics
///
/// If it cannot be installed, with the installer's output.
pub(crate) fn install_named(name: &str) {
    install_all([name]);
}

fn install_all<'n>(names: impl IntoIterator<Item = &'n str>) {
    let names: Vec<_> = names.into_iter().collect();
    try_install(&names).unwrap_or_else(|error| panic!("{error}"));
}

/// Installs programs by their names in `tests/peers/install`. Returns the installer's output if one
/// cannot be installed.
pub(crate) fn try_install(names: &[&str]) -> Result<(), String> {
    let output = Command::new(Path::new(ROOT).join("tests/peers/install"))
        .args(names)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("tests/peers/install cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr);
    Err(format!("tests/peers/install cannot install {}: {}", names.join(" and "), output.trim()))
}

/// Returns `true` if Chromium can be run. Otherwise the test is skipped.
pub(crate) fn has_browser() -> bool {
    Capability::Browser.check(try_install(&["chromium"])).is_some()
}

/// Returns the programs of the checkout's Python environment, including `python`; installs it if it
/// is missing.
pub(crate) fn python_bin() -> PathBuf {
    install(&[Peer::Python]);
    Path::new(ROOT).join(".venv/bin")
}

/// Returns the path of a script of `tests/peers`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/peers").join(name)
}

/// Time limit of a peer in seconds; the longest runs a suite of hundreds of cases.
const PEER_TIMEOUT_SECONDS: &str = "300";

/// Runs a peer to its end. A peer that takes too long is killed and returns code 124.
///
/// # Panics
///
/// If it cannot be started.
pub(crate) fn run_peer<I: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = I>,
) -> Finished {
    let mut command = Command::new("timeout");
    command.arg(PEER_TIMEOUT_SECONDS).arg(program).args(arguments).stdin(Stdio::null());
    let output = command.output().expect("coreutils are installed");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
