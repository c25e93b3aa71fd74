//! The chapter on topics with history: its tables and figures, and its client in a browser.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use deeperhub_node::history::{GapReason, NotRecovered, OnceLimits, OnceWindow, Rule};
use serde_json::json;

use crate::support::{
    Client, Peer, ROOT, Server, TemporaryDir, free_port, has_browser, install, metric, script, text,
};

use super::Page;
use super::markdown::{code_spans, table};
use super::programs::wait_for_text;

const EXAMPLE: &str = "docs/assets/follow.html";

/// Rule of the chapter's first command.
const RULE: &str = "chat.>: history=1000 ttl=10m";

/// Returns the codes in the first column of the table below a heading of the chapter.
fn first_column(heading: &str) -> Vec<String> {
    let rows = table(&Page::read("docs/history.md").text, heading);
    rows.iter().flat_map(|row| code_spans(&row[0])).collect()
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<_> = items.into_iter().collect();
    items.sort();
    items
}

#[test]
fn reasons_match_the_protocol() {
    let reasons = NotRecovered::ALL.iter().map(|reason| reason.as_str());
    assert_eq!(sorted(first_column("## A client that comes back")), sorted(reasons));
    let reasons = GapReason::ALL.iter().map(|reason| reason.as_str());
    assert_eq!(sorted(first_column("## Gaps")), sorted(reasons));
}

#[test]
fn deliveries_are_those_of_rules() {
    let deliveries = first_column("## Slow clients: five deliveries");
    assert_eq!(deliveries.len(), 5);
    for delivery in deliveries {
        let rule = format!("a: history=10 delivery={delivery}").parse::<Rule>();
        let rule = rule.unwrap_or_else(|error| panic!("{delivery}: {error}"));
        assert_eq!(rule.policy().delivery().as_str(), delivery);
    }
}

#[test]
fn limits_of_repeated_publishes_match_the_defaults() {
    let text = Page::read("docs/history.md").text;
    let limits = OnceLimits::default();
    assert_eq!((limits.publishes, limits.publishes_per_user), (65_536, 16_384));
    assert!(text.contains("remembers 65,536 such publishes, at most 16,384 of one user"));
    assert_eq!((OnceWindow::<()>::SECONDS, OnceWindow::<()>::MAX_TEXT_BYTES), (120, 64));
    assert!(text.contains("at most 64 bytes") && text.contains("for two minutes"));
}

#[tokio::test]
async fn the_bytes_of_a_message_are_about_what_the_chapter_says() {
    let server = Server::start(&["--topic", RULE]);
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "chat.12345"}})).await;
    let message = "x".repeat(98);
    client.send(&json!({"type": "publish", "data": {"topic": "chat.12345", "message": message}})).await;
    let delivery = client.receive_text().await;
    let keys = delivery.len() - 100 - "chat.12345".len();
    assert!((120..150).contains(&keys), "{keys} bytes of keys: {delivery}");
    let counted = metric(&server, "deeperhub_history_bytes").await;
    let more = counted - delivery.len() as u64;
    assert!((90..110).contains(&more), "{counted} bytes are counted for {}", delivery.len());
}

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
