//! Subscribes, their answers, and messages exactly once and in order.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::emit;
use crate::fault::Fault;
use crate::subscription::{Position, Stage, Subscription};

/// Returns the event for the application.
pub(crate) fn message_event(data: &Value) -> Value {
    let mut event = json!({"event": "message"});
    for key in ["topic", "message", "from", "time", "epoch", "offset"] {
        if let Some(value) = data.get(key) {
            event[key] = value.clone();
        }
    }
    event
}

fn gap_event(reason: &str, range: Option<(u64, u64)>) -> Value {
    let mut event = json!({"event": "gap", "reason": reason});
    if let Some((from, to)) = range {
        event["from"] = from.into();
        event["to"] = to.into();
    }
    event
}

fn passes(code: &str) -> bool {
    matches!(code, "unavailable" | "rate_limited" | "too_many_topics" | "internal")
}

impl Client {
    /// Subscribes to all topics that are not subscribed, in as few messages as possible.
    pub(crate) fn send_subscribes(&mut self) {
        let limit = if self.fault == Fault::SubscribesOneByOne { 0 } else { self.max_message_bytes };
        let idle = |subscription: &Subscription| {
            subscription.stage == Stage::Idle && subscription.retry_at.is_none()
        };
        let mut waiting: Vec<usize> =
            (0..self.subscriptions.len()).filter(|index| idle(&self.subscriptions[*index])).collect();
        while !waiting.is_empty() {
            let id = self.new_id();
            let (mut bytes, mut entries) = (100, Vec::new());
            while let Some(index) = waiting.first() {
                let mut entry = self.subscriptions[*index].entry();
                if self.fault == Fault::ForgetsPosition {
                    entry["recover"].take();
                }
                if self.fault == Fault::SplitsPosition && entry.get("recover").is_some() {
                    entry["recover"]["time"].take();
                }
                bytes += entry.to_string().len() + 1;
                if bytes > limit && !entries.is_empty() {
                    break;
                }
                self.subscriptions[*index].stage = Stage::Asked(id);
                entries.push(entry);
                waiting.remove(0);
            }
            let data = if entries.len() == 1 { entries.remove(0) } else { json!({"topics": entries}) };
            self.send("subscribe", Some(id), &data);
        }
    }

    pub(crate) fn on_subscribed(&mut self, id: Option<u64>, data: &Value) {
        let Some(id) = id else { return };
        match data["topics"].as_array() {
            Some(entries) => entries.iter().for_each(|entry| self.on_entry(id, entry)),
            None => self.on_entry(id, data),
        }
    }

    fn on_entry(&mut self, id: u64, entry: &Value) {
        if entry.get("error").is_some() {
            let wait = self.retry_wait(&entry["error"]);
            return self.on_subscribe_error(id, entry["topic"].as_str(), &entry["error"], wait);
        }
        let (fault, is_asked) = (self.fault, Stage::Asked(id));
        let asked =
            |known: &&mut Subscription| entry["topic"] == known.topic.as_str() && known.stage == is_asked;
        let Some(subscription) = self.subscriptions.iter_mut().find(asked) else { return };
        let old = subscription.position.take();
        subscription.position = Position::of(entry);
        let is_first = !subscription.was_live;
        let (recovered, reason) = match entry["recovered"].as_bool() {
            Some(recovered) => (Some(recovered), entry["reason"].as_str()),
            None if is_first => (None, None),
            None => (Some(false), Some("no_history")),
        };
        subscription.recovered = recovered;
        subscription.reason = reason.map(str::to_owned);
        if recovered == Some(false) {
            let new = subscription.position.clone();
            let range =
                old.zip(new.as_ref()).filter(|(old, new)| old.epoch == new.epoch && new.offset > old.offset);
            let range = range.map(|(old, new)| (old.offset + 1, new.offset));
            if fault != Fault::HidesGaps {
                subscription.push_gap(&gap_event(reason.unwrap_or_default(), range), new.as_ref(), None);
            }
        }
        subscription.skip_own();
        match entry["replay"].as_u64().unwrap_or_default() {
            0 => subscription.go_live(),
            replay => {
                subscription.stage = Stage::Replaying(replay);
                if fault == Fault::LiveTooEarly {
                    subscription.go_live();
                    subscription.stage = Stage::Live;
                }
            }
        }
        if fault == Fault::Drops
            && recovered == Some(true)
            && let Some(position) = &mut subscription.position
        {
            position.offset += 1;
        }
        self.send_histories();
    }

    fn on_subscribe_error(&mut self, id: u64, topic: Option<&str>, error: &Value, wait: Duration) {
        let code = error["code"].as_str().unwrap_or_default();
        let ends = !passes(code) || self.fault == Fault::EndsTooEarly;
        for subscription in &mut self.subscriptions {
            if subscription.stage == Stage::Asked(id) && topic.is_none_or(|topic| topic == subscription.topic)
            {
                if ends {
                    subscription.end(code);
                } else {
                    subscription.stage = Stage::Idle;
                    subscription.retry_at = Some(Instant::now() + wait);
                }
            }
        }
    }

    /// Returns the time until a request is sent again.
    fn retry_wait(&self, error: &Value) -> Duration {
        let backoff = self.option("min_delay_ms", 500);
        Duration::from_millis(error["retry_after_ms"].as_u64().unwrap_or(backoff))
    }

    pub(crate) fn on_error(&mut self, id: Option<u64>, data: &Value) {
        let Some(number) = id else { return };
        let (code, wait) = (data["code"].as_str().unwrap_or_default(), self.retry_wait(data));
        if !self.on_publish_error(id, data, passes(code), wait) {
            self.on_subscribe_error(number, None, data, wait);
            self.on_request_error(id, code);
        }
    }

    /// Handles a delivery.
    pub(crate) fn on_message(&mut self, data: &Value, bytes: usize) {
        if self.fault == Fault::Reorders {
            if self.swapped.is_none() && data["offset"].as_u64().is_some_and(|offset| offset % 2 == 1) {
                self.swapped = Some((data.clone(), bytes));
                return;
            }
            if let Some((earlier, earlier_bytes)) = self.swapped.take() {
                self.accept(data, bytes);
                return self.accept(&earlier, earlier_bytes);
            }
        }
        self.accept(data, bytes);
    }

    fn accept(&mut self, data: &Value, bytes: usize) {
        let Some(topic) = data["topic"].as_str() else { return };
        if data.get("message").is_none() {
            return;
        }
        let mut is_new = true;
        let exact =
            self.subscriptions.iter().position(|known| known.topic == topic && known.stage != Stage::Ended);
        if let Some(index) = exact {
            is_new = self.accept_exact(index, data, bytes);
        }
        let max = self.option("max_queue_bytes", 1 << 20);
        for pattern in
            self.subscriptions.iter_mut().filter(|known| known.is_pattern() && known.matches(topic))
        {
            if is_new && matches!(pattern.stage, Stage::Live | Stage::Replaying(_)) {
                hand_over_lossy(pattern, data, bytes, max, self.fault);
            }
        }
    }

    /// Hands a delivery to the handles of its topic. Returns `false` if it was dropped.
    fn accept_exact(&mut self, index: usize, data: &Value, bytes: usize) -> bool {
        let (fault, max) = (self.fault, self.option("max_queue_bytes", 1 << 20));
        let awaits_own = self.awaits_own(&self.subscriptions[index].topic);
        let subscription = &mut self.subscriptions[index];
        let is_fenced =
            matches!(subscription.stage, Stage::Idle | Stage::Asked(_)) && fault != Fault::NoFence;
        if is_fenced || subscription.is_full || subscription.must_ask_again {
            return false;
        }
        let (Some(position), Some(at)) = (subscription.position.clone(), Position::of(data)) else {
            if awaits_own && fault == Fault::WaitsWithoutHistory {
                subscription.behind_own.push((data.clone(), bytes));
                return true;
            }
            hand_over_lossy(subscription, data, bytes, max, fault);
            return true;
        };
        let at_offset = at.offset;
        if at.epoch == position.epoch || fault == Fault::IgnoresEpoch {
            if at.offset <= position.offset && fault != Fault::Duplicates && fault != Fault::Reorders {
                subscription.count_replayed(1);
                return false;
            }
            let prev = data["prev"].as_u64().unwrap_or(at.offset.saturating_sub(1));
            if prev > position.offset
                && !matches!(fault, Fault::OverlooksHoles | Fault::Drops | Fault::Reorders)
            {
                if awaits_own && fault != Fault::OwnMessageIsHole {
                    subscription.behind_own.push((data.clone(), bytes));
                    let waiting: usize = subscription.behind_own.iter().map(|(_, bytes)| bytes).sum();
                    if waiting > usize::try_from(max).unwrap_or(usize::MAX) {
                        subscription.behind_own.clear();
                        subscription.must_ask_again = true;
                    }
                    return true;
                }
                return self.on_hole(index);
            }
        } else {
            return self.on_hole(index);
        }
        if subscription.is_own(&at) {
            subscription.position = Some(at);
        } else {
            let queued =
                subscription.handles.iter().map(|handle| handle.queued_bytes).max().unwrap_or_default();
            if queued + bytes > usize::try_from(max).unwrap_or(usize::MAX) {
                if fault == Fault::LosesFromFullQueue {
                    subscription.position = Some(at);
                } else {
                    subscription.is_full = true;
                }
                return true;
            }
            subscription.position = Some(at);
            if fault == Fault::ReplaysToOne
                && let (Stage::Replaying(_), Some(handle)) =
                    (subscription.stage, subscription.handles.first_mut())
            {
                handle.push(message_event(data), bytes);
            } else {
                subscription.push_all(&message_event(data), bytes);
            }
        }
        subscription.skip_own();
        if subscription.stage == Stage::Live {
            subscription.own.retain(|offset, own| own.epoch != position.epoch || *offset > at_offset);
        }
        subscription.count_replayed(1);
        true
    }

    /// Reports a hole and subscribes anew.
    fn on_hole(&mut self, index: usize) -> bool {
        emit(&json!({"event": "error", "code": "hole", "message": "a message is missing"}));
        self.subscribe_anew(index);
        false
    }

    /// Ends the subscription on the wire and begins it again from its position.
    fn subscribe_anew(&mut self, index: usize) {
        let subscription = &mut self.subscriptions[index];
        subscription.disconnect();
        let topic = subscription.topic.clone();
        let id = self.new_id();
        self.send("unsubscribe", Some(id), &json!({"topic": topic}));
        self.send_subscribes();
    }

    /// Continues topics whose queues are half empty again.
    pub(crate) fn resume_full(&mut self) {
        let half = usize::try_from(self.option("max_queue_bytes", 1 << 20) / 2).unwrap_or(usize::MAX);
        for index in 0..self.subscriptions.len() {
            let subscription = &mut self.subscriptions[index];
            let is_free = subscription.handles.iter().all(|handle| handle.queued_bytes <= half);
            if is_free && subscription.is_full {
                self.subscribe_anew(index);
            } else if is_free && std::mem::take(&mut subscription.lost) {
                subscription.push_all(&gap_event("dropped", None), 0);
                self.pump();
            }
        }
    }

    pub(crate) fn on_gap(&mut self, data: &Value) {
        let known =
            |known: &&mut Subscription| data["topic"] == known.topic.as_str() && known.stage != Stage::Ended;
        let Some(subscription) = self.subscriptions.iter_mut().find(known) else { return };
        let range = data["from"].as_u64().zip(data["to"].as_u64());
        let reason = data["reason"].as_str().unwrap_or_default();
        // Messages that were dropped before a new epoch never come again.
        let is_dropped = subscription.is_full && reason != "epoch";
        if matches!(subscription.stage, Stage::Idle | Stage::Asked(_)) || is_dropped {
            return;
        }
        let before = std::mem::replace(&mut subscription.position, Position::of(data));
        let after = subscription.position.clone();
        if self.fault != Fault::HidesGaps {
            subscription.push_gap(&gap_event(reason, range), after.as_ref(), before.as_ref());
        }
        subscription.skip_own();
        if matches!(subscription.stage, Stage::Replaying(_)) && !matches!(reason, "dropped" | "conflated") {
            if subscription.recovered == Some(true) && self.fault != Fault::CallsGapsRecovered {
                (subscription.recovered, subscription.reason) = (Some(false), Some(reason.to_owned()));
            }
            subscription.count_replayed(range.map_or(u64::MAX, |(from, to)| to + 1 - from));
        }
    }

    pub(crate) fn on_position(&mut self, data: &Value) {
        let is_subscribed = |known: &Subscription| matches!(known.stage, Stage::Live | Stage::Replaying(_));
        let known = |known: &&mut Subscription| data["topic"] == known.topic.as_str() && is_subscribed(known);
        let Some(subscription) = self.subscriptions.iter_mut().find(known) else { return };
        if subscription.is_full || subscription.must_ask_again {
            return;
        }
        if !subscription.behind_own.is_empty() && self.fault != Fault::PositionOvertakes {
            return subscription.behind_own.push((data.clone(), 0));
        }
        let is_behind = match (Position::of(data), &subscription.position) {
            (Some(to), Some(at)) => to.epoch == at.epoch && to.offset <= at.offset,
            _ => false,
        };
        if !is_behind || self.fault == Fault::PositionMovesBack {
            subscription.position = Position::of(data);
        }
    }

    pub(crate) fn on_unsubscribed(&mut self, data: &Value) {
        for subscription in
            self.subscriptions.iter_mut().filter(|known| data["topic"] == known.topic.as_str())
        {
            subscription.end("forbidden");
        }
    }

    /// Notes the offset of an own message that does not come, and continues behind it.
    pub(crate) fn on_own(&mut self, topic: &str, own: Option<Position>) {
        let Some(index) = self.subscriptions.iter().position(|known| known.topic == topic) else { return };
        let subscription = &mut self.subscriptions[index];
        let keeps_others = self.fault != Fault::ForgetsOtherEpochs;
        let is_ahead = |own: &Position| {
            let at = subscription.position.as_ref();
            at.is_some_and(|at| if at.epoch == own.epoch { own.offset > at.offset } else { keeps_others })
        };
        if let Some(own) = own.filter(is_ahead) {
            subscription.own.insert(own.offset, own);
            subscription.skip_own();
            if self.fault == Fault::ForgetsOwnMessage {
                let position = subscription.position.as_ref().map(|position| position.offset);
                subscription.own.retain(|offset, _| Some(*offset) > position);
            }
        }
        if std::mem::take(&mut subscription.must_ask_again) && self.fault != Fault::LosesWaiting {
            return self.subscribe_anew(index);
        }
        for (data, bytes) in std::mem::take(&mut subscription.behind_own) {
            if data.get("message").is_some() {
                self.accept_exact(index, &data, bytes);
            } else {
                self.on_position(&data);
            }
        }
    }
}

/// Hands over a message without a position. A full queue loses it.
fn hand_over_lossy(subscription: &mut Subscription, data: &Value, bytes: usize, max: u64, fault: Fault) {
    let queued = subscription.handles.iter().map(|handle| handle.queued_bytes).max().unwrap_or_default();
    if queued + bytes > usize::try_from(max).unwrap_or(usize::MAX) {
        subscription.lost |= fault != Fault::LosesFromFullQueue;
    } else {
        subscription.push_all(&message_event(data), bytes);
    }
}
