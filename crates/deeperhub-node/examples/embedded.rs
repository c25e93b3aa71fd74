//! A program that is a hub itself, and publishes: `cargo run -p deeperhub-node --example embedded`.

use std::error::Error;
use std::time::Duration;

use deeperhub_node::{Config, Node};
use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{RawJson, Topic};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Clients connect as they would to the program deeperhub-ws.
    let node = Node::start("127.0.0.1:8080".parse()?, Config::default())?;
    println!("listening on ws://{}", node.local_addr());
    let hub = node.handle();
    for n in 0..10 {
        let message = format!(r#"{{"tick":{n}}}"#);
        let message = RawJson::parse(&message).map_err(|error| error.to_string())?;
        let delivered = hub.publish(&Topic::parse("ticks")?, message, &TraceContext::default());
        println!("tick {n} for {} subscribers", delivered.count);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    node.drain(Duration::from_secs(5)).await;
    node.stop().await;
    Ok(())
}
