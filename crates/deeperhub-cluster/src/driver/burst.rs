//! Bursts of received envelopes, after which the handler flushes what it deferred.

use std::future::poll_fn;
use std::pin::pin;

/// Envelopes that make a burst. The other tasks of the driver run after each burst.
const MAX_ENVELOPES: usize = 64;

/// Bytes of envelopes that make a burst. Long envelopes take long to handle, and the first of a
/// burst waits for the others.
const MAX_BYTES: usize = 64 << 10;

/// Envelopes that were processed since the driver's other tasks last ran.
#[derive(Debug, Default)]
pub(super) struct Burst {
    envelopes: usize,
    bytes: usize,
}

impl Burst {
    /// Counts an envelope. Returns `true` if it ends the burst, and starts the next one.
    pub(super) fn ends_with(&mut self, bytes: usize) -> bool {
        self.envelopes += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let is_over = self.envelopes >= MAX_ENVELOPES || self.bytes >= MAX_BYTES;
        if is_over {
            *self = Self::default();
        }
        is_over
    }
}

/// Runs a future, and calls `flush` after each poll: whenever the future waits, when it ends, and
/// when it panics.
pub(super) async fn flush_after_polls<T>(future: impl Future<Output = T>, flush: impl Fn()) -> T {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _flush = CallOnDrop(&flush);
        future.as_mut().poll(cx)
    })
    .await
}

/// Guard that calls a function when it is dropped.
struct CallOnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for CallOnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_bounded_in_envelopes_and_bytes() {
        let length = |bytes: usize| {
            let mut burst = Burst::default();
            (1..).find(|_| burst.ends_with(bytes)).unwrap()
        };
        assert_eq!((length(0), length(1000), length(usize::MAX)), (MAX_ENVELOPES, MAX_ENVELOPES, 1));
        assert_eq!(length(MAX_BYTES / 4), 4);
        // The next burst has a limit of its own.
        let mut burst = Burst::default();
        let ends: Vec<_> = (0..200).filter(|_| burst.ends_with(1)).collect();
        assert_eq!(ends, [63, 127, 191]);
    }
}
