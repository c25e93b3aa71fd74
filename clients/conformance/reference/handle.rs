//! A handle of the application: its handler and the queue before it.

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::emit;
use crate::subscription::Position;

/// An event that waits for the handler, with its bytes.
struct Queued {
    event: Value,
    bytes: usize,
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
    /// ID of the `history` that comes before live messages.
    pub(crate) history: Option<u64>,
}

impl Handle {
    pub(crate) fn new(command: &Value) -> Self {
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
            history: None,
        }
    }

    /// Adds an event behind the ones that wait.
    pub(crate) fn push(&mut self, mut event: Value, bytes: usize) {
        event["as"] = self.name.clone().into();
        self.queued_bytes += bytes;
        self.queue.push_back(Queued { event, bytes });
    }

    /// Puts the messages of a history before all that waits, without the ones that it repeats.
    pub(crate) fn push_history(&mut self, events: Vec<Value>) {
        self.history = None;
        let newest = events.last().and_then(|event| event["offset"].as_u64()).unwrap_or_default();
        let live = std::mem::take(&mut self.queue);
        events.into_iter().for_each(|event| self.push(event, 0));
        let is_newer = |queued: &Queued| queued.event["offset"].as_u64().is_none_or(|offset| offset > newest);
        self.queue.extend(live.into_iter().filter(is_newer));
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
        self.history = None;
    }

    /// Lets a held handler return this often, or always.
    pub(crate) fn release(&mut self, messages: Option<u64>) {
        self.permits = messages.map(|messages| self.permits.unwrap_or_default() + messages);
    }

    /// Hands over what the handler takes. Returns the position of the last message that it is done
    /// with. `stops` is the planted fault that a failed handler is not called again.
    pub(crate) fn pump(&mut self, stops: bool) -> Option<(String, Position)> {
        let mut done = None;
        if self.history.is_some() {
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
