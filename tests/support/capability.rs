//! Capabilities that some tests need of the machine. A test without them is skipped and says so;
//! it never passes as if it had run. Tests of the crates include this file too.
//!
//! `DEEPERHUB_TESTS_REQUIRE` names what must be there, separated by commas. The absence of one of
//! these is then a failure. If `DEEPERHUB_TESTS_SKIPPED` names a file, each skip also adds a line
//! to it: `.ci/run` prints the file at its end.

#![allow(dead_code, reason = "no test uses all of it")]

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Variable with the names of the required capabilities.
pub(crate) const REQUIRED: &str = "DEEPERHUB_TESTS_REQUIRE";

/// Variable with the path of the file that lists what was skipped.
pub(crate) const SKIPPED: &str = "DEEPERHUB_TESTS_SKIPPED";

/// Variable with the path of the program of an earlier release.
const OLD_BINARY: &str = "DEEPERHUB_OLD_BINARY";

/// Something that not every machine offers to tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Capability {
    /// Batched reads and writes through `io_uring`.
    IoUring,
    /// Network namespaces with links between them, and filters of packets.
    NetworkNamespaces,
    /// Servers of NATS and Redis.
    Brokers,
    /// Chromium.
    Browser,
    /// The program of an earlier release, for rolling upgrades.
    OldBinary,
    /// Compilers' standard libraries for macOS and Windows. Only `.ci/features` uses them.
    Targets,
}

impl Capability {
    pub(crate) const ALL: [Self; 6] = [
        Self::IoUring,
        Self::NetworkNamespaces,
        Self::Brokers,
        Self::Browser,
        Self::OldBinary,
        Self::Targets,
    ];

    /// Returns the name in `DEEPERHUB_TESTS_REQUIRE`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::NetworkNamespaces => "netns",
            Self::Brokers => "brokers",
            Self::Browser => "browser",
            Self::OldBinary => "old_binary",
            Self::Targets => "targets",
        }
    }

    /// Returns what to do to have it.
    const fn advice(self) -> &'static str {
        match self {
            Self::IoUring => {
                "use Linux 5.19 or later with kernel.io_uring_disabled = 0; in a container, a seccomp profile that \
                 allows io_uring_setup and io_uring_enter"
            }
            Self::NetworkNamespaces => {
                "run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN, after tests/peers/install iproute2 nftables"
            }
            Self::Brokers => "run tests/peers/install nats-server redis-server",
            Self::Browser => "run tests/peers/install chromium",
            Self::OldBinary => "set DEEPERHUB_OLD_BINARY to the path of the program of an earlier release",
            Self::Targets => "run rustup target add x86_64-apple-darwin x86_64-pc-windows-msvc",
        }
    }

    /// Returns what was found, if the capability is there. If this returns `None`, the test must
    /// end: it counts as skipped, which is printed even if output is captured.
    ///
    /// # Panics
    ///
    /// If the capability is required and not there, or if `DEEPERHUB_TESTS_REQUIRE` has an unknown
    /// name.
    pub(crate) fn check<T, E: Display>(self, found: Result<T, E>) -> Option<T> {
        let required = std::env::var(REQUIRED).unwrap_or_default();
        let is_required = self.is_required_by(&required).unwrap_or_else(|error| panic!("{error}"));
        match found {
            Ok(found) => Some(found),
            Err(reason) if is_required => panic!("{}", self.absence(&reason)),
            Err(reason) => {
                self.report_skip(&reason);
                None
            }
        }
    }

    /// Returns `true` if the list has the name of this capability.
    ///
    /// # Errors
    ///
    /// If the list has a name that no capability has.
    pub(crate) fn is_required_by(self, list: &str) -> Result<bool, String> {
        let names: Vec<_> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        let known = Self::ALL.map(Self::name);
        match names.iter().find(|name| !known.contains(name)) {
            Some(unknown) => {
                Err(format!("unknown name '{unknown}' in {REQUIRED}; expected some of {}", known.join(", ")))
            }
            None => Ok(names.contains(&self.name())),
        }
    }

    /// Returns the failure of a test that requires the capability.
    pub(crate) fn absence(self, reason: &impl Display) -> String {
        format!("{REQUIRED} has {}, which is missing: {reason}; {}", self.name(), self.advice())
    }

    /// Reports the running test as skipped, once.
    fn report_skip(self, reason: &impl Display) {
        static REPORTED: Mutex<BTreeSet<(Capability, String)>> = Mutex::new(BTreeSet::new());
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test").to_owned();
        let line = format!("skipped: {test}: no {}: {reason}; {}\n", self.name(), self.advice());
        if !REPORTED.lock().unwrap_or_else(PoisonError::into_inner).insert((self, test)) {
            return;
        }
        // The test harness captures only what macros print.
        let _ = io::stderr().write_all(line.as_bytes());
        if let Some(path) = std::env::var_os(SKIPPED) {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap_or_else(|error| {
                panic!("cannot write to {}: {error}", PathBuf::from(&path).display())
            });
        }
    }
}

/// Returns the program of an earlier release. Without one, the test is skipped, see
/// [`Capability::check`].
pub(crate) fn old_binary() -> Option<PathBuf> {
    Capability::OldBinary.check(match std::env::var_os(OLD_BINARY) {
        None => Err(format!("{OLD_BINARY} is not set")),
        Some(path) if PathBuf::from(&path).is_file() => Ok(path.into()),
        Some(path) => Err(format!("{OLD_BINARY} names no file: {}", PathBuf::from(path).display())),
    })
}
