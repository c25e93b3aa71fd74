//! A hub that keeps the last messages of its topics: `cargo run -p deeperhub-node --example history`.

use deeperhub_node::history::Rules;
use deeperhub_node::{Config, Node, StreamEvent, SubscribeFrom};

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rules = Rules::new(["prices.>: history=100 ttl=1h".parse()?])?;
    let config = Config::default().with_history_rules(rules);
    let node = Node::start("127.0.0.1:0".parse()?, config)?;
    let hub = node.handle();
    for price in [120, 125, 119] {
        let position = hub.publish("prices.tea", &price)?.position.ok_or("no history")?;
        println!("published at offset {}", position.offset);
    }
    // The last two messages, then those that clients and this program publish.
    let mut prices = hub.subscribe("prices.tea", SubscribeFrom::Last(2)).await?;
    for _ in 0..2 {
        let Some(StreamEvent::Message(message)) = prices.next().await else { break };
        println!("{} costs {}", prices.topic(), message.message());
    }
    node.stop().await;
    Ok(())
}
