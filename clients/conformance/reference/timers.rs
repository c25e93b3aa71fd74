//! The times at which the client acts by itself.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Action, Client, Ended, State};
use crate::fault::Fault;
use crate::subscription::Stage;

impl Client {
    /// Returns the next time at which [`Self::on_timer`] has work.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let timers = [self.attempt_at, self.attempt_ends, self.renew_at, self.ping_at, self.pong_ends];
        let open = self.state == State::Open;
        let publishes =
            self.publishes.iter().flat_map(|publish| [publish.ends, publish.retry_at.filter(|_| open)]);
        let requests = self.requests.iter().map(|request| Some(request.ends));
        let retries = self.subscriptions.iter().map(|subscription| subscription.retry_at.filter(|_| open));
        let held = self.publishes_wait_until.filter(|_| open);
        timers.into_iter().chain(publishes).chain(requests).chain(retries).chain([held]).flatten().min()
    }

    pub(crate) fn on_timer(&mut self) {
        let now = Instant::now();
        let is_due = |timer: Option<Instant>| timer.is_some_and(|at| at <= now);
        if is_due(self.attempt_at) {
            self.attempt();
        }
        if is_due(self.attempt_ends) {
            self.actions.push(Action::Drop);
            self.on_end(Ended::Lost);
        }
        if is_due(self.renew_at) {
            self.renew();
        }
        if is_due(self.pong_ends) {
            self.actions.push(Action::Drop);
            self.on_end(Ended::Silent);
        }
        if is_due(self.ping_at) {
            self.ping_at = None;
            if self.fault != Fault::NeverPings {
                let id = self.new_id();
                self.send("ping", Some(id), &json!({}));
                let timeout = Duration::from_millis(self.option("pong_timeout_ms", 10_000));
                self.pong_ends = Some(now + timeout);
            }
        }
        self.expire_requests(now);
        if self.state == State::Open {
            let mut is_any_due = false;
            for subscription in &mut self.subscriptions {
                if is_due(subscription.retry_at) && subscription.stage == Stage::Idle {
                    subscription.retry_at = None;
                    is_any_due = true;
                }
            }
            if is_any_due {
                self.send_subscribes();
            }
        }
        self.pump();
    }
}
