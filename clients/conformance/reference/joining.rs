//! Handles that join others with `history`.

use serde_json::{Value, json};

use crate::client::Client;
use crate::delivery::message_event;
use crate::subscription::Stage;

impl Client {
    /// Asks for the history of handles that joined topics which are subscribed.
    pub(crate) fn send_histories(&mut self) {
        for index in 0..self.subscriptions.len() {
            let subscription = &mut self.subscriptions[index];
            if !matches!(subscription.stage, Stage::Live | Stage::Replaying(_)) {
                continue;
            }
            for handle in 0..subscription.handles.len() {
                let subscription = &mut self.subscriptions[index];
                let topic = subscription.topic.clone();
                let Some(wanted) = subscription.handles[handle].wanted.take() else { continue };
                self.next_id += 1;
                subscription.handles[handle].history = Some(self.next_id);
                let from = -i64::try_from(wanted).unwrap_or(i64::MAX);
                let data = json!({"topic": topic, "from": from, "limit": wanted});
                self.send("history", Some(self.next_id), &data);
            }
        }
    }

    /// Hands over the history that a later handle asked for.
    pub(crate) fn on_handle_history(&mut self, id: Option<u64>, data: &Value) {
        let mut handles = self.subscriptions.iter_mut().flat_map(|subscription| &mut subscription.handles);
        let Some(handle) = handles.find(|handle| handle.history.is_some() && handle.history == id) else {
            return;
        };
        // A history that was emptied meanwhile ends with the part before.
        let is_emptied = handle.parts.last().is_some_and(|last| last["epoch"] != data["epoch"]);
        if !is_emptied {
            let messages = data["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
            handle.parts.extend(messages.iter().map(message_event));
        }
        if let Some(next) = data["next"].as_u64().filter(|_| !is_emptied) {
            self.next_id += 1;
            handle.history = Some(self.next_id);
            let data = json!({"topic": data["topic"], "from": next, "limit": 1000});
            self.send("history", Some(self.next_id), &data);
        } else {
            let events = std::mem::take(&mut handle.parts);
            handle.push_history(events);
        }
    }
}
