//! A realtime WebSocket hub for Rust programs: sessions, publish and subscribe, drain, and a handle
//! for the program.
//!
//! A [`Node`] accepts WebSocket clients and exchanges the messages of `deeperhub-protocol` with
//! them. A [`NodeHandle`] publishes, sends to clients and users, broadcasts, lists connections and
//! topics, and observes events.
//!
//! ```no_run
//! use deeperhub_node::{Config, Node};
//! use serde_json::json;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::start("127.0.0.1:8080".parse()?, Config::default())?;
//! let hub = node.handle();
//! let delivered = hub.publish("news", &json!({ "any": "JSON" }))?;
//! println!("{} subscribers", delivered.count);
//! # Ok(())
//! # }
//! ```
//!
//! The types in this crate's signatures are re-exported: [`Topic`], [`ClientId`] and [`Event`] at
//! the root, everything else in [`listener`], [`security`], [`events`], [`history`],
//! [`metrics`] and [`cluster`].
//!
//! The crate has no HTTP API; `deeperhub-api` adds one. Signals, logging and flags concern the
//! whole process, so they belong to the program.

mod application;
mod auth;
mod canary;
pub mod cluster;
mod commands;
mod config;
mod connection_id;
mod delivery;
mod handle;
mod health;
mod hub;
pub mod metrics;
mod mirrors;
mod node;
mod operation;
mod phase;
mod planted;
mod recent_quantiles;
mod replay;
mod session;
mod stats;
mod stream_counts;
mod stream_sweeper;
mod streams;
mod top;
pub mod trace;
mod types;
mod worker;

pub use auth::AuthConfig;
#[cfg(feature = "disk")]
pub use config::DiskConfig;
pub use config::{
    CanaryConfig, ClusterConfig, Config, CustomGauge, CustomMetric, HistoryLimits, HistoryStore, Limits,
    MetricKind, SessionLimits, burst_rate_per_ip, control_rate_limit, token_rate_limit,
};
pub use deeperhub_events as events;
pub use deeperhub_events::{Event, EventDetails, EventFilter, EventKind, EventStream, Received};
pub use deeperhub_history as history;
pub use deeperhub_listener as listener;
pub use deeperhub_protocol::message::{
    ClusterFault, HistoryOrder, HistoryRequest, HistoryStart, SpanContext, TraceContext, check_server_object,
};
pub use deeperhub_protocol::{
    ClientId, CloseCode, CloseReason, Epoch, ErrorCode, MessageError, NotRecovered, Position, RawJson,
    Subscription, Topic, TopicError, TopicPattern,
};
pub use deeperhub_router::Config as RouterConfig;
pub use deeperhub_security as security;
pub use handle::{History, KeptMessage, NodeHandle, StreamEvent, SubscribeError, SubscribeFrom, Subscriber};
pub use health::{Health, HealthCheck, UnreadyReason};
pub use node::{MetricsError, Node, StartError};
pub use operation::{Action, Operation, Target};
pub use phase::Phase;
pub use recent_quantiles::Quantiles;
pub use stats::{ClusterStats, MemoryUsage, NodeTotals, Stats, StoreStats, Totals};
pub use streams::TopicHistory;
pub use top::{Top, TopEntry};
pub use types::{
    ClientInfo, ClientNotFound, ClusterAnswer, ConnectionInfo, CursorError, Delivered, ListError,
    NodeIdTaken, NodeInfo, Page, PayloadError, PublishError, SendError, StoreUnavailable, SubscriptionBehind,
    TopicInfo, WorkerTimeout,
};

/// Runs the README's examples as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
