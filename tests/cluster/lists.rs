//! Lists, counts and names of nodes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{eventually, names_of_nodes, node, nodes, subscribed, wait_until_ready};
use crate::support::{Broker, Client, Engine, Server, http, run};

async fn get(node: &Server, path: &str) -> Value {
    let response = http(node.api(), &format!("GET {path}"), &[], "").await;
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    response.json()
}

/// Returns all items of a list over its pages.
async fn list_all(node: &Server, path: &str, list: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(node, &format!("{path}{cursor}")).await;
        items.extend(page[list].as_array().expect("a page has a list").clone());
        assert_eq!(page["unanswered"], json!([]), "{page}");
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

#[tokio::test]
async fn lists_and_counts_cover_the_node_or_the_cluster() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, c] = nodes(&broker.url(), &[]).await;
        let mut clients = Vec::new();
        let mut topics = BTreeSet::new();
        for (index, node) in [&a, &b, &b, &c, &c, &c].into_iter().enumerate() {
            let own = format!("own.{index}");
            clients.push(subscribed(node, &["shared.é", &own]).await);
            topics.insert((own, 1));
        }
        topics.insert(("shared.é".to_owned(), 6));

        assert_eq!(get(&a, "/v1/clients").await["clients"].as_array().map(Vec::len), Some(1));
        for limit in [1, 2, 4, 100] {
            let listed = list_all(&a, &format!("/v1/clients?scope=cluster&limit={limit}"), "clients").await;
            let ids: BTreeSet<_> =
                listed.iter().map(|client| client["client_id"].as_str().unwrap()).collect();
            assert_eq!((listed.len(), ids), (6, clients.iter().map(Client::id).collect()), "{limit}");
            let listed = list_all(&b, &format!("/v1/topics?scope=cluster&limit={limit}"), "topics").await;
            let listed: Vec<_> = listed
                .iter()
                .map(|topic| {
                    (topic["topic"].as_str().unwrap().to_owned(), topic["subscribers"].as_u64().unwrap())
                })
                .collect();
            assert_eq!(listed, topics.iter().cloned().collect::<Vec<_>>(), "{limit}");
        }
        assert_eq!(get(&b, "/v1/topics/shared.%C3%A9").await["subscribers"], 2);
        let shared = get(&b, "/v1/topics/shared.%C3%A9?scope=cluster").await;
        assert_eq!(shared, json!({"topic": "shared.é", "subscribers": 6, "unanswered": []}));

        let stats = get(&b, "/v1/stats").await;
        assert_eq!((&stats["node_id"], &stats["connections"]["active"]), (&json!("b"), &json!(2)));
        let stats = get(&b, "/v1/stats?scope=cluster").await;
        assert_eq!((&stats["nodes"], &stats["unanswered"]), (&json!(3), &json!([])), "{stats}");
        assert_eq!(
            (&stats["connections"]["active"], &stats["subscriptions"]),
            (&json!(6), &json!(12)),
            "{stats}"
        );
        assert_eq!(names_of_nodes(&a).await, ["a", "b", "c"]);
        let wrong = http(a.api(), "GET /v1/stats?scope=world", &[], "").await;
        assert_eq!((wrong.status, &wrong.json()["error"]["code"]), (400, &json!("invalid_message")));
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_named_in_the_response() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, c] = nodes(&broker.url(), &[]).await;
        let client = Client::connect(&b).await;
        c.signal("STOP");
        let stats = get(&a, "/v1/stats?scope=cluster").await;
        assert_eq!(stats["unanswered"], json!(["c"]), "{stats}");
        let list = get(&a, "/v1/clients?scope=cluster").await;
        assert_eq!((&list["unanswered"], list["clients"].as_array().map(Vec::len)), (&json!(["c"]), Some(1)));
        eventually("the silent node to be removed", async || names_of_nodes(&a).await == ["a", "b"]).await;
        let stats = get(&a, "/v1/stats?scope=cluster").await;
        assert_eq!((&stats["nodes"], &stats["unanswered"]), (&json!(2), &json!([])));
        c.signal("CONT");
        eventually("the return of the node", async || names_of_nodes(&a).await == ["a", "b", "c"]).await;
        drop(client);
    }
}

#[tokio::test]
async fn a_second_node_with_the_same_name_is_refused() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &[]).await;
        let url = broker.url();
        let flags = ["--cluster", &url, "--node-id", "a", "--port", "0", "--api-listen", "127.0.0.1:0"];
        let second = run(&flags, &[]);
        assert_eq!(second.code, Some(1), "{}", second.stderr);
        assert!(
            second.stderr.contains("another node of the cluster is named \"a\"")
                && second.stderr.contains("--node-id"),
            "{}",
            second.stderr
        );
        assert_eq!(second.stdout, "");
        wait_until_ready(&a).await;
        assert_eq!(names_of_nodes(&b).await, ["a", "b"]);
    }
}

#[tokio::test]
async fn a_restarted_node_gets_its_name_back() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, mut b] = nodes(&broker.url(), &["--drain-timeout", "0"]).await;
        for signal in ["KILL", "TERM"] {
            b.signal(signal);
            b.wait();
            b = node(&broker.url(), "b", &["--drain-timeout", "0"]);
            wait_until_ready(&b).await;
            eventually("both nodes", async || names_of_nodes(&a).await == ["a", "b"]).await;
        }
        let mut client = subscribed(&b, &["t"]).await;
        super::wait_until_linked(&a, "t", &mut client).await;
    }
}
