use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Finished, ROOT};

/// A program that is not ours and that tests talk to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Python with the packages of `tests/peers/requirements.txt`.
    Python,
    /// Node.js with the packages of `tests/peers/package.json`.
    Node,
    /// A browser without a window.
    Chromium,
    /// What puts certificates where browsers look for them.
    Certutil,
    /// Prometheus and its `promtool`.
    Prometheus,
}

/// Installs what is missing of these peers; takes no time when nothing is.
///
/// # Panics
///
/// When one cannot be had, with what the installation said.
pub(crate) fn install(peers: &[Peer]) {
    install_all(peers.iter().map(|peer| match peer {
        Peer::Python => "python",
        Peer::Node => "node",
        Peer::Chromium => "chromium",
        Peer::Certutil => "certutil",
        Peer::Prometheus => "prometheus",
    }));
}

/// Installs one program by the name that `tests/peers/install` has for it.
///
/// # Panics
///
/// When it cannot be had, with what the installation said.
pub(crate) fn install_named(name: &str) {
    install_all([name]);
}

fn install_all<'n>(names: impl IntoIterator<Item = &'n str>) {
    let names: Vec<_> = names.into_iter().collect();
    let output = Command::new(Path::new(ROOT).join("tests/peers/install"))
        .args(&names)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("tests/peers/install cannot be run: {error}"));
    assert!(
        output.status.success(),
        "{names:?} cannot be installed by tests/peers/install: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The programs of the checkout's Python environment, `python` among them; installs it where it is missing.
pub(crate) fn python_bin() -> PathBuf {
    install(&[Peer::Python]);
    Path::new(ROOT).join(".venv/bin")
}

/// A script of `tests/peers`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/peers").join(name)
}

/// How long a peer may take for all it does, in seconds; a suite of hundreds of cases is among them.
const PEER_PATIENCE: &str = "300";

/// Runs a peer to its end.
///
/// # Panics
///
/// When it cannot be started. One that does not end in time is ended, with code 124.
pub(crate) fn run_peer<I: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = I>,
) -> Finished {
    let mut command = Command::new("timeout");
    command.arg(PEER_PATIENCE).arg(program).args(arguments).stdin(Stdio::null());
    let output = command.output().expect("coreutils are there");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
