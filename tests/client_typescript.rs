//! The TypeScript client: the module that a hub serves, its examples in a browser while the hub is
//! killed and started again, and many reconnects while messages are published.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::support::{Peer, ROOT, Server, free_port, has_browser, http, install, run_peer, script, text};

/// Seconds that an example may take; the browser starts slowly on a loaded machine.
const EXAMPLE_TIMEOUT_SECONDS: &str = "120";

#[tokio::test]
async fn the_module_is_served_to_pages_of_every_origin() {
    let server = Server::start(&["--api-key", "key"]);
    let page = ["Origin: https://page.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors"];
    let response = http(server.api(), "GET /deeperhub.js", &page, "").await;
    assert_eq!(response.status, 200, "{}", response.head);
    for (name, value) in [
        ("content-type", "text/javascript; charset=utf-8"),
        ("access-control-allow-origin", "*"),
        ("cross-origin-resource-policy", "cross-origin"),
        ("cache-control", "no-cache"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(response.header(name), Some(value), "{name}");
    }
    let built = format!("{ROOT}/clients/typescript/dist/deeperhub.js");
    assert_eq!(response.body, std::fs::read_to_string(built).expect("the client is built"));

    let tag = response.header("etag").expect("an ETag");
    let known = [page[0], page[1], &format!("If-None-Match: {tag}")];
    let response = http(server.api(), "GET /deeperhub.js", &known, "").await;
    assert_eq!((response.status, response.body.as_str()), (304, ""), "{}", response.head);
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    // Nothing else becomes readable for other origins.
    assert_eq!(http(server.api(), "GET /openapi.json", &page, "").await.status, 403);
    assert_eq!(http(server.api(), "POST /deeperhub.js", &page, "1").await.status, 405);
}

/// Runs an example in a browser. The hub is killed and started again when the script says so.
fn run_example(name: &str, rule: &str) {
    if !has_browser() {
        return;
    }
    install(&[Peer::Node]);
    let port = free_port().to_string();
    // Pages load the module again after the restart.
    let api_address = format!("127.0.0.1:{}", free_port());
    let flags = ["--port", &port, "--api-listen", &api_address, "--topic", rule, "--allowed-origin", "*"];
    let mut server = Some(Server::start(&flags));
    let api = format!("http://{api_address}");
    let url = format!("ws://127.0.0.1:{port}");
    let examples = script("client_examples.cjs");
    let mut browser = Command::new("timeout")
        .args([EXAMPLE_TIMEOUT_SECONDS, "node", text(&examples), name, &url, &api])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("coreutils are installed");
    let mut input = browser.stdin.take().expect("the input is piped");
    let output = BufReader::new(browser.stdout.take().expect("the output is piped"));
    let mut lines = Vec::new();
    for line in output.lines().map_while(Result::ok) {
        match line.as_str() {
            "kill" => {
                if let Some(mut server) = server.take() {
                    server.signal("KILL");
                    server.wait();
                }
            }
            "start" => {
                server = Some(Server::start(&flags));
                input.write_all(b"started\n").expect("the script reads");
            }
            _ => {}
        }
        lines.push(line);
    }
    assert!(browser.wait().expect("a child can be waited for").success(), "{lines:?}");
    assert_eq!(lines, ["kill", "start", "as it should be"]);
}

#[test]
fn the_chat_survives_that_its_hub_is_killed() {
    run_example("chat", "chat.>: history=100");
}

#[test]
fn the_prices_go_on_after_their_hub_is_killed() {
    run_example("prices", "price.>: history=10 delivery=sample every=500ms");
}

#[test]
fn a_hundred_reconnects_of_a_page_and_a_publisher_lose_and_repeat_nothing() {
    if !has_browser() {
        return;
    }
    install(&[Peer::Node]);
    let flags = ["--topic", "feed.>: history=100000", "--rate-limit", "0", "--allowed-origin", "*"];
    let server = Server::start(&flags);
    let url = format!("ws://{}/", server.clients);
    let api = format!("http://{}", server.api());
    let finished = run_peer("node", [text(&script("client_reconnects.cjs")), &url, &api]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}
