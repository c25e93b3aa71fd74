//! Wake-ups of the driver for queued messages.

use std::sync::atomic::{AtomicBool, Ordering};

/// Time at which the driver is woken for a queued message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeUp {
    /// At once.
    Immediate,
    /// With [`Broker::flush`](crate::Broker::flush), so that the driver sends a burst of messages
    /// together. It starts earlier if the burst is long. The calling thread must flush after the
    /// burst, before it waits for anything.
    Deferred,
}

/// Cost of a lane at which it wakes the driver without a flush, so that the driver works in parallel
/// with a long burst of pushes.
const MAX_DEFERRED_COST: usize = 64 << 10;

/// Decides which pushes to a queue wake the driver. Changes under the queue's lock only.
#[derive(Debug, Default)]
pub(super) struct WakeUps {
    /// `true` if a lane has envelopes of which the driver was not notified.
    is_deferred: AtomicBool,
}

impl WakeUps {
    /// Notes a push to a lane, whose cost includes it. Returns `true` if the caller must wake the
    /// driver.
    pub(super) fn on_push(&self, wake_up: WakeUp, was_empty: bool, cost: usize) -> bool {
        // The driver takes batches until the lane is empty, and only then waits.
        match wake_up {
            WakeUp::Immediate => self.take_deferred() || was_empty,
            WakeUp::Deferred => {
                if was_empty {
                    self.is_deferred.store(true, Ordering::Relaxed);
                }
                cost >= MAX_DEFERRED_COST && self.take_deferred()
            }
        }
    }

    /// Returns `true` if a wake-up is deferred. Needs no lock.
    pub(super) fn is_deferred(&self) -> bool {
        self.is_deferred.load(Ordering::Relaxed)
    }

    /// Returns `true` if a wake-up was deferred, which the caller makes up for.
    pub(super) fn take_deferred(&self) -> bool {
        let is_deferred = self.is_deferred();
        if is_deferred {
            self.is_deferred.store(false, Ordering::Relaxed);
        }
        is_deferred
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::batch::Destination;
    use crate::queue::{Lane, Queue};

    /// Returns an envelope whose fields do not matter.
    fn envelope() -> [u8; 64] {
        [0; 64]
    }

    #[test]
    fn only_a_push_to_an_empty_lane_notifies() {
        let queue = Queue::new(1 << 20);
        let is_notified = || queue.changed.notified().now_or_never().is_some();
        for lane in [Lane::Data, Lane::Control] {
            for is_first in [true, false, false] {
                assert_eq!(queue.push(lane, Destination::All, &mut envelope()), Ok(()));
                assert_eq!(is_notified(), is_first);
            }
            // The rest of a lane needs no notification: it is taken before the driver waits.
            assert_eq!(queue.take(lane, 1).len(), 1);
            assert_eq!(queue.push(lane, Destination::All, &mut envelope()), Ok(()));
            assert!(!is_notified());
            assert_eq!(queue.take(lane, usize::MAX).len(), 3);
            assert!(queue.take(lane, usize::MAX).is_empty());
        }
        assert_eq!((queue.bytes(), queue.len()), (0, 0));
    }

    #[test]
    fn a_deferred_wake_up_comes_with_the_flush() {
        let queue = Queue::new(1 << 20);
        let is_notified = || queue.changed.notified().now_or_never().is_some();
        let push = |wake_up| {
            assert_eq!(queue.push_with(wake_up, Lane::Data, Destination::All, &mut envelope()), Ok(()));
        };
        queue.flush();
        assert!(!is_notified());
        push(WakeUp::Deferred);
        push(WakeUp::Deferred);
        assert!(!is_notified());
        queue.flush();
        assert!(is_notified());
        // The driver takes what follows before it waits again.
        push(WakeUp::Deferred);
        queue.flush();
        assert!(!is_notified());
        assert_eq!(queue.take(Lane::Data, usize::MAX).len(), 3);
        push(WakeUp::Deferred);
        assert!(!is_notified());
        push(WakeUp::Immediate);
        assert!(is_notified());
        queue.flush();
        assert!(!is_notified());
    }

    #[test]
    fn a_long_lane_wakes_the_driver_without_a_flush() {
        let queue = Queue::new(1 << 20);
        let mut cost_before = 0;
        while cost_before < 2 * MAX_DEFERRED_COST {
            let pushed = queue.push_with(WakeUp::Deferred, Lane::Data, Destination::All, &mut envelope());
            assert_eq!(pushed, Ok(()));
            let becomes_long = (cost_before + 1..=queue.bytes()).contains(&MAX_DEFERRED_COST);
            assert_eq!(queue.changed.notified().now_or_never().is_some(), becomes_long);
            cost_before = queue.bytes();
        }
        queue.flush();
        assert!(queue.changed.notified().now_or_never().is_none());
    }
}
