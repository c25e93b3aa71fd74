//! A real client: its core, and what drives it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_client::core::{
    Action, ConnectionState, Core, HandleId, Input, Next, PublishOptions, Settings, TokenKind,
};
use deeperhub_client::{Error, Event, SubscriptionState};
use deeperhub_listener::ConnectionKey;
use serde_json::value::RawValue;

use super::super::topics::TOPICS;
use super::application::Application;
use super::plants::{ModelBug, is_broken};
use super::publishes::Publishes;
use super::{Simulation, describe};

/// Timers of a client at one time.
const MAX_TIMERS: usize = 1000;

/// Handles of a client.
const MAX_HANDLES: usize = 5;

/// A client with its applications.
#[derive(Debug)]
pub(super) struct CoreClient {
    pub(super) core: Core,
    pub(super) handles: Vec<HandleView>,
    pub(super) publishes: Publishes,
    /// Node, worker and key of the open connection.
    pub(super) connection: Option<(usize, usize, ConnectionKey)>,
    /// Texts on their way to the node.
    pub(super) outbox: VecDeque<String>,
    /// Texts on their way to the client.
    pub(super) inbox: VecDeque<Arc<str>>,
    /// The core knows of a connection.
    is_connected: bool,
    /// Node and worker of the next connection.
    pub(super) node: usize,
    pub(super) worker: usize,
    /// Bytes that the socket of the next connection takes per round.
    pub(super) speed: usize,
    /// Number of attempts to connect that are to fail.
    pub(super) failures: u8,
}

/// A handle and its application.
#[derive(Debug)]
pub(super) struct HandleView {
    pub(super) id: HandleId,
    pub(super) topic: usize,
    pub(super) application: Application,
    /// Another handle has joined before this one was ready, so their first messages differ.
    is_shared: bool,
    is_unsubscribed: bool,
}

impl CoreClient {
    pub(super) fn new(seed: u64, client: u8) -> Self {
        let mut settings = Settings::default();
        let seed = seed.wrapping_mul(31).wrapping_add(u64::from(client));
        settings.max_queue_bytes = [900, 3000, 1 << 20][(seed % 3) as usize];
        settings.max_delay = Duration::from_secs(5);
        let mut core = Core::new(settings, TokenKind::None, seed);
        core.start(Duration::ZERO);
        Self {
            core,
            handles: Vec::new(),
            publishes: Publishes::default(),
            connection: None,
            outbox: VecDeque::new(),
            inbox: VecDeque::new(),
            is_connected: false,
            node: usize::from(client),
            worker: usize::from(client),
            speed: 1 << 20,
            failures: 0,
        }
    }
}

impl Simulation {
    fn core(&mut self, client: u8) -> &mut Core {
        &mut self.clients[usize::from(client)].core
    }

    /// Does what a client wants.
    pub(super) fn act(&mut self, client: u8) -> Result<(), String> {
        let index = usize::from(client);
        while let Some(action) = self.core(client).poll_action() {
            match action {
                Action::Connect { .. } => self.connect(client),
                Action::Send(text) => self.clients[index].outbox.push_back(text),
                Action::Disconnect { .. } => self.end(client),
                Action::Ready(handle, Ok(())) => self.on_ready(client, handle)?,
                Action::Ready(_, Err(error)) if error.code() == "unsubscribed" => {}
                Action::Published(id, result) => {
                    let checked = self.clients[index].publishes.on_answer(id, result, &mut self.logs);
                    checked.map_err(|text| format!("client {client}: {text}"))?;
                }
                Action::Ready(_, Err(error)) | Action::Error(error) => {
                    return Err(format!("client {client} reports: {error}"));
                }
                Action::State(ConnectionState::Closed { reason }) => {
                    return Err(format!("client {client} is closed: {reason}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn connect(&mut self, client: u8) {
        let times = self.times;
        let view = &mut self.clients[usize::from(client)];
        let index = view.node % self.nodes.len();
        let node = self.nodes[index].as_mut().filter(|_| view.failures == 0);
        let Some(node) = node else {
            view.failures = view.failures.saturating_sub(1);
            // Another node takes its place.
            view.node += 1;
            view.core.handle(Input::Failed("the node is down".to_owned()), times.now);
            return;
        };
        view.is_connected = true;
        view.core.handle(Input::Connected, times.now);
        self.serial += 1;
        let worker = view.worker % node.workers.len();
        let key = node.open(client, (worker, view.speed, self.serial), times.started + times.now);
        view.connection = Some((index, worker, key));
    }

    /// Ends a client's connection. Texts on their way are lost.
    fn end(&mut self, client: u8) {
        self.cut(client);
        let view = &mut self.clients[usize::from(client)];
        view.outbox.clear();
        view.is_connected = false;
    }

    /// Cuts a client's connection, which the client learns next.
    pub(super) fn cut(&mut self, client: u8) {
        let view = &mut self.clients[usize::from(client)];
        if let Some((node, worker, key)) = view.connection.take() {
            if let Some(node) = &mut self.nodes[node] {
                node.close(worker, key);
            }
            view.inbox.clear();
        }
    }

    /// Tells a client that its connection has ended.
    pub(super) fn notice_end(&mut self, client: u8) -> Result<(), String> {
        let index = usize::from(client);
        if self.clients[index].is_connected && self.clients[index].connection.is_none() {
            self.end(client);
            let now = self.times.now;
            self.core(client).handle(Input::Disconnected { code: None, reason: "a cut".to_owned() }, now);
        }
        self.act(client)
    }

    /// Runs the timers of a client that are due.
    pub(super) fn pass_time(&mut self, client: u8) -> Result<(), String> {
        let now = self.times.now;
        for _ in 0..MAX_TIMERS {
            if self.core(client).next_timeout().is_none_or(|due| due > now) {
                return Ok(());
            }
            self.core(client).handle(Input::Timeout, now);
            self.act(client)?;
        }
        Err(format!("the timers of client {client} do not end"))
    }

    /// Gives a client its next text. Returns `false` if there is none.
    pub(super) fn receive(&mut self, client: u8) -> Result<bool, String> {
        let now = self.times.now;
        let Some(text) = self.clients[usize::from(client)].inbox.pop_front() else { return Ok(false) };
        self.received += 1;
        let is_delivery = text.starts_with(r#"{"type":"message""#);
        if is_broken(ModelBug::DeliveryLost) && is_delivery && self.received.is_multiple_of(64) {
            return Ok(true);
        }
        self.core(client).handle(Input::Text(&text), now);
        self.act(client).map_err(|error| format!("{error}, with {text}"))?;
        Ok(true)
    }

    /// Asks a client to publish a message.
    pub(super) fn publish_by(
        &mut self,
        client: u8,
        topic: usize,
        (bytes, is_excluded): (usize, bool),
    ) -> Result<(), String> {
        let (number, json) = self.new_message(bytes);
        let message = RawValue::from_string(json).map_err(|error| error.to_string())?;
        let mut options = PublishOptions::default();
        options.exclude_self = is_excluded;
        let now = self.times.now;
        let view = &mut self.clients[usize::from(client)];
        match view.core.publish(TOPICS[topic], &message, &options, now) {
            Ok(id) => view.publishes.on_asked((id, topic, number), is_excluded),
            Err(error) if error.code() == Error::QUEUE_FULL => {}
            Err(error) => return Err(format!("client {client} does not publish: {error}")),
        }
        self.act(client)
    }

    /// Asks a client for a handle.
    pub(super) fn subscribe(&mut self, client: u8, topic: usize, history: u32) -> Result<(), String> {
        let now = self.times.now;
        let view = &mut self.clients[usize::from(client)];
        if view.handles.len() == MAX_HANDLES {
            return Ok(());
        }
        let mut is_shared = false;
        for other in view.handles.iter_mut().filter(|other| other.topic == topic && !other.is_unsubscribed) {
            (other.is_shared, is_shared) = (true, true);
        }
        let id = view.core.subscribe(TOPICS[topic], history, None, now);
        let application = Application::new(topic);
        view.handles.push(HandleView { id, topic, application, is_shared, is_unsubscribed: false });
        self.act(client)
    }

    pub(super) fn unsubscribe(&mut self, client: u8, handle: usize) -> Result<(), String> {
        let now = self.times.now;
        let view = &mut self.clients[usize::from(client)];
        let Some(handle) = view.handles.get_mut(handle) else { return Ok(()) };
        handle.is_unsubscribed = true;
        view.core.unsubscribe(handle.id, now);
        self.act(client)
    }

    /// Notes where a handle starts that shares its first messages with no other one.
    fn on_ready(&mut self, client: u8, id: HandleId) -> Result<(), String> {
        let view = &mut self.clients[usize::from(client)];
        let Some(handle) = view.handles.iter_mut().find(|handle| handle.id == id) else { return Ok(()) };
        if let Some(position) = view.core.position(id).filter(|_| !handle.is_shared) {
            handle.application.start(position, &mut self.logs[handle.topic])?;
        }
        Ok(())
    }

    /// Lets an application take its next event. Returns `false` if there is none.
    pub(super) fn take(&mut self, client: u8, handle: usize) -> Result<bool, String> {
        let (index, now) = (usize::from(client), self.times.now);
        let view = &mut self.clients[index];
        let Some(handle_view) = view.handles.get_mut(handle) else { return Ok(false) };
        let topic = handle_view.topic;
        let event = match view.core.take(handle_view.id, now) {
            Next::Event(event) => event,
            Next::Empty => return self.act(client).map(|()| false),
            Next::Ended if handle_view.is_unsubscribed => {
                view.handles.remove(handle);
                return self.act(client).map(|()| true);
            }
            Next::Ended => return Err(describe(index, topic, "a handle has ended")),
        };
        let is_end = matches!(event, Event::State(SubscriptionState::Ended { .. }));
        if is_end != handle_view.is_unsubscribed {
            return Err(describe(index, topic, &format!("a handle is told {event:?}")));
        }
        let (log, own) = (&mut self.logs[topic], &view.publishes.excluded);
        let count = match &event {
            Event::Gap(_) if is_broken(ModelBug::GapHidden) => 0,
            Event::Message(_) if is_broken(ModelBug::EventRepeated) && now.as_millis().is_multiple_of(3) => 2,
            _ => 1,
        };
        for _ in 0..count {
            let checked = handle_view.application.on_event(&event, log, own);
            checked.map_err(|text| describe(index, topic, &format!("{text}, at {event:?}")))?;
        }
        self.act(client)?;
        Ok(true)
    }
}
