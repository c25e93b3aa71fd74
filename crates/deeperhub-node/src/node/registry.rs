//! The registry of all metrics of a node.

use deeperhub_events::EventBus;
use deeperhub_metrics::{RegisterError, Registry, Unit};

use crate::metrics::Metrics;
use crate::streams::StreamRouter;
use crate::trace::TraceMetrics;

/// Registers the expiry of the certificate that new connections get.
#[cfg(feature = "tls")]
pub(super) fn register_certificate(
    mut registry: Registry,
    listener: &deeperhub_listener::Config,
) -> Result<Registry, RegisterError> {
    if let Some(tls) = listener.tls.clone() {
        registry.register_gauge_fn(
            "deeperhub_tls_certificate_not_after_seconds",
            "Expiry of the TLS certificate, in Unix time",
            Unit::Seconds,
            move || i64::try_from(tls.expires_at()).unwrap_or(i64::MAX),
        )?;
    }
    Ok(registry)
}

/// Returns a registry with the metrics of node, listener, router, event bus, traces and process.
pub(super) fn registry(
    metrics: &Metrics,
    listener: &deeperhub_listener::Metrics,
    router: &StreamRouter,
    bus: &EventBus,
    traces: &TraceMetrics,
) -> Result<Registry, RegisterError> {
    let mut registry = Registry::new();
    metrics.register(&mut registry)?;
    listener.register(&mut registry)?;
    let topics = router.clone();
    registry.register_gauge_fn(
        "deeperhub_topics",
        "Topics and patterns with a subscriber",
        Unit::None,
        move || i64::try_from(topics.topic_count()).unwrap_or(i64::MAX),
    )?;
    let event_bus = bus.clone();
    registry.register_gauge_fn(
        "deeperhub_events_queued_bytes",
        "Bytes of events queued for observers",
        Unit::Bytes,
        move || i64::try_from(event_bus.queued_bytes()).unwrap_or(i64::MAX),
    )?;
    let bus = bus.clone();
    registry.register_counter_fn(
        "deeperhub_events_lost_total",
        "Events lost by slow observers",
        Unit::None,
        move || bus.lost(),
    )?;
    traces.register(&mut registry)?;
    registry.register_process();
    Ok(registry)
}
