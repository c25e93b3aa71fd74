//! All subscriptions of a client, and the handles on them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::handle::{Handle, HandleId};
use super::queue::EventQueue;
use super::subscription::{Subscription, Wire};
use crate::{Event, Position};

/// The next event of a handle.
#[derive(Debug)]
pub enum Next {
    /// An event. Asking for the next one tells that this one was processed.
    Event(Event),
    /// Nothing waits.
    Empty,
    /// The subscription ended, and all its events were taken.
    Ended,
}

/// Subscriptions by number, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    by_number: BTreeMap<u64, Subscription>,
    by_topic: HashMap<Arc<str>, u64>,
    patterns: BTreeSet<u64>,
    handles: HashMap<HandleId, u64>,
    /// Queues of handles whose subscription ended.
    ended: HashMap<HandleId, EventQueue>,
    /// Subscriptions to be asked for.
    pub(super) idle: BTreeSet<u64>,
    pub(super) retries: BTreeSet<(Duration, u64)>,
    /// Handles that read kept messages, and their retries.
    pub(super) joining: BTreeSet<HandleId>,
    last: u64,
}

impl Subscriptions {
    /// Adds a handle. The second value is `true` if its subscription has `subscribed` already.
    pub(super) fn add(&mut self, topic: &str, handle: Handle) -> (u64, bool) {
        let number = match self.by_topic.get(topic) {
            Some(&number) => number,
            None => {
                self.last += 1;
                let topic: Arc<str> = topic.into();
                let subscription = Subscription::new(Arc::clone(&topic));
                if subscription.pattern.is_some() {
                    self.patterns.insert(self.last);
                }
                self.by_topic.insert(topic, self.last);
                self.by_number.insert(self.last, subscription);
                self.idle.insert(self.last);
                self.last
            }
        };
        let id = handle.id;
        self.handles.insert(id, number);
        let Some(subscription) = self.by_number.get_mut(&number) else { return (number, false) };
        let is_ready = subscription.add(handle);
        if subscription.handles.last().is_some_and(|handle| handle.joining.is_some()) {
            self.joining.insert(id);
        }
        (number, is_ready)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Subscription> {
        self.by_number.get_mut(&number)
    }

    pub(super) fn number_of(&self, topic: &str) -> Option<u64> {
        self.by_topic.get(topic).copied()
    }

    pub(super) fn number_of_handle(&self, handle: HandleId) -> Option<u64> {
        self.handles.get(&handle).copied()
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        self.by_number.keys().copied().collect()
    }

    /// Returns the subscriptions by pattern that match a topic.
    pub(super) fn patterns_of(&self, topic: &str) -> Vec<u64> {
        let matching = |number: &u64| {
            self.by_number.get(number).is_some_and(|subscription| {
                subscription.wire == Wire::Subscribed && subscription.matches(topic)
            })
        };
        self.patterns.iter().copied().filter(matching).collect()
    }

    pub(super) fn handle(&self, id: HandleId) -> Option<&Handle> {
        let subscription = self.by_number.get(self.handles.get(&id)?)?;
        subscription.handles.iter().find(|handle| handle.id == id)
    }

    pub(super) fn handle_mut(&mut self, id: HandleId) -> Option<&mut Handle> {
        let subscription = self.by_number.get_mut(self.handles.get(&id)?)?;
        subscription.handles.iter_mut().find(|handle| handle.id == id)
    }

    pub(super) fn topic_of(&self, id: HandleId) -> Option<&Arc<str>> {
        Some(&self.by_number.get(self.handles.get(&id)?)?.topic)
    }

    /// Returns the position of the last event in a handle's queue.
    pub(super) fn position(&self, id: HandleId) -> Option<&Position> {
        self.handle(id)?.position.as_ref()
    }

    /// Takes the next event of a handle.
    pub(super) fn take(&mut self, id: HandleId) -> Next {
        if let Some(handle) = self.handle_mut(id) {
            let event = handle.queue.pop();
            handle.is_woken = event.is_some();
            return event.map_or(Next::Empty, Next::Event);
        }
        let Some(queue) = self.ended.get_mut(&id) else { return Next::Ended };
        match queue.pop() {
            Some(event) => Next::Event(event),
            None => {
                self.ended.remove(&id);
                Next::Ended
            }
        }
    }

    /// Returns `true` if an event waits, or the handle ended.
    pub(super) fn has_event(&self, id: HandleId) -> bool {
        self.handle(id).is_none_or(|handle| !handle.queue.is_empty())
    }

    /// Ends a subscription with all its handles, whose numbers are returned.
    pub(super) fn end(&mut self, number: u64, reason: &Arc<str>) -> Vec<(HandleId, bool)> {
        let Some(mut subscription) = self.by_number.remove(&number) else { return Vec::new() };
        subscription.end(reason);
        self.forget(number, &subscription);
        let handles = subscription.handles.into_iter();
        handles
            .map(|handle| {
                self.handles.remove(&handle.id);
                self.joining.remove(&handle.id);
                self.ended.insert(handle.id, handle.queue);
                (handle.id, handle.ready)
            })
            .collect()
    }

    /// Removes a handle. Returns its queue, and the subscription if this was the last handle.
    pub(super) fn remove(&mut self, id: HandleId) -> Option<(Handle, Option<Subscription>)> {
        let number = self.handles.remove(&id)?;
        self.joining.remove(&id);
        let subscription = self.by_number.get_mut(&number)?;
        let index = subscription.handles.iter().position(|handle| handle.id == id)?;
        let handle = subscription.handles.remove(index);
        if !subscription.handles.is_empty() {
            return Some((handle, None));
        }
        let subscription = self.by_number.remove(&number)?;
        self.forget(number, &subscription);
        Some((handle, Some(subscription)))
    }

    fn forget(&mut self, number: u64, subscription: &Subscription) {
        self.by_topic.remove(&subscription.topic);
        self.patterns.remove(&number);
        self.idle.remove(&number);
        if let Wire::Retry(at) = subscription.wire {
            self.retries.remove(&(at, number));
        }
    }

    /// Keeps the queue of an ended handle until its events were taken.
    pub(super) fn keep_ended(&mut self, id: HandleId, queue: EventQueue) {
        self.ended.insert(id, queue);
    }

    /// Drops what waits for a handle that nobody reads any more.
    pub(super) fn drop_ended(&mut self, id: HandleId) {
        self.ended.remove(&id);
    }

    /// Asks for a subscription again at a time.
    pub(super) fn retry(&mut self, number: u64, at: Duration) {
        if let Some(subscription) = self.by_number.get_mut(&number) {
            subscription.wire = Wire::Retry(at);
            self.retries.insert((at, number));
        }
    }

    /// Asks for a subscription anew with the next `subscribe`.
    pub(super) fn restart(&mut self, number: u64) {
        let Some(subscription) = self.by_number.get_mut(&number) else { return };
        if let Wire::Retry(at) = subscription.wire {
            self.retries.remove(&(at, number));
        }
        subscription.on_recovering();
        for handle in subscription.handles.iter().filter(|handle| handle.joining.is_none()) {
            self.joining.remove(&handle.id);
        }
        self.idle.insert(number);
    }

    /// Returns handles that are to ask for kept messages now, and their topics.
    pub(super) fn joins_due(&self, now: Duration) -> Vec<(HandleId, Arc<str>)> {
        let due = |id: &HandleId| {
            let subscription = self.by_number.get(self.handles.get(id)?)?;
            let joining = self.handle(*id)?.joining.as_ref()?;
            let is_due = joining.request.is_none() && joining.retry_at.is_none_or(|at| at <= now);
            (is_due && subscription.wire == Wire::Subscribed).then(|| (*id, Arc::clone(&subscription.topic)))
        };
        self.joining.iter().filter_map(due).collect()
    }

    /// Returns the position up to which all handles on a topic have processed messages.
    pub(super) fn handed_position(&self, topic: &str) -> Option<&Position> {
        let subscription = self.by_number.get(self.by_topic.get(topic)?)?;
        let positions = subscription.handles.iter().filter_map(|handle| handle.queue.handed());
        positions.reduce(|first, other| if first.covers(other) { other } else { first })
    }

    /// Returns the next time at which something is asked for again.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let joins = self.joining.iter().filter_map(|id| self.handle(*id)?.joining.as_ref()?.retry_at);
        joins.chain(self.retries.first().map(|(at, _)| *at)).min()
    }

    /// Moves subscriptions whose time has come to those to be asked for.
    pub(super) fn on_time(&mut self, now: Duration) {
        while let Some(&(at, number)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            if let Some(subscription) = self.by_number.get_mut(&number) {
                subscription.wire = Wire::Idle;
                self.idle.insert(number);
            }
        }
    }
}
