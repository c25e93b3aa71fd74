//! Values that may be replaced while others use them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A value that may be replaced while others use it.
///
/// Whoever needs it often keeps a [`LiveCopy`]: as long as the value is the same, looking for a new one costs one load of
/// a cache line that nobody writes.
#[derive(Debug)]
pub struct Live<T> {
    /// Grows with each replacement.
    version: AtomicU64,
    value: RwLock<Arc<T>>,
}

/// Someone's own copy of a [`Live`] value.
#[derive(Debug)]
pub struct LiveCopy<T> {
    version: u64,
    value: Arc<T>,
}

impl<T> Live<T> {
    /// A first value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self { version: AtomicU64::new(0), value: RwLock::new(Arc::new(value)) }
    }

    /// Puts another in its place. Copies follow when they are [refreshed](LiveCopy::refresh).
    pub fn replace(&self, value: T) {
        let mut place = self.value.write().unwrap_or_else(PoisonError::into_inner);
        *place = Arc::new(value);
        // Under the lock, so that a version belongs to one value.
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The value now.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of one's own.
    #[must_use]
    pub fn copy(&self) -> LiveCopy<T> {
        let value = self.value.read().unwrap_or_else(PoisonError::into_inner);
        LiveCopy { version: self.version.load(Ordering::Acquire), value: Arc::clone(&value) }
    }
}

impl<T> LiveCopy<T> {
    /// Takes the new value where there is one, and answers whether there was.
    #[inline]
    pub fn refresh(&mut self, live: &Live<T>) -> bool {
        if live.version.load(Ordering::Acquire) == self.version {
            return false;
        }
        *self = live.copy();
        true
    }
}

impl<T> std::ops::Deref for LiveCopy<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_when_it_is_refreshed() {
        let live = Live::new(1);
        let mut copy = live.copy();
        assert!(!copy.refresh(&live));
        live.replace(2);
        live.replace(3);
        assert_eq!((*copy, *live.current()), (1, 3));
        assert!(copy.refresh(&live));
        assert!(!copy.refresh(&live));
        assert_eq!(*copy, 3);
    }
}
