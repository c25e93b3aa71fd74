//! Tokens for a connection, and their renewal on an open one.

use std::time::Duration;

use super::connection::{End, Phase};
use super::token::{Renewal, expiry_of};
use super::{Action, Core, Pending, wire};
use crate::Error;

impl Core {
    pub(super) fn on_token(&mut self, token: Result<String, String>) {
        match (self.connection.phase, self.tokens.renewal) {
            (Phase::Token, _) => match token {
                Ok(token) => self.connect(Some(token)),
                Err(text) => {
                    self.report(Error::new(Error::TOKEN_FAILED, text));
                    self.on_end(End::of(Error::TOKEN_FAILED));
                }
            },
            (Phase::Open, Renewal::Requested) => match token {
                Ok(token) => {
                    let token = token.trim().to_owned();
                    let id = self.next_id();
                    self.tokens.renewal = Renewal::Sent;
                    self.pending.insert(id, Pending::Authenticate);
                    let text = wire::request("authenticate", id, &wire::TokenData { token: &token });
                    self.actions.push_back(Action::Send(text));
                    self.tokens.current = Some(token);
                }
                Err(text) => {
                    self.report(Error::new(Error::TOKEN_FAILED, text));
                    self.retry_renewal(None);
                }
            },
            _ => {}
        }
    }

    /// Calls the token function before the token expires.
    pub(super) fn renew_token(&mut self) {
        self.tokens.renew_at = None;
        if self.is_open() {
            self.tokens.renewal = Renewal::Requested;
            self.actions.push_back(Action::RequestToken);
        }
    }

    fn retry_renewal(&mut self, after: Option<Duration>) {
        let delay = after.unwrap_or_else(|| self.tokens.backoff.next_delay(&self.settings, &mut self.rng));
        self.tokens.renewal = Renewal::None;
        self.tokens.renew_at = Some(self.now + delay);
    }

    /// Takes the answer to an `authenticate`.
    pub(super) fn on_authenticated(&mut self, answer: Result<Option<u64>, Error>) {
        match answer {
            Ok(expires_at) => {
                self.tokens.on_disconnect();
                let expires_at = expires_at.or_else(|| self.tokens.current.as_deref().and_then(expiry_of));
                self.tokens.schedule(expires_at, self.connection.server_ms(self.now), self.now);
            }
            Err(error) if error.is_temporary() => self.retry_renewal(error.retry_after),
            Err(_) if !self.tokens.renewal_refused => {
                self.tokens.renewal_refused = true;
                self.renew_token();
            }
            Err(error) => {
                self.report(error);
                self.retry_renewal(None);
            }
        }
    }
}
