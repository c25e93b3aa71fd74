//! The bounded queue of messages for the broker.

mod wake_up;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::batch::{Batch, Destination};
use crate::envelope::set_sequence;
use crate::store::AppendTarget;
pub use wake_up::WakeUp;
use wake_up::WakeUps;

/// Estimated memory of a queued envelope besides its bytes. An envelope's cost is the sum of both.
const ENVELOPE_OVERHEAD_BYTES: usize = 96;

/// Maximum number of messages in a batch.
const MAX_BATCH_MESSAGES: usize = 512;

/// Maximum size of a batch. Large enough that many messages share a round trip, and small enough
/// that a slow broker confirms it before the timeout.
pub(crate) const MAX_BATCH_BYTES: usize = 256 << 10;

/// Maximum number of queued control messages. Limits memory use while the broker takes none.
/// Control messages are few and small, except answers. If an answer is refused, its requester runs
/// into a timeout.
const MAX_CONTROL_MESSAGES: usize = 1024;

/// Maximum cost of a control message that is queued even if the control lane has reached
/// `max_bytes`. Large answers thus do not stop heartbeats.
const MAX_SMALL_CONTROL_BYTES: usize = 1024;

/// Priority of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Messages between drivers. They are sent first, also before the node has joined.
    Control,
    /// All other messages. They are sent after the node has joined.
    Data,
}

/// The queue has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Maximum number of empty batches that are kept, so that their buffers are used again.
const MAX_SPARES: usize = 8;

/// A queue with two lanes, each bounded in bytes. A push never waits.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    /// Notified of a push to an empty lane, and when the node has joined.
    pub(crate) changed: Notify,
    wake_ups: WakeUps,
    /// Maximum cost of each lane. Small control messages, and a message to an empty lane, may
    /// exceed the limit.
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Inner {
    control: LaneBatches,
    data: LaneBatches,
    /// Sequence of the last envelope.
    sequence: u64,
    /// `true` if the driver has ended, so that no append gets an outcome.
    refuses_appends: bool,
    /// Empty batches.
    spares: Vec<Batch>,
}

/// The envelopes of a lane. No batch is empty.
#[derive(Debug, Default)]
struct LaneBatches {
    batches: VecDeque<Batch>,
    /// Number of envelopes.
    len: usize,
    /// Cost of the envelopes.
    cost: usize,
}

impl Inner {
    const fn lane(&mut self, lane: Lane) -> &mut LaneBatches {
        match lane {
            Lane::Control => &mut self.control,
            Lane::Data => &mut self.data,
        }
    }
}

/// Returns the cost of an envelope with this number of bytes.
fn cost(to: &Destination, bytes: usize) -> usize {
    let target = if let Destination::Append(target) = to { target.bytes() } else { 0 };
    bytes + ENVELOPE_OVERHEAD_BYTES + target
}

/// Returns the cost of the envelopes of a batch.
const fn batch_cost(batch: &Batch) -> usize {
    batch.bytes() + batch.len() * ENVELOPE_OVERHEAD_BYTES + batch.append_bytes()
}

impl Queue {
    pub(crate) fn new(max_bytes: usize) -> Self {
        let (inner, wake_ups) = (Mutex::default(), WakeUps::default());
        Self { inner, changed: Notify::new(), wake_ups, max_bytes }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Assigns the next sequence to an envelope and appends it. Wakes the driver at once.
    pub(crate) fn push(&self, lane: Lane, to: Destination, envelope: &mut [u8]) -> Result<(), Full> {
        self.push_with(WakeUp::Immediate, lane, to, envelope)
    }

    /// Assigns the next sequence to an envelope and appends it.
    pub(crate) fn push_with(
        &self,
        wake_up: WakeUp,
        lane: Lane,
        to: Destination,
        envelope: &mut [u8],
    ) -> Result<(), Full> {
        let cost = cost(&to, envelope.len());
        let wakes = {
            let mut inner = self.lock();
            if inner.refuses_appends && matches!(to, Destination::Append(_)) {
                return Err(Full);
            }
            let batches = inner.lane(lane);
            // An empty lane accepts any envelope, even one that exceeds the lane's limit.
            let fits = batches.cost == 0 || batches.cost + cost <= self.max_bytes;
            let is_full = match lane {
                Lane::Control => {
                    batches.len >= MAX_CONTROL_MESSAGES || !(fits || cost <= MAX_SMALL_CONTROL_BYTES)
                }
                Lane::Data => !fits,
            };
            if is_full {
                return Err(Full);
            }
            let was_empty = batches.len == 0;
            batches.len += 1;
            batches.cost += cost;
            let wakes = self.wake_ups.on_push(wake_up, was_empty, batches.cost);
            inner.sequence += 1;
            set_sequence(envelope, inner.sequence);
            let Inner { control, data, spares, .. } = &mut *inner;
            let batches = if lane == Lane::Control { control } else { data };
            match batches.batches.back_mut() {
                Some(last) if last.len() < MAX_BATCH_MESSAGES && last.bytes() < MAX_BATCH_BYTES => {
                    last.push(to, envelope);
                }
                last => {
                    // The next batch probably gets as large.
                    let new = || last.map(|last| last.empty_like()).unwrap_or_default();
                    let mut batch = spares.pop().unwrap_or_else(new);
                    batch.push(to, envelope);
                    batches.batches.push_back(batch);
                }
            }
            wakes
        };
        if wakes {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Wakes the driver if pushes have deferred it. Every thread calls this after its pushes with
    /// [`WakeUp::Deferred`], before it waits for anything.
    pub(crate) fn flush(&self) {
        // The thread's pushes took the lock after a push to the empty lane, so this is the current
        // value, or the driver was woken since.
        if self.wake_ups.is_deferred() {
            let inner = self.lock();
            let wakes = self.wake_ups.take_deferred();
            drop(inner);
            if wakes {
                self.changed.notify_one();
            }
        }
    }

    /// Removes and returns the oldest messages of a lane: at most [`MAX_BATCH_MESSAGES`], or as many
    /// as have `max_bytes`. The last message may make the sum exceed `max_bytes`. The batch is empty
    /// if the lane is.
    pub(crate) fn take(&self, lane: Lane, max_bytes: usize) -> Batch {
        let mut inner = self.lock();
        let batches = inner.lane(lane);
        let Some(mut batch) = batches.batches.pop_front() else { return Batch::default() };
        let rest = batch.split_off(max_bytes);
        if !rest.is_empty() {
            batches.batches.push_front(rest);
        }
        batches.len -= batch.len();
        batches.cost -= batch_cost(&batch);
        batch
    }

    /// Keeps the buffers of a batch that was sent.
    pub(crate) fn recycle(&self, mut batch: Batch) {
        batch.clear();
        if batch.capacity() > 2 * MAX_BATCH_BYTES {
            return;
        }
        let mut inner = self.lock();
        if inner.spares.len() < MAX_SPARES {
            inner.spares.push(batch);
        }
    }

    /// Drops all control messages, because they are outdated after an outage.
    pub(crate) fn clear_control(&self) {
        self.lock().control = LaneBatches::default();
    }

    /// Returns a sequence for an envelope that does not pass through the queue.
    pub(crate) fn next_sequence(&self) -> u64 {
        let mut inner = self.lock();
        inner.sequence += 1;
        inner.sequence
    }

    /// Refuses further appends, and removes and returns those in the queue.
    pub(crate) fn close_for_appends(&self) -> Vec<AppendTarget> {
        let mut inner = self.lock();
        inner.refuses_appends = true;
        let mut rest = LaneBatches::default();
        let mut removed = Vec::new();
        for batch in std::mem::take(&mut inner.data).batches {
            let mut kept = Batch::default();
            for outbound in batch.iter() {
                if !matches!(outbound.to, Destination::Append(_)) {
                    kept.push(outbound.to.clone(), outbound.envelope);
                }
            }
            if !kept.is_empty() {
                rest.len += kept.len();
                rest.cost += batch_cost(&kept);
                rest.batches.push_back(kept);
            }
            removed.push(batch);
        }
        inner.data = rest;
        drop(inner);
        removed.into_iter().flat_map(Batch::into_appends).collect()
    }

    /// Returns the cost of both lanes.
    pub(crate) fn bytes(&self) -> usize {
        let inner = self.lock();
        inner.control.cost + inner.data.cost
    }

    /// Returns the number of envelopes in the data lane.
    pub(crate) fn len(&self) -> usize {
        self.lock().data.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Envelope, Message, Origin};

    fn envelope() -> Vec<u8> {
        let origin = Origin { node: "n", incarnation: 1 };
        Envelope { origin, sequence: 0, message: Message::Bye }.write()
    }

    fn take(queue: &Queue, lane: Lane) -> Vec<u64> {
        let batch = queue.take(lane, MAX_BATCH_BYTES);
        batch.iter().map(|outbound| Envelope::parse(outbound.envelope).unwrap().sequence).collect()
    }

    #[test]
    fn sequences_follow_the_order_of_pushes() {
        let queue = Queue::new(1 << 20);
        for lane in [Lane::Data, Lane::Control, Lane::Data] {
            assert_eq!(queue.push(lane, Destination::All, &mut envelope()), Ok(()));
        }
        assert_eq!(take(&queue, Lane::Data), [1, 3]);
        assert_eq!(take(&queue, Lane::Control), [2]);
        assert_eq!((queue.bytes(), queue.len()), (0, 0));
    }

    #[test]
    fn a_full_queue_rejects_until_there_is_room() {
        let cost = envelope().len() + ENVELOPE_OVERHEAD_BYTES;
        let queue = Queue::new(cost * 3);
        for _ in 0..3 {
            assert_eq!(queue.push(Lane::Data, Destination::All, &mut envelope()), Ok(()));
        }
        assert_eq!(queue.push(Lane::Data, Destination::All, &mut envelope()), Err(Full));
        // Control messages still fit.
        assert_eq!(queue.push(Lane::Control, Destination::All, &mut envelope()), Ok(()));
        assert_eq!(take(&queue, Lane::Data), [1, 2, 3]);
        queue.clear_control();
        assert_eq!(queue.bytes(), 0);
        assert_eq!(queue.push(Lane::Data, Destination::All, &mut vec![0; cost * 9]), Ok(()));
    }

    #[test]
    fn answers_are_bounded_and_block_nothing_else() {
        let queue = Queue::new(10_000);
        let answer = || vec![0; 4000];
        assert_eq!(queue.push(Lane::Control, Destination::All, &mut answer()), Ok(()));
        assert_eq!(queue.push(Lane::Control, Destination::All, &mut answer()), Ok(()));
        assert_eq!(queue.push(Lane::Control, Destination::All, &mut answer()), Err(Full));
        assert_eq!(queue.push(Lane::Control, Destination::All, &mut envelope()), Ok(()));
        assert_eq!(queue.push(Lane::Data, Destination::All, &mut answer()), Ok(()));
        queue.clear_control();
        assert_eq!(queue.bytes(), 4000 + ENVELOPE_OVERHEAD_BYTES);
        assert_eq!(queue.push(Lane::Control, Destination::All, &mut [0; 40_000]), Ok(()));
        assert_eq!(queue.take(Lane::Control, usize::MAX).len(), 1);
        assert_eq!(queue.bytes(), 4000 + ENVELOPE_OVERHEAD_BYTES);
    }

    #[test]
    fn appends_keep_their_place_until_the_queue_is_closed_for_them() {
        let append = |number| {
            let limits = crate::StreamLimits {
                messages: 1,
                ttl: std::time::Duration::ZERO,
                forget: std::time::Duration::ZERO,
            };
            let number = crate::AppendNumber(number);
            Destination::Append(Box::new(AppendTarget {
                number,
                limits,
                known: None,
                once: None,
                stamp: 0,
                topic: 0,
                topic_len: 0,
            }))
        };
        let queue = Queue::new(1 << 20);
        for to in [append(1), Destination::All, append(2), append(3)] {
            assert_eq!(queue.push(Lane::Data, to, &mut envelope()), Ok(()));
        }
        let batch = queue.take(Lane::Data, 1);
        assert!(batch.len() == 1 && batch.has_appends());
        assert_eq!(batch.into_appends().map(|target| target.number.0).collect::<Vec<_>>(), [1]);
        let rest: Vec<_> = queue.close_for_appends().iter().map(|target| target.number.0).collect();
        assert_eq!(rest, [2, 3]);
        assert_eq!(queue.push(Lane::Data, append(4), &mut envelope()), Err(Full));
        assert_eq!(queue.push(Lane::Data, Destination::All, &mut envelope()), Ok(()));
        assert_eq!(take(&queue, Lane::Data), [2, 5]);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn a_batch_is_bounded() {
        let queue = Queue::new(1 << 20);
        for _ in 0..MAX_BATCH_MESSAGES + 1 {
            assert_eq!(queue.push(Lane::Data, Destination::All, &mut envelope()), Ok(()));
        }
        assert_eq!(take(&queue, Lane::Data).len(), MAX_BATCH_MESSAGES);
        assert_eq!(take(&queue, Lane::Data).len(), 1);
    }

    #[test]
    fn buffers_are_used_again_up_to_a_limit() {
        let queue = Queue::new(1 << 30);
        for _ in 0..MAX_SPARES + 2 {
            for _ in 0..MAX_BATCH_MESSAGES {
                assert_eq!(queue.push(Lane::Data, Destination::All, &mut envelope()), Ok(()));
            }
        }
        loop {
            let batch = queue.take(Lane::Data, usize::MAX);
            if batch.is_empty() {
                break;
            }
            queue.recycle(batch);
        }
        assert_eq!(queue.lock().spares.len(), MAX_SPARES);
        let mut large = Batch::default();
        large.push(Destination::All, &vec![0; 3 * MAX_BATCH_BYTES]);
        queue.lock().spares.clear();
        queue.recycle(large);
        assert_eq!(queue.lock().spares.len(), 0);
        assert_eq!(queue.push(Lane::Data, Destination::All, &mut envelope()), Ok(()));
        assert!(take(&queue, Lane::Data).len() == 1);
    }
}
