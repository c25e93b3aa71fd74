//! Tests that the machine cannot run are skipped and say so, or fail if they are required.

use std::process::Command;

use crate::support::{Capability, REQUIRED, SKIPPED, TemporaryDir, text};

/// Runs a test of this program in a process of its own. Returns `true` if it passed, its output,
/// and the lines of the file of skips.
fn run_test(name: &str, variables: &[(&str, &str)]) -> (bool, String, String) {
    let dir = TemporaryDir::new();
    let skipped = dir.path("skipped");
    let output = Command::new(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", "--include-ignored", name])
        .env_remove(REQUIRED)
        .env(SKIPPED, text(&skipped))
        .envs(variables.iter().copied())
        .output()
        .expect("this test can run again");
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), printed, std::fs::read_to_string(skipped).unwrap_or_default())
}

/// A test that needs the program of an earlier release, with a name that no file has.
#[test]
#[ignore = "a process that other tests start"]
fn needs_a_missing_program() {
    if std::env::var_os(SKIPPED).is_some() {
        let absent: Result<(), _> = Err("the tests took it away");
        assert!((0..3).all(|_| Capability::OldBinary.check(absent).is_none()));
    }
}

#[test]
fn a_test_without_its_capability_is_skipped_and_says_so_uncaptured() {
    let (passed, printed, skipped) = run_test("capabilities::needs_a_missing_program", &[]);
    assert!(passed, "{printed}");
    let line = "skipped: capabilities::needs_a_missing_program: no old_binary: the tests took it away; set ";
    assert!(printed.contains(line), "{printed}");
    assert!(skipped.starts_with(line) && skipped.lines().count() == 1, "one line for a test: {skipped}");
}

#[test]
fn a_test_without_a_required_capability_fails_with_advice() {
    let required = [(REQUIRED, "netns, old_binary")];
    let (passed, printed, skipped) = run_test("capabilities::needs_a_missing_program", &required);
    assert!(!passed && skipped.is_empty(), "{printed} {skipped}");
    for text in ["has old_binary, which is missing: the tests took it away", "set DEEPERHUB_OLD_BINARY to"] {
        assert!(printed.contains(text), "no {text:?} in {printed}");
    }
}

#[test]
fn an_unknown_capability_is_an_error() {
    let unknown = [(REQUIRED, "io_uring,nets")];
    let (passed, printed, _) = run_test("capabilities::needs_a_missing_program", &unknown);
    assert!(
        !passed
            && printed.contains("unknown name 'nets' in DEEPERHUB_TESTS_REQUIRE; expected some of io_uring")
    );
    // Also where no test of a run needs a capability.
    let required = std::env::var(REQUIRED).unwrap_or_default();
    assert_eq!(Capability::IoUring.is_required_by(&required).err(), None);
}

#[test]
fn capabilities_have_different_names_without_commas() {
    for (number, capability) in Capability::ALL.into_iter().enumerate() {
        assert_eq!(capability.is_required_by(capability.name()), Ok(true));
        assert_eq!(capability.is_required_by(""), Ok(false));
        let others = Capability::ALL.into_iter().skip(number + 1);
        assert!(others.into_iter().all(|other| other.name() != capability.name()), "{capability:?}");
    }
}
