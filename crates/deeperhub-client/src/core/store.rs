//! Positions that survive the process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Action, Core, HandleId};

/// Shortest time between two saves.
const INTERVAL: Duration = Duration::from_millis(250);

/// Positions to be saved.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) is_on: bool,
    pub(super) due: Option<Duration>,
    topics: BTreeSet<Arc<str>>,
}

impl Core {
    /// Notes that an application has processed an event of a handle.
    pub(super) fn on_processed(&mut self, handle: HandleId) {
        if self.store.is_on
            && let Some(topic) = self.subscriptions.topic_of(handle)
        {
            self.store.topics.insert(Arc::clone(topic));
            self.store.due.get_or_insert(self.now + INTERVAL);
        }
    }

    /// Saves the positions that moved since the last time.
    pub fn save_positions(&mut self) {
        self.store.due = None;
        for topic in std::mem::take(&mut self.store.topics) {
            if let Some(position) = self.subscriptions.handed_position(&topic).cloned() {
                self.actions.push_back(Action::Store { topic, position: Some(position) });
            }
        }
    }

    /// Removes the position of a topic.
    pub(super) fn forget_position(&mut self, topic: &Arc<str>) {
        if self.store.is_on {
            self.store.topics.remove(topic);
            self.actions.push_back(Action::Store { topic: Arc::clone(topic), position: None });
        }
    }
}
