//! Exemplars: observed values, each with the trace span in which it was observed.

use std::fmt::Write;
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

/// The exemplar of each bucket of a histogram in order, with its value in the exposed unit.
type BucketExemplars<'e> = &'e [Option<(f64, Exemplar)>];

/// Adds exemplars to a text in the OpenMetrics format.
///
/// `find_exemplars` returns the exemplars of the histogram with a given name, or `None` if the
/// histogram has none.
pub(crate) fn add_exemplars<'e>(
    text: &str,
    find_exemplars: impl Fn(&str) -> Option<BucketExemplars<'e>>,
) -> String {
    let mut out = String::with_capacity(text.len() + 4096);
    let mut histogram: Option<(&str, BucketExemplars<'e>)> = None;
    let mut bucket = 0;
    for line in text.lines() {
        out.push_str(line);
        let comment = line.strip_prefix("# TYPE ").and_then(|comment| comment.split_once(' '));
        if let Some((name, kind)) = comment {
            let exemplars = if kind == "histogram" { find_exemplars(name) } else { None };
            histogram = exemplars.map(|exemplars| (name, exemplars));
            bucket = 0;
        } else if let Some((name, exemplars)) = histogram
            && line.strip_prefix(name).is_some_and(|rest| rest.starts_with("_bucket{"))
        {
            if let Some(Some((value, exemplar))) = exemplars.get(bucket) {
                let Exemplar { trace_id, span_id, at, .. } = exemplar;
                let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                // Writing into a string cannot fail.
                let _ = write!(
                    out,
                    " # {{trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"}} {value} {at:.3}"
                );
            }
            bucket += 1;
        }
        out.push('\n');
    }
    out
}
