//! The client against scripted servers on real sockets.

#[allow(dead_code)]
#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use deeperhub_client::{
    Event, Hub, HubState, MemoryStorage, Options, StreamExt, Subscription, SubscriptionState,
};
use serde_json::json;
use support::{Server, bounded, refuse, silent};

/// Options with short delays.
fn options() -> Options {
    Options::default().min_delay(Duration::from_millis(5)).max_delay(Duration::from_millis(20))
}

/// Returns the next message of a subscription, and leaves out states.
async fn next_message(subscription: &mut Subscription) -> (u64, String) {
    loop {
        match subscription.next().await.expect("the subscription goes on") {
            Event::Message(message) => {
                let offset = message.position.as_ref().expect("it has a position").offset;
                return (offset, message.message().expect("it is a text"));
            }
            Event::State(_) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
}

#[tokio::test]
async fn messages_come_once_over_a_cut() {
    bounded(async {
        let server = Server::start().await;
        let (hub, mut connection) =
            tokio::join!(async { Hub::connect(server.url(), options()).await }, server.welcome());
        let hub = hub.expect("it connects");
        let subscribing = tokio::spawn({
            let hub = hub.clone();
            async move { hub.subscribe("chat").await }
        });
        let subscribe = connection.expect("subscribe").await;
        connection.subscribed(&subscribe, 10, json!({})).await;
        let mut chat = subscribing.await.expect("no panic").expect("it subscribes");
        connection.deliver(11).await;
        assert_eq!(next_message(&mut chat).await, (11, "message 11".to_owned()));
        connection.deliver(12).await;
        drop(connection);

        let mut connection = server.welcome().await;
        let subscribe = connection.expect("subscribe").await;
        let asked = subscribe["data"]["recover"]["offset"].as_u64().expect("it recovers");
        connection.subscribed(&subscribe, asked, json!({"recovered": true, "replay": 14 - asked})).await;
        // Each of them stands twice on the wire.
        for offset in asked + 1..=14 {
            connection.deliver(offset).await;
            connection.deliver(offset).await;
        }
        for offset in 12..=14 {
            assert_eq!(next_message(&mut chat).await.0, offset);
        }
        let live = chat.next().await;
        let is_recovered = matches!(
            live,
            Some(Event::State(SubscriptionState::Live { recovered: Some(true), reason: None }))
        );
        assert!(is_recovered, "{live:?}");
        let closing = tokio::spawn(async move { hub.close().await });
        assert_eq!(connection.expect_close().await, Some(1000));
        closing.await.expect("no panic");
        let ended = chat.next().await;
        assert!(matches!(ended, Some(Event::State(SubscriptionState::Ended { .. }))), "{ended:?}");
        assert!(chat.next().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_publish_is_repeated_until_it_is_answered() {
    bounded(async {
        let server = Server::start().await;
        let (hub, mut connection) =
            tokio::join!(async { Hub::connect(server.url(), options()).await }, server.welcome());
        let hub = hub.expect("it connects");
        let publishing = tokio::spawn(async move { hub.publish("chat", "hello").await });
        let first = connection.expect("publish").await;
        drop(connection);
        let mut connection = server.welcome().await;
        let second = connection.expect("publish").await;
        assert_eq!(first["data"], second["data"]);
        assert!(second["data"]["once"].is_string());
        connection.reply(&second, "published", json!({"topic": "chat", "subscribers": 2})).await;
        let published = publishing.await.expect("no panic").expect("it is published");
        assert_eq!((published.subscribers, published.position), (2, None));
    })
    .await;
}

#[tokio::test]
async fn the_time_of_retry_after_is_kept() {
    bounded(async {
        let server = Server::start().await;
        let hub = Hub::new(server.url(), options()).expect("the address is valid");
        let mut states = hub.states();
        let body = r#"{"error":{"code":"draining","message":"later"}}"#;
        refuse(&server, "503 Service Unavailable\r\nRetry-After: 3600", body).await;
        while let Some(state) = states.next().await {
            if let HubState::Waiting { until, reason } = state {
                // It was an hour when the refusal came, and no random time.
                let wait = until.saturating_duration_since(std::time::Instant::now());
                assert!(wait > Duration::from_secs(3000), "{wait:?}");
                assert_eq!(&*reason, "draining");
                return;
            }
        }
        panic!("it does not wait");
    })
    .await;
}

#[tokio::test]
async fn a_refused_token_ends_the_hub() {
    bounded(async {
        let server = Server::start().await;
        let body = r#"{"error":{"code":"unauthorized","message":"no"}}"#;
        let connecting = Hub::connect(server.url(), options().token("old"));
        let (hub, ()) = tokio::join!(connecting, refuse(&server, "401 Unauthorized", body));
        let error = hub.err().expect("it fails");
        assert_eq!(error.code(), "closed");
        assert!(error.message.contains("unauthorized"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_refused_token_is_asked_for_again() {
    bounded(async {
        let server = Server::start().await;
        let calls = Arc::new(AtomicU32::new(0));
        let token = {
            let calls = Arc::clone(&calls);
            move || {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                async move { format!("token-{call}") }
            }
        };
        // A delay would fail the test, because the second token goes at once.
        let options =
            options().token(token).min_delay(Duration::from_secs(3600)).max_delay(Duration::from_secs(3600));
        let connecting = Hub::connect(server.url(), options);
        let (hub, connection) = tokio::join!(connecting, async {
            refuse(&server, "401 Unauthorized", "{}").await;
            server.welcome().await
        });
        hub.expect("it connects");
        assert_eq!(connection.authorization.as_deref(), Some("Bearer token-1"));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    })
    .await;
}

#[tokio::test]
async fn a_page_instead_of_an_upgrade_is_tried_again() {
    bounded(async {
        let server = Server::start().await;
        let connecting = Hub::connect(server.url(), options());
        let (hub, _connection) = tokio::join!(connecting, async {
            refuse(&server, "200 OK\r\nContent-Type: text/html", "<html>Please log in</html>").await;
            refuse(&server, "302 Found\r\nLocation: http://portal.example/", "").await;
            server.welcome().await
        });
        assert_eq!(hub.expect("it connects").state(), HubState::Open);
    })
    .await;
}

#[tokio::test]
async fn a_silent_server_is_left() {
    bounded(async {
        let server = Server::start().await;
        let options =
            options().connect_timeout(Duration::from_millis(50)).pong_timeout(Duration::from_millis(50));
        let connecting = Hub::connect(server.url(), options);
        let (hub, (mut connection, _held)) = tokio::join!(connecting, async {
            // Accepts and says nothing, so the attempt fails.
            let held = silent(&server).await;
            (server.welcome_with(json!({"ping_interval_ms": 40})).await, held)
        });
        let _hub = hub.expect("it connects");
        connection.expect("ping").await;
        // The connection stays open and silent, and the client comes again.
        let _next = server.welcome().await;
    })
    .await;
}

#[tokio::test]
async fn a_message_over_the_limit_fails_at_once() {
    bounded(async {
        let server = Server::start().await;
        let (hub, _connection) = tokio::join!(
            async { Hub::connect(server.url(), options()).await },
            server.welcome_with(json!({"max_message_bytes": 200}))
        );
        let error =
            hub.expect("it connects").publish("chat", &"x".repeat(200)).await.expect_err("it is too large");
        assert_eq!(error.code(), "message_too_large");
    })
    .await;
}

#[tokio::test]
async fn a_hub_can_be_closed_while_it_connects() {
    bounded(async {
        let server = Server::start().await;
        let hub = Hub::new(server.url(), options()).expect("the address is valid");
        let _held = silent(&server).await;
        let mut chat = hub.subscribe("chat").start();
        let publishing = hub.publish("chat", "hello").into_future();
        hub.close().await;
        assert!(matches!(hub.state(), HubState::Closed { .. }));
        assert_eq!(publishing.await.expect_err("it is closed").code(), "closed");
        assert_eq!(chat.ready().await.expect_err("it is closed").code(), "closed");
        assert_eq!(hub.subscribe("chat").await.err().expect("it is closed").code(), "closed");
        assert_eq!(hub.echo(&1).await.expect_err("it is closed").code(), "closed");
    })
    .await;
}

#[tokio::test]
async fn positions_outlive_the_hub() {
    bounded(async {
        let server = Server::start().await;
        let storage = Arc::new(MemoryStorage::default());
        let options = || options().storage(Arc::clone(&storage) as _);
        let hub = Hub::new(server.url(), options()).expect("the address is valid");
        let mut chat = hub.subscribe("chat").start();
        let mut connection = server.welcome().await;
        let subscribe = connection.expect("subscribe").await;
        connection.subscribed(&subscribe, 10, json!({})).await;
        connection.deliver(11).await;
        connection.deliver(12).await;
        assert_eq!(next_message(&mut chat).await.0, 11);
        // 12 was taken and not processed.
        assert_eq!(next_message(&mut chat).await.0, 12);
        hub.close().await;
        drop((hub, chat));

        let hub = Hub::new(server.url(), options()).expect("the address is valid");
        let _chat = hub.subscribe("chat").start();
        let mut connection = server.welcome().await;
        let subscribe = connection.expect("subscribe").await;
        assert_eq!(subscribe["data"]["recover"]["offset"], 11);
    })
    .await;
}

#[tokio::test]
async fn dropping_the_last_hub_closes_the_connection() {
    bounded(async {
        let server = Server::start().await;
        let (hub, mut connection) =
            tokio::join!(async { Hub::connect(server.url(), options()).await }, server.welcome());
        let other = hub.expect("it connects").clone();
        drop(other);
        assert_eq!(connection.expect_close().await, Some(1000));
    })
    .await;
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_at_once() {
    for url in ["", "hub.example", "http://hub.example/", "ws://"] {
        let error = Hub::connect(url, Options::default()).await.err().expect("it is no address");
        assert_eq!(error.code(), "invalid_options", "{url}");
    }
}

#[tokio::test]
async fn tls_trusts_the_given_roots() {
    bounded(async {
        let Some(authority) = support::authority::Authority::new() else { return };
        let server = Server::start_tls(authority.server_config()).await;
        let options = options().tls(authority.client_config());
        let (hub, connection) = tokio::join!(Hub::connect(server.url(), options), server.welcome());
        hub.expect("it connects").close().await;
        drop(connection);
    })
    .await;
}
