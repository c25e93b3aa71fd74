//! A hub that publishes a tick each second: `cargo run -p deeperhub-node --example tick`.

use std::{env, error::Error, time::Duration};

use deeperhub_node::{Config, Node};
use serde_json::json;

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::var("HUB_ADDRESS").unwrap_or("127.0.0.1:8080".into());
    let node = Node::start(address.parse()?, Config::default())?;
    println!("listening on ws://{}", node.local_addr());
    let hub = node.handle();
    for n in 1.. {
        let delivered = hub.publish("ticks", &json!({ "tick": n }))?;
        println!("tick {n}: {} subscribers", delivered.count);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}
