//! Batches of messages for the broker: sending them, their size, and requeueing after a loss.

use std::time::Duration;

use tokio::time::timeout;

use super::{BROKER_TIMEOUT, DriverState};
use crate::broker::Shared;
use crate::link::{LinkError, Sender};
use crate::queue::{MAX_BATCH_BYTES, Outbound};
use crate::store::AppendOutcome;

/// Minimum of the adaptive batch size, which a slow broker reaches.
const MIN_BATCH_BYTES: usize = 8 << 10;

/// Sends a batch and waits until the broker has confirmed it, for at most [`BROKER_TIMEOUT`].
/// Returns the outcomes of its appends. `is_resent` says that the broker may have got it before.
pub(super) async fn send_with_timeout(
    sender: &mut Sender,
    batch: &[Outbound],
    is_resent: bool,
    shared: &Shared,
) -> Result<Vec<AppendOutcome>, LinkError> {
    let outcomes = match timeout(BROKER_TIMEOUT, sender.send(batch, is_resent)).await {
        Ok(result) => result?,
        Err(_) => return Err(LinkError::new("the broker did not confirm messages in time")),
    };
    shared.metrics.sent.add(batch.len() as u64);
    Ok(outcomes)
}

/// Returns the maximum size of the next batch, after the broker confirmed a batch of at most
/// `bytes` within `round_trip`. The size adapts, because a slow link would get a batch again and
/// again if it could not confirm the batch before the timeout.
pub(super) fn next_batch_bytes(bytes: usize, round_trip: Duration) -> usize {
    if round_trip > BROKER_TIMEOUT / 4 {
        (bytes / 2).max(MIN_BATCH_BYTES)
    } else if round_trip < BROKER_TIMEOUT / 32 {
        (bytes * 2).min(MAX_BATCH_BYTES)
    } else {
        bytes
    }
}

/// Removes and returns the messages after those that fill `max_bytes`. The last message that stays
/// may exceed `max_bytes`.
pub(super) fn split_off(batch: &mut Vec<Outbound>, max_bytes: usize) -> Vec<Outbound> {
    let (mut bytes, mut count) = (0, 0);
    for outbound in batch.iter() {
        if bytes >= max_bytes {
            break;
        }
        bytes += outbound.envelope.len();
        count += 1;
    }
    batch.split_off(count)
}

/// Guard of a batch that is being sent. If the batch is not empty when the guard is dropped, the
/// guard puts the batch back in front of the unconfirmed messages. It also reduces the batch size,
/// which may have been too large.
pub(super) struct RequeueOnDrop<'b, I> {
    pub(super) batch: &'b mut Vec<Outbound>,
    pub(super) driver: &'b DriverState<I>,
}

impl<I> Drop for RequeueOnDrop<'_, I> {
    fn drop(&mut self) {
        self.driver.in_flight.set(0);
        if !self.batch.is_empty() {
            let mut unconfirmed = self.driver.unconfirmed.borrow_mut();
            self.batch.append(&mut unconfirmed);
            *unconfirmed = std::mem::take(self.batch);
            self.driver.batch_bytes.set((self.driver.batch_bytes.get() / 4).max(MIN_BATCH_BYTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Destination;

    #[test]
    fn batch_size_adapts_to_the_broker() {
        let mut bytes = MAX_BATCH_BYTES;
        for _ in 0..20 {
            bytes = next_batch_bytes(bytes, BROKER_TIMEOUT);
        }
        assert_eq!(bytes, MIN_BATCH_BYTES);
        assert_eq!(next_batch_bytes(bytes, BROKER_TIMEOUT / 10), bytes);
        for _ in 0..20 {
            bytes = next_batch_bytes(bytes, Duration::ZERO);
        }
        assert_eq!(bytes, MAX_BATCH_BYTES);
    }

    #[test]
    fn the_rest_of_a_split_batch_keeps_its_order() {
        let of = |length: u8| Outbound { to: Destination::All, envelope: vec![length; length.into()].into() };
        let lengths =
            |batch: &[Outbound]| batch.iter().map(|outbound| outbound.envelope.len()).collect::<Vec<_>>();
        for (max_bytes, expected) in [(1, 1), (10, 1), (11, 2), (30, 2), (31, 3), (1000, 4)] {
            let mut batch: Vec<_> = [10, 20, 30, 40].map(of).into();
            let rest = split_off(&mut batch, max_bytes);
            assert_eq!(batch.len(), expected, "{max_bytes}");
            assert_eq!([lengths(&batch), lengths(&rest)].concat(), [10, 20, 30, 40]);
        }
    }
}
