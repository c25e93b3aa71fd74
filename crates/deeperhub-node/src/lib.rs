//! The hub itself: sessions, commands, drain, and the handle that embedding programs use.
//!
//! A [`Node`] listens for WebSocket clients and speaks the messages of `deeperhub-protocol` with them. A
//! [`NodeHandle`] is a backend's side of it: publish, send to clients and users, broadcast, list, observe.
//!
//! ```no_run
//! use deeperhub_node::{Config, Node};
//! use deeperhub_protocol::{RawJson, Topic, message::TraceContext};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::start("127.0.0.1:8080".parse()?, Config::default())?;
//! let topic = Topic::parse("news")?;
//! node.handle().publish(&topic, RawJson::parse(r#"{"any":"JSON"}"#).map_err(|e| e.to_string())?, &TraceContext::default());
//! # Ok(())
//! # }
//! ```
//!
//! What is absent on purpose: an HTTP API (`deeperhub-api`) and everything that concerns a whole process (signals,
//! logging, flags), which is the binary's.

mod application;
mod auth;
mod canary;
mod cluster;
mod cluster_query;
mod commands;
mod config;
mod connection_id;
mod handle;
mod health;
mod hub;
mod local;
mod metrics;
mod node;
mod phase;
mod recent_quantiles;
mod session;
mod stats;
mod sweep;
mod top;
pub mod trace;
mod types;
mod users;
mod worker_request;

pub use auth::AuthConfig;
pub use canary::CanaryConfig;
pub use cluster::ClusterConfig;
pub use cluster_query::{ClusterAnswer, ClusterStats, NodeInfo};
pub use config::{
    Config, CustomGauge, CustomMetric, MetricKind, burst_rate_per_ip, control_rate_limit, token_rate_limit,
};
pub use deeperhub_protocol::message::ClusterFault;
pub use handle::NodeHandle;
pub use health::{Health, HealthCheck, UnreadyReason};
pub use node::{MetricsError, Node, StartError};
pub use phase::Phase;
pub use recent_quantiles::Quantiles;
pub use stats::{Stats, Totals};
pub use top::{Top, TopEntry};
pub use types::{
    ClientInfo, ClientNotFound, CursorError, Delivered, ListError, NodeIdTaken, Page, SendError, TopicInfo,
    WorkerTimeout,
};
