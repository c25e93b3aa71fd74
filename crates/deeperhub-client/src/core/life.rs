//! Signs of life of a connection.

use std::time::Duration;

/// Time without a sign of life after which the client asks, if the server sends no pings.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(25);

/// A timer that is so late shows that the computer slept.
const SLEPT: Duration = Duration::from_secs(2);

/// The consequence of a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Nothing,
    /// A `ping` is to be sent.
    Ping,
    /// The server shows no life.
    Dead,
}

#[derive(Debug, Default)]
pub(super) struct Life {
    interval: Duration,
    due: Duration,
    is_pinged: bool,
}

impl Life {
    pub(super) fn new(ping_interval_ms: Option<u64>, now: Duration) -> Self {
        let interval = match ping_interval_ms {
            None | Some(0) => DEFAULT_INTERVAL,
            Some(milliseconds) => super::wire::wait_of(milliseconds).mul_f64(1.5),
        };
        Self { interval, due: now + interval, is_pinged: false }
    }

    /// Notes a sign of life.
    pub(super) fn on_activity(&mut self, now: Duration) {
        (self.due, self.is_pinged) = (now + self.interval, false);
    }

    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Decides what a time means. After a sleep, the server gets a new chance to answer.
    pub(super) fn on_time(&mut self, now: Duration, pong_timeout: Duration) -> Sign {
        if now < self.due {
            return Sign::Nothing;
        }
        if self.is_pinged && now < self.due + SLEPT {
            return Sign::Dead;
        }
        (self.due, self.is_pinged) = (now + pong_timeout, true);
        Sign::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PONG: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_silent_server_is_asked_and_then_dropped() {
        let mut life = Life::new(Some(20_000), at(0));
        assert_eq!(life.on_time(at(29), PONG), Sign::Nothing);
        assert_eq!(life.on_time(at(30), PONG), Sign::Ping);
        assert_eq!(life.on_time(at(39), PONG), Sign::Nothing);
        assert_eq!(life.on_time(at(40), PONG), Sign::Dead);
    }

    #[test]
    fn an_answer_starts_the_interval_anew() {
        let mut life = Life::new(Some(0), at(0));
        assert_eq!(life.on_time(at(25), PONG), Sign::Ping);
        life.on_activity(at(26));
        assert_eq!(life.on_time(at(35), PONG), Sign::Nothing);
        assert_eq!(life.on_time(at(51), PONG), Sign::Ping);
    }

    #[test]
    fn a_late_timer_asks_again() {
        let mut life = Life::new(None, at(0));
        assert_eq!(life.on_time(at(25), PONG), Sign::Ping);
        assert_eq!(life.on_time(at(3600), PONG), Sign::Ping);
        assert_eq!(life.on_time(at(3610), PONG), Sign::Dead);
    }
}
