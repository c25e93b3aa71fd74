//! What the README shows works as it stands there.

use std::path::Path;

use crate::support::{Peer, ROOT, Server, install, python_bin, run_peer, script};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The README's first block of code in a language that has a text in it.
fn block(language: &str, text: &str) -> String {
    let readme = read("README.md");
    let begin = format!("```{language}\n");
    let mut blocks = readme.split(&begin).skip(1);
    let block = blocks.find_map(|block| block.split("```").next().filter(|block| block.contains(text)));
    block.unwrap_or_else(|| panic!("no {language} in the README has {text}")).to_owned()
}

/// As [`block`], for this server.
fn snippet(language: &str, text: &str, server: &Server) -> String {
    let block = block(language, text);
    assert!(block.contains("localhost:8080"), "{block}");
    block.replace("localhost:8080", &server.clients.to_string())
}

#[test]
fn the_lines_for_a_browsers_console_subscribe() {
    install(&[Peer::Node, Peer::Chromium]);
    let server = Server::start(&[]);
    let lines = snippet("js", "hub.onopen", &server);
    let page = format!("http://{}/", server.api());
    let script = script("console.cjs").to_string_lossy().into_owned();
    let finished = run_peer("node", [script.as_str(), &page, &lines, "\"subscribed\""]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[test]
fn the_program_in_python_gets_its_echo() {
    let server = Server::start(&[]);
    let program = snippet("python", "websockets.connect", &server);
    let finished = run_peer(python_bin().join("python"), ["-c", &program]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("\"welcome\""), "{finished:?}");
    assert_eq!(lines[1], r#"{"type":"echo","id":1,"data":{"hello": "world"}}"#);
}

#[test]
fn the_program_for_node_publishes() {
    install(&[Peer::Node]);
    let server = Server::start(&[]);
    // Ended at its answer, which it would go on after.
    let end =
        r#"hub.on("message", (text) => { if (JSON.parse(text).type === "published") process.exit(0); });"#;
    let program = snippet("js", "require(\"ws\")", &server) + end;
    let modules = format!("NODE_PATH={}", script("node_modules").display());
    let finished = run_peer("env", [modules.as_str(), "node", "-e", &program]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains(r#"{"type":"published","id":1,"#), "{finished:?}");
}

#[test]
fn the_embedding_program_is_an_example_that_compiles() {
    let example = read("crates/deeperhub-node/examples/tick.rs");
    let (_, program) = example.split_once("\n\n").expect("the example starts with a comment");
    assert_eq!(block("rust", "Node::start"), program);
}
