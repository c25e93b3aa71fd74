//! Decisions about which traces are recorded.

use deeperhub_protocol::message::SpanContext;

/// Decides which traces are recorded.
///
/// The decision about a new trace depends only on its ID, as with OpenTelemetry's
/// `TraceIdRatioBased`. Programs with the same ratio thus make the same decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// A trace is recorded if the low 63 bits of its ID are below this.
    threshold: u64,
    /// `true` if a parent's decision is adopted.
    follows_parents: bool,
}

/// Number of values of 63 bits.
const TRACE_ID_RANGE: u64 = 1 << 63;

impl Sampler {
    /// Returns a sampler that adopts the parent's decision. It records this ratio of the traces
    /// without a parent, from 0 (none) to 1 (all).
    #[must_use]
    pub fn parent_based(ratio: f64) -> Self {
        Self { threshold: threshold_for(ratio), follows_parents: true }
    }

    /// Returns a sampler that records this ratio of all traces, from 0 (none) to 1 (all). It
    /// ignores the decisions of parents.
    #[must_use]
    pub fn by_trace_id(ratio: f64) -> Self {
        Self { threshold: threshold_for(ratio), follows_parents: false }
    }

    /// Returns `true` if a trace without a parent is never recorded.
    #[inline]
    pub(crate) const fn never_starts_traces(self) -> bool {
        self.threshold == 0
    }

    /// Returns the trace ID, and `true` if the trace is recorded. The ID of a new trace that is not
    /// recorded is 0.
    #[inline]
    pub(crate) fn decide(self, parent: Option<SpanContext>) -> (u128, bool) {
        match parent {
            Some(parent) if self.follows_parents => (parent.trace_id(), parent.is_sampled()),
            Some(parent) => (parent.trace_id(), self.records(parent.trace_id() as u64)),
            None => {
                let low = fastrand::u64(..);
                // Most traces are not recorded and need no high half.
                if self.records(low) {
                    ((u128::from(fastrand::u64(1..)) << 64) | u128::from(low), true)
                } else {
                    (0, false)
                }
            }
        }
    }

    /// Returns `true` with a probability equal to the ratio.
    pub(crate) fn samples_by_chance(self) -> bool {
        self.records(fastrand::u64(..))
    }

    #[inline]
    const fn records(self, low: u64) -> bool {
        (low >> 1) < self.threshold
    }
}

impl Default for Sampler {
    /// Returns a sampler that adopts the parent's decision, and starts no traces.
    fn default() -> Self {
        Self::parent_based(0.0)
    }
}

/// Returns the threshold of a ratio. NaN counts as 0.
fn threshold_for(ratio: f64) -> u64 {
    if ratio >= 1.0 { TRACE_ID_RANGE } else { (ratio.max(0.0) * TRACE_ID_RANGE as f64) as u64 }
}

/// Returns a span ID, which is never 0.
pub(super) fn span_id() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled_share(sampler: Sampler, parent: Option<SpanContext>) -> f64 {
        let sampled = (0..20_000).filter(|_| sampler.decide(parent).1).count();
        sampled as f64 / 20_000.0
    }

    #[test]
    fn traces_without_a_parent_are_recorded_by_ratio() {
        assert_eq!(sampled_share(Sampler::parent_based(0.0), None), 0.0);
        assert_eq!(sampled_share(Sampler::parent_based(1.0), None), 1.0);
        assert!((0.2..0.3).contains(&sampled_share(Sampler::parent_based(0.25), None)));
        assert_eq!(Sampler::parent_based(f64::NAN), Sampler::default());
        assert_eq!(Sampler::parent_based(-3.0), Sampler::default());
        assert_eq!(Sampler::parent_based(7.0), Sampler::parent_based(1.0));
    }

    #[test]
    fn the_parents_decision_is_adopted() {
        for ratio in [0.0, 0.5, 1.0] {
            let sampler = Sampler::parent_based(ratio);
            assert_eq!(sampler.decide(SpanContext::new(5, 6, true)), (5, true));
            assert_eq!(sampler.decide(SpanContext::new(5, 6, false)), (5, false));
        }
    }

    #[test]
    fn by_trace_id_ignores_the_parents_decision() {
        let sampler = Sampler::by_trace_id(0.5);
        assert_eq!(sampler.decide(SpanContext::new(1, 6, false)), (1, true));
        assert!(!sampler.decide(SpanContext::new(u128::from(u64::MAX), 6, true)).1);
    }

    #[test]
    fn the_decision_matches_trace_id_ratio_based() {
        // OpenTelemetry's TraceIdRatioBased compares the low 63 bits with the ratio of their range.
        let sampler = Sampler::by_trace_id(0.25);
        let sampled = |low: u64| sampler.decide(SpanContext::new((9 << 64) | u128::from(low), 1, false)).1;
        assert!(sampled((1 << 62) - 1) && !sampled(1 << 62) && !sampled(u64::MAX));
    }
}
