//! The plan of a run: all flags with their defaults, checked against each other.

mod recover;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub(crate) use recover::RecoverPlan;

use crate::args::{Args, MessageArgs, OutputArgs, PublisherArgs, ScenarioArgs, ServerArgs, StopArgs, Token};
use crate::error::BenchError;
use crate::scenario::{ConnectionSpec, LoadModel, Role, Scenario, StopCondition};
use crate::server_process::ServerProcess;
use crate::server_url::ServerUrl;
use crate::stamp::MAX_STREAMS;
use crate::tls::CertificateTrust;

/// The measured part of a run. Rates and latency include only messages and deliveries in this part.
/// Both times are in nanoseconds since the epoch of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeasurementWindow {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl MeasurementWindow {
    #[inline]
    pub(crate) fn contains(self, time: u64) -> bool {
        (self.from..self.to).contains(&time)
    }
}

/// The parameters of a run.
///
/// A *stream* is a sequence of numbered messages from one sender to one topic. Receivers find gaps
/// per stream, so messages to other topics do not look like losses. The number of streams is the
/// number of topics or of publishers, whichever is larger. Stream `s` belongs to publisher
/// `s % publishers` and goes to topic `s % topics`. In `echo`, each connection is a stream.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) url: ServerUrl,
    pub(crate) trust: CertificateTrust,
    pub(crate) token: Option<Token>,
    pub(crate) compression: bool,
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) connect_timeout: Duration,
    pub(crate) threads: usize,
    /// Connections that are not publishers.
    pub(crate) clients: usize,
    /// Number of clients that never read. They have the highest numbers of all clients.
    pub(crate) slow_readers: usize,
    /// Clients that are cut and return, in `recover`.
    pub(crate) recover: Option<RecoverPlan>,
    pub(crate) publishers: usize,
    pub(crate) topics: usize,
    pub(crate) size: usize,
    pub(crate) load: LoadModel,
    pub(crate) stop: StopCondition,
    pub(crate) server: Option<ServerProcess>,
}

pub(crate) const DEFAULT_DURATION: Duration = Duration::from_secs(10);
pub(crate) const DEFAULT_WARMUP: Duration = Duration::from_secs(1);
pub(crate) const DEFAULT_IN_FLIGHT: u32 = 1;
/// Default rate of `slow`, in messages per second. A closed loop waits only for subscribers that
/// read, so it would hide the cost of slow readers.
pub(crate) const DEFAULT_SLOW_RATE: u64 = 100;

impl Plan {
    /// Fills in defaults and checks flags against each other.
    ///
    /// # Errors
    ///
    /// [`BenchError::InvalidArgs`] with the flags that contradict each other, and a remedy.
    pub(crate) fn new(args: Args) -> Result<Self, BenchError> {
        let plan = match args.scenario {
            ScenarioArgs::Echo { server, connections, messages, stop, output, loss: _ } => {
                Self { clients: connections, ..Self::base(Scenario::Echo, server, output) }
                    .with_messages(&messages, &stop)
            }
            ScenarioArgs::Fanout { server, subscribers, publishers, messages, stop, output, loss: _ } => {
                let PublisherArgs { publishers } = publishers;
                Self { clients: subscribers, publishers, ..Self::base(Scenario::Fanout, server, output) }
                    .with_messages(&messages, &stop)
            }
            ScenarioArgs::Topics {
                server,
                subscribers,
                topics,
                publishers,
                messages,
                stop,
                output,
                loss: _,
            } => {
                let PublisherArgs { publishers } = publishers;
                Self {
                    clients: subscribers,
                    publishers,
                    topics,
                    ..Self::base(Scenario::Topics, server, output)
                }
                .with_messages(&messages, &stop)
            }
            ScenarioArgs::Idle { server, connections, duration, output } => {
                let stop = StopCondition::Time { warmup: Duration::ZERO, measured: duration.0 };
                Self { clients: connections, stop, ..Self::base(Scenario::Idle, server, output) }
            }
            ScenarioArgs::Churn { server, connections, duration, warmup, output } => {
                let stop = StopCondition::Time { warmup: warmup.0, measured: duration.0 };
                Self { clients: connections, stop, ..Self::base(Scenario::Churn, server, output) }
            }
            ScenarioArgs::Slow {
                server,
                subscribers,
                slow_readers,
                publishers,
                messages,
                stop,
                output,
                loss: _,
            } => {
                let PublisherArgs { publishers } = publishers;
                let clients = subscribers + slow_readers;
                Self { clients, slow_readers, publishers, ..Self::base(Scenario::Slow, server, output) }
                    .with_messages(&messages, &stop)
            }
            ScenarioArgs::Recover { server, recover, output, loss: _ } => {
                Self::base(Scenario::Recover, server, output).with_recover(&recover)
            }
        };
        plan.check().map_err(BenchError::InvalidArgs)
    }

    /// Returns a plan without connections and messages.
    fn base(scenario: Scenario, server: ServerArgs, output: OutputArgs) -> Self {
        // `json` is for the caller, who prints the report.
        let OutputArgs { json: _, server_pid } = output;
        let ServerArgs { url, token, ca, insecure, compression, source, connect_timeout, threads } = server;
        let trust = match ca {
            Some(file) => CertificateTrust::CaFile(file),
            None if insecure => CertificateTrust::AnyCertificate,
            None => CertificateTrust::System,
        };
        Self {
            scenario,
            url,
            trust,
            token,
            compression,
            sources: source,
            connect_timeout: connect_timeout.0,
            threads,
            clients: 0,
            slow_readers: 0,
            recover: None,
            publishers: 0,
            topics: 1,
            size: 0,
            load: LoadModel::ClosedLoop(DEFAULT_IN_FLIGHT),
            stop: StopCondition::Messages(0),
            server: server_pid.map(ServerProcess),
        }
    }

    /// Adds the load of a scenario with messages.
    fn with_messages(self, messages: &MessageArgs, stop: &StopArgs) -> Self {
        let load = match (messages.rate, messages.in_flight) {
            (Some(rate), _) => LoadModel::OpenLoop(rate),
            (None, Some(in_flight)) => LoadModel::ClosedLoop(in_flight),
            (None, None) if self.scenario == Scenario::Slow => LoadModel::OpenLoop(DEFAULT_SLOW_RATE),
            (None, None) => LoadModel::ClosedLoop(DEFAULT_IN_FLIGHT),
        };
        let stop = match stop.messages {
            Some(messages) => StopCondition::Messages(messages),
            None => StopCondition::Time {
                warmup: stop.warmup.map_or(DEFAULT_WARMUP, |time| time.0),
                measured: stop.duration.map_or(DEFAULT_DURATION, |time| time.0),
            },
        };
        Self { size: messages.size, load, stop, ..self }
    }

    /// Checks numbers and flags against each other.
    fn check(self) -> Result<Self, String> {
        let Self { clients, publishers, topics, threads, .. } = self;
        self.check_recover()?;
        if topics > clients && self.recover.is_none() {
            return Err(format!(
                "--topics {topics} is more than --subscribers {clients}: some topics would have no subscriber; use at \
                 least {topics} subscribers"
            ));
        }
        if self.streams() > MAX_STREAMS {
            return Err(format!(
                "{} senders or topics are too many; the maximum is {MAX_STREAMS}",
                self.streams()
            ));
        }
        // Each subscriber has a tracker for each stream of its topic.
        let trackers = clients.saturating_mul(self.streams_of_topic());
        if trackers > MAX_STREAMS && self.recover.is_none() {
            return Err(format!(
                "--subscribers {clients} with --publishers {publishers} needs {trackers} sequence trackers; the \
                 maximum is {MAX_STREAMS}: use fewer publishers"
            ));
        }
        if threads > clients + publishers {
            return Err(format!(
                "--threads {threads} is more than the {} connections: use at most one thread per connection",
                clients + publishers
            ));
        }
        if !self.url.tls && self.trust != CertificateTrust::System {
            let flag = if self.trust == CertificateTrust::AnyCertificate { "--insecure" } else { "--ca" };
            return Err(format!(
                "{flag} is for TLS, but --url {} does not use it: use a wss:// URL",
                self.url
            ));
        }
        Ok(self)
    }

    /// Returns the time to measure in a run whose load starts at `start`.
    pub(crate) fn measurement_window(&self, start: u64) -> MeasurementWindow {
        match self.stop {
            StopCondition::Messages(_) => MeasurementWindow { from: start, to: u64::MAX },
            // `SharedState` has the time at which clients return.
            StopCondition::AllReturned { .. } => MeasurementWindow { from: u64::MAX, to: u64::MAX },
            StopCondition::Time { warmup, measured } => {
                let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                let from = start.saturating_add(nanoseconds(warmup));
                MeasurementWindow { from, to: from.saturating_add(nanoseconds(measured)) }
            }
        }
    }

    /// Returns the number of streams.
    pub(crate) fn streams(&self) -> usize {
        match self.scenario {
            Scenario::Echo => self.clients,
            _ => self.publishers.max(self.topics),
        }
    }

    /// Returns the maximum number of streams of one topic.
    pub(crate) fn streams_of_topic(&self) -> usize {
        match self.scenario {
            Scenario::Echo => 1,
            _ => self.publishers.div_ceil(self.topics).max(1),
        }
    }

    /// Returns the topic of a subscriber or of a stream.
    pub(crate) fn topic_of(&self, subscriber: u32) -> u32 {
        subscriber % self.topics as u32
    }

    /// Returns the stream of a publisher's message number `turn`. A publisher rotates over its
    /// streams.
    pub(crate) fn stream_of(&self, publisher: u32, turn: u64) -> u32 {
        let turn = turn % self.streams_of_publisher(publisher);
        (u64::from(publisher) + turn * self.publishers as u64) as u32
    }

    /// Returns the number of streams of a publisher.
    pub(crate) fn streams_of_publisher(&self, publisher: u32) -> u64 {
        let (publishers, streams) = (self.publishers as u64, self.streams() as u64);
        (streams - u64::from(publisher)).div_ceil(publishers.max(1)).max(1)
    }

    /// Returns all connections in the order in which they open: subscribers before publishers.
    pub(crate) fn connection_specs(&self) -> impl Iterator<Item = ConnectionSpec> {
        let readers = self.clients - self.slow_readers;
        let returning = self.recover.as_ref().map_or(0, |recover| recover.clients);
        let role = move |number| match self.scenario {
            Scenario::Echo => Role::Echo,
            Scenario::Churn => Role::Churner,
            _ if number < returning => Role::Returner,
            _ if number < readers => Role::Subscriber,
            _ => Role::SlowReader,
        };
        let clients =
            (0..self.clients).map(move |number| ConnectionSpec { role: role(number), number: number as u32 });
        let publishers = (0..self.publishers)
            .map(|number| ConnectionSpec { role: Role::Publisher, number: number as u32 });
        clients.chain(publishers)
    }

    /// Returns the number of connections that send messages.
    pub(crate) fn senders(&self) -> usize {
        if self.scenario == Scenario::Echo { self.clients } else { self.publishers }
    }

    /// Returns the maximum number of messages of a sender.
    pub(crate) fn max_messages(&self, sender: u32) -> u64 {
        let StopCondition::Messages(messages) = self.stop else { return u64::MAX };
        let senders = self.senders().max(1) as u64;
        messages / senders + u64::from(u64::from(sender) < messages % senders)
    }

    /// Returns the local address of connection `number`, or `None` to leave it to the system.
    pub(crate) fn source(&self, number: usize) -> Option<SocketAddr> {
        let at = number.checked_rem(self.sources.len())?;
        self.sources.get(at).map(|ip| SocketAddr::new(*ip, 0))
    }
}

#[cfg(test)]
pub(crate) mod tests;
