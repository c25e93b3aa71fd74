//! The events of the driver: what the application behind the client sees.

use std::collections::VecDeque;

use serde_json::Value;
use tokio::sync::mpsc;

use crate::failure::{Failure, Result, ensure};
use crate::journal::Journal;
use crate::topic::Topic;

const EVENTS: [&str; 10] =
    ["closed", "error", "gap", "message", "ready", "result", "state", "subscription", "token", "unsupported"];

/// Events of the application that the scene has not asked for yet.
pub(crate) struct Application {
    lines: mpsc::UnboundedReceiver<String>,
    events: VecDeque<Value>,
    journal: Journal,
}

/// An entry of `waiting` in the states of the hub.
pub(crate) struct Waiting {
    pub(crate) wait_ms: f64,
    pub(crate) reason: Option<String>,
}

impl Application {
    pub(crate) fn new(lines: mpsc::UnboundedReceiver<String>, journal: Journal) -> Self {
        Self { lines, events: VecDeque::new(), journal }
    }

    /// Returns the driver's first line: `ready` with the kinds of scenes that it skips.
    pub(crate) async fn start(&mut self) -> Result<Vec<String>> {
        self.journal.await_step("the line {\"event\":\"ready\"} of the driver");
        let line = self.lines.recv().await.ok_or_else(|| Failure::new("the driver ended at its start"))?;
        self.journal.note("app:", &line);
        let event: Value = serde_json::from_str(&line).map_err(|error| {
            Failure::new(format!("the driver's first line {line:?} is not JSON: {error}"))
        })?;
        ensure(event["event"] == "ready" && event.get("as").is_none(), || {
            format!("the driver's first line is {line}, not {{\"event\":\"ready\",…}}")
        })?;
        let skips = event["skips"].as_array().cloned().unwrap_or_default();
        Ok(skips.iter().filter_map(|kind| Some(kind.as_str()?.to_owned())).collect())
    }

    fn take_line(&mut self, line: &str) -> Result {
        self.journal.note("app:", line);
        let event: Value = serde_json::from_str(line).map_err(|error| {
            Failure::new(format!("the driver wrote {line:?}, which is not JSON: {error}"))
        })?;
        let name = event["event"].as_str().unwrap_or_default();
        ensure(EVENTS.contains(&name), || format!("the driver wrote an unknown event: {line}"))?;
        self.events.push_back(event);
        Ok(())
    }

    /// Returns the first event that passes a filter, and waits for it.
    async fn next(&mut self, step: &str, filter: impl Fn(&Value) -> bool) -> Result<Value> {
        self.await_step(step);
        self.next_in_step(step, filter).await
    }

    fn await_step(&self, step: &str) {
        self.journal.await_step(format!("the application: {step}"));
    }

    /// Works like [`Self::next`], within a step that has begun.
    async fn next_in_step(&mut self, step: &str, filter: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut looked_at = 0;
        loop {
            while looked_at < self.events.len() {
                if filter(&self.events[looked_at])
                    && let Some(event) = self.events.remove(looked_at)
                {
                    return Ok(event);
                }
                looked_at += 1;
            }
            match self.lines.recv().await {
                Some(line) => self.take_line(&line)?,
                None => return Err(Failure::new(format!("the driver ended before {step}"))),
            }
        }
    }

    /// Returns the next event of a handle. States on the way to `live` are left out.
    async fn next_of(&mut self, handle: &str, step: &str) -> Result<Value> {
        self.next(step, |event| belongs_to(event, handle) && !is_on_the_way(event)).await
    }

    /// Expects the message of a topic with history as the next event of a handle.
    pub(crate) async fn expect_message(&mut self, handle: &str, topic: &Topic, offset: u64) -> Result {
        let step = format!("message {offset} of {} at handle {handle:?}", topic.name);
        let event = self.next_of(handle, &step).await?;
        let expected = [
            ("event", Value::from("message")),
            ("topic", topic.name.into()),
            ("message", Topic::payload(offset)),
            ("epoch", topic.epoch.into()),
            ("offset", offset.into()),
            ("time", Topic::time(offset).into()),
        ];
        for (key, value) in expected {
            ensure(event[key] == value, || {
                format!("expected {step} with {key} {value}, but the application saw {event}")
            })?;
        }
        Ok(())
    }

    /// Expects several messages, one after the other.
    pub(crate) async fn expect_messages(
        &mut self,
        handle: &str,
        topic: &Topic,
        offsets: std::ops::RangeInclusive<u64>,
    ) -> Result {
        for offset in offsets {
            self.expect_message(handle, topic, offset).await?;
        }
        Ok(())
    }

    /// Returns the next message or gap of a handle. All states are left out.
    pub(crate) async fn next_message_or_gap(&mut self, handle: &str) -> Result<Value> {
        let step = format!("a message or gap at handle {handle:?}");
        self.next(&step, |event| belongs_to(event, handle) && event["event"] != "subscription").await
    }

    /// Returns the next result of any call, or message or gap of a handle.
    pub(crate) async fn next_message_or_result(&mut self, handle: &str) -> Result<Value> {
        let step = format!("a result, or a message or gap at handle {handle:?}");
        let is_seen = |event: &Value| belongs_to(event, handle) && event["event"] != "subscription";
        self.next(&step, |event| is_seen(event) || event["event"] == "result").await
    }

    /// Expects the message with this offset as the next one of a handle. All states are left out.
    pub(crate) async fn expect_offset(&mut self, handle: &str, offset: u64) -> Result {
        let event = self.next_message_or_gap(handle).await?;
        ensure(event["event"] == "message" && event["offset"] == offset, || {
            format!("expected message {offset} at handle {handle:?}, but the application saw {event}")
        })
    }

    /// Expects a message with this topic and payload, and returns it.
    pub(crate) async fn expect_payload(
        &mut self,
        handle: &str,
        topic: &str,
        payload: Value,
    ) -> Result<Value> {
        let step = format!("message {payload} of {topic} at handle {handle:?}");
        let event = self.next_of(handle, &step).await?;
        let is_it = event["event"] == "message" && event["topic"] == topic && event["message"] == payload;
        ensure(is_it, || format!("expected {step}, but the application saw {event}"))?;
        Ok(event)
    }

    /// Expects a gap as the next event of a handle. `range` is `None` if the offsets are not known.
    pub(crate) async fn expect_gap(
        &mut self,
        handle: &str,
        reason: &str,
        range: Option<(u64, u64)>,
    ) -> Result {
        let step = format!("a gap {reason:?} with {range:?} at handle {handle:?}");
        let event = self.next_of(handle, &step).await?;
        let seen = event["from"].as_u64().zip(event["to"].as_u64());
        ensure(event["event"] == "gap" && event["reason"] == reason && seen == range, || {
            format!("expected {step}, but the application saw {event}")
        })
    }

    /// Expects that a handle becomes live, whatever `recovered` says.
    pub(crate) async fn expect_live(&mut self, handle: &str) -> Result<Value> {
        let step = format!("live at handle {handle:?}");
        let event = self.next_of(handle, &step).await?;
        ensure(is_state(&event, "live"), || format!("expected {step}, but the application saw {event}"))?;
        Ok(event)
    }

    /// Expects that a handle becomes live with `recovered: true`.
    pub(crate) async fn expect_recovered(&mut self, handle: &str) -> Result {
        let event = self.expect_live(handle).await?;
        ensure(event["recovered"] == true, || {
            format!(
                "expected live with recovered: true at handle {handle:?}, but the application saw {event}"
            )
        })
    }

    /// Expects that a handle becomes live with `recovered: false` and a reason.
    pub(crate) async fn expect_not_recovered(&mut self, handle: &str, reason: &str) -> Result {
        let event = self.expect_live(handle).await?;
        ensure(event["recovered"] == false && event["reason"] == reason, || {
            format!(
                "expected live with recovered: false, reason {reason:?} at handle {handle:?}, \
                 but the application saw {event}"
            )
        })
    }

    /// Expects the state `recovering` of a handle, before any message or gap.
    pub(crate) async fn expect_recovering(&mut self, handle: &str) -> Result {
        let step = format!("recovering at handle {handle:?}");
        let filter = |event: &Value| belongs_to(event, handle) && !is_state(event, "subscribing");
        let event = self.next(&step, filter).await?;
        ensure(is_state(&event, "recovering"), || format!("expected {step}, but the application saw {event}"))
    }

    /// Expects the end of a handle.
    pub(crate) async fn expect_ended(&mut self, handle: &str, reason: &str) -> Result {
        let step = format!("ended with reason {reason:?} at handle {handle:?}");
        let event = self.next_of(handle, &step).await?;
        ensure(is_state(&event, "ended") && event["reason"] == reason, || {
            format!("expected {step}, but the application saw {event}")
        })
    }

    /// Expects the first `subscribed` of a handle.
    pub(crate) async fn expect_ready(&mut self, handle: &str) -> Result {
        let step = format!("ready of handle {handle:?}");
        let event = self.next(&step, |event| event["event"] == "ready" && event["as"] == handle).await?;
        ensure(error_code(&event).is_none(), || format!("expected {step}, but the application saw {event}"))
    }

    /// Expects that a handle ended before it was live.
    pub(crate) async fn expect_ready_error(&mut self, handle: &str, code: &str) -> Result {
        let step = format!("ready of handle {handle:?} with error {code:?}");
        let event = self.next(&step, |event| event["event"] == "ready" && event["as"] == handle).await?;
        ensure(error_code(&event) == Some(code), || {
            format!("expected {step}, but the application saw {event}")
        })
    }

    /// Waits until the hub is in a state, and leaves out the states before.
    pub(crate) async fn wait_for_state(&mut self, state: &str) -> Result<Value> {
        let step = format!("state {state:?} of the hub");
        // All states before are one step, because a faulty client may change its state for ever.
        self.await_step(&step);
        loop {
            let event = self.next_in_step(&step, |event| event["event"] == "state").await?;
            if event["state"] == state {
                return Ok(event);
            }
            ensure(event["state"] != "closed", || {
                format!("expected {step}, but the application saw {event}")
            })?;
        }
    }

    /// Expects that the hub waits before it connects or closes.
    pub(crate) async fn expect_waiting(&mut self) -> Result<Waiting> {
        let event = self.wait_for_state("waiting").await?;
        let wait_ms = event["wait_ms"].as_f64().ok_or_else(|| {
            Failure::new(format!("expected wait_ms with waiting, but the application saw {event}"))
        })?;
        Ok(Waiting { wait_ms, reason: event["reason"].as_str().map(str::to_owned) })
    }

    /// Expects an error with this code. Other errors are left out.
    pub(crate) async fn expect_error(&mut self, code: &str) -> Result<Value> {
        let step = format!("error {code:?}");
        self.next(&step, |event| event["event"] == "error" && event["code"] == code).await
    }

    /// Returns the result of a call.
    pub(crate) async fn result(&mut self, call: &str) -> Result<Value> {
        let step = format!("the result of {call:?}");
        self.next(&step, |event| event["event"] == "result" && event["as"] == call).await
    }

    /// Expects that a call succeeds, and returns its value.
    pub(crate) async fn expect_value(&mut self, call: &str) -> Result<Value> {
        let event = self.result(call).await?;
        ensure(error_code(&event).is_none(), || {
            format!("expected that {call:?} succeeds, but the application saw {event}")
        })?;
        Ok(event["value"].clone())
    }

    /// Expects that a publish succeeds with an offset.
    pub(crate) async fn expect_published(&mut self, call: &str, offset: u64) -> Result {
        let value = self.expect_value(call).await?;
        ensure(value["offset"] == offset, || {
            format!("expected offset {offset} as result of {call:?}, not {value}")
        })
    }

    /// Expects that a call fails with a code.
    pub(crate) async fn expect_failed(&mut self, call: &str, code: &str) -> Result {
        let event = self.result(call).await?;
        ensure(error_code(&event) == Some(code), || {
            format!("expected that {call:?} fails with {code:?}, but the application saw {event}")
        })
    }

    /// Expects that some call fails with a code, and returns its name.
    pub(crate) async fn expect_any_failed(&mut self, code: &str) -> Result<String> {
        let step = format!("a result with error {code:?}");
        let event =
            self.next(&step, |event| event["event"] == "result" && error_code(event) == Some(code)).await?;
        Ok(event["as"].as_str().unwrap_or_default().to_owned())
    }

    /// Expects that the token function is called.
    pub(crate) async fn expect_token_call(&mut self) -> Result {
        self.next("a call of the token function", |event| event["event"] == "token").await.map(drop)
    }

    /// Expects that closing has finished.
    pub(crate) async fn expect_closed(&mut self) -> Result {
        self.next("closed", |event| event["event"] == "closed").await.map(drop)
    }

    /// Takes the lines that have arrived.
    fn drain(&mut self) -> Result {
        while let Ok(line) = self.lines.try_recv() {
            self.take_line(&line)?;
        }
        Ok(())
    }

    /// Fails if an event arrived that passes a filter.
    pub(crate) fn refute(&mut self, text: &str, filter: impl Fn(&Value) -> bool) -> Result {
        self.drain()?;
        match self.events.iter().find(|event| filter(event)) {
            None => Ok(()),
            Some(event) => Err(Failure::new(format!("{text}, but the application saw {event}"))),
        }
    }

    /// Leaves out the states of a handle.
    pub(crate) fn skip_states(&mut self, handle: &str) {
        // A line that cannot be read fails the next step.
        let _ = self.drain();
        self.events.retain(|event| !(event["event"] == "subscription" && event["as"] == handle));
    }

    /// Fails if handles have events that the scene did not ask for.
    pub(crate) fn expect_nothing_more(&mut self) -> Result {
        self.refute("expected nothing more", |event| {
            ["message", "gap", "subscription"].iter().any(|name| event["event"] == *name)
                && !is_on_the_way(event)
        })
    }

    /// Fails at the end of a scene if the application saw messages too many.
    pub(crate) fn finish(&mut self) -> Result {
        self.refute("expected no event after the end of the scene", |event| {
            ["message", "gap"].iter().any(|name| event["event"] == *name)
                || event["event"] == "error" && event["code"] == "hole"
        })
    }
}

fn belongs_to(event: &Value, handle: &str) -> bool {
    event["as"] == handle && ["message", "gap", "subscription"].iter().any(|name| event["event"] == *name)
}

fn is_state(event: &Value, state: &str) -> bool {
    event["event"] == "subscription" && event["state"] == state
}

fn is_on_the_way(event: &Value) -> bool {
    is_state(event, "subscribing") || is_state(event, "recovering")
}

/// Returns the code of `error`, as a text or in an object with `code`.
fn error_code(event: &Value) -> Option<&str> {
    event["error"].as_str().or_else(|| event["error"]["code"].as_str())
}
