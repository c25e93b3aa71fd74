//! A service that counts the words of each text in the topic `texts`, and publishes the counts to
//! `counts`. It survives restarts of the hub: `cargo run -p deeperhub-client --example service`

use deeperhub_client::{Event, Hub, Options};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Text {
    id: String,
    text: String,
}

#[derive(Serialize)]
struct Count<'a> {
    id: &'a str,
    words: usize,
}

pub(crate) async fn serve(hub: &Hub) -> Result<(), Box<dyn std::error::Error>> {
    let mut texts = hub.subscribe("texts").await?;
    while let Some(event) = texts.next().await {
        let Event::Message(message) = event else {
            eprintln!("{event:?}");
            continue;
        };
        match message.message::<Text>() {
            Ok(Text { id, text }) => {
                let count = Count { id: &id, words: text.split_whitespace().count() };
                hub.publish("counts", &count).await?;
            }
            // A message that is no text must not stop the service.
            Err(error) => eprintln!("a message was skipped: {error}"),
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("HUB_URL").unwrap_or("ws://localhost:8080".into());
    let mut options = Options::default();
    if let Ok(file) = std::env::var("HUB_TOKEN_FILE") {
        // Called for each connection, and before the token expires.
        options = options.token(move || {
            let file = file.clone();
            async move { std::fs::read_to_string(file).map(|token| token.trim().to_owned()) }
        });
    }
    let hub = Hub::connect(&url, options).await?;
    tokio::select! {
        result = serve(&hub) => result?,
        _ = tokio::signal::ctrl_c() => {}
    }
    hub.close().await;
    Ok(())
}
