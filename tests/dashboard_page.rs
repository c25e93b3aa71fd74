//! The dashboard of the server API, and the calls that it was the reason for.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Broker, Client, Engine, Issuer, Peer, Server, from_now, has_brokers, has_browser, http, install,
    run_peer, script, with_token,
};

const KEY: &str = "a-key-for-the-dashboard";

/// Names that a page could take for markup, or show as another name.
fn hostile_topics() -> Vec<String> {
    let fixed =
        ["<svg/onload=alert(1)", "a&amp;b\"'`", "\u{202e}gnp.exe", "zero\u{200b}width", "a/b?c#d%25.e+f"];
    let mut topics: Vec<_> = fixed.into_iter().map(str::to_owned).collect();
    topics.push("w".repeat(255));
    topics.push("日本.語".to_owned());
    topics
}

async fn get(server: &Server, path: &str) -> Value {
    let response = http(server.api(), &format!("GET {path}"), &[], "").await;
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    response.json()
}

async fn subscribe(client: &mut Client, topics: &[String]) {
    for topic in topics {
        let reply = client.request(&json!({"type": "subscribe", "id": 1, "data": {"topic": topic}})).await;
        assert_eq!(reply["type"], "subscribed", "{reply}");
    }
}

fn names(list: &Value, key: &str, name: &str) -> Vec<String> {
    let items = list[key].as_array().expect("a list");
    let mut names: Vec<_> =
        items.iter().map(|item| item[name].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

/// Runs a script that looks at the dashboard in a browser, while the test goes on.
async fn look(name: &str, arguments: Vec<String>) {
    let script = script(name).display().to_string();
    let run = move || run_peer("node", std::iter::once(script).chain(arguments));
    let finished = tokio::task::spawn_blocking(run).await.expect("the script was started");
    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
}

#[tokio::test]
async fn the_files_of_the_dashboard_need_no_key() {
    let server = Server::start(&["--api-key", KEY]);
    let page = http(server.api(), "GET /", &[], "").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains(&server.url("/")), "{}", page.body);
    let policy = page.header("content-security-policy").expect("a policy");
    for rule in ["default-src 'none'", "script-src 'self'", "require-trusted-types-for 'script'"] {
        assert!(policy.contains(rule), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let script = http(server.api(), "GET /dashboard/main.js", &[], "").await;
    assert_eq!(script.status, 200);
    let tag = script.header("etag").expect("an entity tag").to_owned();
    let known = format!("If-None-Match: {tag}");
    assert_eq!(http(server.api(), "GET /dashboard/main.js", &[&known], "").await.status, 304);
    assert_eq!(http(server.api(), "GET /dashboard/none.js", &[], "").await.status, 404);
    assert_eq!(http(server.api(), "GET /v1/stats", &[], "").await.status, 401);
}

#[tokio::test]
async fn the_dashboard_can_be_switched_off() {
    let server = Server::start(&["--dashboard", "off"]);
    for path in ["/", "/dashboard/main.js"] {
        assert_eq!(http(server.api(), &format!("GET {path}"), &[], "").await.status, 404, "{path}");
    }
    assert_eq!(http(server.api(), "GET /v1/stats", &[], "").await.status, 200);
}

#[tokio::test]
async fn topics_are_found_by_prefix_and_pattern() {
    let server = Server::start(&["--rate-limit", "0"]);
    let mut client = Client::connect(&server).await;
    let topics: Vec<_> = (0..60).map(|number| format!("room.{number}")).collect();
    subscribe(&mut client, &topics).await;
    subscribe(&mut client, &["room.*".to_owned(), "room.1.a".to_owned(), "other".to_owned()]).await;
    let found = async |query: &str| names(&get(&server, query).await, "topics", "topic");
    assert_eq!(found("/v1/topics?prefix=room.1.").await, ["room.1.a"]);
    assert_eq!(found("/v1/topics?prefix=o").await, ["other"]);
    assert_eq!(found("/v1/topics?match=room.%3E&prefix=room.1.").await, ["room.1.a"]);
    assert_eq!(found("/v1/topics?match=room.*&limit=1000").await.len(), 61, "the pattern covers itself");
    assert_eq!(found("/v1/topics?match=none").await.len(), 0);
    // Over pages, each match comes once.
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&server, &format!("/v1/topics?match=room.*&limit=7{cursor}")).await;
        all.extend(names(&page, "topics", "topic"));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 61);
    let wrong = http(server.api(), "GET /v1/topics?match=a..b", &[], "").await;
    assert_eq!((wrong.status, &wrong.json()["error"]["field"]), (400, &json!("match")));
}

#[tokio::test]
async fn clients_are_found_and_described() {
    let issuer = Issuer::new("a secret with at least thirty-two bytes");
    let secret = issuer.file();
    let flags = ["--auth-secret-file", &secret, "--topic", "kept.>: history=10"];
    let server = Server::start(&flags);
    let token = issuer.token(&json!({"sub": "ada", "exp": from_now(Duration::from_secs(600))}));
    let mut ada = Client::connect_with(with_token(&server, &token)).await.expect("a good token");
    let other = Client::connect(&server).await;
    subscribe(&mut ada, &["kept.a".to_owned(), "plain".to_owned()]).await;
    for _ in 0..3 {
        http(server.api(), "POST /v1/topics/kept.a/messages", &[], "1").await;
        ada.receive().await;
    }
    let found = async |query: &str| names(&get(&server, query).await, "clients", "client_id");
    assert_eq!(found("/v1/clients?search=ada").await, [ada.id()]);
    assert_eq!(found(&format!("/v1/clients?search={}", other.id())).await, [other.id()]);
    assert_eq!(found("/v1/clients?search=127.0.0.1:").await.len(), 2);
    assert_eq!(found("/v1/clients?search=nobody").await.len(), 0);
    let described = get(&server, &format!("/v1/clients/{}", ada.id())).await;
    let connection = &described["connection"];
    assert!(connection["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{described}");
    assert_eq!(connection["received_total"], 2);
    // The welcome, two replies and three deliveries.
    assert_eq!(connection["sent_total"], 6);
    assert_eq!(connection["behind"], json!([]));
    assert_eq!(described["positions"], json!([{"topic": "kept.a", "offset": 3, "newest": 3}]));
    let listed = get(&server, "/v1/clients?search=ada").await;
    assert_eq!(listed["clients"][0].get("positions"), None, "lists have no positions");
}

#[tokio::test]
async fn the_server_keeps_samples_of_its_statistics() {
    let server = Server::start(&[]);
    let samples = get(&server, "/v1/stats/samples").await;
    let columns = samples["columns"].as_array().expect("columns");
    let first = samples["samples"][0].as_array().expect("a sample from the start");
    assert_eq!((columns[0].as_str(), first.len()), (Some("at_unix_ms"), columns.len()));
    let newest = samples["samples"].as_array().and_then(|rows| rows.last()?[0].as_u64()).expect("a time");
    let later = get(&server, &format!("/v1/stats/samples?after={newest}")).await;
    let is_later = |row: &Value| row[0].as_u64() > Some(newest);
    assert!(later["samples"].as_array().expect("samples").iter().all(is_later), "{later}");
    assert_eq!(http(server.api(), "GET /v1/stats/samples?after=x", &[], "").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_works_in_a_browser() {
    if !has_browser() {
        return;
    }
    install(&[Peer::Node]);
    let issuer = Issuer::new("a secret with at least thirty-two bytes");
    let secret = issuer.file();
    let flags = ["--api-key", KEY, "--auth-secret-file", &secret, "--topic", "kept.>: history=500"];
    let server = Server::start(&flags);
    let authorization = format!("Authorization: Bearer {KEY}");
    let token = issuer.token(&json!({"sub": "ada", "exp": from_now(Duration::from_secs(3600))}));
    let mut ada = Client::connect_with(with_token(&server, &token)).await.expect("a good token");
    let mut other = Client::connect(&server).await;
    subscribe(&mut ada, &["kept.busy".to_owned(), "<b.bold".to_owned()]).await;
    subscribe(&mut other, &hostile_topics()).await;
    let quiet: Vec<_> = (0..30).map(|number| format!("quiet.{number}")).collect();
    subscribe(&mut other, &quiet).await;
    let load = async {
        let body = json!({"<b>key</b>": "<img/src=x/onerror=alert(1)>", "bidi": "\u{202e}evil", "text": "z".repeat(900)});
        loop {
            let request = "POST /v1/topics/kept.busy/messages";
            assert_eq!(http(server.api(), request, &[&authorization], &body.to_string()).await.status, 200);
            other.send_text("no JSON").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let address = format!("http://{}/", server.api());
    let topics = json!(hostile_topics()).to_string();
    tokio::select! {
        () = load => unreachable!("the load has no end"),
        () = look("dashboard.cjs", vec![address, KEY.to_owned(), topics]) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_tells_that_a_node_is_gone() {
    if !has_browser() || !has_brokers() {
        return;
    }
    install(&[Peer::Node]);
    let broker = Broker::start(Engine::Nats);
    let [a, b] = crate::cluster::nodes(&broker.url(), &[]).await;
    let stats = get(&a, "/v1/stats?scope=cluster").await;
    let per_node = names(&stats, "per_node", "node_id");
    assert_eq!((stats["nodes"].as_u64(), per_node), (Some(2), vec!["a".to_owned(), "b".to_owned()]));
    let address = format!("http://{}/", a.api());
    let process = b.process_id().to_string();
    look("dashboard_nodes.cjs", vec![address, "b".to_owned(), process]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_the_store_of_a_cluster() {
    if !has_browser() || !has_brokers() {
        return;
    }
    install(&[Peer::Node]);
    let broker = Broker::start_with_streams(Engine::Redis);
    let flags = ["--topic", "kept.>: history=10", "--canary-interval", "200ms"];
    let [node] = crate::cluster::nodes(&broker.url(), &flags).await;
    let mut client = Client::connect(&node).await;
    subscribe(&mut client, &["kept.a".to_owned()]).await;
    http(node.api(), "POST /v1/topics/kept.a/messages", &[], "1").await;
    let store = get(&node, "/v1/stats").await["store"].clone();
    assert_eq!((&store["reachable"], &store["waiting_appends"]), (&json!(true), &json!(0)), "{store}");
    assert!(
        store["appends_total"].as_u64() >= Some(1) && store["reads_total"].as_u64() >= Some(1),
        "{store}"
    );
    assert_eq!(store["failed_reads_total"], 0, "{store}");
    let address = format!("http://{}/", node.api());
    look("dashboard_store.cjs", vec![address, broker.process_id().to_string()]).await;
}

#[tokio::test]
async fn a_node_without_a_store_has_no_statistics_of_one() {
    let server = Server::start(&["--topic", "kept.>: history=10"]);
    assert_eq!(get(&server, "/v1/stats").await["store"], Value::Null);
}
