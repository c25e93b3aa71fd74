//! A hub in one's own program, whose traces go through an exporter of the OpenTelemetry project:
//! `cargo run -p deeperhub-telemetry --example opentelemetry --features sdk`.

use std::{error::Error, time::Duration};

use deeperhub_telemetry::SdkSpanSink;
use deeperhub_telemetry::node::{Config, Node, trace::Sampler};
use deeperhub_telemetry::opentelemetry_sdk::{Resource, trace::SimpleSpanProcessor};

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    // Any `SpanProcessor` fits. This one exports each span by itself; `BatchSpanProcessor` batches.
    let processor = SimpleSpanProcessor::new(opentelemetry_stdout::SpanExporter::default());
    let spans = SdkSpanSink::new(processor, &Resource::builder().with_service_name("my-hub").build())?;

    let mut config = Config::default();
    config.tracer = spans.tracer(Sampler::parent_based(1.0));
    let address = std::env::var("HUB_ADDRESS").unwrap_or("127.0.0.1:8080".into());
    let node = Node::start(address.parse()?, config)?;
    println!("listening on ws://{}", node.local_addr());

    tokio::signal::ctrl_c().await?;
    node.drain(Duration::from_secs(5)).await;
    node.stop().await;
    Ok(spans.stop(Duration::from_secs(5)).await?)
}
