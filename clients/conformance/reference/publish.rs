//! Publishes and other requests, until they are answered.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, State};
use crate::emit;
use crate::fault::Fault;
use crate::subscription::Position;

const MAX_UNANSWERED: usize = 32;

/// A publish without an answer.
pub(crate) struct Publish {
    call: String,
    data: Value,
    ordered: bool,
    id: u64,
    /// Whether it was sent on this connection.
    is_sent: bool,
    pub(crate) retry_at: Option<Instant>,
    retries: u32,
    /// Time at which it fails, from its first sending on.
    pub(crate) ends: Option<Instant>,
}

impl Publish {
    fn topic(&self) -> &str {
        self.data["topic"].as_str().unwrap_or_default()
    }
}

/// An `echo` or `history` without an answer.
pub(crate) struct Request {
    call: String,
    kind: &'static str,
    data: Value,
    id: u64,
    is_sent: bool,
    pub(crate) ends: Instant,
}

fn fail(call: &str, code: &str) {
    emit(&json!({"event": "result", "as": call, "error": code}));
}

impl Client {
    pub(crate) fn publish(&mut self, command: &Value) {
        let call = command["as"].as_str().unwrap_or_default().to_owned();
        if self.state == State::Closed {
            return fail(&call, "closed");
        }
        let id = self.new_id();
        let mut data = json!({"topic": command["topic"], "message": command["message"]});
        data["once"] = format!("reference-{}-{id}", std::process::id()).into();
        if command["exclude_self"] == true {
            data["exclude_self"] = true.into();
        }
        let waiting: usize = self
            .publishes
            .iter()
            .filter(|publish| !publish.is_sent)
            .map(|publish| publish.data.to_string().len())
            .sum();
        let length = data.to_string().len();
        if length > self.max_message_bytes {
            return fail(&call, "message_too_large");
        }
        if waiting + length > usize::try_from(self.option("max_pending_bytes", 1 << 20)).unwrap_or(usize::MAX)
        {
            return fail(&call, "queue_full");
        }
        let ordered = command["ordered"] != false;
        self.publishes.push(Publish {
            call,
            data,
            ordered,
            id,
            is_sent: false,
            retry_at: None,
            retries: 0,
            ends: None,
        });
        self.send_publishes();
    }

    /// Fails what is longer than this server takes.
    pub(crate) fn fail_too_large(&mut self) {
        let max = self.max_message_bytes;
        self.publishes.retain(|publish| {
            let is_too_large = publish.data.to_string().len() > max;
            if is_too_large {
                fail(&publish.call, "message_too_large");
            }
            !is_too_large
        });
    }

    /// Sends the publishes whose turn it is.
    pub(crate) fn send_publishes(&mut self) {
        let now = Instant::now();
        if self.state != State::Open || self.publishes_wait_until.is_some_and(|until| until > now) {
            return;
        }
        self.publishes_wait_until = None;
        let timeout = Duration::from_millis(self.option("publish_timeout_ms", 120_000));
        for index in 0..self.publishes.len() {
            let unanswered = self.publishes.iter().filter(|publish| publish.is_sent).count();
            let publish = &self.publishes[index];
            let before = self.publishes[..index].iter();
            let is_behind = publish.ordered
                && self.fault != Fault::OvertakesPublishes
                && before.clone().any(|other| other.topic() == publish.topic() && other.ordered);
            let waits = publish.retry_at.is_some_and(|at| at > now);
            if publish.is_sent || is_behind || waits || unanswered >= MAX_UNANSWERED {
                continue;
            }
            let publish = &mut self.publishes[index];
            publish.is_sent = true;
            publish.retry_at = None;
            publish.ends.get_or_insert(now + timeout);
            if self.fault == Fault::NewOnce {
                self.next_id += 1;
                publish.data["once"] = format!("reference-{}", self.next_id).into();
            }
            let (id, data) = (publish.id, publish.data.clone());
            self.send("publish", Some(id), &data);
        }
    }

    pub(crate) fn on_published(&mut self, id: Option<u64>, data: &Value) {
        let answered = match self.fault {
            Fault::MatchesByOrder => self.publishes.iter().position(|publish| publish.is_sent),
            _ => self.publishes.iter().position(|publish| id == Some(publish.id)),
        };
        let Some(index) = answered else { return self.on_late_answer(id, Position::of(data)) };
        let publish = self.publishes.remove(index);
        let mut value = json!({"topic": publish.topic(), "subscribers": data["subscribers"]});
        for key in ["epoch", "offset"] {
            if let Some(part) = data.get(key) {
                value[key] = part.clone();
            }
        }
        emit(&json!({"event": "result", "as": publish.call, "value": value}));
        if publish.data["exclude_self"] == true {
            self.on_own(publish.topic(), Position::of(data));
        }
        self.send_publishes();
    }

    /// Returns `true` if an answer to an excluded publish on this topic is awaited.
    pub(crate) fn awaits_own(&self, topic: &str) -> bool {
        let is_own = |publish: &Publish| publish.topic() == topic && publish.data["exclude_self"] == true;
        self.publishes.iter().any(|publish| publish.is_sent && is_own(publish))
            || self.late.values().any(|late| late == topic)
    }

    /// Handles the answer to a publish that was not answered in time.
    fn on_late_answer(&mut self, id: Option<u64>, position: Option<Position>) {
        if let Some(topic) = id.and_then(|id| self.late.remove(&id)) {
            self.on_own(&topic, position);
        }
    }

    /// Handles the error of a publish. Returns `false` if the ID belongs to none.
    pub(crate) fn on_publish_error(
        &mut self,
        id: Option<u64>,
        data: &Value,
        passes: bool,
        wait: Duration,
    ) -> bool {
        let Some(index) = self.publishes.iter().position(|publish| id == Some(publish.id)) else {
            self.on_late_answer(id, None);
            return false;
        };
        let code = data["code"].as_str().unwrap_or_default();
        if passes {
            let until = Instant::now() + wait;
            let publish = &mut self.publishes[index];
            publish.is_sent = false;
            publish.retries += 1;
            publish.retry_at = Some(until);
            if code == "rate_limited" {
                self.publishes_wait_until = Some(until);
            }
        } else {
            let publish = self.publishes.remove(index);
            fail(&publish.call, code);
            self.on_own(publish.topic(), None);
            self.send_publishes();
        }
        true
    }

    pub(crate) fn request(&mut self, call: &str, kind: &'static str, data: Value) {
        if self.state == State::Closed {
            return fail(call, "closed");
        }
        let id = self.new_id();
        let ends = Instant::now() + Duration::from_millis(self.option("request_timeout_ms", 30_000));
        self.requests.push(Request { call: call.to_owned(), kind, data, id, is_sent: false, ends });
        self.send_requests();
    }

    pub(crate) fn send_requests(&mut self) {
        if self.state != State::Open {
            return;
        }
        for index in 0..self.requests.len() {
            let request = &mut self.requests[index];
            if !std::mem::replace(&mut request.is_sent, true) {
                let (kind, id, data) = (request.kind, request.id, request.data.clone());
                self.send(kind, Some(id), &data);
            }
        }
    }

    pub(crate) fn on_reply(&mut self, id: Option<u64>, data: &Value) {
        let Some(index) = self.requests.iter().position(|request| id == Some(request.id)) else {
            return self.on_handle_history(id, data);
        };
        let request = self.requests.remove(index);
        emit(&json!({"event": "result", "as": request.call, "value": data}));
    }

    pub(crate) fn on_request_error(&mut self, id: Option<u64>, code: &str) {
        if let Some(index) = self.requests.iter().position(|request| id == Some(request.id)) {
            fail(&self.requests.remove(index).call, code);
        }
    }

    /// Prepares everything unanswered for the next connection.
    pub(crate) fn requeue(&mut self) {
        if self.fault == Fault::LosesPublishes {
            self.publishes.retain(|publish| !publish.is_sent);
        }
        self.late.clear();
        self.publishes.iter_mut().for_each(|publish| publish.is_sent = false);
        self.requests.iter_mut().for_each(|request| request.is_sent = false);
    }

    pub(crate) fn fail_all(&mut self, code: &str) {
        self.publishes.drain(..).for_each(|publish| fail(&publish.call, code));
        self.requests.drain(..).for_each(|request| fail(&request.call, code));
    }

    /// Fails what was not answered in time.
    pub(crate) fn expire_requests(&mut self, now: Instant) {
        let (late, keeps_late) = (&mut self.late, self.fault != Fault::ForgetsLateAnswers);
        self.publishes.retain(|publish| {
            let is_late = publish.ends.is_some_and(|ends| ends <= now);
            if is_late {
                fail(&publish.call, "timeout");
                // The server may still answer on this connection.
                if publish.is_sent && publish.data["exclude_self"] == true && keeps_late {
                    late.insert(publish.id, publish.topic().to_owned());
                }
            }
            !is_late
        });
        self.requests.retain(|request| {
            let is_late = request.ends <= now;
            if is_late {
                fail(&request.call, "timeout");
            }
            !is_late
        });
        self.send_publishes();
    }
}
