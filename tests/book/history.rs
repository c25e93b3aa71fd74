//! The chapter on topics with history: its client in a browser, and its JSON.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Peer, ROOT, Server, TemporaryDir, free_port, has_browser, install, script, text};

use super::Page;
use super::programs::wait_for_text;

const EXAMPLE: &str = "docs/assets/follow.html";

/// Rule of the chapter's first command.
const RULE: &str = "chat.>: history=1000 ttl=10m";

#[test]
fn the_chapter_and_the_page_have_the_same_client() {
    let chapter = Page::read("docs/history.md");
    let example = std::fs::read_to_string(Path::new(ROOT).join(EXAMPLE)).expect("the page can be read");
    let blocks = chapter.blocks();
    let block = blocks.iter().find(|block| block.language == "js").expect("the chapter has a client");
    let (client, _) = block.code.split_once("\n}\n").expect("the client is a function");
    assert!(example.contains(client), "{EXAMPLE} has another client than docs/history.md");
}

#[test]
fn the_chapter_names_the_rule_of_this_test() {
    assert!(Page::read("docs/history.md").text.contains(&format!("deeperhub-ws --topic '{RULE}'")));
}

#[test]
fn a_page_misses_nothing_while_away_and_learns_of_a_restart() {
    if !has_browser() {
        return;
    }
    install(&[Peer::Node]);
    let port = free_port().to_string();
    let flags = ["--port", &port, "--drain-timeout", "0", "--restart-time", "100ms", "--topic", RULE];
    let mut server = Server::start(&flags);
    let files = TemporaryDir::new();
    let printed = files.path("printed");
    let mut browser = Command::new("timeout")
        .args(["120", "node", text(&script("follow.cjs")), EXAMPLE, &format!("ws://127.0.0.1:{port}")])
        .current_dir(ROOT)
        .stdin(Stdio::null())
        .stdout(File::create(&printed).expect("a file can be created"))
        .spawn()
        .expect("coreutils are installed");
    wait_for_text(&printed, "restart\n", 1);
    server.signal("TERM");
    server.wait();
    let _successor = Server::start(&flags);
    assert!(browser.wait().expect("a child can be waited for").success());
    wait_for_text(&printed, "as it should be", 1);
}
