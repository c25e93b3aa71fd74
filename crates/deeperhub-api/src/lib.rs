//! HTTP server API of a hub node: backends publish, send, list and disconnect over it, and
//! operators read metrics, health and events.
//!
//! [`serve`] runs the API on a TCP socket, with timeouts and limits on connections. [`router`]
//! returns the same calls as an [`axum::Router`], to mount in an app of your own. [`openapi`]
//! describes them.
//!
//! The types in this crate's signatures are re-exported in [`node`], [`security`] and [`axum`].
//!
//! Bodies are JSON, whatever their `Content-Type`. Payloads are delivered byte for byte as they
//! arrived. Every error is `{"error":{"code","message"}}`.
//!
//! ```no_run
//! use deeperhub_api::{ApiConfig, serve};
//! use deeperhub_node::{Config, Node};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::start("127.0.0.1:8080".parse()?, Config::default())?;
//! let socket = tokio::net::TcpListener::bind("127.0.0.1:8081").await?;
//! serve(socket, node.handle(), ApiConfig::default(), std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```

mod admission;
mod body;
mod calls;
mod client_script;
mod config;
mod connection;
mod dashboard;
mod dispatch;
mod error;
mod guard;
mod idempotency;
mod metrics;
mod openapi;
mod responses;
mod routes;
mod samples;
mod search;
mod serve;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod trace;

use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};
use deeperhub_node::NodeHandle;

pub use admission::RESERVED_CONNECTIONS;
pub use axum;
pub use config::{ApiConfig, ApiLimits, IdempotencyConfig, SharedApiConfig};
pub use deeperhub_node as node;
pub use deeperhub_security as security;
pub use metrics::ApiMetrics;
pub use openapi::openapi;
pub use serve::serve;

use crate::error::ApiError;

/// State that all calls share.
#[derive(Debug)]
pub(crate) struct Api {
    node: NodeHandle,
    config: SharedApiConfig,
    metrics: ApiMetrics,
    dashboard: dashboard::Dashboard,
    /// Outcomes of publishes with an idempotency key.
    publishes: idempotency::PublishStore<responses::Published>,
    /// Statistics of the last minutes.
    samples: samples::Samples,
}

impl Api {
    fn new(node: NodeHandle, config: SharedApiConfig) -> Self {
        let fixed = config.fixed();
        let dashboard = dashboard::Dashboard::new(fixed.websocket_url.as_deref());
        let metrics = fixed.metrics.clone();
        let publishes = idempotency::PublishStore::new(metrics.clone());
        let samples = samples::Samples::default();
        Self { node, config, metrics, dashboard, publishes, samples }
    }
}

/// Returns the calls of the API as an axum router, to mount in an app of your own.
///
/// The router checks keys, origins and sizes, and limits the time for request bodies. [`serve`]
/// enforces the other limits on connections and times. In an app of your own, its HTTP server must
/// enforce them.
pub fn router(node: NodeHandle, config: impl Into<SharedApiConfig>) -> Router {
    router_of(&Arc::new(Api::new(node, config.into())))
}

fn router_of(api: &Arc<Api>) -> Router {
    let dashboard = if api.config.fixed().dashboard {
        Router::new()
            .route("/", get(routes::dashboard_page))
            .route("/dashboard/{file}", get(routes::dashboard_file))
    } else {
        Router::new()
    };
    dashboard
        .route("/v1/topics", get(routes::topics))
        .route("/v1/topics/{topic}", get(routes::topic))
        .route(
            "/v1/topics/{topic}/messages",
            post(routes::publish).get(routes::history).delete(routes::clear_history),
        )
        .route("/v1/topics/{topic}/tail", get(routes::tail))
        .route("/v1/topics/{topic}/subscriptions", delete(routes::unsubscribe_all))
        .route("/v1/clients", get(routes::clients).delete(routes::disconnect_all))
        .route("/v1/clients/{client_id}", get(routes::client).delete(routes::disconnect))
        .route("/v1/clients/{client_id}/messages", post(routes::send_to_client))
        .route("/v1/clients/{client_id}/subscriptions/{topic}", delete(routes::unsubscribe_client))
        .route("/v1/users/{user}", delete(routes::disconnect_user))
        .route("/v1/users/{user}/subscriptions/{topic}", delete(routes::unsubscribe_user))
        .route("/v1/users/{user}/messages", post(routes::send_to_user))
        .route("/v1/broadcast", post(routes::broadcast))
        .route(guard::BATCH_PATH, post(routes::batch))
        .route("/v1/nodes", get(routes::nodes))
        .route("/v1/stats", get(routes::stats))
        .route("/v1/stats/samples", get(routes::stats_samples))
        .route("/v1/top", get(routes::top))
        .route("/v1/events", get(routes::events))
        .route("/metrics", get(routes::metrics))
        .route("/health/live", get(routes::live))
        .route("/health/ready", get(routes::ready))
        .route("/openapi.json", get(routes::openapi_json))
        .route(client_script::PATH, get(client_script::client_script))
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        // This layer is inside the guard, so that refused calls have no spans.
        .layer(axum::middleware::from_fn_with_state(Arc::clone(api), trace::trace))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(api), guard::guard))
        .with_state(Arc::clone(api))
}

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
