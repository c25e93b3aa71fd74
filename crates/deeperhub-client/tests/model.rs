//! Random orders of events against a hub in memory: each message once, in order, or told missing.

#[path = "model/application.rs"]
mod application;
#[path = "model/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use application::Application;
use deeperhub_client::core::{
    Action, ConnectionState, Core, HandleId, Input, Next, PublishOptions, RequestId, Settings, TokenKind,
};
use proptest::prelude::*;
use serde_json::value::to_raw_value;
use server::Server;

const TOPICS: [&str; 2] = ["chat.1", "chat.2"];

/// A step of a run.
#[derive(Debug, Clone)]
enum Step {
    /// A backend publishes.
    Publish(usize),
    ClientPublishes {
        topic: usize,
        exclude_self: bool,
    },
    ServerReads(u8),
    ClientReads(u8),
    Take {
        handle: usize,
        events: u8,
    },
    Wait(u16),
    Cut,
    Refuse,
    Repeat,
    LoseDelivery,
    Unavailable,
    Trim(usize),
    Renew(usize),
    Join(u32),
    Unsubscribe(usize),
}

/// Returns steps. Without `lossy`, nothing is lost for good, so no gap may be told.
fn step(lossy: bool) -> impl Strategy<Value = Step> {
    let unless = move |lossy_step: Step, topic| if lossy { lossy_step } else { Step::Publish(topic) };
    prop_oneof![
        8 => (0..2usize).prop_map(Step::Publish),
        4 => (0..2usize, any::<bool>())
            .prop_map(|(topic, exclude_self)| Step::ClientPublishes { topic, exclude_self }),
        10 => (1..6u8).prop_map(Step::ServerReads),
        10 => (1..6u8).prop_map(Step::ClientReads),
        8 => (0..6usize, 1..8u8).prop_map(|(handle, events)| Step::Take { handle, events }),
        6 => (1..3000u16).prop_map(Step::Wait),
        2 => Just(Step::Cut),
        1 => Just(Step::Refuse),
        2 => Just(Step::Repeat),
        1 => Just(Step::LoseDelivery),
        1 => Just(Step::Unavailable),
        1 => (0..2usize).prop_map(move |topic| unless(Step::Trim(topic), topic)),
        1 => (0..2usize).prop_map(move |topic| unless(Step::Renew(topic), topic)),
        1 => (0..5u32).prop_map(Step::Join),
        1 => (0..6usize).prop_map(Step::Unsubscribe),
    ]
}

struct Run {
    core: Core,
    server: Server,
    now: Duration,
    handles: Vec<(HandleId, Application)>,
    is_refusing: bool,
    bodies: u64,
    /// Publishes of the client without a result.
    open: BTreeMap<RequestId, u64>,
    /// Bodies whose publish succeeded.
    published: Vec<u64>,
    holes: u32,
    /// The messages on the wire and the events, in their order.
    trace: Vec<String>,
}

/// Prints what happened in a run that failed, if the variable is set. The last one is the shortest.
impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("DEEPERHUB_MODEL_TRACE").is_some() {
            eprintln!("run:\n{}", self.trace.join("\n"));
        }
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut settings = Settings::default();
        settings.max_queue_bytes = 900;
        let mut core = Core::new(settings, TokenKind::None, seed);
        core.start(Duration::ZERO);
        let mut run = Self {
            core,
            server: Server::default(),
            now: Duration::ZERO,
            handles: Vec::new(),
            is_refusing: false,
            bodies: 0,
            open: BTreeMap::new(),
            published: Vec::new(),
            holes: 0,
            trace: Vec::new(),
        };
        for topic in [0, 0, 1] {
            run.subscribe(topic, 0);
        }
        run.act();
        run
    }

    fn subscribe(&mut self, topic: usize, history: u32) {
        let is_later = self.core.state() != &ConnectionState::Connecting;
        let id = self.core.subscribe(TOPICS[topic], history, None, self.now);
        self.handles.push((id, Application::new(TOPICS[topic], history > 0 || is_later)));
    }

    /// Does what the core wants.
    fn act(&mut self) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Connect { .. } => {
                    let input = if std::mem::take(&mut self.is_refusing) {
                        Input::Refused {
                            status: 503,
                            retry_after: Some(Duration::from_secs(1)),
                            reason: String::new(),
                        }
                    } else {
                        self.server.connect();
                        Input::Connected
                    };
                    self.core.handle(input, self.now);
                }
                Action::Send(text) => {
                    self.trace.push(format!("client: {text}"));
                    self.server.inbox.push_back(text);
                }
                Action::Disconnect { .. } => self.server.cut(),
                Action::Published(id, result) => {
                    let body = self.open.remove(&id).expect("the publish is open");
                    match result {
                        Ok(_) => self.published.push(body),
                        Err(error) => assert_eq!(error.code(), "timeout", "{error}"),
                    }
                }
                Action::Error(error) => {
                    assert_eq!(error.code(), "hole", "{error}");
                    self.holes += 1;
                }
                Action::Ready(_, Err(error)) => assert_eq!(error.code(), "unsubscribed", "{error}"),
                _ => {}
            }
        }
    }

    fn read(&mut self) -> bool {
        let Some(text) = self.server.outbox.pop_front() else { return false };
        self.trace.push(format!("server: {text}"));
        self.core.handle(Input::Text(&text), self.now);
        self.act();
        true
    }

    fn take(&mut self, handle: usize) -> bool {
        let index = handle % self.handles.len();
        let (id, application) = &mut self.handles[index];
        match self.core.take(*id, self.now) {
            Next::Event(event) => {
                self.trace.push(format!("handle {index}: {event:?}"));
                application.on_event(&event, &self.server);
            }
            Next::Empty => return false,
            Next::Ended => {
                application.is_ended = true;
                return false;
            }
        }
        assert!(self.core.queued_bytes(*id) <= 1500, "the queue is bounded");
        self.act();
        true
    }

    /// Lets time pass, timer by timer.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.next_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.core.handle(Input::Timeout, self.now);
            self.act();
        }
        self.now = end;
    }

    fn step(&mut self, step: &Step) {
        self.trace.push(format!("step: {step:?}"));
        match *step {
            Step::Publish(topic) => {
                self.bodies += 1;
                self.server.publish(TOPICS[topic], self.bodies, "backend", false);
            }
            Step::ClientPublishes { topic, exclude_self } => {
                self.bodies += 1;
                let mut options = PublishOptions::default();
                options.exclude_self = exclude_self;
                let message = to_raw_value(&self.bodies).expect("it is JSON");
                if let Ok(id) = self.core.publish(TOPICS[topic], &message, &options, self.now) {
                    self.open.insert(id, self.bodies);
                }
            }
            Step::ServerReads(messages) => (0..messages).for_each(|_| self.server.read()),
            Step::ClientReads(messages) => (0..messages).for_each(|_| {
                self.read();
            }),
            Step::Take { handle, events } => (0..events).for_each(|_| {
                self.take(handle);
            }),
            Step::Wait(milliseconds) => self.wait(Duration::from_millis(milliseconds.into())),
            Step::Cut => self.cut(),
            Step::Refuse => self.is_refusing = true,
            Step::Repeat => self.server.repeat(),
            Step::LoseDelivery => self.server.lose_delivery(),
            Step::Unavailable => self.server.is_unavailable = true,
            Step::Trim(topic) => self.server.trim(TOPICS[topic], 2),
            Step::Renew(topic) => self.server.renew(TOPICS[topic]),
            Step::Join(history) if self.handles.len() < 6 => self.subscribe(0, history),
            Step::Join(_) => {}
            Step::Unsubscribe(handle) => {
                let index = handle % self.handles.len();
                self.core.unsubscribe(self.handles[index].0, self.now);
            }
        }
        self.act();
    }

    fn cut(&mut self) {
        self.server.cut();
        self.core.handle(Input::Disconnected { code: None, reason: "cut".to_owned() }, self.now);
        self.act();
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        self.is_refusing = false;
        self.server.is_unavailable = false;
        // A message that was lost last shows only when the next one comes.
        self.cut();
        for _ in 0..60 {
            self.wait(Duration::from_secs(1));
            loop {
                self.server.read();
                let mut is_busy = self.read() || !self.server.inbox.is_empty();
                for handle in 0..self.handles.len() {
                    is_busy |= self.take(handle);
                }
                if !is_busy {
                    break;
                }
            }
        }
    }

    fn check(&self) {
        for (id, application) in &self.handles {
            if !application.is_ended {
                application.finish(&self.server);
                assert_eq!(self.core.queued_bytes(*id), 0);
            }
        }
        assert!(self.open.is_empty(), "all publishes have a result");
        for body in &self.published {
            let stored = self.server.client_bodies.get(body).copied().unwrap_or(0);
            // A history that is emptied forgets `once` too.
            assert!(
                stored == 1 || stored > 1 && self.server.forgot_once,
                "publish {body} was stored {stored} times"
            );
        }
    }
}

fn run(seed: u64, steps: &[Step]) -> Run {
    let mut run = Run::new(seed);
    for step in steps {
        run.step(step);
    }
    run.settle();
    run.check();
    run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_message_comes_once_and_in_order(seed: u64, steps in prop::collection::vec(step(false), 1..150)) {
        let run = run(seed, &steps);
        for (_, application) in &run.handles {
            prop_assert!(application.gaps.is_empty(), "nothing was lost, but told: {:?}", application.gaps);
        }
    }

    #[test]
    fn each_missing_message_is_told(seed: u64, steps in prop::collection::vec(step(true), 1..150)) {
        run(seed, &steps);
    }
}

#[test]
fn the_same_seed_causes_the_same_actions() {
    let texts = |seed| {
        let mut core = Core::new(Settings::default(), TokenKind::None, seed);
        core.start(Duration::ZERO);
        for attempt in 0..5 {
            core.handle(Input::Failed("refused".to_owned()), core.next_timeout().unwrap_or_default());
            core.handle(Input::Timeout, core.next_timeout().unwrap_or_default());
            assert!(core.next_timeout().is_some(), "attempt {attempt}");
        }
        std::iter::from_fn(move || core.poll_action()).map(|action| format!("{action:?}")).collect::<Vec<_>>()
    };
    assert_eq!(texts(7), texts(7));
    assert_ne!(texts(7), texts(8));
}

#[test]
fn the_model_meets_faults() {
    // The checks above mean nothing if runs have neither messages nor holes.
    let steps = [
        Step::ClientReads(1),
        Step::ServerReads(5),
        Step::ClientReads(5),
        Step::Publish(0),
        Step::Publish(0),
        Step::LoseDelivery,
        Step::ClientReads(5),
        Step::ClientPublishes { topic: 0, exclude_self: true },
        Step::ServerReads(5),
        Step::Cut,
    ];
    let run = run(1, &steps);
    assert_eq!(run.holes, 1);
    assert_eq!(run.handles[0].1.messages(), 2);
    assert_eq!(run.published.len(), 1);
}
