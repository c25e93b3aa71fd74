//! Publishes that are made once, however often they are asked for.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, StatusCode};

use crate::config::IdempotencyConfig;
use crate::error::ApiError;
use crate::metrics::ApiMetrics;

/// The header that names a publish (draft-ietf-httpapi-idempotency-key-header).
pub(crate) const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// What errors call it, which may stand in a header or in a batch.
const KEY_FIELD: &str = "idempotency_key";

/// The header of an answer that was given before.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Bytes of the longest key.
const MAX_KEY_BYTES: usize = 255;

/// What an entry takes besides its key, about: map, queue, allocation.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// What a publish is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct IdempotencyKey<'a>(&'a str);

impl<'a> IdempotencyKey<'a> {
    /// Checks a key: 1 to 255 visible characters of ASCII.
    pub(crate) fn parse(text: &'a str) -> Result<Self, ApiError> {
        if (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(ApiError::parameter(
                KEY_FIELD,
                format!(
                    "an idempotency key is 1 to {MAX_KEY_BYTES} visible characters of ASCII, without spaces"
                ),
            ))
        }
    }

    /// The key of a request, if it has one.
    pub(crate) fn of(headers: &'a HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut values = headers.get_all(KEY_HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(ApiError::parameter(KEY_FIELD, "more than one Idempotency-Key"));
        }
        // A value that is no visible text fails in the same words as any other.
        Self::parse(value.to_str().unwrap_or_default()).map(Some)
    }
}

/// PublishOutcome of a publish.
pub(crate) trait PublishOutcome: Copy {
    /// Returns `true` if a part failed that a retry can complete.
    fn is_incomplete(&self) -> bool;
}

/// What is remembered of publishes.
#[derive(Debug)]
pub(crate) struct PublishStore<A> {
    state: Mutex<StoreState<A>>,
    metrics: ApiMetrics,
    /// Two, so that together they tell 2^128 requests apart.
    hashers: [RandomState; 2],
}

#[derive(Debug)]
struct StoreState<A> {
    entries: HashMap<Arc<str>, StoredPublish<A>>,
    /// The oldest first.
    order: VecDeque<(Instant, Arc<str>)>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct StoredPublish<A> {
    request: [u64; 2],
    outcome: A,
}

impl<A: PublishOutcome> PublishStore<A> {
    pub(crate) fn new(metrics: ApiMetrics) -> Self {
        let state = StoreState { entries: HashMap::new(), order: VecDeque::new(), bytes: 0 };
        Self { state: Mutex::new(state), metrics, hashers: [RandomState::new(), RandomState::new()] }
    }

    /// Does something unless it was done under this key before. Answers what came of it, and whether that was before.
    ///
    /// `publish` gets the earlier answer if that left something undone ([`PublishOutcome::is_incomplete`]), and
    /// does the rest. It runs under a lock, so of two concurrent requests one waits for the other:
    /// it must be quick.
    ///
    /// # Errors
    ///
    /// 422 `idempotency_key_reused`: under this key, something else was asked for.
    pub(crate) fn run_once(
        &self,
        key: IdempotencyKey<'_>,
        request: (&str, &str),
        config: &IdempotencyConfig,
        now: Instant,
        publish: impl FnOnce(Option<A>) -> A,
    ) -> Result<(A, bool), ApiError> {
        if config.ttl.is_zero() {
            return Ok((publish(None), false));
        }
        let request = [self.hashers[0].hash_one(request), self.hashers[1].hash_one(request)];
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Limits too: they may have been lowered.
        state.forget_while(|state, at| {
            now.saturating_duration_since(at) >= config.ttl || state.is_over(config)
        });
        if let Some(known) = state.entries.get_mut(key.0) {
            if known.request == request {
                if known.outcome.is_incomplete() {
                    known.outcome = publish(Some(known.outcome));
                    // Counts as a replay only if nothing more was done.
                    return Ok((known.outcome, known.outcome.is_incomplete()));
                }
                return Ok((known.outcome, true));
            }
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "another topic or message was published under this idempotency key",
            ));
        }
        let outcome = publish(None);
        let name: Arc<str> = key.0.into();
        state.bytes += name.len() + ENTRY_OVERHEAD_BYTES;
        state.order.push_back((now, Arc::clone(&name)));
        state.entries.insert(name, StoredPublish { request, outcome });
        state.forget_while(|state, _| state.is_over(config));
        self.metrics.set_idempotency_bytes(state.bytes);
        Ok((outcome, false))
    }
}

impl<A> StoreState<A> {
    fn is_over(&self, config: &IdempotencyConfig) -> bool {
        self.entries.len() > config.max_keys || self.bytes > config.max_bytes
    }

    /// Forgets the oldest for as long as there is reason to.
    fn forget_while(&mut self, reason: impl Fn(&Self, Instant) -> bool) {
        while let Some(&(at, _)) = self.order.front()
            && reason(self, at)
            && let Some((_, name)) = self.order.pop_front()
        {
            self.bytes -= name.len() + ENTRY_OVERHEAD_BYTES;
            self.entries.remove(&name);
        }
        if self.entries.capacity() > 64 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
            self.order.shrink_to(self.order.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn config() -> IdempotencyConfig {
        IdempotencyConfig { ttl: Duration::from_secs(10), max_keys: 3, max_bytes: 1 << 20 }
    }

    impl PublishOutcome for u32 {
        /// Returns `true` from 100 on.
        fn is_incomplete(&self) -> bool {
            *self >= 100
        }
    }

    /// Publishes are numbered by `done`; what one under this key answers, `None` where the key is taken.
    fn ask(
        memory: &PublishStore<u32>,
        config: &IdempotencyConfig,
        (key, body): (&str, &str),
        now: Instant,
        done: &mut u32,
    ) -> Option<(u32, bool)> {
        let publish = |before: Option<u32>| {
            assert_eq!(before, None);
            *done += 1;
            *done
        };
        memory.run_once(IdempotencyKey::parse(key).unwrap(), ("topic", body), config, now, publish).ok()
    }

    #[test]
    fn the_same_key_does_it_once_and_answers_the_same_until_its_time_is_over() {
        let (memory, start, mut done) = (PublishStore::new(ApiMetrics::default()), Instant::now(), 0);
        let config = config();
        assert_eq!(ask(&memory, &config, ("a", "1"), start, &mut done), Some((1, false)));
        let later = start + Duration::from_secs(9);
        assert_eq!(ask(&memory, &config, ("a", "1"), later, &mut done), Some((1, true)));
        assert_eq!(ask(&memory, &config, ("a", "2"), later, &mut done), None, "another body");
        assert_eq!(ask(&memory, &config, ("b", "1"), later, &mut done), Some((2, false)));
        let over = start + Duration::from_secs(10);
        assert_eq!(ask(&memory, &config, ("a", "2"), over, &mut done), Some((3, false)));
    }

    #[test]
    fn what_was_half_done_is_completed_when_it_is_asked_for_again() {
        let (memory, now) = (PublishStore::new(ApiMetrics::default()), Instant::now());
        let ask = |outcome: u32, expected: Option<u32>| {
            let publish = |before: Option<u32>| {
                assert_eq!(before, expected);
                outcome
            };
            memory
                .run_once(IdempotencyKey::parse("a").unwrap(), ("topic", "1"), &config(), now, publish)
                .unwrap()
        };
        assert_eq!(ask(100, None), (100, false));
        // The retry failed too: the answer stays the same.
        assert_eq!(ask(100, Some(100)), (100, true));
        assert_eq!(ask(1, Some(100)), (1, false));
        let never = |_| unreachable!("it is done");
        let again =
            memory.run_once(IdempotencyKey::parse("a").unwrap(), ("topic", "1"), &config(), now, never);
        assert_eq!(again.unwrap(), (1, true));
    }

    #[test]
    fn limits_of_keys_and_bytes_hold_and_the_oldest_goes_first() {
        let (memory, now, mut done) = (PublishStore::new(ApiMetrics::default()), Instant::now(), 0);
        for key in ["a", "b", "c", "d"] {
            ask(&memory, &config(), (key, "1"), now, &mut done);
        }
        assert_eq!(memory.state.lock().unwrap().entries.len(), 3);
        assert_eq!(ask(&memory, &config(), ("b", "1"), now, &mut done), Some((2, true)));
        assert_eq!(
            ask(&memory, &config(), ("a", "1"), now, &mut done),
            Some((5, false)),
            "it was the oldest"
        );

        let few = IdempotencyConfig { max_keys: 1000, max_bytes: 2000, ..config() };
        for number in 0..200 {
            let key = format!("key-{number}-{}", "x".repeat(200));
            ask(&memory, &few, (&key, "1"), now, &mut done);
            let state = memory.state.lock().unwrap();
            assert!(state.bytes <= 2000 && state.order.len() == state.entries.len());
        }
    }

    #[test]
    fn without_a_time_nothing_is_remembered() {
        let (memory, now, mut done) = (PublishStore::new(ApiMetrics::default()), Instant::now(), 0);
        let off = IdempotencyConfig { ttl: Duration::ZERO, ..config() };
        for expected in 1..3 {
            assert_eq!(ask(&memory, &off, ("a", "1"), now, &mut done), Some((expected, false)));
        }
    }

    #[test]
    fn keys_are_short_and_visible() {
        for bad in ["", "with space", "ä", "line\nfeed", &"x".repeat(256)] {
            assert!(IdempotencyKey::parse(bad).is_err(), "{bad}");
        }
        assert!(IdempotencyKey::parse(&"x".repeat(255)).is_ok());
    }
}
