//! Third-party clients: Python's `websockets`, npm's `ws`, a browser.

use crate::support::{
    Authority, Peer, Server, TemporaryDir, has_browser, install, python_bin, run_peer, script,
};

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

/// Checks a client over TLS; `variable` names the environment variable for its trusted authority.
fn check_over_tls(variable: &str, program: &str, script_name: &str) {
    let authority = Authority::new();
    let identity = authority.server("server");
    let server = Server::start(&[&identity.flags()[..], &["--workers", "2"]].concat());
    let url = format!("wss://localhost:{}/", server.clients.port());
    let client = script(script_name).display().to_string();
    let trust = format!("{variable}={}", authority.cert.display());
    check(&run_peer("env", [&trust, program, &client, &url]));
    let stranger = Authority::new();
    let trust = format!("{variable}={}", stranger.cert.display());
    let refused = run_peer("env", [&trust, program, &client, &url]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
}

#[test]
fn a_client_on_python_websockets_works_over_tls() {
    let python = python_bin().join("python").display().to_string();
    check_over_tls("SSL_CERT_FILE", &python, "python_client.py");
}

#[test]
fn a_client_on_npm_ws_works_over_tls() {
    install(&[Peer::Node]);
    check_over_tls("NODE_EXTRA_CA_CERTS", "node", "node_client.cjs");
}

#[test]
fn a_browser_connects_over_tls_only_if_it_trusts_the_authority() {
    if !has_browser() {
        return;
    }
    install(&[Peer::Node, Peer::Certutil]);
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
