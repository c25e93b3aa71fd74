//! Places where positions outlive a hub.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A store of texts by key, in which a hub saves the positions of its subscriptions.
///
/// The hub calls it from its task, at most every 250 ms for each topic, so it should not block for
/// long. Errors are the store's business: a position that was not saved costs repeated messages.
pub trait Storage: Send + Sync {
    /// Returns the text of a key.
    fn get(&self, key: &str) -> Option<String>;
    /// Saves the text of a key.
    fn set(&self, key: &str, value: &str);
    /// Removes a key.
    fn remove(&self, key: &str);
}

/// A [`Storage`] in memory, which several hubs can use one after the other.
#[derive(Debug, Default)]
pub struct MemoryStorage(Mutex<HashMap<String, String>>);

impl Storage for MemoryStorage {
    fn get(&self, key: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn set(&self, key: &str, value: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), value.to_owned());
    }

    fn remove(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
