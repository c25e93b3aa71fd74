//! Tokens: where they come from, and when they are renewed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::backoff::Backoff;

/// Shortest time before a token is renewed, so that tokens without life cause no loop.
const MIN_RENEWAL: Duration = Duration::from_millis(250);

/// The origin of tokens.
#[derive(Debug, Clone, Default)]
pub enum TokenKind {
    /// The client has no token.
    #[default]
    None,
    /// One token. When the server refuses it, the hub is closed.
    Fixed(String),
    /// A function of the application, called for each connection and before a token expires.
    Function,
}

/// The state of a renewal on an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Renewal {
    #[default]
    None,
    /// The function was called.
    Requested,
    /// `authenticate` was sent.
    Sent,
}

#[derive(Debug, Default)]
pub(super) struct Tokens {
    pub(super) kind: TokenKind,
    /// The token of this connection.
    pub(super) current: Option<String>,
    /// A handshake was refused with 401, and none was accepted since.
    pub(super) was_refused: bool,
    /// A connection was closed with 4001, and none ended otherwise since.
    pub(super) was_expired: bool,
    pub(super) renewal: Renewal,
    pub(super) renewal_refused: bool,
    pub(super) renew_at: Option<Duration>,
    pub(super) backoff: Backoff,
}

impl Tokens {
    /// Schedules the renewal of a token that expires at `expires_at` in Unix seconds.
    pub(super) fn schedule(&mut self, expires_at: Option<u64>, server_ms: Option<u64>, now: Duration) {
        self.renew_at = None;
        if let (TokenKind::Function, Some(expires_at), Some(server_ms)) = (&self.kind, expires_at, server_ms)
        {
            let life = Duration::from_millis(expires_at.saturating_mul(1000).saturating_sub(server_ms));
            self.renew_at = now.checked_add((life / 5).saturating_mul(4).max(MIN_RENEWAL));
        }
    }

    /// Forgets what belongs to a connection.
    pub(super) fn on_disconnect(&mut self) {
        (self.renewal, self.renewal_refused, self.renew_at) = (Renewal::None, false, None);
        self.backoff.reset();
    }
}

/// Returns the claim `exp` of a JWT, in Unix seconds. The signature is the server's business.
pub(super) fn expiry_of(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    // The conversion saturates, and fractions of a second do not matter.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(claims.exp as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expiry_is_read_from_the_claims() {
        let token = |claims: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(expiry_of(&token(r#"{"sub":"ada","exp":1796000000}"#)), Some(1_796_000_000));
        assert_eq!(expiry_of(&token(r#"{"exp":1796000000.7}"#)), Some(1_796_000_000));
        for other in
            [token(r#"{"sub":"ada"}"#), token("[]"), "secret".to_owned(), "a.!.c".to_owned(), String::new()]
        {
            assert_eq!(expiry_of(&other), None, "{other}");
        }
    }

    #[test]
    fn a_token_is_renewed_when_most_of_its_life_has_passed() {
        let now = Duration::from_secs(7);
        let mut tokens = Tokens { kind: TokenKind::Function, ..Tokens::default() };
        tokens.schedule(Some(1100), Some(1_000_000), now);
        assert_eq!(tokens.renew_at, Some(now + Duration::from_secs(80)));
        tokens.schedule(Some(900), Some(1_000_000), now);
        assert_eq!(tokens.renew_at, Some(now + MIN_RENEWAL));
        tokens.schedule(Some(u64::MAX), Some(0), now);
        assert!(tokens.renew_at > Some(now + Duration::from_secs(1 << 40)));
        let mut fixed = Tokens { kind: TokenKind::Fixed(String::new()), ..Tokens::default() };
        fixed.schedule(Some(1100), Some(1_000_000), now);
        assert_eq!(fixed.renew_at, None);
    }
}
