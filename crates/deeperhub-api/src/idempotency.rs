//! Idempotency keys: repeated requests with the same key publish once.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, StatusCode};

use crate::config::IdempotencyConfig;
use crate::error::ApiError;
use crate::metrics::ApiMetrics;

/// Request header with the key (draft-ietf-httpapi-idempotency-key-header).
pub(crate) const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Name of the key in errors, whether it came in a header or in a batch.
const KEY_FIELD: &str = "idempotency_key";

/// Response header that marks the outcome of an earlier request.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Maximum bytes of a key.
const MAX_KEY_BYTES: usize = 255;

/// Approximate bytes of an entry besides its key: map, queue, allocation.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Key that identifies a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct IdempotencyKey<'a>(&'a str);

impl<'a> IdempotencyKey<'a> {
    /// Parses a key: 1 to 255 visible ASCII characters.
    pub(crate) fn parse(text: &'a str) -> Result<Self, ApiError> {
        if (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(ApiError::parameter(
                KEY_FIELD,
                format!(
                    "expected an idempotency key of 1 to {MAX_KEY_BYTES} visible ASCII characters, without spaces"
                ),
            ))
        }
    }

    /// Returns the key of a request, if it has one.
    pub(crate) fn of(headers: &'a HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut values = headers.get_all(KEY_HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(ApiError::parameter(
                KEY_FIELD,
                "the request has more than one Idempotency-Key header",
            ));
        }
        // Other values than visible ASCII become an empty text, which is not a key either.
        Self::parse(value.to_str().unwrap_or_default()).map(Some)
    }
}

/// Outcome of a publish.
pub(crate) trait PublishOutcome: Copy + PartialEq {
    /// Returns `true` if a part failed that a retry can complete.
    fn is_incomplete(&self) -> bool;
}

/// Outcomes of publishes by idempotency key.
#[derive(Debug)]
pub(crate) struct PublishStore<A> {
    state: Mutex<StoreState<A>>,
    metrics: ApiMetrics,
    /// Two hashers, which together give 128 bits: requests are compared by hash.
    hashers: [RandomState; 2],
}

#[derive(Debug)]
struct StoreState<A> {
    entries: HashMap<Arc<str>, StoredPublish<A>>,
    /// Keys and the times of their publishes, the oldest first.
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

    /// Runs `publish` unless the same request ran under this key before. Returns the outcome, and
    /// `true` if it is an earlier one.
    ///
    /// If the earlier outcome is [incomplete](PublishOutcome::is_incomplete), `publish` gets it and
    /// does the rest. If `has_failed` returns `true` for it, because the message was refused later,
    /// `publish` runs anew. `publish` must be quick: it runs under a lock, so concurrent requests wait.
    ///
    /// # Errors
    ///
    /// Returns 422 `idempotency_key_reused` if another request has used this key, and the error of
    /// `publish`. A publish that failed is not remembered.
    pub(crate) fn run_once(
        &self,
        key: IdempotencyKey<'_>,
        request: (&str, &str),
        config: &IdempotencyConfig,
        now: Instant,
        has_failed: impl FnOnce(&A) -> bool,
        publish: impl FnOnce(Option<A>) -> Result<A, ApiError>,
    ) -> Result<(A, bool), ApiError> {
        if config.ttl.is_zero() {
            return Ok((publish(None)?, false));
        }
        let request = [self.hashers[0].hash_one(request), self.hashers[1].hash_one(request)];
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The limits are checked too, because a new configuration can lower them.
        state.forget_while(|state, at| {
            now.saturating_duration_since(at) >= config.ttl || state.is_over(config)
        });
        if let Some(known) = state.entries.get_mut(key.0) {
            if known.request == request {
                if has_failed(&known.outcome) {
                    known.outcome = publish(None)?;
                    return Ok((known.outcome, false));
                }
                if known.outcome.is_incomplete() {
                    known.outcome = publish(Some(known.outcome))?;
                    // Counts as a replay only if nothing more was done.
                    return Ok((known.outcome, known.outcome.is_incomplete()));
                }
                return Ok((known.outcome, true));
            }
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "this idempotency key was used with another topic or message; use a new key",
            ));
        }
        let outcome = publish(None)?;
        let name: Arc<str> = key.0.into();
        state.bytes += name.len() + ENTRY_OVERHEAD_BYTES;
        state.order.push_back((now, Arc::clone(&name)));
        state.entries.insert(name, StoredPublish { request, outcome });
        state.forget_while(|state, _| state.is_over(config));
        self.metrics.set_idempotency_bytes(state.bytes);
        Ok((outcome, false))
    }

    /// Replaces the outcome under a key, if it is still `before`.
    pub(crate) fn complete(&self, key: IdempotencyKey<'_>, before: A, outcome: A) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.entries.get_mut(key.0)
            && known.outcome == before
        {
            known.outcome = outcome;
        }
    }
}

impl<A> StoreState<A> {
    fn is_over(&self, config: &IdempotencyConfig) -> bool {
        self.entries.len() > config.max_keys || self.bytes > config.max_bytes
    }

    /// Removes the oldest entries while `reason` returns `true` for them.
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

    /// Publishes with a key, and counts publishes in `done`. Returns the outcome and whether it is
    /// an earlier one; `None` if another request has used the key.
    fn publish_once(
        store: &PublishStore<u32>,
        config: &IdempotencyConfig,
        (key, body): (&str, &str),
        now: Instant,
        done: &mut u32,
    ) -> Option<(u32, bool)> {
        let publish = |before: Option<u32>| {
            assert_eq!(before, None);
            *done += 1;
            Ok(*done)
        };
        let key = IdempotencyKey::parse(key).unwrap();
        store.run_once(key, ("topic", body), config, now, |_| false, publish).ok()
    }

    #[test]
    fn the_same_key_publishes_once_until_it_expires() {
        let (store, start, mut done) = (PublishStore::new(ApiMetrics::default()), Instant::now(), 0);
        let config = config();
        assert_eq!(publish_once(&store, &config, ("a", "1"), start, &mut done), Some((1, false)));
        let later = start + Duration::from_secs(9);
        assert_eq!(publish_once(&store, &config, ("a", "1"), later, &mut done), Some((1, true)));
        assert_eq!(publish_once(&store, &config, ("a", "2"), later, &mut done), None, "another body");
        assert_eq!(publish_once(&store, &config, ("b", "1"), later, &mut done), Some((2, false)));
        let over = start + Duration::from_secs(10);
        assert_eq!(publish_once(&store, &config, ("a", "2"), over, &mut done), Some((3, false)));
    }

    #[test]
    fn an_incomplete_publish_is_completed_by_a_retry() {
        let (store, now) = (PublishStore::new(ApiMetrics::default()), Instant::now());
        let ask = |outcome: u32, expected: Option<u32>| {
            let publish = |before: Option<u32>| {
                assert_eq!(before, expected);
                Ok(outcome)
            };
            let key = IdempotencyKey::parse("a").unwrap();
            store.run_once(key, ("topic", "1"), &config(), now, |_| false, publish).unwrap()
        };
        assert_eq!(ask(100, None), (100, false));
        // The retry failed too: the outcome stays the same.
        assert_eq!(ask(100, Some(100)), (100, true));
        assert_eq!(ask(1, Some(100)), (1, false));
        let never = |_| unreachable!("it is done");
        let key = IdempotencyKey::parse("a").unwrap();
        let again = store.run_once(key, ("topic", "1"), &config(), now, |_| false, never);
        assert_eq!(again.unwrap(), (1, true));
    }

    #[test]
    fn a_publish_that_failed_later_runs_again() {
        let (store, now) = (PublishStore::new(ApiMetrics::default()), Instant::now());
        let key = IdempotencyKey::parse("a").unwrap();
        let ask = |has_failed: bool, outcome: u32| {
            let publish = |before: Option<u32>| {
                assert_eq!(before, None);
                Ok(outcome)
            };
            store.run_once(key, ("topic", "1"), &config(), now, |_| has_failed, publish).unwrap()
        };
        assert_eq!(ask(false, 1), (1, false));
        assert_eq!(ask(true, 2), (2, false), "the first publish has failed");
        assert_eq!(ask(false, 3), (2, true));
        // An answer to the first publish comes too late.
        store.complete(key, 1, 10);
        assert_eq!(ask(false, 4), (2, true));
        store.complete(key, 2, 20);
        assert_eq!(ask(false, 5), (20, true));
        assert_eq!(store.state.lock().unwrap().order.len(), 1);
    }

    #[test]
    fn over_the_limits_on_keys_and_bytes_the_oldest_key_is_forgotten() {
        let (store, now, mut done) = (PublishStore::new(ApiMetrics::default()), Instant::now(), 0);
        for key in ["a", "b", "c", "d"] {
            publish_once(&store, &config(), (key, "1"), now, &mut done);
        }
        assert_eq!(store.state.lock().unwrap().entries.len(), 3);
        assert_eq!(publish_once(&store, &config(), ("b", "1"), now, &mut done), Some((2, true)));
        assert_eq!(
            publish_once(&store, &config(), ("a", "1"), now, &mut done),
            Some((5, false)),
            "it was the oldest"
        );

        let few = IdempotencyConfig { max_keys: 1000, max_bytes: 2000, ..config() };
        for number in 0..200 {
            let key = format!("key-{number}-{}", "x".repeat(200));
            publish_once(&store, &few, (&key, "1"), now, &mut done);
            let state = store.state.lock().unwrap();
            assert!(state.bytes <= 2000 && state.order.len() == state.entries.len());
        }
    }

    #[test]
    fn with_a_ttl_of_zero_keys_have_no_effect() {
        let (store, now, mut done) = (PublishStore::new(ApiMetrics::default()), Instant::now(), 0);
        let off = IdempotencyConfig { ttl: Duration::ZERO, ..config() };
        for expected in 1..3 {
            assert_eq!(publish_once(&store, &off, ("a", "1"), now, &mut done), Some((expected, false)));
        }
    }

    #[test]
    fn keys_are_short_visible_ascii() {
        for bad in ["", "with space", "ä", "line\nfeed", &"x".repeat(256)] {
            assert!(IdempotencyKey::parse(bad).is_err(), "{bad}");
        }
        assert!(IdempotencyKey::parse(&"x".repeat(255)).is_ok());
    }
}
