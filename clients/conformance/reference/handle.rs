//! A handle of the application: its handler and the queue before it.

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::emit;
use crate::fault::Fault;
use crate::subscription::Position;

/// An event that waits for the handler, with its bytes.
struct Queued {
    event: Value,
    bytes: usize,
    /// The position after it.
    position: Option<Position>,
    /// The topic's epoch before it.
    epoch: Option<String>,
}

/// A handle on a subscription.
pub(crate) struct Handle {
    pub(crate) name: String,
    queue: VecDeque<Queued>,
    pub(crate) queued_bytes: usize,
    /// Whether the handler has taken a message and not returned.
    busy: Option<Value>,
    /// How often the handler may return; `None`: always.
    permits: Option<u64>,
    /// Offsets, or numbers of messages, at which the handler fails.
    fails_at: Vec<u64>,
    taken: u64,
    failed: bool,
    is_ready: bool,
    /// Number of messages to be asked for with `history`.
    pub(crate) wanted: Option<u64>,
    /// ID of the `history` that comes before live messages.
    pub(crate) history: Option<u64>,
    /// Messages of the parts of the history that have arrived.
    pub(crate) parts: Vec<Value>,
    /// Position of the last message of the history, until the topic has passed it.
    floor: Option<Position>,
    fault: Fault,
}

impl Handle {
    pub(crate) fn new(command: &Value, fault: Fault) -> Self {
        let fails_at = command["fail"].as_array().cloned().unwrap_or_default();
        Self {
            name: command["as"].as_str().unwrap_or_default().to_owned(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            busy: None,
            permits: if command["hold"] == true { Some(0) } else { None },
            fails_at: fails_at.iter().filter_map(Value::as_u64).collect(),
            taken: 0,
            failed: false,
            is_ready: false,
            wanted: None,
            history: None,
            parts: Vec::new(),
            floor: None,
            fault,
        }
    }

    /// Adds an event behind the ones that wait.
    pub(crate) fn push(&mut self, event: Value, bytes: usize) {
        let position = Position::of(&event);
        self.push_queued(Queued { event, bytes, position, epoch: None });
    }

    /// Adds a gap that leads to a position. `epoch` is that of the topic before it; without it, the
    /// gap is newer than the history.
    pub(crate) fn push_gap(&mut self, event: Value, position: Option<Position>, epoch: Option<String>) {
        self.push_queued(Queued { event, bytes: 0, position, epoch });
    }

    fn push_queued(&mut self, mut queued: Queued) {
        queued.event["as"] = self.name.clone().into();
        let is_waiting = self.is_waiting();
        if let Some(queued) = if is_waiting { Some(queued) } else { self.after_history(queued) } {
            self.queued_bytes += queued.bytes;
            self.queue.push_back(queued);
        }
    }

    fn is_waiting(&self) -> bool {
        self.wanted.is_some() || self.history.is_some()
    }

    /// Returns the part of an event that the history does not have, if there is one.
    fn after_history(&mut self, mut queued: Queued) -> Option<Queued> {
        let (Some(floor), Some(position)) = (&self.floor, &queued.position) else { return Some(queued) };
        let from = queued.event["from"].as_u64();
        if position.epoch == floor.epoch {
            if position.offset <= floor.offset {
                return None;
            }
            if let Some(from) = from {
                queued.event["from"] = from.max(floor.offset + 1).into();
            }
        } else {
            // Offsets go on when a history is emptied, so lower ones are of an earlier epoch.
            let is_ahead = queued.epoch.as_ref().is_some_and(|epoch| *epoch != floor.epoch);
            let is_lower = from.is_some() || position.offset < floor.offset;
            let is_older = match self.fault {
                Fault::FollowsOlderGaps => false,
                Fault::OverlooksLaterGaps => true,
                Fault::OverlooksLowerOffsets => is_lower,
                _ => is_ahead && is_lower,
            };
            if is_older || queued.event["event"] == "message" {
                return None;
            }
        }
        self.floor = None;
        Some(queued)
    }

    /// Puts the messages of a history before all that waits, without the ones that it repeats.
    pub(crate) fn push_history(&mut self, events: Vec<Value>) {
        let live = std::mem::take(&mut self.queue);
        let newest = events.last().and_then(Position::of);
        events.into_iter().for_each(|event| self.push(event, 0));
        self.history = None;
        self.floor = newest;
        self.queued_bytes = 0;
        live.into_iter().for_each(|queued| self.push_queued(queued));
    }

    pub(crate) fn push_state(&mut self, state: &str, recovered: Option<bool>, reason: Option<&str>) {
        let mut event = json!({"event": "subscription", "state": state});
        if let Some(recovered) = recovered {
            event["recovered"] = recovered.into();
        }
        if let Some(reason) = reason {
            event["reason"] = reason.into();
        }
        if !self.is_ready && (state == "live" || state == "ended") {
            self.is_ready = true;
            let mut ready = json!({"event": "ready", "as": self.name});
            if state == "ended" {
                ready["error"] = reason.into();
            }
            emit(&ready);
        }
        self.push(event, 0);
    }

    /// Drops what waits.
    pub(crate) fn forget(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
        (self.wanted, self.history) = (None, None);
    }

    /// Lets a held handler return this often, or always.
    pub(crate) fn release(&mut self, messages: Option<u64>) {
        self.permits = messages.map(|messages| self.permits.unwrap_or_default() + messages);
    }

    /// Hands over what the handler takes. Returns the position of the last message that it is done
    /// with. `stops` is the planted fault that a failed handler is not called again.
    pub(crate) fn pump(&mut self, stops: bool) -> Option<(String, Position)> {
        let mut done = None;
        if self.is_waiting() {
            return None;
        }
        loop {
            if let Some(event) = &self.busy {
                match &mut self.permits {
                    Some(0) => return done,
                    Some(permits) => *permits -= 1,
                    None => {}
                }
                done = Position::of(event)
                    .map(|at| (event["topic"].as_str().unwrap_or_default().to_owned(), at))
                    .or(done);
                self.busy = None;
            }
            if stops && self.failed {
                return done;
            }
            let Some(queued) = self.queue.pop_front() else { return done };
            self.queued_bytes -= queued.bytes;
            emit(&queued.event);
            if queued.event["event"] == "message" {
                self.taken += 1;
                let number = queued.event["offset"].as_u64().unwrap_or(self.taken);
                if self.fails_at.contains(&number) {
                    self.failed = true;
                    emit(
                        &json!({"event": "error", "code": "handler_failed", "message": "the handler failed"}),
                    );
                }
                self.busy = Some(queued.event);
            }
        }
    }
}
