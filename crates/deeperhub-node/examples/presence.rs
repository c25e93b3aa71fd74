//! A hub that tells all clients how many of them are online, each time one connects or disconnects:
//! `cargo run -p deeperhub-node --example presence`.

use std::{env, error::Error};

use deeperhub_node::{Config, EventFilter, EventKind, Node};
use serde_json::json;

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::var("HUB_ADDRESS").unwrap_or("127.0.0.1:8080".into());
    let node = Node::start(address.parse()?, Config::default())?;
    println!("listening on ws://{}", node.local_addr());
    let hub = node.handle();
    let filter = EventFilter::none().with(EventKind::Connected).with(EventKind::Disconnected);
    let mut events = hub.events(filter).ok_or("too many observers")?;
    while events.recv().await.is_some() {
        let online = hub.stats().totals.connections;
        hub.broadcast(&json!({ "type": "online", "data": { "clients": online } })).await?;
    }
    Ok(())
}
