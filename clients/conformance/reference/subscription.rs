//! A subscription on the wire: its position and its handles.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::handle::Handle;

/// A position: three keys that stand together.
#[derive(Clone, PartialEq)]
pub(crate) struct Position {
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) time: Value,
}

impl Position {
    /// Returns the position in `data`, if it has one.
    pub(crate) fn of(data: &Value) -> Option<Self> {
        Some(Self {
            epoch: data["epoch"].as_str()?.to_owned(),
            offset: data["offset"].as_u64()?,
            time: data["time"].clone(),
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"epoch": self.epoch, "offset": self.offset, "time": self.time})
    }
}

/// Progress of a subscription on the present connection.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Stage {
    /// A subscribe is to be sent.
    Idle,
    /// The answer to the subscribe with this ID is awaited.
    Asked(u64),
    /// So many messages come before live ones.
    Replaying(u64),
    Live,
    Ended,
}

/// A topic or pattern with at least one handle.
pub(crate) struct Subscription {
    pub(crate) topic: String,
    pub(crate) stage: Stage,
    pub(crate) position: Option<Position>,
    pub(crate) history: Option<u64>,
    pub(crate) handles: Vec<Handle>,
    pub(crate) was_live: bool,
    /// Value of `recovered` in the next `live`.
    pub(crate) recovered: Option<bool>,
    pub(crate) reason: Option<String>,
    pub(crate) retry_at: Option<Instant>,
    pub(crate) retries: u32,
    /// Positions of own messages that do not come.
    pub(crate) own: BTreeMap<u64, Position>,
    /// Deliveries that wait for the answer to an own publish.
    pub(crate) behind_own: Vec<(Value, usize)>,
    /// Whether those were too many, and are dropped until the answer.
    pub(crate) must_ask_again: bool,
    /// Whether deliveries are dropped until a queue is half empty.
    pub(crate) is_full: bool,
    /// Messages that a full queue of a topic without history has lost.
    pub(crate) lost: bool,
}

impl Subscription {
    pub(crate) fn new(topic: &str, history: Option<u64>, position: Option<Position>) -> Self {
        Self {
            topic: topic.to_owned(),
            stage: Stage::Idle,
            position,
            history,
            handles: Vec::new(),
            was_live: false,
            recovered: None,
            reason: None,
            retry_at: None,
            retries: 0,
            own: BTreeMap::new(),
            behind_own: Vec::new(),
            must_ask_again: false,
            is_full: false,
            lost: false,
        }
    }

    pub(crate) fn is_pattern(&self) -> bool {
        self.topic.split('.').any(|level| level == "*" || level == ">")
    }

    /// Returns `true` if a message of this topic belongs to the subscription.
    pub(crate) fn matches(&self, topic: &str) -> bool {
        let mut levels = topic.split('.');
        for expected in self.topic.split('.') {
            match (expected, levels.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (expected, Some(level)) if expected == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    /// Moves the position over own messages. They stay known, since a replay that was asked for
    /// before may still have them.
    pub(crate) fn skip_own(&mut self) {
        while let Some(at) = &self.position
            && let Some(own) = self.own.get(&(at.offset + 1))
            && own.epoch == at.epoch
        {
            self.position = Some(own.clone());
        }
    }

    /// Returns `true` if a position is that of an own message.
    pub(crate) fn is_own(&self, at: &Position) -> bool {
        self.own.get(&at.offset).is_some_and(|own| own.epoch == at.epoch)
    }

    pub(crate) fn push_all(&mut self, event: &Value, bytes: usize) {
        self.handles.iter_mut().for_each(|handle| handle.push(event.clone(), bytes));
    }

    /// Tells a gap that leads to a position, from the epoch `before` if it is known to be older.
    pub(crate) fn push_gap(&mut self, event: &Value, position: Option<&Position>, before: Option<&Position>) {
        for handle in &mut self.handles {
            let epoch = before.map(|before| before.epoch.clone());
            handle.push_gap(event.clone(), position.cloned(), epoch);
        }
    }

    pub(crate) fn push_state(&mut self, state: &str) {
        let (recovered, reason) = match state {
            "live" => (self.recovered, self.reason.as_deref()),
            _ => (None, None),
        };
        self.handles.iter_mut().for_each(|handle| handle.push_state(state, recovered, reason));
    }

    /// Ends all handles.
    pub(crate) fn end(&mut self, reason: &str) {
        self.stage = Stage::Ended;
        self.handles.iter_mut().for_each(|handle| handle.push_state("ended", None, Some(reason)));
    }

    /// Notes that the connection is lost.
    pub(crate) fn disconnect(&mut self) {
        if self.stage == Stage::Ended {
            return;
        }
        self.behind_own.clear();
        (self.is_full, self.must_ask_again) = (false, false);
        let had_been_live = self.stage == Stage::Live;
        self.stage = Stage::Idle;
        self.retry_at = None;
        if had_been_live {
            self.push_state("recovering");
        }
    }

    /// Counts messages of the replay.
    pub(crate) fn count_replayed(&mut self, messages: u64) {
        if let Stage::Replaying(left) = &mut self.stage {
            *left = left.saturating_sub(messages);
            if *left == 0 {
                self.go_live();
            }
        }
    }

    /// Becomes live.
    pub(crate) fn go_live(&mut self) {
        self.stage = Stage::Live;
        self.was_live = true;
        self.retries = 0;
        self.push_state("live");
    }

    /// Returns the entry of a `subscribe`.
    pub(crate) fn entry(&self) -> Value {
        let mut entry = json!({"topic": self.topic});
        if let Some(position) = &self.position {
            entry["recover"] = position.to_json();
        }
        if let Some(history) = self.history {
            entry["history"] = history.into();
        }
        entry
    }
}
