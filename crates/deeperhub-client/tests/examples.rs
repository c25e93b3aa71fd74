//! Runs the examples against scripted servers.

#[allow(dead_code)]
#[path = "../examples/conformance_driver.rs"]
mod conformance_driver;
#[allow(dead_code)]
#[path = "../examples/follow.rs"]
mod follow;
#[allow(dead_code)]
#[path = "../examples/service.rs"]
mod service;
#[allow(dead_code)]
#[path = "support/mod.rs"]
mod support;

use deeperhub_client::{Hub, Options};
use serde_json::json;
use support::{Server, bounded};

#[tokio::test]
async fn follow_ends_when_the_server_says_so() {
    bounded(async {
        let server = Server::start().await;
        let (result, ()) = tokio::join!(follow::follow(server.url(), "chat"), async {
            let mut connection = server.welcome().await;
            let subscribe = connection.expect("subscribe").await;
            assert_eq!(subscribe["data"], json!({"topic": "chat", "history": 10}));
            connection.subscribed(&subscribe, 10, json!({})).await;
            connection.deliver(11).await;
            connection.goodbye(4003).await;
        });
        result.expect("the stream ends");
    })
    .await;
}

#[tokio::test]
async fn the_service_answers_texts() {
    bounded(async {
        let server = Server::start().await;
        let options = Options::default();
        let (hub, mut connection) = tokio::join!(Hub::connect(server.url(), options), server.welcome());
        let hub = hub.expect("it connects");
        let (result, ()) = tokio::join!(service::serve(&hub), async {
            let subscribe = connection.expect("subscribe").await;
            connection.reply(&subscribe, "subscribed", json!({"topic": "texts"})).await;
            for message in [json!("no text"), json!({"id": "a", "text": "one two  three"})] {
                connection.message(json!({"topic": "texts", "message": message})).await;
            }
            let publish = connection.expect("publish").await;
            assert_eq!(publish["data"]["topic"], "counts");
            assert_eq!(publish["data"]["message"], json!({"id": "a", "words": 3}));
            connection.reply(&publish, "published", json!({"topic": "counts", "subscribers": 1})).await;
            connection.goodbye(4003).await;
        });
        result.expect("the stream ends");
    })
    .await;
}

#[tokio::test]
async fn the_driver_does_what_lines_say() {
    bounded(async {
        let server = Server::start().await;
        let mut driver = conformance_driver::Driver::default();
        let commands = [
            json!({"do": "connect", "url": server.url(), "options": {"tokens": ["t"], "min_delay_ms": 5}}),
            json!({"do": "subscribe", "as": "chat", "topic": "chat", "history": 2}),
        ];
        for command in commands {
            driver.run(&command).await.expect("the command is known");
        }
        let mut connection = server.welcome().await;
        assert_eq!(connection.authorization.as_deref(), Some("Bearer t"));
        let subscribe = connection.expect("subscribe").await;
        assert_eq!(subscribe["data"], json!({"topic": "chat", "history": 2}));
        assert!(driver.run(&json!({"do": "dance"})).await.is_err());
    })
    .await;
}
