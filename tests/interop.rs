//! Clients that are not ours: Python's `websockets`, npm's `ws`, a browser.

use crate::support::{Authority, Peer, Server, TemporaryDir, install, python_bin, run_peer, script};

fn check(finished: &crate::support::Finished) {
    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
}

#[test]
fn a_client_on_python_websockets_works() {
    let python = python_bin().join("python");
    let server = Server::start(&["--workers", "2"]);
    check(&run_peer(python, [script("python_client.py"), server.url("/").into()]));
}

#[test]
fn a_client_on_npm_ws_works() {
    install(&[Peer::Node]);
    let server = Server::start(&["--workers", "2"]);
    check(&run_peer("node", [script("node_client.cjs"), server.url("/ws").into()]));
}

#[test]
fn a_person_tries_the_hub_on_the_page_that_it_serves() {
    install(&[Peer::Node, Peer::Chromium]);
    let server = Server::start(&["--workers", "2"]);
    check(&run_peer("node", [script("page.cjs"), format!("http://{}/", server.api()).into()]));
}

#[test]
fn a_browser_that_trusts_the_authority_connects_over_tls_and_another_does_not() {
    install(&[Peer::Node, Peer::Chromium, Peer::Certutil]);
    let authority = Authority::new();
    let identity = authority.server("server");
    let server = Server::start(&identity.flags());
    let home = TemporaryDir::new();
    let url = format!("wss://localhost:{}/ws", server.clients.port());
    let page = format!("http://{}/", server.api());
    check(&run_peer(
        "node",
        [script("wss.cjs"), url.into(), page.into(), authority.cert.clone(), home.path(".")],
    ));
}
