//! Every program and command of the README and the book runs, or is on a list with the reason why
//! not.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cargo_metadata::MetadataCommand;
use serde_json::{Deserializer, Value};

use crate::support::{
    Client, Peer, ROOT, Server, TemporaryDir, WAIT_TIMEOUT, free_port, has_brokers, has_browser, install,
    python_bin, run, run_peer, script, text,
};

use super::Page;
use super::markdown::Block;

/// Commands that do not run here, by their first words, with the reason and the check that replaces
/// running them.
const NOT_RUN: [(&str, &str); 13] = [
    ("cargo run ", "it builds for minutes; package and target must exist"),
    ("cargo test ", "it is what runs this; package and test must exist"),
    ("cargo install ", "it builds for minutes; the path must exist"),
    ("deeperhub-ws top", "it needs a terminal; tests/top.rs runs it in one"),
    ("deeperhub-ws tail", "it runs until it is stopped; tests/tail.rs runs it"),
    ("useradd ", "it changes the machine"),
    ("install ", "it changes the machine; what it installs must exist"),
    ("systemctl ", "no systemd runs here; tests/deploy.rs validates the unit"),
    ("docker build ", "no Docker runs here; its file must exist"),
    ("docker run ", "no Docker runs here"),
    ("docker compose ", "no Docker runs here; tests/deploy.rs validates the file"),
    ("kubectl ", "no Kubernetes runs here; tests/deploy.rs validates the manifests"),
    ("sysctl ", "it reads and changes the kernel's settings"),
];

/// Sizes that take too long in a development build, and their replacements.
const REDUCED_SIZES: [(&str, &str); 3] = [
    ("--connections 10000", "--connections 200"),
    ("--connections 5000", "--connections 50"),
    ("--subscribers 1000", "--subscribers 200"),
];

/// Returns the line's index in [`NOT_RUN`].
fn not_run(line: &str) -> Option<usize> {
    NOT_RUN.iter().position(|(words, _)| line.starts_with(words) || line == words.trim_end())
}

/// Writes the blocks of a page where `page.sh` finds them. Returns `false` if the page has nothing
/// to run.
fn prepare(page: &Page, files: &TemporaryDir, ports: &[(&str, String)]) -> bool {
    let local = |code: &str| {
        let replaced = ports.iter().fold(code.to_owned(), |code, (from, to)| code.replace(from, to));
        REDUCED_SIZES.iter().fold(replaced, |code, (from, to)| code.replace(from, to))
    };
    let mut list = String::new();
    for (number, block) in page.blocks().into_iter().enumerate() {
        let Block { language, code, expect, needs_default_server, place } = block;
        if !["sh", "js", "python"].contains(&language) {
            continue;
        }
        let mut code = code.to_owned();
        if language == "sh" {
            // A reader starts a server in a terminal of its own; here it always runs in the
            // background, and the next command waits for it.
            code = code.replace(" & pid=$!", "; pid=$!").replace(" &\n", "\n");
            let lines = code.lines().filter(|line| not_run(line).is_none() && !line.starts_with('#'));
            code = lines.fold(String::new(), |code, line| code + line + "\n");
            if code.trim().is_empty() {
                continue;
            }
        }
        if needs_default_server {
            list += &format!("{number} defaults {place}\n");
        }
        list += &format!("{number} {language} {place}\n");
        files.write(&format!("{number}.block"), &local(&code));
        if let Some(expect) = expect {
            files.write(&format!("{number}.expect"), expect);
        }
    }
    files.write("blocks", &list);
    !list.is_empty()
}

/// Runs the programs of a page in order.
fn run_page(page: &Page) {
    let binary = Path::new(env!("CARGO_BIN_EXE_deeperhub-ws"));
    let folder = binary.parent().expect("a program is in a directory");
    let root = Path::new(ROOT).canonicalize().expect("the repository can be read");
    let mut failure = String::new();
    // Another program may take a port before the page's server does.
    for _ in 0..3 {
        let ports =
            ["8080", "8081", "8090", "8091", "4222", "6379"].map(|port| (port, free_port().to_string()));
        let files = TemporaryDir::new();
        if !prepare(page, &files, &ports) {
            return;
        }
        std::os::unix::fs::symlink(root.join("deploy"), files.path("deploy")).expect("a link can be created");
        files.write("cert.pem", &certificate(&files));
        let path =
            format!("PATH={}:{}:/usr/sbin", folder.display(), std::env::var("PATH").unwrap_or_default());
        let environment = [
            path,
            format!("PORT={}", ports[0].1),
            format!("API_PORT={}", ports[1].1),
            format!("PYTHON={}", python_bin().join("python").display()),
            format!("NODE_PATH={}", script("node_modules").display()),
            format!("PYTHONPATH={}", root.join("clients/python/src").display()),
            "PYTHONUNBUFFERED=1".to_owned(),
        ];
        let folder = files.path(".");
        // Not as a file: bash reads a script while it runs, and a checkout may change it meanwhile.
        let arguments = ["bash", "-c", include_str!("page.sh"), "page.sh", text(&folder)];
        let arguments = environment.iter().map(String::as_str).chain(arguments);
        let finished = run_peer("env", arguments);
        if finished.code == Some(0) {
            return;
        }
        failure = format!("{}: {finished:?}", page.path);
        if !["in use", "is taken"].iter().any(|taken| failure.contains(taken)) {
            break;
        }
    }
    panic!("{failure}");
}

/// Creates a certificate like a reader's, with its key in `key.pem`.
fn certificate(files: &TemporaryDir) -> String {
    let key = files.path("key.pem");
    let arguments = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        text(&key),
    ];
    let finished = run_peer("openssl", arguments);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout
}

#[test]
fn programs_and_commands_on_each_page_run_unchanged() {
    install(&[Peer::Python, Peer::Node]);
    if !has_brokers() {
        return;
    }
    // Pages wait for processes more than they use the CPU.
    std::thread::scope(|scope| {
        let pages: Vec<_> = Page::all();
        let running: Vec<_> =
            pages.into_iter().map(|page| (page.path.clone(), scope.spawn(move || run_page(&page)))).collect();
        let failed: Vec<_> =
            running.into_iter().filter_map(|(path, page)| page.join().err().map(|_| path)).collect();
        assert_eq!(failed, [""; 0]);
    });
}

#[test]
fn code_blocks_are_in_checked_languages() {
    // The checks of clients/typescript compile the last two.
    let checked = ["sh", "js", "python", "json", "toml", "yaml", "rust", "elixir", "ts", "tsx"];
    for block in Page::all().iter().flat_map(Page::blocks) {
        // `text` is a program's output.
        assert!(
            checked.contains(&block.language) || block.language == "text",
            "{}: {}",
            block.place,
            block.language
        );
    }
}

#[test]
fn commands_that_do_not_run_are_listed_and_exist() {
    let metadata = MetadataCommand::new()
        .manifest_path(Path::new(ROOT).join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo describes the workspace");
    let tests = tests_of_the_program();
    let mut used = [false; NOT_RUN.len()];
    for block in Page::all().iter().flat_map(Page::blocks).filter(|block| block.language == "sh") {
        for line in block.code.lines() {
            let Some(entry) = not_run(line) else { continue };
            used[entry] = true;
            let words: Vec<_> = line.split_whitespace().collect();
            let after = |flag: &str| {
                words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1)).copied()
            };
            for path in words.iter().filter(|word| word.starts_with("deploy/") || word.starts_with("bins/")) {
                assert!(Path::new(ROOT).join(path).exists(), "{}: {path}", block.place);
            }
            if !line.starts_with("cargo ") {
                continue;
            }
            let package = after("-p").unwrap_or("deeperhub-ws");
            let package = metadata.packages.iter().find(|known| known.name.as_str() == package);
            let package = package.unwrap_or_else(|| panic!("{}: {line}", block.place));
            for target in ["--bin", "--example", "--test"].iter().filter_map(|flag| after(flag)) {
                let exists = package.targets.iter().any(|known| known.name == target);
                assert!(exists, "{}: no target {target}", block.place);
            }
            if let Some(test) = after("--ignored").or(after("--include-ignored")) {
                assert!(tests.contains(&format!(" {test}")), "{}: no test {test}", block.place);
            }
        }
    }
    let unused: Vec<_> = NOT_RUN.iter().zip(used).filter(|(_, used)| !used).map(|(entry, _)| entry).collect();
    assert!(unused.is_empty(), "no page has {unused:?}");
}

/// Returns the functions and modules of the tests.
fn tests_of_the_program() -> String {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new(ROOT).join("tests").join(name)).expect("tests are there")
    };
    read("autobahn.rs") + &read("main.rs")
}

#[test]
fn settings_files_are_valid() {
    let files = TemporaryDir::new();
    for block in Page::all().iter().flat_map(Page::blocks).filter(|block| block.language == "toml") {
        let file = files.write("hub.toml", block.code);
        let finished = run(&["config", "check", "--config", text(&file)], &[]);
        assert_eq!(finished.code, Some(0), "{}: {finished:?}", block.place);
    }
}

#[test]
fn yaml_is_well_formed() {
    let files = TemporaryDir::new();
    for block in Page::all().iter().flat_map(Page::blocks).filter(|block| block.language == "yaml") {
        let file = files.write("block.yaml", block.code);
        let finished = run_peer(python_bin().join("yamllint"), ["-d", "relaxed", text(&file)]);
        assert_eq!(finished.code, Some(0), "{}: {finished:?}", block.place);
    }
}

#[tokio::test]
async fn json_is_valid_and_the_server_takes_clients_messages() {
    let server = Server::start(&["--topic", "chat.>: history=10"]);
    let mut sent = 0;
    for page in Page::all() {
        for block in page.blocks().into_iter().filter(|block| block.language == "json") {
            for message in Deserializer::from_str(block.code).into_iter::<Value>() {
                let mut message = message.unwrap_or_else(|error| panic!("{}: {error}", block.place));
                let kind = message["type"].as_str().unwrap_or_default();
                let reply = match kind {
                    "authenticate" => "error",
                    "echo" | "history" => kind,
                    "ping" => "pong",
                    "publish" => "published",
                    "subscribe" => "subscribed",
                    "unsubscribe" => "unsubscribed",
                    _ => continue,
                }
                .to_owned();
                // A publish has the reply only if it has an id.
                message["id"] = 1.into();
                // A client of its own gets no deliveries of other subscriptions.
                let response = Client::connect(&server).await.request(&message).await;
                assert_eq!(response["type"], reply, "{}: {response}", block.place);
                // Without keys, a well-formed token is not accepted.
                let code = response["data"]["code"].as_str().unwrap_or("token_invalid");
                assert_eq!(code, "token_invalid", "{}: {response}", block.place);
                sent += 1;
            }
        }
    }
    assert!(sent >= 3, "only {sent} messages of clients were found");
}

#[test]
fn rust_programs_are_parts_of_compiled_examples() {
    let crates = std::fs::read_dir(Path::new(ROOT).join("crates")).expect("crates/ can be read");
    let folders = crates.map(|entry| entry.expect("a directory can be read").path().join("examples"));
    let examples: Vec<_> = folders
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| path.is_file())
        .map(|path| std::fs::read_to_string(path).expect("an example can be read"))
        // Tests call the `main` of examples, which a reader's program has no use for.
        .map(|example| without_indent(&example.replace("pub(crate) ", "")))
        .collect();
    let mut found = 0;
    for block in Page::all().iter().flat_map(Page::blocks).filter(|block| block.language == "rust") {
        let code = without_indent(block.code);
        assert!(examples.iter().any(|example| example.contains(&code)), "{} is in no example", block.place);
        found += 1;
    }
    assert!(found >= 10, "only {found} programs in Rust were found");
}

fn without_indent(code: &str) -> String {
    code.lines().fold(String::new(), |code, line| code + line.trim_start() + "\n")
}

#[test]
fn the_browser_console_lines_subscribe() {
    if !has_browser() {
        return;
    }
    install(&[Peer::Node]);
    let server = Server::start(&[]);
    let page = Page::read("README.md");
    let blocks = page.blocks();
    let block =
        blocks.iter().find(|block| block.language == "js").expect("the README has lines for a console");
    let lines = block.code.replace("localhost:8080", &server.clients.to_string());
    let url = format!("http://{}/", server.api());
    let script = script("console.cjs").to_string_lossy().into_owned();
    let finished = run_peer("node", [script.as_str(), &url, &lines, "\"subscribed\""]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

/// Waits until a file contains a text `times` times.
pub(super) fn wait_for_text(file: &Path, text: &str, times: usize) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        let content = std::fs::read_to_string(file).unwrap_or_default();
        if content.matches(text).count() >= times {
            return;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {times} times {text:?} in: {content}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_reconnecting_client_subscribes_again_after_a_restart() {
    install(&[Peer::Node]);
    let page = Page::read("docs/reconnecting.md");
    let blocks = page.blocks();
    let block = blocks.iter().find(|block| block.language == "js").expect("the page has a client");
    let port = free_port().to_string();
    let flags = ["--port", &port, "--drain-timeout", "0", "--restart-time", "100ms"];
    let mut server = Server::start(&flags);

    let files = TemporaryDir::new();
    // The program would run forever if this test failed.
    let program = format!(
        "globalThis.WebSocket = require(\"ws\"); setTimeout(process.exit, 120_000);\n{}",
        block.code.replace("localhost:8080", &format!("127.0.0.1:{port}"))
    );
    let printed = files.path("printed");
    let mut client = Command::new("node")
        .arg("-e")
        .arg(program)
        .env("NODE_PATH", script("node_modules"))
        .stdin(Stdio::null())
        .stdout(File::create(&printed).expect("a file can be created"))
        .spawn()
        .expect("node can be started");
    wait_for_text(&printed, "subscribed", 1);
    server.signal("TERM");
    server.wait();
    let _successor = Server::start(&flags);
    wait_for_text(&printed, "subscribed", 2);
    client.kill().expect("the client runs");
    client.wait().expect("a child can be waited for");
}
