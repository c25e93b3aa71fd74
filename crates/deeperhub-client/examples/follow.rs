//! Prints what is published to a topic:
//! `cargo run -p deeperhub-client --example follow -- ws://localhost:8080 news`

use deeperhub_client::{Event, Hub, Options};

pub(crate) async fn follow(url: &str, topic: &str) -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::connect(url, Options::default()).await?;
    let mut messages = hub.subscribe(topic).history(10).await?;
    while let Some(event) = messages.next().await {
        match event {
            Event::Message(message) => println!("{}", message.json()),
            Event::Gap(gap) => eprintln!("messages are missing: {}", gap.reason),
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, url, topic] = &arguments[..] else { return Err("give URL TOPIC".into()) };
    follow(url, topic).await
}
