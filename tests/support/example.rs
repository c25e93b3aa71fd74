//! Runs the `main` of an example in a process of its own.
//!
//! A test includes the example as a module, so cargo builds it with the test: nothing is built while
//! tests run. The process is the test's own executable, asked for one ignored test, which calls
//! `main` through [`run_main`]. Tests of the crates include this file too.

#![allow(dead_code, reason = "no test uses all of it")]

use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Time that a test waits for a line of an example.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

/// Environment variable that tells a process to run an example.
const RUN_MAIN: &str = "RUN_EXAMPLE_MAIN";

/// Calls the `main` of an example if an [`Example`] started this process. Otherwise does nothing,
/// such as when somebody runs all ignored tests.
pub(crate) fn run_main<E: Debug>(main: impl FnOnce() -> Result<(), E>) {
    if std::env::var_os(RUN_MAIN).is_some() {
        main().expect("the example succeeds");
    }
}

/// Runs an example to its end. Fails if it fails, or if it does not print all `expected` texts.
pub(crate) fn check(process_test: &str, expected: &[&str]) {
    let (status, lines) = Example::start(process_test, &[]).wait();
    assert!(status.success(), "{status}: {lines:#?}");
    for text in expected {
        assert!(lines.iter().any(|line| line.contains(text)), "no {text:?} in {lines:#?}");
    }
}

/// A process that runs an example. It is killed on drop.
pub(crate) struct Example {
    process: Child,
    lines: Receiver<String>,
}

impl Example {
    /// Starts the example that the ignored test `test` runs. `test` is the full name, modules
    /// included.
    pub(crate) fn start(test: &str, environment: &[(&str, &str)]) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("a test knows its executable"))
            .args([test, "--exact", "--ignored", "--nocapture"])
            .env(RUN_MAIN, "1")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let stdout = BufReader::new(process.stdout.take().expect("standard output is a pipe"));
        let (sender, lines) = channel();
        // Reads to the end, as a full pipe would block the example.
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).for_each(|line| {
                let _ = sender.send(line);
            });
        });
        Self { process, lines }
    }

    /// Waits for a line that contains `text` and returns the part of the line after it.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(LINE_TIMEOUT);
            let line = line.unwrap_or_else(|_| panic!("the example did not print {text:?}"));
            // The test harness may print before the text, on the same line.
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
    }

    /// Returns the id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the example ends. Returns its exit status and the lines that are left.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(LINE_TIMEOUT) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the example does not end: {lines:#?}"),
            }
        }
        (self.process.wait().expect("a child can be waited for"), lines)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
