//! A real client: its core, and what drives it.

use std::collections::VecDeque;
use std::time::Duration;

use deeperhub_client::core::{
    Action, ConnectionState, Core, HandleId, Input, Next, PublishOptions, Settings, TokenKind,
};
use deeperhub_client::{Error, Event, SubscriptionState};
use serde_json::value::RawValue;

use super::super::topics::TOPICS;
use super::application::Application;
use super::plants::{GlueBug, is_loose};
use super::publishes::Publishes;
use super::{CLIENTS, ClientOperation, Progress, Surroundings};

/// Timers of a client at one time.
const MAX_TIMERS: usize = 1000;

/// Exchanges of texts between two looks at the clients.
const MAX_EXCHANGES: usize = 200;

/// A client with its applications.
#[derive(Debug)]
pub(in super::super) struct CoreClient {
    pub(in super::super) core: Core,
    pub(in super::super) handles: Vec<HandleView>,
    pub(in super::super) publishes: Publishes,
    /// Texts on their way to the node.
    pub(in super::super) outbox: VecDeque<String>,
    /// The core knows of a connection.
    is_connected: bool,
    /// Number of texts that the client was given.
    received: usize,
    /// Bytes that the socket of the next connection takes per round.
    pub(in super::super) speed: usize,
    /// Number of attempts to connect that are to fail.
    pub(in super::super) failures: u8,
}

/// A handle and its application.
#[derive(Debug)]
pub(in super::super) struct HandleView {
    pub(in super::super) id: HandleId,
    pub(in super::super) topic: usize,
    pub(in super::super) application: Application,
    /// Another handle has joined before this one was ready, so their first messages differ.
    is_shared: bool,
    is_unsubscribed: bool,
    /// An event that a bug holds back.
    withheld: Option<Event>,
}

impl CoreClient {
    pub(in super::super) fn new(seed: u64, client: u8) -> Self {
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
            outbox: VecDeque::new(),
            is_connected: false,
            received: 0,
            speed: 1 << 20,
            failures: 0,
        }
    }
}

/// The behaviour of clients and their applications, wherever they run.
pub(in super::super) trait RealClients: Surroundings {
    fn client(&mut self, client: u8) -> &mut CoreClient {
        &mut self.parts().0[usize::from(client)]
    }

    /// Lets a client handle an input.
    fn tell(&mut self, client: u8, input: Input<'_>) {
        let now = self.time();
        self.client(client).core.handle(input, now);
    }

    /// Does an operation of a client or its applications.
    fn apply_to_client(&mut self, operation: ClientOperation) -> Result<(), String> {
        match operation {
            ClientOperation::Publish { client, topic, bytes, is_excluded, count } => {
                for _ in 0..count {
                    self.publish_by(client, topic, (bytes, is_excluded))?;
                }
            }
            ClientOperation::Subscribe { client, topic, history } => {
                self.subscribe(client, topic, history)?;
            }
            ClientOperation::Unsubscribe { client, handle } => self.unsubscribe(client, handle.into())?,
            ClientOperation::Take { client, handle, count } => {
                for _ in 0..count {
                    self.take(client, handle.into())?;
                }
            }
            ClientOperation::Execute { client, count } => {
                for _ in 0..count {
                    self.execute_next(client)?;
                }
            }
            ClientOperation::Receive { client, count } => {
                for _ in 0..count {
                    self.receive(client)?;
                }
            }
            ClientOperation::Cut { client } => self.cut(client),
        }
        Ok(())
    }

    /// Does what a client wants.
    fn act(&mut self, client: u8) -> Result<(), String> {
        while let Some(action) = self.client(client).core.poll_action() {
            match action {
                Action::Connect { .. } => self.connect(client),
                Action::Send(text) => self.client(client).outbox.push_back(text),
                Action::Disconnect { .. } => self.end(client),
                Action::Ready(handle, Ok(())) => self.on_ready(client, handle)?,
                Action::Ready(_, Err(error)) if error.code() == "unsubscribed" => {}
                Action::Published(id, result) => {
                    let answered = self.client(client).publishes.on_answer(id, result);
                    let checked = answered.and_then(|acknowledged| match acknowledged {
                        Some(acknowledged) => self.check_acknowledged(&acknowledged),
                        None => Ok(()),
                    });
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
        let input = match self.open(client) {
            Ok(()) => {
                self.client(client).is_connected = true;
                Input::Connected
            }
            Err(failure) => failure,
        };
        self.tell(client, input);
    }

    /// Ends a client's connection. Texts on their way are lost.
    fn end(&mut self, client: u8) {
        self.cut(client);
        let view = self.client(client);
        view.outbox.clear();
        view.is_connected = false;
    }

    /// Tells a client that its connection has ended.
    fn notice_end(&mut self, client: u8) -> Result<(), String> {
        if self.client(client).is_connected && !self.is_open(client) {
            self.end(client);
            self.tell(client, Input::Disconnected { code: None, reason: "a cut".to_owned() });
        }
        self.act(client)
    }

    /// Runs the timers of a client that are due.
    fn pass_time(&mut self, client: u8) -> Result<(), String> {
        let now = self.time();
        for _ in 0..MAX_TIMERS {
            if self.client(client).core.next_timeout().is_none_or(|due| due > now) {
                return Ok(());
            }
            self.tell(client, Input::Timeout);
            self.act(client)?;
        }
        Err(format!("the timers of client {client} do not end"))
    }

    /// Gives a client its next text. Returns `false` if there is none.
    fn receive(&mut self, client: u8) -> Result<bool, String> {
        let Some(text) = self.next_text(client) else { return Ok(false) };
        let view = self.client(client);
        view.received += 1;
        let is_delivery = text.starts_with(r#"{"type":"message""#);
        if is_loose(GlueBug::DeliveryLost) && is_delivery && view.received.is_multiple_of(16) {
            return Ok(true);
        }
        self.tell(client, Input::Text(&text));
        self.act(client).map_err(|error| format!("{error}, with {text}"))?;
        Ok(true)
    }

    /// Asks a client to publish a message.
    fn publish_by(
        &mut self,
        client: u8,
        topic: usize,
        (bytes, is_excluded): (usize, bool),
    ) -> Result<(), String> {
        let (number, json) = self.new_message(bytes);
        let message = RawValue::from_string(json).map_err(|error| error.to_string())?;
        let mut options = PublishOptions::default();
        options.exclude_self = is_excluded;
        let now = self.time();
        let view = self.client(client);
        match view.core.publish(TOPICS[topic], &message, &options, now) {
            Ok(id) => view.publishes.on_asked((id, topic, number), is_excluded),
            Err(error) if error.code() == Error::QUEUE_FULL => {}
            Err(error) => return Err(format!("client {client} does not publish: {error}")),
        }
        self.act(client)
    }

    /// Asks a client for a handle.
    fn subscribe(&mut self, client: u8, topic: usize, history: u32) -> Result<(), String> {
        let now = self.time();
        let view = self.client(client);
        if view.handles.len() == Self::MAX_HANDLES {
            return Ok(());
        }
        let mut is_shared = false;
        for other in view.handles.iter_mut().filter(|other| other.topic == topic && !other.is_unsubscribed) {
            (other.is_shared, is_shared) = (true, true);
        }
        let id = view.core.subscribe(TOPICS[topic], history, None, now);
        let application = Application::new(Self::is_lossless(topic));
        let is_unsubscribed = false;
        view.handles.push(HandleView { id, topic, application, is_shared, is_unsubscribed, withheld: None });
        self.act(client)
    }

    fn unsubscribe(&mut self, client: u8, handle: usize) -> Result<(), String> {
        let now = self.time();
        let view = self.client(client);
        let Some(handle) = view.handles.get_mut(handle) else { return Ok(()) };
        (handle.is_unsubscribed, handle.withheld) = (true, None);
        view.core.unsubscribe(handle.id, now);
        self.act(client)
    }

    /// Notes where a handle starts that shares its first messages with no other one.
    fn on_ready(&mut self, client: u8, id: HandleId) -> Result<(), String> {
        let (clients, logs) = self.parts();
        let CoreClient { core, handles, .. } = &mut clients[usize::from(client)];
        let Some(handle) = handles.iter_mut().find(|handle| handle.id == id) else { return Ok(()) };
        if let Some(position) = core.position(id).filter(|_| !handle.is_shared) {
            handle.application.start(position, &mut logs[handle.topic])?;
        }
        Ok(())
    }

    /// Lets an application take its next event. Returns `false` if there is none.
    fn take(&mut self, client: u8, handle: usize) -> Result<bool, String> {
        let (index, now) = (usize::from(client), self.time());
        let (clients, logs) = self.parts();
        let CoreClient { core, handles, publishes, .. } = &mut clients[index];
        let Some(view) = handles.get_mut(handle) else { return Ok(false) };
        let topic = view.topic;
        let event = match core.take(view.id, now) {
            Next::Event(event) => event,
            Next::Empty => return self.act(client).map(|()| false),
            Next::Ended if view.is_unsubscribed => {
                handles.remove(handle);
                return self.act(client).map(|()| true);
            }
            Next::Ended => return Err(describe(index, topic, "a handle has ended")),
        };
        let is_end = matches!(event, Event::State(SubscriptionState::Ended { .. }));
        if is_end != view.is_unsubscribed {
            return Err(describe(index, topic, &format!("a handle is told {event:?}")));
        }
        for event in handed(event, &mut view.withheld, now) {
            let checked = view.application.on_event(&event, &mut logs[topic], &publishes.excluded);
            checked.map_err(|text| describe(index, topic, &format!("{text}, at {event:?}")))?;
        }
        self.act(client)?;
        Ok(true)
    }

    /// Tells all clients what ended, and the time.
    fn notice(&mut self) -> Result<(), String> {
        for client in 0..CLIENTS {
            self.notice_end(client)?;
            self.pass_time(client)?;
        }
        Ok(())
    }

    /// Moves all texts and events that wait.
    fn exchange(&mut self) -> Result<(), String> {
        for _ in 0..MAX_EXCHANGES {
            let mut is_busy = false;
            for client in 0..CLIENTS {
                while self.execute_next(client)? {
                    is_busy = true;
                }
            }
            is_busy |= self.work()?;
            self.notice()?;
            for client in 0..CLIENTS {
                while self.receive(client)? {
                    is_busy = true;
                }
                for handle in 0..self.client(client).handles.len() {
                    while self.take(client, handle)? {
                        is_busy = true;
                    }
                }
            }
            if !is_busy {
                return Ok(());
            }
        }
        Err("texts and events do not end".to_owned())
    }

    /// Lets all clients arrive, as `check` says.
    fn converge(&mut self, check: impl Fn(&mut Self) -> Result<(), String>) -> Result<(), String> {
        let mut is_converged = Ok(());
        for _ in 0..Self::LAST_SECONDS {
            self.pass_second()?;
            self.exchange()?;
            is_converged = check(self);
            if is_converged.is_ok() {
                break;
            }
        }
        is_converged
    }

    /// Returns what has happened.
    fn progress(&mut self) -> Progress {
        let mut progress = Progress::default();
        for client in self.parts().0 {
            progress.acknowledgements += client.publishes.acknowledgements;
            client.handles.iter().for_each(|handle| progress.add(&handle.application.progress));
        }
        progress
    }
}

impl<S: Surroundings> RealClients for S {}

/// Adds a client and a topic to a text.
pub(in super::super) fn describe(client: usize, topic: usize, text: &str) -> String {
    format!("client {client}, {}: {text}", TOPICS[topic])
}

/// Returns the events that a bug hands over in place of one.
fn handed(event: Event, withheld: &mut Option<Event>, now: Duration) -> Vec<Event> {
    let is_message = matches!(event, Event::Message(_));
    let is_chosen = now.as_millis().is_multiple_of(3);
    match event {
        event if is_loose(GlueBug::EventRepeated) && is_message && is_chosen => vec![event.clone(), event],
        Event::Gap(_) if is_loose(GlueBug::GapHidden) => Vec::new(),
        event if is_loose(GlueBug::EventsSwapped) && is_message => match withheld.take() {
            Some(earlier) => vec![event, earlier],
            None if is_chosen => {
                *withheld = Some(event);
                Vec::new()
            }
            None => vec![event],
        },
        event => vec![event],
    }
}
