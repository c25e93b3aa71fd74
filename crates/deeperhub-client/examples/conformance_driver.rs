//! The driver of the conformance kit: does what lines on standard input say, and writes what the
//! application sees to standard output. See `clients/conformance/README.md`.

use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_client::{
    Error, Event, Hub, HubState, MemoryStorage, Message, Options, Order, Position, StreamExt,
    SubscriptionState,
};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Tokens that the token function returns, one per call.
type Tokens = Arc<Mutex<VecDeque<Value>>>;

/// A command for the task of a handle.
struct Handle {
    permits: Arc<Semaphore>,
    unsubscribe: mpsc::UnboundedSender<()>,
    task: JoinHandle<()>,
}

#[derive(Default)]
pub(crate) struct Driver {
    hub: Option<Hub>,
    tokens: Tokens,
    storage: Arc<MemoryStorage>,
    handles: HashMap<String, Handle>,
    /// Tasks that write the states and errors of the hub.
    writers: Vec<JoinHandle<()>>,
}

fn write(event: Value) {
    println!("{event}");
}

/// Writes the result of a call.
fn write_result(name: &str, result: Result<Value, Error>) {
    write(match result {
        Ok(value) => json!({"event": "result", "as": name, "value": value}),
        Err(error) => json!({"event": "result", "as": name, "error": error.code()}),
    });
}

/// Adds the keys of a position to an object.
fn add_position(object: &mut Value, position: Option<&Position>) {
    if let Some(position) = position {
        object["epoch"] = json!(&*position.epoch);
        object["offset"] = json!(position.offset);
        object["time"] = json!(position.time);
    }
}

/// Returns a message as in a delivery.
fn message_value(message: &Message) -> Value {
    let payload: Value = message.message().unwrap_or_default();
    let mut value = json!({"topic": &*message.topic, "message": payload});
    if let Some(from) = &message.from {
        value["from"] = json!(&**from);
    }
    add_position(&mut value, message.position.as_ref());
    value
}

fn write_event(name: &str, event: &Event) {
    let mut value = match event {
        Event::Message(message) => {
            let mut value = message_value(message);
            value["event"] = json!("message");
            value
        }
        Event::Gap(gap) => {
            let mut value = json!({"event": "gap", "reason": &*gap.reason});
            for (key, offset) in [("from", gap.from), ("to", gap.to)] {
                if let Some(offset) = offset {
                    value[key] = json!(offset);
                }
            }
            value
        }
        Event::State(state) => {
            let (state, recovered, reason) = match state {
                SubscriptionState::Recovering => ("recovering", None, None),
                SubscriptionState::Live { recovered, reason } => ("live", *recovered, reason.as_deref()),
                SubscriptionState::Ended { reason } => ("ended", None, Some(&**reason)),
                _ => ("subscribing", None, None),
            };
            let mut value = json!({"event": "subscription", "state": state});
            if let Some(recovered) = recovered {
                value["recovered"] = json!(recovered);
            }
            if let Some(reason) = reason {
                value["reason"] = json!(reason);
            }
            value
        }
        _ => return,
    };
    value["as"] = json!(name);
    write(value);
}

impl Driver {
    fn options(&self, command: &Value) -> Options {
        let mut options = Options::default();
        let given = &command["options"];
        if let Some(token) = given["token"].as_str() {
            options = options.token(token);
        }
        if let Some(tokens) = given["tokens"].as_array() {
            self.set_tokens(tokens);
            let tokens = Arc::clone(&self.tokens);
            options = options.token(move || {
                write(json!({"event": "token"}));
                let mut tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
                let token = if tokens.len() > 1 { tokens.pop_front() } else { tokens.front().cloned() };
                let token = token.as_ref().and_then(Value::as_str).map(str::to_owned);
                async move { token.ok_or("the function failed") }
            });
        }
        if given["storage"] == true {
            options = options.storage(Arc::clone(&self.storage) as _);
        }
        let time = |key: &str| given[key].as_f64().map(|ms| Duration::from_secs_f64(ms / 1000.0));
        let bytes = |key: &str| given[key].as_u64().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        type SetTime = fn(Options, Duration) -> Options;
        let times: [(&str, SetTime); 6] = [
            ("min_delay_ms", Options::min_delay),
            ("max_delay_ms", Options::max_delay),
            ("connect_timeout_ms", Options::connect_timeout),
            ("pong_timeout_ms", Options::pong_timeout),
            ("request_timeout_ms", Options::request_timeout),
            ("publish_timeout_ms", Options::publish_timeout),
        ];
        for (key, set) in times {
            options = time(key).into_iter().fold(options, set);
        }
        options = bytes("max_queue_bytes").into_iter().fold(options, Options::max_queue_bytes);
        bytes("max_pending_bytes").into_iter().fold(options, Options::max_pending_bytes)
    }

    fn set_tokens(&self, tokens: &[Value]) {
        *self.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens.iter().cloned().collect();
    }

    fn connect(&mut self, command: &Value) -> Result<(), Box<dyn StdError>> {
        let hub = Hub::new(command["url"].as_str().unwrap_or_default(), self.options(command))?;
        let (mut states, mut errors) = (hub.states(), hub.errors());
        self.writers.push(tokio::spawn(async move {
            while let Some(state) = states.next().await {
                write(match state {
                    HubState::Connecting => json!({"event": "state", "state": "connecting"}),
                    HubState::Open => json!({"event": "state", "state": "open"}),
                    HubState::Waiting { until, reason } => {
                        let wait = until.saturating_duration_since(Instant::now()).as_secs_f64() * 1000.0;
                        let wait = wait.round();
                        json!({"event": "state", "state": "waiting", "wait_ms": wait, "reason": &*reason})
                    }
                    HubState::Closed { reason } => {
                        json!({"event": "state", "state": "closed", "reason": &*reason})
                    }
                    _ => continue,
                });
            }
        }));
        self.writers.push(tokio::spawn(async move {
            while let Some(error) = errors.next().await {
                write(json!({"event": "error", "code": error.code(), "message": error.message}));
            }
        }));
        self.hub = Some(hub);
        Ok(())
    }

    fn subscribe(&mut self, hub: &Hub, name: String, command: &Value) {
        let history = command["history"].as_u64().and_then(|history| history.try_into().ok()).unwrap_or(0);
        let topic = command["topic"].as_str().unwrap_or_default();
        let mut subscription = hub.subscribe(topic).history(history).start();
        let permits =
            Arc::new(Semaphore::new(if command["hold"] == true { 0 } else { Semaphore::MAX_PERMITS }));
        let (unsubscribe, mut unsubscribes) = mpsc::unbounded_channel();
        let fails = command["fail"].as_array().cloned().unwrap_or_default();
        let (key, task_permits) = (name.clone(), Arc::clone(&permits));
        let task = tokio::spawn(async move {
            let result = tokio::select! {
                result = subscription.ready() => result,
                Some(()) = unsubscribes.recv() => {
                    subscription.unsubscribe();
                    subscription.ready().await
                }
            };
            write(match result {
                Ok(()) => json!({"event": "ready", "as": name}),
                Err(error) => json!({"event": "ready", "as": name, "error": error.code()}),
            });
            let mut messages = 0;
            loop {
                let event = tokio::select! {
                    biased;
                    Some(()) = unsubscribes.recv() => {
                        subscription.unsubscribe();
                        continue;
                    }
                    event = subscription.next() => event,
                };
                let Some(event) = event else { return };
                write_event(&name, &event);
                let Event::Message(message) = event else { continue };
                messages += 1;
                let number = message.position.map_or(messages, |position| position.offset);
                if fails.contains(&json!(number)) {
                    subscription.report_failure("the handler fails as it was told to");
                }
                // The handler returns when it has a permit, or when it is unsubscribed.
                tokio::select! {
                    permit = task_permits.acquire() => permit.map_or((), |permit| permit.forget()),
                    Some(()) = unsubscribes.recv() => subscription.unsubscribe(),
                }
            }
        });
        self.handles.insert(key, Handle { permits, unsubscribe, task });
    }

    pub(crate) async fn run(&mut self, command: &Value) -> Result<(), Box<dyn StdError>> {
        let text = |key: &str| command[key].as_str().unwrap_or_default().to_owned();
        let (name, topic) = (text("as"), text("topic"));
        match command["do"].as_str().unwrap_or_default() {
            "connect" => return self.connect(command),
            "token" => self.set_tokens(command["tokens"].as_array().ok_or("tokens is not a list")?),
            "release" => {
                let permits = &self.handles.get(&name).ok_or("no such handle")?.permits;
                let rest = Semaphore::MAX_PERMITS - permits.available_permits();
                permits
                    .add_permits(command["messages"].as_u64().map_or(rest, |n| n.try_into().unwrap_or(rest)));
            }
            "unsubscribe" => {
                let _ = self.handles.get(&name).ok_or("no such handle")?.unsubscribe.send(());
            }
            "reload" => {
                self.hub = None;
                self.handles.drain().for_each(|(_, handle)| handle.task.abort());
                self.writers.drain(..).for_each(|writer| writer.abort());
            }
            "close" => {
                if let Some(hub) = self.hub.clone() {
                    tokio::spawn(async move {
                        hub.close().await;
                        write(json!({"event": "closed"}));
                    });
                }
            }
            _ => {
                let hub = self.hub.clone().ok_or("connect first")?;
                self.call(&hub, name, topic, command)?;
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        hub: &Hub,
        name: String,
        topic: String,
        command: &Value,
    ) -> Result<(), Box<dyn StdError>> {
        match command["do"].as_str().unwrap_or_default() {
            "subscribe" => self.subscribe(hub, name, command),
            "publish" => {
                let mut publish = hub.publish(topic, &command["message"]);
                if command["exclude_self"] == true {
                    publish = publish.exclude_self();
                }
                let published = publish.ordered(command["ordered"] != false).into_future();
                tokio::spawn(async move {
                    let result = published.await.map(|published| {
                        let mut value =
                            json!({"topic": &*published.topic, "subscribers": published.subscribers});
                        add_position(&mut value, published.position.as_ref());
                        value
                    });
                    write_result(&name, result);
                });
            }
            "echo" => {
                let (hub, data) = (hub.clone(), command["data"].clone());
                tokio::spawn(async move { write_result(&name, hub.echo(&data).await) });
            }
            "history" => {
                let mut request = hub.history(topic);
                request = command["from"].as_i64().into_iter().fold(request, |it, from| it.from(from));
                let limit = command["limit"].as_u64().and_then(|limit| limit.try_into().ok());
                request = limit.into_iter().fold(request, |it, limit: u32| it.limit(limit));
                if command["order"] == "desc" {
                    request = request.order(Order::Descending);
                }
                let page = request.into_future();
                tokio::spawn(async move {
                    let result = page.await.map(|page| {
                        let messages: Vec<Value> = page.messages.iter().map(message_value).collect();
                        let mut value = json!({"topic": &*page.topic, "messages": messages});
                        add_position(&mut value, page.position.as_ref());
                        if let Some(next) = page.next {
                            value["next"] = json!(next);
                        }
                        value
                    });
                    write_result(&name, result);
                });
            }
            other => return Err(format!("unknown command {other:?}").into()),
        }
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn StdError>> {
    let mut driver = Driver::default();
    write(json!({"event": "ready", "client": "rust", "skips": ["page", "blind"]}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command: Map<String, Value> = serde_json::from_str(&line)?;
        driver.run(&Value::Object(command)).await?;
    }
    Ok(())
}
