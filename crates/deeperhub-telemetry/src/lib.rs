//! Exports the traces and metrics of a hub node.
//!
//! The crate has two parts:
//!
//! - [`Exporters`] send spans and metrics to a collector over OTLP (gRPC or HTTP). Their
//!   [`TelemetryConfig`] comes from the `OTEL_*` variables or from the program.
//! - `SdkSpanSink` (feature `sdk`) converts spans to `opentelemetry_sdk` span data, for any
//!   span processor or exporter of the OpenTelemetry project.
//!
//! Threads that serve clients do not wait for a collector. They push spans to a bounded queue; if
//! the queue is full, spans are dropped and counted. Metrics are read at each export from the
//! counters and gauges that Prometheus reads, too.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use deeperhub_telemetry::node::{Config, Node};
//! use deeperhub_telemetry::{Exporters, Service, TelemetryConfig};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let service = Service::new("my-hub", env!("CARGO_PKG_VERSION"));
//! let (exporters, warnings) = Exporters::new(TelemetryConfig::from_env(service));
//! for warning in warnings {
//!     eprintln!("warning: {warning}");
//! }
//! let mut config = Config::default();
//! config.tracer = exporters.tracer();
//! let node = Node::start("127.0.0.1:8080".parse()?, config)?;
//! let running = exporters.start(&node.handle());
//! // … serve, then:
//! node.stop().await;
//! running.stop(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod client;
mod config;
mod environment;
mod exporters;
mod metric_exporter;
mod otlp;
mod queue;
#[cfg(feature = "sdk")]
mod sdk;
mod span_exporter;

pub use client::certificates;
pub use config::{Destination, Headers, Overrides, Protocol, Service, TelemetryConfig};
pub use deeperhub_args::{HttpUrl, Ratio, Switchable};
pub use deeperhub_node as node;
pub use exporters::{Exporters, RunningExporters};
#[cfg(feature = "sdk")]
pub use opentelemetry_sdk;
#[cfg(feature = "sdk")]
pub use sdk::{SdkSpanSink, SdkStopError};

/// Compiles the README's examples.
#[cfg(all(doctest, feature = "sdk"))]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
