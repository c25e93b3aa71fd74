//! Random faults by seed: whatever the server does, the application sees each message once and in
//! order, or a gap.

use serde_json::{Value, json};

use crate::connection::Connection;
use crate::failure::{Failure, Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::received::Received;
use crate::topic::Topic;

const ROUNDS: u64 = 60;
/// Messages that the scripted topic keeps.
const KEPT: u64 = 12;

/// A small generator of numbers (xorshift), so that a seed repeats a scene.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// Returns a number below the limit.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Returns `true` once in so many calls.
    pub(super) fn once_in(&mut self, calls: u64) -> bool {
        self.below(calls) == 0
    }
}

/// The scripted topic: what was published, and where the client's subscription stands.
struct Model {
    random: Random,
    top: u64,
    /// Offset of the last message that was sent on this subscription; `None` without one.
    sent: Option<u64>,
    /// Offset up to which the application has seen messages or gaps.
    seen: u64,
}

impl Model {
    /// Answers the client's subscribe, and replays what it missed. Returns `false` if the connection
    /// is to be cut in the middle.
    async fn subscribe(&mut self, connection: &mut Connection, received: Received) -> Result<bool> {
        if self.random.once_in(6) {
            connection.reply_error(&received, "unavailable", json!({"retry_after_ms": 5})).await?;
            return Ok(true);
        }
        let subscribe = connection.as_subscribe(received)?;
        let recover = &subscribe.entry(CHAT.name)?["recover"];
        let from = recover["offset"].as_u64();
        if let Some(from) = from {
            subscribe.expect_recover(&CHAT, from)?;
            ensure(from <= self.top, || format!("expected a recover from at most {}, not {from}", self.top))?;
        }
        let answer = match from {
            None => CHAT.at(self.top, json!({})),
            Some(from) if self.top - from <= KEPT => {
                let answer = CHAT.at(from, json!({"recovered": true, "replay": self.top - from}));
                connection.reply_subscribed(&subscribe, &[answer]).await?;
                for offset in from + 1..=self.top {
                    connection.deliver(&CHAT, offset).await?;
                    if self.random.once_in(12) {
                        return Ok(false);
                    }
                }
                self.sent = Some(self.top);
                return Ok(true);
            }
            Some(_) => CHAT.at(self.top, json!({"recovered": false, "reason": "trimmed"})),
        };
        connection.reply_subscribed(&subscribe, &[answer]).await?;
        self.sent = Some(self.top);
        Ok(true)
    }

    /// Publishes messages, and sends them in one of the ways in which a server or a proxy may.
    async fn publish(&mut self, connection: &mut Connection) -> Result {
        for _ in 0..=self.random.below(4) {
            self.top += 1;
            let Some(sent) = self.sent else { continue };
            match self.random.below(12) {
                // A duplicate, and then the message.
                0 if sent > 0 => {
                    let earlier = sent - self.random.below(sent.min(5));
                    connection.deliver(&CHAT, earlier).await?;
                    connection.deliver(&CHAT, self.top).await?;
                }
                1 => {
                    connection.deliver(&CHAT, self.top).await?;
                    connection.deliver(&CHAT, self.top).await?;
                }
                2 => {
                    self.top += 3;
                    let keys = json!({"from": sent + 1, "to": self.top, "reason": "conflated"});
                    connection.send("gap", CHAT.at(self.top, keys)).await?;
                }
                3 => {
                    self.top += 1;
                    let keys = json!({"from": sent + 1, "to": self.top, "reason": "dropped"});
                    connection.send("gap", CHAT.at(self.top, keys)).await?;
                }
                _ => connection.deliver(&CHAT, self.top).await?,
            }
            self.sent = Some(self.top);
        }
        Ok(())
    }

    /// Compares an event of the handle with what the application has seen.
    fn on_event(&mut self, event: &Value) -> Result {
        let (from, to) = match event["event"].as_str() {
            Some("message") => {
                let offset = event["offset"].as_u64().unwrap_or_default();
                ensure(event["message"] == Topic::payload(offset), || format!("a message was changed: {event}"))?;
                (offset, offset)
            }
            _ => (event["from"].as_u64().unwrap_or_default(), event["to"].as_u64().unwrap_or_default()),
        };
        let seen = self.seen;
        ensure(from == seen + 1 && to >= from, || {
            format!("expected what follows offset {seen}, but the application saw {event}")
        })?;
        self.seen = to;
        Ok(())
    }

    /// Serves the connection until the application has seen all, or the connection is to be cut.
    async fn catch_up(&mut self, kit: &mut Kit, connection: &mut Connection) -> Result<bool> {
        while self.sent.is_none() || self.seen < self.top {
            tokio::select! {
                received = connection.receive() => {
                    let received = received?;
                    match received.kind.as_str() {
                        "subscribe" => {
                            if !self.subscribe(connection, received).await? {
                                return Ok(false);
                            }
                        }
                        other => return Err(Failure::new(format!("expected no {other:?} of the client"))),
                    }
                }
                event = kit.app().next_message_or_gap("chat") => self.on_event(&event?)?,
            }
        }
        Ok(true)
    }
}

async fn play(kit: &mut Kit, number: u64) -> Result {
    let seed = kit.seed.wrapping_add(number);
    let start = 100;
    let mut connection = kit.live_with(json!({"min_delay_ms": 1, "max_delay_ms": 4}), start).await?;
    let mut model = Model { random: Random::new(seed), top: start, sent: Some(start), seen: start };
    for _ in 0..ROUNDS {
        model.publish(&mut connection).await?;
        let must_cut = model.random.once_in(4) || {
            // Otherwise all that was sent arrives, whatever else was sent with it.
            !model.catch_up(kit, &mut connection).await?
        };
        if must_cut {
            // A reset may lose what was sent, an orderly end does not.
            if model.random.once_in(2) {
                connection.cut();
            } else {
                connection.end().await?;
            }
            model.sent = None;
            for _ in 0..model.random.below(20) {
                model.top += 1;
            }
            connection = kit.open().await?;
        }
    }
    while !model.catch_up(kit, &mut connection).await? {
        connection.cut();
        model.sent = None;
        connection = kit.open().await?;
    }
    kit.settle_leaving(&mut connection, "chat").await
}

/// Cuts, duplicates, gaps and refusals in a random order.
pub(super) async fn seed_1(kit: &mut Kit) -> Result {
    play(kit, 1).await
}

/// As the first, from another seed.
pub(super) async fn seed_2(kit: &mut Kit) -> Result {
    play(kit, 2).await
}

/// As the first, from another seed.
pub(super) async fn seed_3(kit: &mut Kit) -> Result {
    play(kit, 3).await
}

/// As the first, from another seed.
pub(super) async fn seed_4(kit: &mut Kit) -> Result {
    play(kit, 4).await
}
