//! Index of connections by user.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use deeperhub_listener::ConnectionKey;

/// Connections of one worker by user. A user can have any number of connections, for example if all
/// devices of one kind share a user.
#[derive(Debug, Default)]
pub(super) struct Users(HashMap<Arc<str>, BTreeSet<ConnectionKey>>);

impl Users {
    pub(super) fn add(&mut self, user: &Arc<str>, key: ConnectionKey) {
        self.0.entry(Arc::clone(user)).or_default().insert(key);
    }

    pub(super) fn remove(&mut self, user: &Arc<str>, key: ConnectionKey) {
        let Some(keys) = self.0.get_mut(user) else { return };
        keys.remove(&key);
        if keys.is_empty() {
            self.0.remove(user);
            if self.0.capacity() > 64 && self.0.len() < self.0.capacity() / 4 {
                self.0.shrink_to_fit();
            }
        }
    }

    pub(super) fn keys(&self, user: &str) -> Vec<ConnectionKey> {
        self.0.get(user).map(|keys| keys.iter().copied().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_added_and_removed_per_user() {
        let (ada, eve): (Arc<str>, Arc<str>) = ("ada".into(), "eve".into());
        let mut users = Users::default();
        for key in [3, 1, 2] {
            users.add(&ada, key);
        }
        users.add(&eve, 4);
        users.remove(&ada, 1);
        users.remove(&eve, 3);
        assert_eq!((users.keys("ada"), users.keys("eve"), users.keys("bob")), (vec![2, 3], vec![4], vec![]));
        users.remove(&eve, 4);
        assert_eq!(users.0.len(), 1, "a user without connections is removed");
    }
}
