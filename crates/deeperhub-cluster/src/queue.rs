//! The bounded queue of messages for the broker.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::envelope::set_sequence;
use crate::store::AppendTarget;

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

/// Receivers of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// All nodes that subscribe to the topic whose name is at this position in the envelope.
    Topic { start: usize, len: usize },
    /// One node.
    Node(Box<str>),
    /// All nodes.
    All,
    /// The store, which passes the message to all nodes that subscribe to its topic.
    Append(Box<AppendTarget>),
}

/// An envelope for the broker.
#[derive(Debug, Clone)]
pub(crate) struct Outbound {
    pub(crate) to: Destination,
    pub(crate) envelope: Bytes,
}

impl Outbound {
    /// Returns what is known of the append besides its envelope, if it is one.
    pub(crate) fn into_append(self) -> Option<AppendTarget> {
        if let Destination::Append(target) = self.to { Some(*target) } else { None }
    }

    fn cost(&self) -> usize {
        cost(&self.to, self.envelope.len())
    }
}

/// Returns the cost of an envelope with this number of bytes.
fn cost(to: &Destination, bytes: usize) -> usize {
    let target = if let Destination::Append(target) = to { target.bytes() } else { 0 };
    bytes + ENVELOPE_OVERHEAD_BYTES + target
}

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

/// A queue with two lanes, each bounded in bytes. A push never waits.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    /// Notified of each push, and when the node has joined.
    pub(crate) changed: Notify,
    /// Maximum cost of each lane. Small control messages, and a message to an empty lane, may
    /// exceed the limit.
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Inner {
    control: VecDeque<Outbound>,
    data: VecDeque<Outbound>,
    /// Cost of both lanes.
    bytes: usize,
    /// Cost of the control lane.
    control_bytes: usize,
    /// Sequence of the last envelope.
    sequence: u64,
    /// `true` if the driver has ended, so that no append gets an outcome.
    refuses_appends: bool,
}

impl Queue {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { inner: Mutex::default(), changed: Notify::new(), max_bytes }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Assigns the next sequence to an envelope and appends it.
    pub(crate) fn push(&self, lane: Lane, to: Destination, mut envelope: Vec<u8>) -> Result<(), Full> {
        let cost = cost(&to, envelope.len());
        {
            let mut inner = self.lock();
            if inner.refuses_appends && matches!(to, Destination::Append(_)) {
                return Err(Full);
            }
            // An empty lane accepts any envelope, even one that exceeds the lane's limit.
            let is_full = match lane {
                Lane::Control => {
                    let fits = cost <= MAX_SMALL_CONTROL_BYTES
                        || inner.control_bytes == 0
                        || inner.control_bytes + cost <= self.max_bytes;
                    inner.control.len() >= MAX_CONTROL_MESSAGES || !fits
                }
                Lane::Data => {
                    let bytes = inner.bytes - inner.control_bytes;
                    bytes > 0 && bytes + cost > self.max_bytes
                }
            };
            if is_full {
                return Err(Full);
            }
            inner.sequence += 1;
            set_sequence(&mut envelope, inner.sequence);
            inner.bytes += cost;
            let outbound = Outbound { to, envelope: envelope.into() };
            match lane {
                Lane::Control => {
                    inner.control_bytes += cost;
                    inner.control.push_back(outbound);
                }
                Lane::Data => inner.data.push_back(outbound),
            }
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Moves messages of a lane to `batch` until `batch` has [`MAX_BATCH_MESSAGES`] messages, or
    /// until this call has moved `max_bytes`. The last message may make the sum exceed `max_bytes`.
    pub(crate) fn take(&self, lane: Lane, max_bytes: usize, batch: &mut Vec<Outbound>) {
        let mut inner = self.lock();
        let mut bytes = 0;
        while batch.len() < MAX_BATCH_MESSAGES && bytes < max_bytes {
            let next = match lane {
                Lane::Control => inner.control.pop_front(),
                Lane::Data => inner.data.pop_front(),
            };
            let Some(next) = next else { break };
            bytes += next.envelope.len();
            inner.bytes -= next.cost();
            if lane == Lane::Control {
                inner.control_bytes -= next.cost();
            }
            batch.push(next);
        }
    }

    /// Drops all control messages, because they are outdated after an outage.
    pub(crate) fn clear_control(&self) {
        let mut inner = self.lock();
        let freed: usize = inner.control.drain(..).map(|outbound| outbound.cost()).sum();
        inner.bytes -= freed;
        inner.control_bytes = 0;
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
        let mut removed = Vec::new();
        for outbound in std::mem::take(&mut inner.data) {
            if let Destination::Append(_) = outbound.to {
                inner.bytes -= outbound.cost();
                removed.push(outbound);
            } else {
                inner.data.push_back(outbound);
            }
        }
        drop(inner);
        removed.into_iter().filter_map(Outbound::into_append).collect()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Returns the number of envelopes in the data lane.
    pub(crate) fn len(&self) -> usize {
        self.lock().data.len()
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
        let mut batch = Vec::new();
        queue.take(lane, MAX_BATCH_BYTES, &mut batch);
        batch.iter().map(|outbound| Envelope::parse(&outbound.envelope).unwrap().sequence).collect()
    }

    #[test]
    fn sequences_follow_the_order_of_pushes() {
        let queue = Queue::new(1 << 20);
        for lane in [Lane::Data, Lane::Control, Lane::Data] {
            assert_eq!(queue.push(lane, Destination::All, envelope()), Ok(()));
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
            assert_eq!(queue.push(Lane::Data, Destination::All, envelope()), Ok(()));
        }
        assert_eq!(queue.push(Lane::Data, Destination::All, envelope()), Err(Full));
        // Control messages still fit.
        assert_eq!(queue.push(Lane::Control, Destination::All, envelope()), Ok(()));
        assert_eq!(take(&queue, Lane::Data), [1, 2, 3]);
        queue.clear_control();
        assert_eq!(queue.bytes(), 0);
        assert_eq!(queue.push(Lane::Data, Destination::All, vec![0; cost * 9]), Ok(()));
    }

    #[test]
    fn answers_are_bounded_and_block_nothing_else() {
        let queue = Queue::new(10_000);
        let answer = || vec![0; 4000];
        assert_eq!(queue.push(Lane::Control, Destination::All, answer()), Ok(()));
        assert_eq!(queue.push(Lane::Control, Destination::All, answer()), Ok(()));
        assert_eq!(queue.push(Lane::Control, Destination::All, answer()), Err(Full));
        assert_eq!(queue.push(Lane::Control, Destination::All, envelope()), Ok(()));
        assert_eq!(queue.push(Lane::Data, Destination::All, answer()), Ok(()));
        queue.clear_control();
        assert_eq!(queue.bytes(), 4000 + ENVELOPE_OVERHEAD_BYTES);
        assert_eq!(queue.push(Lane::Control, Destination::All, vec![0; 40_000]), Ok(()));
        let mut batch = Vec::new();
        queue.take(Lane::Control, usize::MAX, &mut batch);
        assert_eq!(batch.len(), 1);
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
            assert_eq!(queue.push(Lane::Data, to, envelope()), Ok(()));
        }
        let mut batch = Vec::new();
        queue.take(Lane::Data, 1, &mut batch);
        assert!(matches!(&batch[..], [Outbound { to: Destination::Append(_), .. }]));
        let rest: Vec<_> = queue.close_for_appends().iter().map(|target| target.number.0).collect();
        assert_eq!(rest, [2, 3]);
        assert_eq!(queue.push(Lane::Data, append(4), envelope()), Err(Full));
        assert_eq!(queue.push(Lane::Data, Destination::All, envelope()), Ok(()));
        assert_eq!(take(&queue, Lane::Data), [2, 5]);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn a_batch_is_bounded() {
        let queue = Queue::new(1 << 20);
        for _ in 0..MAX_BATCH_MESSAGES + 1 {
            assert_eq!(queue.push(Lane::Data, Destination::All, envelope()), Ok(()));
        }
        assert_eq!(take(&queue, Lane::Data).len(), MAX_BATCH_MESSAGES);
        assert_eq!(take(&queue, Lane::Data).len(), 1);
    }
}
