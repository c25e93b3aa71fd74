//! Messages at the rate that the server allows.

use std::time::Duration;

use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::time::Instant;

use super::{AttackCounters, AttackEnd, AttackResult};
use crate::wire::Duplex;

/// Sends messages at the allowed rate.
pub(super) struct Sender<'a> {
    pub(super) to: WriteHalf<Box<dyn Duplex>>,
    pub(super) bucket: TokenBucket,
    pub(super) counters: &'a AttackCounters,
}

/// Most bytes in one write of an attacker.
const MAX_WRITE_BYTES: usize = 256 * 1024;

impl Sender<'_> {
    /// Sends `ahead` once and then `again` repeatedly.
    pub(super) async fn send(&mut self, ahead: &[Vec<u8>], again: &[Vec<u8>]) -> AttackResult {
        let message = |n: usize| match n.checked_sub(ahead.len()) {
            None => ahead.get(n),
            Some(n) => again.get(n.checked_rem(again.len())?),
        };
        let (mut next, mut batch) = (0, Vec::new());
        while message(next).is_some() {
            let mut allowed = self.bucket.wait().await;
            let first = next;
            batch.clear();
            while allowed > 0 && batch.len() < MAX_WRITE_BYTES {
                let Some(message) = message(next) else { break };
                batch.extend_from_slice(message);
                allowed -= 1;
                next += 1;
            }
            let count = (next - first) as u64;
            self.bucket.take(count);
            let written = self.to.write_all(&batch).await;
            written.map_err(|error| AttackEnd::Closed(format!("not written: {error}")))?;
            self.counters.sent(count);
        }
        // Nothing left to send: keep the connection open.
        std::future::pending().await
    }
}

/// Messages that may be sent now. Refills 3 % slower than the server's bucket, so that clock
/// differences do not matter.
#[derive(Debug)]
pub(super) struct TokenBucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

impl TokenBucket {
    pub(super) fn new(rate: f64, burst: f64) -> Self {
        Self { rate: rate * 0.97, burst, tokens: burst, last: Instant::now() }
    }

    /// Waits until messages may be sent and returns how many.
    async fn wait(&mut self) -> u64 {
        loop {
            let now = Instant::now();
            let filled = (now - self.last).as_secs_f64() * self.rate;
            self.tokens = (self.tokens + filled).min(self.burst);
            self.last = now;
            // Releases at least 50 ms worth of tokens at a time, like a client with a timer.
            let few = (self.rate / 20.0).max(1.0);
            if self.tokens >= few {
                return self.tokens as u64;
            }
            tokio::time::sleep(Duration::from_secs_f64((few - self.tokens) / self.rate)).await;
        }
    }

    fn take(&mut self, count: u64) {
        self.tokens -= count as f64;
    }
}
