//! Random faults by seed for a client that publishes: each message is stored once and in order, and
//! its own messages tear no holes.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::chaos::Random;
use crate::connection::Connection;
use crate::failure::{Failure, Result, ensure};
use crate::kit::{CHAT, Kit};
use crate::received::Received;

const PUBLISHES: u64 = 40;
const START: u64 = 100;

/// A message that the scripted server has stored; its offset is its place.
struct Stored {
    /// `once` and payload of a message of the client; `None` for a message of others.
    own: Option<(String, Value)>,
}

/// Treatment of a publish by the scripted server.
enum Fate {
    Answered,
    /// Others' messages are delivered before the answer.
    AnsweredLate,
    /// Stored, but the answer is lost.
    CutBehind,
    /// Not stored, and the connection is lost.
    CutBefore,
    Refused(&'static str),
}

/// The scripted topic and what the application has seen of it.
struct Model {
    random: Random,
    stored: Vec<Stored>,
    is_subscribed: bool,
    /// Offsets of others that the application has yet to see.
    unseen: VecDeque<u64>,
    published: u64,
    results: u64,
}

impl Model {
    fn top(&self) -> u64 {
        START + self.stored.len() as u64
    }

    /// Publishes messages of others.
    async fn others(&mut self, connection: &mut Connection, messages: u64) -> Result {
        for _ in 0..messages {
            self.stored.push(Stored { own: None });
            let top = self.top();
            self.unseen.push_back(top);
            if self.is_subscribed {
                connection.deliver(&CHAT, top).await?;
            }
        }
        Ok(())
    }

    /// Stores a publish unless its `once` is known, and returns its offset.
    fn store(&mut self, once: &str, message: &Value) -> u64 {
        let is_same = |stored: &Stored| stored.own.as_ref().is_some_and(|(known, _)| known == once);
        if let Some(place) = self.stored.iter().position(is_same) {
            return START + 1 + place as u64;
        }
        self.stored.push(Stored { own: Some((once.to_owned(), message.clone())) });
        self.top()
    }

    fn is_known(&self, once: &str) -> bool {
        self.stored.iter().any(|stored| stored.own.as_ref().is_some_and(|(known, _)| known == once))
    }

    /// Handles a publish. Returns `false` if the connection is to be cut.
    async fn on_publish(&mut self, connection: &mut Connection, publish: &Received) -> Result<bool> {
        let once = publish.data["once"].as_str().unwrap_or_default().to_owned();
        let message = &publish.data["message"];
        let fate = match self.random.below(8) {
            0 => Fate::CutBehind,
            // A stored publish is recognised, so it is never refused.
            1 if !self.is_known(&once) => Fate::CutBefore,
            2 if !self.is_known(&once) => Fate::Refused("unavailable"),
            3 if !self.is_known(&once) => Fate::Refused("rate_limited"),
            4 | 5 => Fate::AnsweredLate,
            _ => Fate::Answered,
        };
        match fate {
            Fate::CutBefore => return Ok(false),
            Fate::CutBehind => {
                self.store(&once, message);
                return Ok(false);
            }
            Fate::Refused(code) => connection.reply_error(publish, code, json!({"retry_after_ms": 3})).await?,
            Fate::Answered => {
                let offset = self.store(&once, message);
                connection.reply_published(publish, &CHAT, offset).await?;
            }
            Fate::AnsweredLate => {
                let offset = self.store(&once, message);
                let others = 1 + self.random.below(3);
                self.others(connection, others).await?;
                connection.reply_published(publish, &CHAT, offset).await?;
            }
        }
        Ok(true)
    }

    /// Answers a subscribe with all that was missed, own messages included.
    async fn on_subscribe(&mut self, connection: &mut Connection, received: Received) -> Result {
        let subscribe = connection.as_subscribe(received)?;
        let from = subscribe.entry(CHAT.name)?["recover"]["offset"].as_u64().unwrap_or_default();
        subscribe.expect_recover(&CHAT, from)?;
        let answer = CHAT.at(from, json!({"recovered": true, "replay": self.top() - from}));
        connection.reply_subscribed(&subscribe, &[answer]).await?;
        connection.deliver_all(&CHAT, from + 1..=self.top()).await?;
        self.is_subscribed = true;
        Ok(())
    }

    fn on_event(&mut self, event: &Value) -> Result {
        let expected = self.unseen.pop_front();
        ensure(event["event"] == "message" && event["offset"].as_u64() == expected, || {
            format!("expected message {expected:?}, but the application saw {event}")
        })
    }

    fn on_result(&mut self, event: &Value) -> Result {
        self.results += 1;
        let number = self.results;
        ensure(event["as"] == format!("post-{number}"), || {
            format!("expected the result of post-{number}, but the application saw {event}")
        })?;
        let offset = event["value"]["offset"].as_u64().unwrap_or_default();
        let place = offset.checked_sub(START + 1).and_then(|place| usize::try_from(place).ok());
        let stored = place.and_then(|place| self.stored.get(place)).and_then(|stored| stored.own.as_ref());
        ensure(stored.is_some_and(|(_, message)| *message == number), || {
            format!("expected the offset at which message {number} is stored, but the application saw {event}")
        })
    }

    /// Handles what comes next from the client or its application. Returns `false` if the connection
    /// is to be cut.
    async fn step(&mut self, kit: &mut Kit, connection: &mut Connection) -> Result<bool> {
        tokio::select! {
            received = connection.receive() => {
                let received = received?;
                match received.kind.as_str() {
                    "publish" => return self.on_publish(connection, &received).await,
                    "subscribe" => self.on_subscribe(connection, received).await?,
                    other => return Err(Failure::new(format!("expected no {other:?} of the client"))),
                }
            }
            event = kit.app().next_message_or_result("chat") => {
                let event = event?;
                match event["event"].as_str() {
                    Some("result") => self.on_result(&event)?,
                    _ => self.on_event(&event)?,
                }
            }
        }
        Ok(true)
    }
}

async fn play(kit: &mut Kit, number: u64) -> Result {
    let seed = kit.seed.wrapping_add(number);
    let options = json!({"min_delay_ms": 1, "max_delay_ms": 4});
    let mut connection = kit.live_with(options, START).await?;
    let random = Random::new(seed);
    let mut model =
        Model { random, stored: Vec::new(), is_subscribed: true, unseen: VecDeque::new(), published: 0, results: 0 };
    while model.results < PUBLISHES || !model.unseen.is_empty() || !model.is_subscribed {
        if model.published < PUBLISHES && model.published < model.results + 4 {
            model.published += 1;
            let call = format!("post-{}", model.published);
            let keys = json!({"as": call, "topic": CHAT.name, "message": model.published, "exclude_self": true});
            kit.command("publish", keys).await?;
        }
        if model.results < PUBLISHES && model.random.once_in(3) {
            let others = model.random.below(3);
            model.others(&mut connection, others).await?;
        }
        let is_idle = model.results == model.published && model.unseen.is_empty() && model.is_subscribed;
        if !is_idle && !model.step(kit, &mut connection).await? {
            connection.end().await?;
            model.is_subscribed = false;
            connection = kit.open().await?;
        }
    }
    let messages: Vec<&Value> = model.stored.iter().filter_map(|stored| Some(&stored.own.as_ref()?.1)).collect();
    let expected: Vec<Value> = (1..=PUBLISHES).map(Value::from).collect();
    ensure(messages.iter().copied().eq(&expected), || {
        format!("expected messages 1 to {PUBLISHES} stored once and in order, but they are {messages:?}")
    })?;
    kit.settle_leaving(&mut connection, "chat").await
}

/// Lost answers, refusals and cuts in a random order.
pub(super) async fn publisher_1(kit: &mut Kit) -> Result {
    play(kit, 11).await
}

/// As the first, from another seed.
pub(super) async fn publisher_2(kit: &mut Kit) -> Result {
    play(kit, 12).await
}

/// As the first, from another seed.
pub(super) async fn publisher_3(kit: &mut Kit) -> Result {
    play(kit, 13).await
}
