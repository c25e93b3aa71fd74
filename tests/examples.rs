//! Every example of a crate is short, and a test runs it.

use std::path::{Path, PathBuf};

use crate::support::ROOT;

/// Maximum lines of code of an example, without comments and blank lines.
const MAX_CODE_LINES: usize = 20;

/// Longer examples, with the reason.
const LONGER: [(&str, &str); 8] = [
    ("client/conformance_driver", "is a tool for the conformance kit, with commands"),
    ("client/service", "is a whole service"),
    ("events/watch", "shows every way to configure a bus and to read from it"),
    ("listener/autobahn", "is a tool for conformance suites, with arguments"),
    ("metrics/text", "shows three instruments on two threads"),
    ("protocol/one_connection", "is a whole server on std's sockets"),
    ("router/threads", "is a whole program with parked threads"),
    ("uring/broadcast", "is a measurement"),
];

/// An example file of a crate.
struct Example {
    /// The crate without its prefix and the file without its extension, such as `node/tick`.
    name: String,
    path: PathBuf,
}

/// Returns the files in a folder that end in `.rs`, or none if there is no such folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("a folder can be read").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn examples() -> Vec<Example> {
    let crates = std::fs::read_dir(Path::new(ROOT).join("crates")).expect("crates are there");
    let mut examples = Vec::new();
    for folder in crates.map(|entry| entry.expect("a folder can be read").path()) {
        let package = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let package = package.trim_start_matches("deeperhub-");
        for path in rust_files(&folder.join("examples")) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            examples.push(Example { name: format!("{package}/{stem}"), path });
        }
    }
    assert!(examples.len() >= 10, "only {} examples were found", examples.len());
    examples
}

#[test]
fn examples_have_at_most_20_lines_of_code() {
    for Example { name, path } in examples() {
        let text = text(&path);
        let lines = text.lines().map(str::trim);
        let count = lines.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        let is_longer = LONGER.iter().any(|(longer, _)| *longer == name);
        assert_eq!(count > MAX_CODE_LINES, is_longer, "{name} has {count} lines of code");
    }
}

#[test]
fn longer_examples_exist() {
    let examples = examples();
    for (name, _) in LONGER {
        assert!(examples.iter().any(|example| example.name == name), "there is no example {name}");
    }
}

/// Examples are modules of the tests that run them, so that no test builds anything.
#[test]
fn a_test_includes_each_example() {
    let program_tests = rust_files(&Path::new(ROOT).join("tests"));
    for Example { name, path } in examples() {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let package = path.ancestors().nth(2).expect("an example is in a crate");
        let folder = package.file_name().unwrap_or_default().to_string_lossy();
        let from_crate = format!("#[path = \"../examples/{file}\"]");
        let from_program = format!("#[path = \"../crates/{folder}/examples/{file}\"]");
        let is_included =
            rust_files(&package.join("tests")).iter().any(|test| text(test).contains(&from_crate))
                || program_tests.iter().any(|test| text(test).contains(&from_program));
        assert!(is_included, "no test includes the example {name}");
    }
}

/// A reader needs one crate of the project for each example.
#[test]
fn examples_use_their_own_crate_alone() {
    for Example { name, path } in examples() {
        let own = format!("deeperhub_{}", name.split('/').next().unwrap_or_default());
        let text = text(&path);
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        for used in words.filter(|word| word.starts_with("deeperhub_")) {
            assert_eq!(used, own, "{name}");
        }
    }
}
