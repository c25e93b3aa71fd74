//! The connection of the client: states, reconnects, tokens, and the application's commands.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::attempt::expiry;
use crate::fault::Fault;
use crate::handle::Handle;
use crate::publish::{Publish, Request};
use crate::subscription::{Position, Stage, Subscription};

/// Work for the socket.
pub(crate) enum Action {
    Connect {
        url: String,
        token: Option<String>,
    },
    Send(String),
    /// Drops the connection without a word.
    Drop,
    /// Closes the connection for good.
    Close,
}

/// End of a connection, or of an attempt.
pub(crate) enum Ended {
    Closed(u16),
    Refused {
        status: u16,
        retry_after_s: Option<u64>,
    },
    Lost,
    /// The server showed no life.
    Silent,
}

#[derive(PartialEq)]
pub(crate) enum State {
    New,
    Connecting,
    Open,
    Waiting,
    Closed,
}

/// The token, as the application gave it.
pub(crate) enum Token {
    None,
    Fixed(String),
    /// One per call; the last one is repeated.
    Function(Vec<Value>),
}

pub(crate) struct Client {
    pub(crate) fault: Fault,
    pub(crate) actions: Vec<Action>,
    pub(crate) options: Value,
    pub(crate) state: State,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) publishes: Vec<Publish>,
    /// Topics of own publishes that failed, and that the server may still answer.
    pub(crate) late: HashMap<u64, String>,
    pub(crate) requests: Vec<Request>,
    pub(crate) next_id: u64,
    pub(crate) storage: Option<HashMap<String, Value>>,
    pub(crate) attempt_at: Option<Instant>,
    pub(crate) attempt_ends: Option<Instant>,
    pub(crate) renew_at: Option<Instant>,
    pub(crate) ping_at: Option<Instant>,
    pub(crate) pong_ends: Option<Instant>,
    pub(crate) publishes_wait_until: Option<Instant>,
    pub(crate) ping_after: Duration,
    pub(crate) max_message_bytes: usize,
    /// The delivery that the planted fault holds back.
    pub(crate) swapped: Option<(Value, usize)>,
    pub(crate) token: Token,
    pub(crate) token_in_use: Option<String>,
    pub(crate) token_was_retried: bool,
    pub(crate) authenticate_id: Option<u64>,
    pub(crate) open_since: Option<Instant>,
    pub(crate) attempts: u32,
    pub(crate) goodbye: Option<Value>,
}

impl Client {
    pub(crate) fn new(fault: Fault) -> Self {
        Self {
            fault,
            actions: Vec::new(),
            options: Value::Null,
            state: State::New,
            subscriptions: Vec::new(),
            publishes: Vec::new(),
            late: HashMap::new(),
            requests: Vec::new(),
            next_id: 0,
            storage: None,
            attempt_at: None,
            attempt_ends: None,
            renew_at: None,
            ping_at: None,
            pong_ends: None,
            publishes_wait_until: None,
            ping_after: Duration::from_secs(25),
            max_message_bytes: 65_536,
            swapped: None,
            token: Token::None,
            token_in_use: None,
            token_was_retried: false,
            authenticate_id: None,
            open_since: None,
            attempts: 0,
            goodbye: None,
        }
    }

    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Returns an option in milliseconds or bytes.
    pub(crate) fn option(&self, name: &str, usual: u64) -> u64 {
        self.options[name].as_u64().unwrap_or(usual)
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn send(&mut self, kind: &str, id: Option<u64>, data: &Value) {
        let mut message = json!({"type": kind, "data": data});
        if let Some(id) = id {
            message["id"] = id.into();
        }
        self.actions.push(Action::Send(message.to_string()));
    }

    pub(crate) fn on_command(&mut self, command: &Value) {
        let name = command["as"].as_str().unwrap_or_default();
        match command["do"].as_str().unwrap_or_default() {
            "connect" => {
                self.options = command["options"].clone();
                self.options["url"] = command["url"].clone();
                if self.options["storage"] == true && self.storage.is_none() {
                    self.storage = Some(HashMap::new());
                }
                self.token = match (&self.options["token"], &self.options["tokens"]) {
                    (Value::String(token), _) => Token::Fixed(token.clone()),
                    (_, Value::Array(tokens)) => Token::Function(tokens.clone()),
                    _ => Token::None,
                };
                self.attempt();
            }
            "subscribe" => self.subscribe(command),
            "release" => {
                for handle in self.subscriptions.iter_mut().flat_map(|subscription| &mut subscription.handles)
                {
                    if handle.name == name {
                        handle.release(command["messages"].as_u64());
                    }
                }
            }
            "unsubscribe" => self.unsubscribe(name),
            "publish" => self.publish(command),
            "echo" => self.request(name, "echo", command["data"].clone()),
            "history" => {
                let mut data = json!({"topic": command["topic"]});
                for key in ["from", "limit", "order"] {
                    if let Some(value) = command.get(key) {
                        data[key] = value.clone();
                    }
                }
                self.request(name, "history", data);
            }
            "token" => {
                if let Value::Array(tokens) = &command["tokens"] {
                    self.token = Token::Function(tokens.clone());
                }
            }
            "reload" => {
                let storage = self.storage.take();
                let next_id = self.next_id;
                *self = Self::new(self.fault);
                self.storage = storage;
                self.next_id = next_id;
                self.actions.push(Action::Drop);
            }
            "close" => {
                self.finish("closed");
                if self.fault == Fault::SurvivesClose {
                    self.attempt_at = Some(Instant::now() + Duration::from_millis(50));
                }
                self.actions.push(Action::Close);
            }
            other => eprintln!("unknown command {other:?}"),
        }
        self.pump();
    }

    fn subscribe(&mut self, command: &Value) {
        let topic = command["topic"].as_str().unwrap_or_default();
        let history = command["history"].as_u64();
        let mut handle = Handle::new(command, self.fault);
        let known =
            self.subscriptions.iter().position(|known| known.topic == topic && known.stage != Stage::Ended);
        let known = known.filter(|_| self.fault != Fault::SubscribesTwice);
        if let Some(index) = known {
            if self.subscriptions[index].stage == Stage::Live {
                handle.push_state("live", None, None);
            }
            handle.wanted = history;
            self.subscriptions[index].handles.push(handle);
            return self.send_histories();
        }
        if self.state == State::Closed {
            return handle.push_state("ended", None, Some("closed"));
        }
        let saved = self.storage.as_ref().and_then(|storage| Position::of(storage.get(topic)?));
        let mut subscription = Subscription::new(topic, history, saved);
        handle.push_state("subscribing", None, None);
        subscription.handles.push(handle);
        self.subscriptions.push(subscription);
        if self.state == State::Open {
            self.send_subscribes();
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        let owner = self.subscriptions.iter_mut().position(|subscription| {
            subscription.stage != Stage::Ended
                && subscription.handles.iter().any(|handle| handle.name == name)
        });
        let Some(index) = owner else { return };
        let subscription = &mut self.subscriptions[index];
        let topic = subscription.topic.clone();
        if let Some(at) = subscription.handles.iter().position(|handle| handle.name == name) {
            let mut handle = subscription.handles.remove(at);
            handle.release(None);
            handle.forget();
            handle.push_state("ended", None, Some("unsubscribed"));
            handle.pump(false);
        }
        if subscription.handles.is_empty() {
            let was_asked = subscription.stage != Stage::Idle;
            self.subscriptions.remove(index);
            if let Some(storage) = &mut self.storage {
                storage.remove(&topic);
            }
            if self.state == State::Open && was_asked {
                let id = self.new_id();
                self.send("unsubscribe", Some(id), &json!({"topic": topic}));
            }
        }
    }

    pub(crate) fn on_welcome(&mut self, data: &Value) {
        let limits = &data["limits"];
        let interval = limits["ping_interval_ms"].as_u64().filter(|interval| *interval > 0).unwrap_or(16_667);
        self.ping_after = Duration::from_millis(interval * 3 / 2);
        self.ping_at = Some(Instant::now() + self.ping_after);
        if let Some(max) = limits["max_message_bytes"].as_u64() {
            self.max_message_bytes = usize::try_from(max).unwrap_or(usize::MAX);
        }
        self.attempt_ends = None;
        self.open_since = Some(Instant::now());
        let expires = self.token_in_use.as_deref().and_then(expiry);
        self.renew_after(expires, data["server_time"].as_u64());
        self.set_state(State::Open, "open", None, None);
        self.fail_too_large();
        self.send_publishes();
        self.send_subscribes();
        self.send_requests();
    }

    /// Handles a text from the server.
    pub(crate) fn on_text(&mut self, text: &str) {
        self.on_frame();
        let Ok(message) = serde_json::from_str::<Value>(text) else { return };
        let (id, data) = (message["id"].as_u64(), &message["data"]);
        match message["type"].as_str().unwrap_or_default() {
            "welcome" if self.state == State::Connecting => self.on_welcome(data),
            "goodbye" => self.goodbye = Some(data.clone()),
            "authenticated" => {
                self.token_was_retried = false;
                self.renew_after(data["expires_at"].as_u64(), None);
            }
            "error" if id.is_some() && id == self.authenticate_id => {
                if self.token_was_retried {
                    self.renew_at =
                        Some(Instant::now() + Duration::from_millis(self.option("max_delay_ms", 20_000)));
                } else {
                    self.token_was_retried = true;
                    self.renew();
                }
            }
            "subscribed" => self.on_subscribed(id, data),
            "message" => self.on_message(data, text.len()),
            "gap" => self.on_gap(data),
            "position" => self.on_position(data),
            "unsubscribed" if id.is_none() => self.on_unsubscribed(data),
            "published" => self.on_published(id, data),
            "echo" | "history" => self.on_reply(id, data),
            "error" => self.on_error(id, data),
            _ => {}
        }
        self.pump();
    }

    /// Notes a sign of life.
    pub(crate) fn on_frame(&mut self) {
        self.pong_ends = None;
        if self.state == State::Open {
            self.ping_at = Some(Instant::now() + self.ping_after);
        }
    }

    /// Hands over what the handlers take, and saves positions.
    pub(crate) fn pump(&mut self) {
        let stops = self.fault == Fault::StopsAfterHandlerFails;
        for subscription in &mut self.subscriptions {
            let is_topic = !subscription.is_pattern();
            let received = subscription.position.clone();
            for handle in &mut subscription.handles {
                let mut done = handle.pump(stops);
                if self.fault == Fault::SavesTooEarly {
                    done = received.clone().map(|position| (subscription.topic.clone(), position));
                }
                if let (Some(storage), Some((topic, position)), true) = (&mut self.storage, done, is_topic) {
                    storage.insert(topic, position.to_json());
                }
            }
        }
        self.resume_full();
    }
}
