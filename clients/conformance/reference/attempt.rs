//! Attempts to connect, ends of connections, and tokens.

use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use crate::client::{Action, Client, Ended, State, Token};
use crate::emit;
use crate::fault::Fault;
use crate::subscription::{Stage, Subscription};

/// Longest time from a server that counts.
const MAX_TIMER_MS: u64 = (1 << 31) - 1;

impl Client {
    pub(crate) fn set_state(
        &mut self,
        state: State,
        name: &str,
        reason: Option<&str>,
        wait: Option<Duration>,
    ) {
        let mut event = json!({"event": "state", "state": name});
        if let Some(reason) = reason {
            event["reason"] = reason.into();
        }
        if let Some(wait) = wait {
            event["wait_ms"] = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).into();
        }
        self.state = state;
        emit(&event);
    }

    /// Returns the next token, or `Err` if the application's function fails.
    fn next_token(&mut self) -> Result<Option<String>, ()> {
        match &mut self.token {
            Token::None => Ok(None),
            Token::Fixed(token) => Ok(Some(token.clone())),
            Token::Function(tokens) => {
                emit(&json!({"event": "token"}));
                let token = if tokens.len() > 1 {
                    tokens.remove(0)
                } else {
                    tokens.first().cloned().unwrap_or_default()
                };
                token.as_str().map(|token| Some(token.to_owned())).ok_or(())
            }
        }
    }

    /// Starts to connect.
    pub(crate) fn attempt(&mut self) {
        self.attempt_at = None;
        self.set_state(State::Connecting, "connecting", None, None);
        match self.next_token() {
            Ok(token) => {
                self.token_in_use.clone_from(&token);
                let timeout = Duration::from_millis(self.option("connect_timeout_ms", 10_000));
                self.attempt_ends = Some(Instant::now() + timeout);
                let url = self.options["url"].as_str().unwrap_or_default().to_owned();
                self.actions.push(Action::Connect { url, token });
            }
            Err(()) => {
                emit(
                    &json!({"event": "error", "code": "token_failed", "message": "the token function failed"}),
                );
                self.wait(None, "token_failed");
            }
        }
    }

    /// Waits for a time of the server, or for a backoff.
    fn wait(&mut self, server_ms: Option<u64>, reason: &str) {
        self.attempts += 1;
        let (min, max) = (self.option("min_delay_ms", 500), self.option("max_delay_ms", 20_000));
        let highest = max.min(min << self.attempts.min(20));
        let lowest = if self.attempts == 1 { 0 } else { min.min(highest) };
        let backoff = if self.fault == Fault::NoBackoff { 0 } else { fastrand_between(lowest, highest) };
        let server_ms = server_ms.filter(|_| self.fault != Fault::IgnoresSlot);
        let wait = Duration::from_millis(server_ms.unwrap_or(backoff).min(MAX_TIMER_MS));
        self.attempt_at = Some(Instant::now() + wait);
        self.set_state(State::Waiting, "waiting", Some(reason), Some(wait));
    }

    /// Ends everything.
    pub(crate) fn finish(&mut self, reason: &str) {
        if self.state == State::Closed {
            return;
        }
        for subscription in
            self.subscriptions.iter_mut().filter(|subscription| subscription.stage != Stage::Ended)
        {
            subscription.end("closed");
        }
        self.fail_all("closed");
        self.attempt_at = None;
        self.attempt_ends = None;
        self.renew_at = None;
        self.ping_at = None;
        self.pong_ends = None;
        self.set_state(State::Closed, "closed", Some(reason), None);
        self.pump();
    }

    /// Decides how to go on after a connection or an attempt ended.
    pub(crate) fn on_end(&mut self, ended: Ended) {
        if self.state == State::Closed {
            return;
        }
        self.attempt_ends = None;
        self.renew_at = None;
        self.ping_at = None;
        self.pong_ends = None;
        self.authenticate_id = None;
        let was_open_long =
            self.open_since.take().is_some_and(|since| since.elapsed() >= Duration::from_secs(10));
        if was_open_long {
            self.attempts = 0;
        }
        self.subscriptions.iter_mut().for_each(Subscription::disconnect);
        self.requeue();
        self.pump();
        let goodbye = self.goodbye.take().unwrap_or_default();
        let code = match (&ended, goodbye["code"].as_u64().and_then(|code| u16::try_from(code).ok())) {
            (_, Some(code)) => code,
            (Ended::Closed(code), None) => *code,
            _ => 0,
        };
        let reason = if code == 0 { "lost".to_owned() } else { code.to_string() };
        let is_final = goodbye["reconnect"] == false && code != 4001
            || matches!(code, 1002 | 1007 | 1009 | 4000 | 4002..=4099)
            || matches!(ended, Ended::Refused { status: 400 | 403 | 404, .. });
        if is_final && self.fault != Fault::ReconnectsForEver {
            self.finish(&reason);
        } else if code == 4001 || matches!(ended, Ended::Refused { status: 401, .. }) {
            self.on_token_refused(&reason);
        } else if let Some(slot) = goodbye["retry_after_ms"].as_u64() {
            self.wait(Some(slot), &reason);
        } else if let Ended::Refused { retry_after_s: Some(seconds), .. } = ended {
            self.wait(Some(seconds.saturating_mul(1000)), "refused");
        } else if was_open_long && (matches!(code, 4200..=4299) || matches!(ended, Ended::Silent)) {
            self.attempt();
        } else {
            self.wait(None, &reason);
        }
    }

    fn on_token_refused(&mut self, reason: &str) {
        let is_function = matches!(self.token, Token::Function(_));
        if self.fault == Fault::LoopsOnToken {
            self.wait(None, reason);
        } else if !is_function {
            self.finish("token_invalid");
        } else if self.token_was_retried {
            self.wait(None, reason);
        } else {
            self.token_was_retried = true;
            self.attempt();
        }
    }

    pub(crate) fn renew_after(&mut self, expires_s: Option<u64>, now_ms: Option<u64>) {
        let system = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now_ms = now_ms.unwrap_or_else(|| u64::try_from(system.as_millis()).unwrap_or_default());
        let life = expires_s.map(|expires| expires.saturating_mul(1000).saturating_sub(now_ms) * 4 / 5);
        let life = life.filter(|_| matches!(self.token, Token::Function(_)));
        self.renew_at = life.map(|life| Instant::now() + Duration::from_millis(life.min(1 << 31)));
    }

    /// Sends a new token on the open connection.
    pub(crate) fn renew(&mut self) {
        self.renew_at = None;
        match self.next_token() {
            Ok(token) => {
                let id = self.new_id();
                self.authenticate_id = Some(id);
                self.send("authenticate", Some(id), &json!({"token": token}));
            }
            Err(()) => {
                emit(
                    &json!({"event": "error", "code": "token_failed", "message": "the token function failed"}),
                );
                self.renew_at =
                    Some(Instant::now() + Duration::from_millis(self.option("max_delay_ms", 20_000)));
            }
        }
    }
}

/// Returns a random number of milliseconds from `lowest` to `highest`.
fn fastrand_between(lowest: u64, highest: u64) -> u64 {
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().subsec_nanos();
    lowest + u64::from(nanos / 1000) % (highest - lowest + 1)
}

/// Returns `exp` of a JWT.
pub(crate) fn expiry(token: &str) -> Option<u64> {
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Value>(&claims).ok()?["exp"].as_u64()
}
