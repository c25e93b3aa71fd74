//! Counters of a thread, and the sum of all threads.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::recovery::RecoveryCounters;
use crate::sequence_tracker::SequenceSummary;

/// A histogram of durations from a microsecond to an hour, with three significant digits.
#[derive(Debug, Clone)]
pub(crate) struct DurationHistogram(Histogram<u64>);

impl Default for DurationHistogram {
    fn default() -> Self {
        const LOWEST: u64 = 1_000;
        const HIGHEST: u64 = 3_600_000_000_000;
        let histogram = Histogram::new_with_bounds(LOWEST, HIGHEST, 3);
        Self(histogram.expect("the bounds and the precision are valid for a histogram"))
    }
}

impl DurationHistogram {
    /// Records a duration. Durations over an hour count as an hour.
    #[inline]
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// Returns the number of durations.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the quantile in microseconds.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        microseconds(self.0.value_at_quantile(quantile))
    }

    /// Returns the maximum in microseconds, 0 without durations.
    pub(crate) fn max_us(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { microseconds(self.0.max()) }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        // Cannot fail, because both histograms have the same bounds.
        let _ = self.0.add(&other.0);
    }
}

/// Converts to microseconds with one decimal.
fn microseconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 100.0).round() / 10.0
}

/// Summary of the messages of one stream that one receiver received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiverStream {
    pub(crate) stream: u32,
    pub(crate) summary: SequenceSummary,
    /// Sequence number from which the receiver awaits no messages, if there is one.
    pub(crate) end: Option<u64>,
}

/// The counters of one thread, or of all threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Time to open a connection: connect, handshake, welcome and subscribe.
    pub(crate) connect: DurationHistogram,
    /// Time from sending a message, or from its due time, to its delivery. Messages outside the
    /// measured time do not count.
    pub(crate) latency: DurationHistogram,
    /// Connections that opened.
    pub(crate) opened: u64,
    /// Connections that did not open.
    pub(crate) failed: u64,
    /// Open connections that the server or the network closed.
    pub(crate) dropped: u64,
    /// Time at which the last connection opened, in nanoseconds since the epoch of the run.
    pub(crate) last_opened: u64,
    /// Messages sent.
    pub(crate) sent: u64,
    /// Messages sent in the measured time.
    pub(crate) sent_measured: u64,
    /// Messages of an open loop that were due and not sent.
    pub(crate) unsent: u64,
    /// Deliveries without duplicates.
    pub(crate) delivered: u64,
    /// Deliveries in the measured time.
    pub(crate) delivered_measured: u64,
    /// Bytes of reads that contained deliveries, in the measured time.
    pub(crate) bytes_measured: u64,
    /// Time of the last delivery, in nanoseconds since the epoch of the run.
    pub(crate) last_delivered: u64,
    /// Messages whose stamp belongs to another receiver.
    pub(crate) misdelivered: u64,
    /// Pings answered.
    pub(crate) pings: u64,
    /// Number of times that a closed loop stopped waiting for missing deliveries.
    pub(crate) stalls: u64,
    /// Connections of `churn` that were closed in the measured time.
    pub(crate) cycles: u64,
    /// Errors by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Messages that slow readers read.
    pub(crate) slow_received: u64,
    /// Disconnects of slow readers by kind.
    pub(crate) slow_disconnects: BTreeMap<String, u64>,
    /// Time from the start of the load to the disconnect of a slow reader.
    pub(crate) slow_disconnect_times: DurationHistogram,
    /// Returns of `recover`.
    pub(crate) recovery: RecoveryCounters,
    /// Messages sent by stream; empty if this thread sends none.
    pub(crate) sequences: Vec<u64>,
    /// Summaries of the receivers that stayed connected.
    pub(crate) receiver_streams: Vec<ReceiverStream>,
}

impl Counters {
    /// Counts an error.
    pub(crate) fn count_error(&mut self, kind: &str) {
        count(&mut self.errors, kind, 1);
    }

    /// Counts the disconnect of a slow reader.
    pub(crate) fn count_slow_disconnect(&mut self, kind: &str) {
        count(&mut self.slow_disconnects, kind, 1);
    }

    /// Adds the counts of another thread.
    pub(crate) fn add(&mut self, other: Self) {
        // Destructured without `..`, so that the compiler reports a field that is missing here.
        let Self {
            connect,
            latency,
            opened,
            failed,
            dropped,
            last_opened,
            sent,
            sent_measured,
            unsent,
            delivered,
            delivered_measured,
            bytes_measured,
            last_delivered,
            misdelivered,
            pings,
            stalls,
            cycles,
            errors,
            slow_received,
            slow_disconnects,
            slow_disconnect_times,
            recovery,
            sequences,
            receiver_streams,
        } = other;
        self.connect.add(&connect);
        self.latency.add(&latency);
        self.opened += opened;
        self.failed += failed;
        self.dropped += dropped;
        self.last_opened = self.last_opened.max(last_opened);
        self.sent += sent;
        self.sent_measured += sent_measured;
        self.unsent += unsent;
        self.delivered += delivered;
        self.delivered_measured += delivered_measured;
        self.bytes_measured += bytes_measured;
        self.last_delivered = self.last_delivered.max(last_delivered);
        self.misdelivered += misdelivered;
        self.pings += pings;
        self.stalls += stalls;
        self.cycles += cycles;
        self.slow_received += slow_received;
        self.slow_disconnect_times.add(&slow_disconnect_times);
        self.recovery.add(&recovery);
        for (kind, n) in &errors {
            count(&mut self.errors, kind, *n);
        }
        for (kind, n) in &slow_disconnects {
            count(&mut self.slow_disconnects, kind, *n);
        }
        if self.sequences.len() < sequences.len() {
            self.sequences.resize(sequences.len(), 0);
        }
        for (sum, sent) in self.sequences.iter_mut().zip(sequences) {
            *sum += sent;
        }
        self.receiver_streams.extend(receiver_streams);
    }

    /// Returns the faults of receivers that stayed connected.
    pub(crate) fn faults(&self) -> Faults {
        let mut faults = Faults::default();
        for ReceiverStream { stream, summary, end } in &self.receiver_streams {
            let sent = self.sequences.get(*stream as usize).copied().unwrap_or(0);
            let awaited = end.map_or(sent, |end| end.min(sent));
            faults.skipped += sent - awaited;
            faults.lost += awaited.saturating_sub(summary.received);
            faults.duplicated += summary.duplicates;
            faults.out_of_order += summary.late;
        }
        faults
    }
}

/// Counts of faulty deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Deliveries that did not arrive.
    pub(crate) lost: u64,
    /// Deliveries that arrived again.
    pub(crate) duplicated: u64,
    /// Deliveries that arrived after a later message of the same stream.
    pub(crate) out_of_order: u64,
    /// Deliveries after the end of what the receiver awaits. They are no faults.
    pub(crate) skipped: u64,
}

/// Adds `n` to the count of a kind.
pub(crate) fn count(counts: &mut BTreeMap<String, u64>, kind: &str, n: u64) {
    match counts.get_mut(kind) {
        Some(count) => *count += n,
        None => drop(counts.insert(kind.to_owned(), n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_count_receivers_that_stayed() {
        let account = |stream, received, duplicates, late| ReceiverStream {
            stream,
            summary: SequenceSummary { received, duplicates, late },
            end: None,
        };
        let mut all = Counters { sequences: vec![10, 0], ..Counters::default() };
        all.add(Counters {
            sequences: vec![0, 5],
            receiver_streams: vec![account(0, 10, 0, 0), account(1, 3, 1, 0)],
            ..Counters::default()
        });
        all.add(Counters { receiver_streams: vec![account(0, 9, 0, 2)], ..Counters::default() });
        // A receiver that was told it gets nothing after the first message.
        let told = ReceiverStream { end: Some(1), ..account(0, 1, 0, 0) };
        all.add(Counters { receiver_streams: vec![told], ..Counters::default() });
        assert_eq!(all.faults(), Faults { lost: 3, duplicated: 1, out_of_order: 2, skipped: 9 });
    }

    #[test]
    fn histograms_of_threads_add_up() {
        let (mut one, mut other) = (Counters::default(), Counters::default());
        (1..=50).for_each(|n| one.latency.record(n * 1_000_000));
        (51..=100).for_each(|n| other.latency.record(n * 1_000_000));
        one.add(other);
        assert_eq!(one.latency.count(), 100);
        for (share, milliseconds) in [(0.5, 50.0), (0.9, 90.0), (0.99, 99.0)] {
            let found = one.latency.quantile_us(share) / 1000.0;
            assert!((found / milliseconds - 1.0).abs() < 0.002, "{share}: {found}");
        }
        assert!((one.latency.max_us() / 100_000.0 - 1.0).abs() < 0.002);
    }

    #[test]
    fn a_duration_over_the_maximum_counts_as_the_maximum() {
        let mut times = DurationHistogram::default();
        times.record(u64::MAX);
        assert_eq!(times.count(), 1);
    }

    #[test]
    fn errors_add_up_by_kind() {
        let (mut one, mut other) = (Counters::default(), Counters::default());
        one.count_error("http_503");
        other.count_error("http_503");
        other.count_error("closed_1013");
        one.add(other);
        assert_eq!(one.errors, BTreeMap::from([("closed_1013".to_owned(), 1), ("http_503".to_owned(), 2)]));
    }
}
