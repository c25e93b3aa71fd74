//! Spans of traced publishes that are on their way to the cluster's store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use deeperhub_cluster::{AppendError, AppendNumber};

use super::AppendOutcome;
use crate::trace::{ActiveSpan, SpanKind, SpanLoss, Tracer};

/// Maximum number of publishes that are traced at the same time.
const MAX_TRACED: usize = 1024;

/// Spans of publishes that wait for their outcome.
#[derive(Debug, Default)]
pub(super) struct StoreSpans {
    /// Length of the map, so that outcomes of other publishes need no lock.
    count: AtomicUsize,
    spans: Mutex<HashMap<AppendNumber, ActiveSpan>>,
}

impl StoreSpans {
    /// Starts a span as a child of the publish. Returns `false` if too many are open.
    pub(super) fn start(&self, number: AppendNumber, publish: &ActiveSpan) -> bool {
        let Some(span) = publish.child(Instant::now()) else { return true };
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() >= MAX_TRACED {
            return false;
        }
        spans.insert(number, span);
        self.count.store(spans.len(), Ordering::Release);
        true
    }

    /// Removes the span of a publish.
    pub(super) fn remove(&self, number: AppendNumber) -> Option<ActiveSpan> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let span = spans.remove(&number);
        self.count.store(spans.len(), Ordering::Release);
        span
    }

    /// Ends the span of a publish with its outcome.
    pub(super) fn end(&self, number: AppendNumber, outcome: &AppendOutcome, tracer: &Tracer) {
        let Some(span) = self.remove(number) else { return };
        let (offset, error) = match outcome {
            Ok(appended) => (Some(appended.position.offset), None),
            Err(AppendError::Refused(_)) => (None, Some("refused")),
            Err(_) => (None, Some("stopped")),
        };
        tracer.record(|| {
            span.end(Instant::now(), "store", SpanKind::Client)
                .with_local_parent()
                .with("messaging.system", crate::trace::MESSAGING_SYSTEM)
                .with("messaging.operation.name", "store")
                .with_some("deeperhub.offset", offset)
                .with_error(error)
        });
    }
}

/// Counts a publish whose span is left out.
pub(super) fn count_lost(tracer: &Tracer) {
    tracer.metrics().dropped(SpanLoss::TooMany, 1);
}
