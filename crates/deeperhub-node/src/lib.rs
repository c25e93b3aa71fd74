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
mod ask;
mod auth;
mod canary;
mod cluster;
mod commands;
mod config;
mod gather;
mod handle;
mod health;
mod hub;
mod id;
mod local;
mod metrics;
mod node;
mod phase;
mod recent;
mod session;
mod stats;
mod sweep;
mod top;
pub mod trace;
mod users;

pub use ask::Unanswered;
pub use auth::AuthConfig;
pub use canary::CanaryConfig;
pub use cluster::ClusterConfig;
pub use config::{
    Config, NumberKind, OwnGauge, OwnNumber, burst_rate_per_ip, control_rate_limit, token_rate_limit,
};
pub use deeperhub_protocol::message::ClusterFault;
pub use gather::{ClusterStats, Gathered, NodeInfo};
pub use handle::{
    ClientInfo, ClientNotFound, CursorError, Delivered, ListError, NodeHandle, NodeIdTaken, Page, SendError,
    TopicInfo,
};
pub use health::{Check, Health, Unready};
pub use node::{MetricsError, Node, StartError};
pub use phase::Phase;
pub use recent::Quantiles;
pub use stats::{Stats, Totals};
pub use top::{Busy, Top};
