//! Batches of messages for the broker: sending, confirmations, and requeueing after a loss.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::BROKER_TIMEOUT;
use crate::batch::Batch;
use crate::broker::Shared;
use crate::link::{LinkError, Sender, Sent};
use crate::queue::{Lane, MAX_BATCH_BYTES};
use crate::store::AppendOutcome;

/// Minimum of the window, which a slow broker reaches.
const MIN_WINDOW_BYTES: usize = 8 << 10;

/// Maximum of the window. Large enough that a fast broker never waits for a batch.
const MAX_WINDOW_BYTES: usize = 4 * MAX_BATCH_BYTES;

/// Sends a batch and waits until the broker has confirmed it, for at most [`BROKER_TIMEOUT`].
/// Returns the outcomes of its appends. `is_resent` says that the broker may have got it before.
pub(super) async fn send_and_confirm(
    sender: &mut Sender,
    batch: &Batch,
    is_resent: bool,
    shared: &Shared,
) -> Result<Vec<AppendOutcome>, LinkError> {
    let outcomes = within_timeout(async {
        match sender.send(batch, is_resent).await? {
            Sent::Confirmed(outcomes) => Ok(outcomes),
            Sent::Written(number) => sender.confirmed(number).await.map(|()| Vec::new()),
        }
    })
    .await?;
    shared.metrics.sent.add(batch.len() as u64);
    Ok(outcomes)
}

/// Waits for the broker for at most [`BROKER_TIMEOUT`].
pub(super) async fn within_timeout<T>(
    future: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let late = || Err(LinkError::new("the broker did not confirm messages in time"));
    timeout(BROKER_TIMEOUT, future).await.unwrap_or_else(|_| late())
}

/// Returns the next window, after the broker confirmed a batch within `round_trip`. The window
/// adapts, because a slow link would get messages again and again if it could not confirm them
/// before the timeout.
fn next_window(bytes: usize, round_trip: Duration) -> usize {
    if round_trip > BROKER_TIMEOUT / 4 {
        (bytes / 2).max(MIN_WINDOW_BYTES)
    } else if round_trip < BROKER_TIMEOUT / 32 {
        (bytes * 2).min(MAX_WINDOW_BYTES)
    } else {
        bytes
    }
}

/// A batch that was sent and is not confirmed.
struct InFlight {
    batch: Batch,
    lane: Lane,
    /// Number of its confirmation, or `None` while it is being sent.
    number: Option<u64>,
    sent_at: Instant,
}

/// Messages that were taken from the queue and are not confirmed, in their order: those in flight,
/// and those of lost connections.
pub(super) struct Unconfirmed {
    in_flight: RefCell<VecDeque<InFlight>>,
    /// Number of data messages in a batch that is being sent.
    sending: Cell<usize>,
    /// Messages of lost batches, which may have been delivered. They are sent again before the
    /// queue; receivers drop duplicates.
    lost: RefCell<VecDeque<Batch>>,
    /// Size of the data in flight up to which the next batch is sent, and maximum size of a batch.
    window: Cell<usize>,
}

impl Unconfirmed {
    pub(super) fn new() -> Self {
        Self {
            in_flight: RefCell::default(),
            sending: Cell::new(0),
            lost: RefCell::default(),
            window: Cell::new(MAX_BATCH_BYTES),
        }
    }

    /// Returns the number of unconfirmed messages, without those between drivers.
    pub(super) fn len(&self) -> usize {
        let in_flight = self.in_flight.borrow();
        let in_flight = in_flight.iter().filter(|sent| sent.lane == Lane::Data);
        self.sending.get()
            + in_flight.map(|sent| sent.batch.len()).sum::<usize>()
            + self.lost.borrow().iter().map(Batch::len).sum::<usize>()
    }

    /// Takes the next data: first what was lost with a connection, and then from the queue. Returns
    /// the batch, and whether it was sent before. The batch is empty if there is nothing to send, or
    /// if the window is full.
    pub(super) fn take(&self, shared: &Shared) -> (Batch, bool) {
        let window = self.window.get();
        if self.bytes_in_flight() >= window {
            return (Batch::default(), false);
        }
        let mut lost = self.lost.borrow_mut();
        match lost.pop_front() {
            Some(mut batch) => {
                let rest = batch.split_off(window);
                if !rest.is_empty() {
                    lost.push_front(rest);
                }
                (batch, true)
            }
            None => (shared.queue.take(Lane::Data, window), false),
        }
    }

    /// Adds a batch that is in flight.
    pub(super) fn push(&self, batch: Batch, lane: Lane, number: Option<u64>) {
        let sent = InFlight { batch, lane, number, sent_at: Instant::now() };
        self.in_flight.borrow_mut().push_back(sent);
    }

    /// Returns the number of the oldest batch in flight, and the time when it was sent.
    pub(super) fn oldest(&self) -> Option<(u64, Instant)> {
        let in_flight = self.in_flight.borrow();
        in_flight.front().and_then(|sent| Some((sent.number?, sent.sent_at)))
    }

    /// Returns the size of the data in flight.
    fn bytes_in_flight(&self) -> usize {
        let in_flight = self.in_flight.borrow();
        in_flight.iter().filter(|sent| sent.lane == Lane::Data).map(|sent| sent.batch.bytes()).sum()
    }

    /// Removes the oldest batch in flight, which the broker has confirmed, and adapts the window.
    pub(super) fn confirm_oldest(&self) -> Option<(Batch, Lane)> {
        let InFlight { batch, lane, sent_at, .. } = self.in_flight.borrow_mut().pop_front()?;
        if lane == Lane::Data {
            self.on_confirmed(batch.bytes(), sent_at);
        }
        Some((batch, lane))
    }

    /// Adapts the window after the confirmation of a batch with this many bytes.
    pub(super) fn on_confirmed(&self, bytes: usize, sent_at: Instant) {
        let window = self.window.get();
        let next = next_window(window, sent_at.elapsed());
        // Small batches do not tell whether the link would carry more.
        if next < window || bytes + self.bytes_in_flight() >= window / 2 {
            self.window.set(next);
        }
    }

    /// Keeps the data in flight for the next connection, because this one is lost. Also reduces the
    /// window, which may have been too large.
    pub(super) fn requeue(&self) {
        let bytes = self.bytes_in_flight();
        let mut in_flight = self.in_flight.borrow_mut();
        let mut lost = self.lost.borrow_mut();
        // Messages between drivers are outdated then.
        let data = in_flight.drain(..).rev().filter(|sent| sent.lane == Lane::Data);
        let before = lost.len();
        data.for_each(|sent| lost.push_front(sent.batch));
        if lost.len() > before {
            self.window.set((self.window.get().min(bytes) / 4).max(MIN_WINDOW_BYTES));
        }
    }

    /// Removes and returns all batches.
    pub(super) fn take_all(&self) -> VecDeque<Batch> {
        self.requeue();
        std::mem::take(&mut *self.lost.borrow_mut())
    }
}

/// Guard of a batch that is being sent. Keeps the batch as one in flight when it is dropped.
pub(super) struct Sending<'u> {
    pub(super) batch: Batch,
    lane: Lane,
    unconfirmed: &'u Unconfirmed,
}

impl<'u> Sending<'u> {
    pub(super) fn new(batch: Batch, lane: Lane, unconfirmed: &'u Unconfirmed) -> Self {
        unconfirmed.sending.set(if lane == Lane::Data { batch.len() } else { 0 });
        Self { batch, lane, unconfirmed }
    }

    /// Returns the batch, which is confirmed or has a number.
    pub(super) fn finish(mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.unconfirmed.sending.set(0);
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            self.unconfirmed.push(batch, self.lane, None);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "nats")]
mod tests {
    use super::*;
    use crate::batch::Destination;

    #[test]
    fn the_window_adapts_to_the_broker() {
        let mut bytes = MAX_WINDOW_BYTES;
        for _ in 0..20 {
            bytes = next_window(bytes, BROKER_TIMEOUT);
        }
        assert_eq!(bytes, MIN_WINDOW_BYTES);
        assert_eq!(next_window(bytes, BROKER_TIMEOUT / 10), bytes);
        for _ in 0..20 {
            bytes = next_window(bytes, Duration::ZERO);
        }
        assert_eq!(bytes, MAX_WINDOW_BYTES);
    }

    fn shared() -> std::sync::Arc<Shared> {
        let config = crate::Config::new(crate::BrokerUrl::parse("nats://localhost").unwrap());
        crate::Broker::new(config, "own".to_owned(), 7, "1").0
    }

    /// Queues envelopes that are only their sequences.
    fn queue(shared: &Shared, count: usize) {
        for _ in 0..count {
            let mut envelope = [0; 18];
            shared.queue.push(Lane::Data, Destination::All, &mut envelope).unwrap();
        }
    }

    fn sequences(batch: &Batch) -> Vec<u8> {
        batch.iter().map(|outbound| outbound.envelope[17]).collect()
    }

    #[test]
    fn a_full_window_stops_the_data() {
        let (shared, unconfirmed) = (shared(), Unconfirmed::new());
        unconfirmed.window.set(40);
        queue(&shared, 10);
        // One batch may exceed the window.
        let (batch, is_resent) = unconfirmed.take(&shared);
        assert_eq!((sequences(&batch), is_resent), (vec![1, 2, 3], false));
        unconfirmed.push(batch, Lane::Data, Some(1));
        assert!(unconfirmed.take(&shared).0.is_empty());
        assert_eq!((unconfirmed.oldest().map(|(number, _)| number), unconfirmed.len()), (Some(1), 3));
        // Messages between drivers do not count.
        let (confirmed, lane) = unconfirmed.confirm_oldest().unwrap();
        assert_eq!((sequences(&confirmed), lane), (vec![1, 2, 3], Lane::Data));
        unconfirmed.push(confirmed, Lane::Control, Some(2));
        assert_eq!(unconfirmed.len(), 0);
        assert_eq!(sequences(&unconfirmed.take(&shared).0), [4, 5, 6, 7, 8]);
    }

    #[test]
    fn what_was_in_flight_is_sent_again_in_order_before_the_queue() {
        let (shared, unconfirmed) = (shared(), Unconfirmed::new());
        unconfirmed.window.set(100);
        queue(&shared, 9);
        for number in 0..3 {
            unconfirmed.push(shared.queue.take(Lane::Data, 36), Lane::Data, Some(number));
        }
        unconfirmed.push(shared.queue.take(Lane::Data, 1), Lane::Control, Some(3));
        // The last one was being sent.
        let sending = Sending::new(shared.queue.take(Lane::Data, 1), Lane::Data, &unconfirmed);
        assert_eq!(unconfirmed.len(), 7);
        drop(sending);
        assert_eq!(unconfirmed.len(), 7);
        assert!(unconfirmed.confirm_oldest().is_some());
        unconfirmed.requeue();
        assert_eq!((unconfirmed.len(), unconfirmed.oldest()), (5, None));
        // Also the rest of a batch keeps its place.
        unconfirmed.window.set(20);
        let mut sent = Vec::new();
        loop {
            let (batch, is_resent) = unconfirmed.take(&shared);
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= 2);
            sent.push((sequences(&batch), is_resent));
        }
        let resent: Vec<u8> = sent.iter().filter(|sent| sent.1).flat_map(|sent| sent.0.clone()).collect();
        assert_eq!(resent, [3, 4, 5, 6, 8]);
        assert_eq!(sent.last(), Some(&(vec![9], false)));
    }
}
