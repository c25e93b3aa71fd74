//! A hub inside an axum app of your own: clients connect to port 8080, the app serves port 3000,
//! and the server API is mounted below `/hub`.
//!
//! ```text
//! cargo run -p deeperhub-api --example axum_app
//! curl -d '"hello"' http://127.0.0.1:3000/hub/v1/topics/news/messages
//! ```

use axum::{Router, routing::get};
use deeperhub_api::node::{Config, Node};
use deeperhub_api::{ApiConfig, router};

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = |name, default: &str| std::env::var(name).unwrap_or(default.into());
    let hub_address = address("HUB_ADDRESS", "127.0.0.1:8080").parse()?;
    let node = Node::start(hub_address, Config::default())?;
    let app = Router::new()
        .route("/", get(async || "my app"))
        .nest("/hub", router(node.handle(), ApiConfig::default()));
    let listener = tokio::net::TcpListener::bind(address("APP_ADDRESS", "127.0.0.1:3000")).await?;
    println!("hub {} app {}", node.local_addr(), listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
