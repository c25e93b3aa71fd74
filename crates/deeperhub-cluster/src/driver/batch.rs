//! Batches of messages for the broker.

use std::time::Duration;

use tokio::time::timeout;

use super::{BROKER_TIMEOUT, DriverState};
use crate::broker::Shared;
use crate::link::{LinkError, Sender};
use crate::queue::{MAX_BATCH_BYTES, Outbound};

/// Lower limit of the batch size, for a slow broker.
const MIN_BATCH_BYTES: usize = 8 << 10;

pub(super) async fn send_with_timeout(
    sender: &mut Sender,
    batch: &[Outbound],
    shared: &Shared,
) -> Result<(), LinkError> {
    match timeout(BROKER_TIMEOUT, sender.send(batch)).await {
        Ok(sent) => sent?,
        Err(_) => return Err(LinkError::new("it does not answer")),
    }
    shared.metrics.sent.add(batch.len() as u64);
    Ok(())
}

/// Returns the maximum size of the next batch after one of `bytes` took `took`. A batch must be
/// confirmed well within the time limit, so that a slow link is not sent the same batch again and
/// again.
pub(super) fn next_batch_bytes(bytes: usize, took: Duration) -> usize {
    if took > BROKER_TIMEOUT / 4 {
        (bytes / 2).max(MIN_BATCH_BYTES)
    } else if took < BROKER_TIMEOUT / 32 {
        (bytes * 2).min(MAX_BATCH_BYTES)
    } else {
        bytes
    }
}

/// Splits the messages over `max_bytes` off a batch. The batch keeps at least one message.
pub(super) fn split_off(batch: &mut Vec<Outbound>, max_bytes: usize) -> Vec<Outbound> {
    let mut bytes = 0;
    let fits = batch.iter().take_while(|outbound| {
        let has_room = bytes < max_bytes;
        bytes += outbound.envelope.len();
        has_room
    });
    let fits = fits.count();
    batch.split_off(fits)
}

/// Guard that puts a batch back in front of the unconfirmed messages unless it is emptied, and
/// reduces the batch size, which may have been too large.
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
