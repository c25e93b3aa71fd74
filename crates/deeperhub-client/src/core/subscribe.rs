//! Subscribing, recovering and unsubscribing.

use std::sync::Arc;
use std::time::Duration;

use super::handle::Handle;
use super::position::item_of;
use super::subscription::{Context, Flow, Wire};
use super::subscriptions::Next;
use super::wire::{self, Delivery};
use super::{Action, Core, HandleId, Pending, call};
use crate::{Error, Position, SubscriptionState};

/// Longest `subscribe` before the server's limit is known.
const DEFAULT_MESSAGE_BYTES: usize = 65_536;

/// The largest number of messages that one `history` reads.
const MAX_HISTORY: u32 = 1000;

impl Core {
    /// Subscribes to a topic or pattern. The last `history` messages come first. With `position`,
    /// the subscription starts after it.
    pub fn subscribe(
        &mut self,
        topic: &str,
        history: u32,
        position: Option<Position>,
        now: Duration,
    ) -> HandleId {
        self.now = self.now.max(now);
        let id = HandleId(self.next_id());
        let mut handle = Handle::new(id, topic.into(), history, position, self.settings.max_queue_bytes);
        if self.is_closed() {
            handle.queue.push_state(SubscriptionState::Ended { reason: Error::CLOSED.into() });
            self.subscriptions.keep_ended(id, handle.queue);
            self.actions.push_back(Action::Ready(id, Err(Error::closed("subscribe at another hub"))));
            return id;
        }
        let (number, is_ready) = self.subscriptions.add(topic, handle);
        if is_ready {
            self.actions.push_back(Action::Ready(id, Ok(())));
        }
        self.wake(number);
        id
    }

    /// Ends a handle: its stream ends after the state `ended`. Its saved position is removed.
    pub fn unsubscribe(&mut self, handle: HandleId, now: Duration) {
        self.now = self.now.max(now);
        if let Some(topic) = self.subscriptions.topic_of(handle).cloned() {
            self.forget_position(&topic);
        }
        if let Some(mut removed) = self.remove(handle) {
            removed.queue.clear();
            let reason: Arc<str> = "unsubscribed".into();
            if !removed.ready {
                self.actions
                    .push_back(Action::Ready(handle, Err(Error::new("unsubscribed", "unsubscribed before"))));
            }
            removed.queue.push_state(SubscriptionState::Ended { reason });
            self.subscriptions.keep_ended(handle, removed.queue);
            self.actions.push_back(Action::Wake(handle));
        }
    }

    /// Drops a handle that nobody reads any more. Its saved position stays.
    pub fn drop_handle(&mut self, handle: HandleId, now: Duration) {
        self.now = self.now.max(now);
        self.save_positions();
        self.remove(handle);
        self.subscriptions.drop_ended(handle);
    }

    fn remove(&mut self, handle: HandleId) -> Option<Handle> {
        let (handle, subscription) = self.subscriptions.remove(handle)?;
        if let Some(subscription) = subscription
            && self.is_open()
            && (matches!(subscription.wire, Wire::Asked(_) | Wire::Subscribed)
                || subscription.must_unsubscribe)
        {
            self.send_unsubscribe(&subscription.topic);
        }
        Some(handle)
    }

    fn send_unsubscribe(&mut self, topic: &str) {
        let id = self.next_id();
        self.actions.push_back(Action::Send(wire::request("unsubscribe", id, &wire::TopicData { topic })));
    }

    /// Takes the next event of a handle. The event that was taken before it counts as processed.
    pub fn take(&mut self, handle: HandleId, now: Duration) -> Next {
        self.now = self.now.max(now);
        self.processed(handle, now);
        let next = self.subscriptions.take(handle);
        self.check_room(handle);
        next
    }

    /// Tells that the event that was taken last was processed.
    pub fn processed(&mut self, handle: HandleId, now: Duration) {
        self.now = self.now.max(now);
        if self.subscriptions.handle_mut(handle).is_some_and(|handle| handle.queue.commit()) {
            self.on_processed(handle);
        }
    }

    /// Asks for dropped messages again if the queue has room.
    fn check_room(&mut self, handle: HandleId) {
        let Some(number) = self.subscriptions.number_of_handle(handle) else { return };
        let wants_more = self.subscriptions.handle(handle).is_some_and(Handle::wants_more);
        if wants_more && self.subscriptions.get_mut(number).is_some_and(|it| it.wire == Wire::Subscribed) {
            self.subscribe_anew(number);
        }
    }

    /// Returns `true` if [`Self::take`] would not return [`Next::Empty`].
    #[must_use]
    pub fn has_event(&self, handle: HandleId) -> bool {
        self.subscriptions.has_event(handle)
    }

    /// Returns the position up to which a handle has received messages, taken or not.
    #[must_use]
    pub fn position(&self, handle: HandleId) -> Option<&Position> {
        self.subscriptions.position(handle)
    }

    /// Returns the position up to which the application has processed messages.
    #[must_use]
    pub fn processed_position(&self, handle: HandleId) -> Option<&Position> {
        self.subscriptions.handle(handle)?.queue.handed()
    }

    /// Returns the bytes that wait for the application.
    #[must_use]
    pub fn queued_bytes(&self, handle: HandleId) -> usize {
        self.subscriptions.handle(handle).map_or(0, |handle| handle.queue.bytes())
    }

    /// Ends the subscription at the server and asks for it from the position.
    fn subscribe_anew(&mut self, number: u64) {
        if let Some(subscription) = self.subscriptions.get_mut(number) {
            subscription.must_unsubscribe = true;
        }
        self.subscriptions.restart(number);
        self.wake(number);
    }

    /// Sends one `subscribe` for all topics that are not asked for, or several if it is too long.
    pub(super) fn send_subscribes(&mut self) {
        let max_bytes = self.connection.max_message_bytes.unwrap_or(DEFAULT_MESSAGE_BYTES);
        let (mut entries, mut numbers, mut bytes) = (Vec::new(), Vec::new(), wire::SUBSCRIBE_BYTES);
        for number in std::mem::take(&mut self.subscriptions.idle) {
            let Some(subscription) = self.subscriptions.get_mut(number) else { continue };
            let (recover, history) = subscription.entry();
            let topic = Arc::clone(&subscription.topic);
            let must_unsubscribe = std::mem::take(&mut subscription.must_unsubscribe);
            if must_unsubscribe {
                self.send_unsubscribe(&topic);
            }
            let entry = wire::SubscribeEntry { topic: &topic, recover: recover.as_ref(), history };
            let entry = serde_json::to_string(&entry).unwrap_or_default();
            if bytes + entry.len() > max_bytes {
                self.send_subscribe(&mut entries, &mut numbers);
                bytes = wire::SUBSCRIBE_BYTES;
            }
            bytes += entry.len() + 1;
            entries.push(entry);
            numbers.push(number);
        }
        self.send_subscribe(&mut entries, &mut numbers);
    }

    fn send_subscribe(&mut self, entries: &mut Vec<String>, numbers: &mut Vec<u64>) {
        if entries.is_empty() {
            return;
        }
        let id = self.next_id();
        for &number in &*numbers {
            if let Some(subscription) = self.subscriptions.get_mut(number) {
                subscription.wire = Wire::Asked(id);
            }
        }
        self.actions.push_back(Action::Send(wire::subscribe(id, entries)));
        self.pending.insert(id, Pending::Subscribe(std::mem::take(numbers)));
        entries.clear();
    }

    /// Asks for kept messages of handles that joined others.
    pub(super) fn send_joins(&mut self) {
        for (handle, topic) in self.subscriptions.joins_due(self.now) {
            let id = self.next_id();
            let Some(joining) = self.subscriptions.handle_mut(handle).and_then(|it| it.joining.as_mut())
            else {
                continue;
            };
            (joining.request, joining.retry_at) = (Some(id), None);
            let from = match joining.next {
                Some(next) => i64::try_from(next).unwrap_or(i64::MAX),
                None => -i64::from(joining.wanted),
            };
            let limit = Some(joining.wanted.min(MAX_HISTORY));
            let data = wire::HistoryData { topic: &topic, from: Some(from), limit, order: Some("asc") };
            self.actions.push_back(Action::Send(wire::request("history", id, &data)));
            self.pending.insert(id, Pending::Join(handle));
        }
    }

    /// Takes the answer for a handle that joined others.
    pub(super) fn on_joined(&mut self, request: u64, id: HandleId, answer: Result<&Delivery<'_>, Error>) {
        let Some(number) = self.subscriptions.number_of_handle(id) else { return };
        let joining = self.subscriptions.handle(id).and_then(|handle| handle.joining.as_ref());
        if joining.is_none_or(|joining| joining.request != Some(request)) {
            // The subscription started anew since.
            return;
        }
        let page = match answer {
            Ok(data) => call::page_of(data),
            Err(error) => {
                let at = self.now + self.retry_delay(number, &error);
                let Some(joining) = self.subscriptions.handle_mut(id).and_then(|it| it.joining.as_mut())
                else {
                    return;
                };
                if error.is_temporary() {
                    (joining.request, joining.retry_at) = (None, Some(at));
                    return;
                }
                self.report(error);
                call::page_of(&Delivery::default())
            }
        };
        let Some(handle) = self.subscriptions.handle_mut(id) else { return };
        if handle.on_history(&page.messages, page.next, page.position) {
            return;
        }
        self.subscriptions.joining.remove(&id);
        if let Some(subscription) = self.subscriptions.get_mut(number) {
            subscription.on_joined(id);
        }
        self.check_room(id);
        self.wake(number);
    }

    /// Takes one entry of a `subscribed`, which answers the message `id`.
    pub(super) fn on_subscribed(&mut self, id: u64, entry: &Delivery<'_>) {
        let Some(number) = self.subscriptions.number_of(&entry.topic) else { return };
        let Some(subscription) = self.subscriptions.get_mut(number) else { return };
        if subscription.wire != Wire::Asked(id) {
            return;
        }
        if let Some(error) = &entry.error {
            self.on_subscribe_error(id, &[number], &error.to_error());
            return;
        }
        let new: Vec<HandleId> =
            subscription.handles.iter().filter(|handle| !handle.ready).map(|handle| handle.id).collect();
        if !subscription.on_subscribed(entry) {
            return self.subscribe_anew(number);
        }
        let handles: Vec<HandleId> = subscription.handles.iter().map(|handle| handle.id).collect();
        self.actions.extend(new.into_iter().map(|id| Action::Ready(id, Ok(()))));
        self.wake(number);
        handles.into_iter().for_each(|id| self.check_room(id));
    }

    /// Takes an error that answers a `subscribe`, for these subscriptions.
    pub(super) fn on_subscribe_error(&mut self, id: u64, numbers: &[u64], error: &Error) {
        for &number in numbers {
            if self.subscriptions.get_mut(number).is_none_or(|it| it.wire != Wire::Asked(id)) {
                continue;
            }
            if error.is_temporary() {
                let delay = self.retry_delay(number, error);
                self.subscriptions.retry(number, self.now + delay);
            } else {
                self.end_subscription(number, error.clone());
            }
        }
    }

    fn retry_delay(&mut self, number: u64, error: &Error) -> Duration {
        let subscription = self.subscriptions.get_mut(number);
        error
            .retry_after
            .or_else(|| Some(subscription?.backoff.next_delay(&self.settings, &mut self.rng)))
            .unwrap_or_default()
    }

    /// Ends a subscription and all its handles.
    pub(super) fn end_subscription(&mut self, number: u64, error: Error) {
        let reason: Arc<str> = error.code.as_ref().into();
        for (id, was_ready) in self.subscriptions.end(number, &reason) {
            if !was_ready {
                self.actions.push_back(Action::Ready(id, Err(error.clone())));
            }
            self.actions.push_back(Action::Wake(id));
        }
    }

    /// Takes a `message`, `gap` or `position`.
    pub(super) fn on_delivery(&mut self, kind: &str, data: &Delivery<'_>, bytes: usize) {
        let number = self.subscriptions.number_of(&data.topic);
        let patterns = match kind {
            "message" => self.subscriptions.patterns_of(&data.topic),
            _ => Vec::new(),
        };
        let exact = number.filter(|&number| {
            self.subscriptions
                .get_mut(number)
                .is_some_and(|subscription| subscription.wire == Wire::Subscribed)
        });
        let (topic, near) = match exact.and_then(|number| self.subscriptions.get_mut(number)) {
            Some(subscription) => (Arc::clone(&subscription.topic), subscription.chain.position.clone()),
            None if patterns.is_empty() => return,
            None => (Arc::from(data.topic.as_ref()), None),
        };
        let Some(item) = item_of(kind, data, &topic, near.as_ref(), bytes) else { return };
        for number in patterns {
            if let Some(subscription) = self.subscriptions.get_mut(number) {
                subscription.receive_by_pattern(&item);
            }
            self.wake(number);
        }
        if let Some(number) = exact {
            self.with_context(number, |subscription, context| subscription.receive(item, context));
        }
    }

    /// Runs a step of a subscription, and reports a hole.
    fn with_context(
        &mut self,
        number: u64,
        step: impl FnOnce(&mut super::subscription::Subscription, &Context<'_>) -> Flow,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(number) else { return };
        let context = Context {
            awaits_own: self.publishes.awaits_own(&subscription.topic),
            client_ids: &self.connection.client_ids,
            max_queue_bytes: self.settings.max_queue_bytes,
        };
        let flow = step(subscription, &context);
        if flow == Flow::Dropped {
            self.subscribe_anew(number);
        } else if flow == Flow::Hole {
            let text = format!("a message of {} was missing, and the server told no gap", subscription.topic);
            let is_repeated = std::mem::replace(&mut subscription.met_hole, true);
            let delay = subscription.backoff.next_delay(&self.settings, &mut self.rng);
            self.report(Error::new(Error::HOLE, text));
            self.subscribe_anew(number);
            if is_repeated {
                self.subscriptions.idle.remove(&number);
                self.subscriptions.retry(number, self.now + delay);
            }
        } else {
            self.wake(number);
        }
    }

    /// Takes note that an own publish that excludes its publisher is answered.
    pub(super) fn on_own_answered(&mut self, topic: &str, position: Option<&Position>) {
        let Some(number) = self.subscriptions.number_of(topic) else { return };
        let Some(subscription) = self.subscriptions.get_mut(number) else { return };
        if let Some(position) = position {
            subscription.add_own(position);
        }
        self.with_context(number, |subscription, context| subscription.release_held(context));
    }

    /// Takes an `unsubscribed` that nobody asked for.
    pub(super) fn on_unsubscribed(&mut self, topic: &str) {
        if let Some(number) = self.subscriptions.number_of(topic) {
            self.end_subscription(number, Error::new("forbidden", "the token no longer grants the topic"));
        }
    }

    /// Takes note that the connection is lost.
    pub(super) fn on_subscriptions_lost(&mut self) {
        for number in self.subscriptions.numbers() {
            if let Some(subscription) = self.subscriptions.get_mut(number) {
                subscription.must_unsubscribe = false;
                subscription.met_hole = false;
            }
            self.subscriptions.restart(number);
            self.wake(number);
        }
    }

    /// Tells the application that events wait.
    fn wake(&mut self, number: u64) {
        let Some(subscription) = self.subscriptions.get_mut(number) else { return };
        for handle in &mut subscription.handles {
            if !handle.is_woken && !handle.queue.is_empty() {
                handle.is_woken = true;
                self.actions.push_back(Action::Wake(handle.id));
            }
        }
    }
}
