//! Exemplars: observed values, each with the trace span in which it was observed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// An observed value, and the trace span in which it was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exemplar {
    /// The value in the observed unit of the histogram's [`Bounds`](crate::Bounds).
    pub value: u64,
    /// The trace ID: 16 bytes in big-endian order.
    pub trace_id: u128,
    /// The ID of the span within the trace: 8 bytes in big-endian order.
    pub span_id: u64,
    /// The time of the observation.
    pub at: SystemTime,
}

/// The latest exemplar of each bucket of a histogram.
#[derive(Debug, Clone)]
pub(crate) struct Exemplars {
    buckets: Arc<Mutex<Box<[Option<Exemplar>]>>>,
}

impl Exemplars {
    pub(crate) fn new(buckets: usize) -> Self {
        Self { buckets: Arc::new(Mutex::new(vec![None; buckets].into())) }
    }

    /// Stores an exemplar. Drops it if another thread holds the lock, so the call never waits.
    pub(crate) fn store(&self, bucket: usize, exemplar: Exemplar) {
        if let Ok(mut buckets) = self.buckets.try_lock()
            && let Some(latest) = buckets.get_mut(bucket)
        {
            *latest = Some(exemplar);
        }
    }

    pub(crate) fn snapshot(&self) -> Box<[Option<Exemplar>]> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
