//! Command-line flags of each scenario.

mod recover;

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use deeperhub_args::{Time, whole};

pub(crate) use recover::RecoverArgs;

use crate::error::BenchError;
use crate::plan::{DEFAULT_DURATION, DEFAULT_IN_FLIGHT, DEFAULT_SLOW_RATE, DEFAULT_WARMUP};
use crate::server_url::ServerUrl;
use crate::stamp::{MAX_STREAMS, MIN_PAYLOAD_BYTES};

const SERVER: &str = "Server";
const LOAD: &str = "Load";
const DURATION: &str = "Duration";
const OUTPUT: &str = "Output";

const MAX_CONNECTIONS: u64 = 1_000_000;
const MAX_STREAMS_U64: u64 = MAX_STREAMS as u64;
/// Maximum size of messages. Far above any practical `--max-message-bytes` of a server.
const MAX_SIZE_BYTES: u64 = 1 << 24;
const MAX_RATE_PER_SECOND: u64 = 100_000_000;

/// A scenario and its flags.
///
/// Parse it from flags with [`Self::from_flags`], or add it to a command line of your own with
/// clap's derive macros: `Bench(deeperhub_bench::Args)` as a variant of a `Subcommand`.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "bench",
    about = "Measure a DeeperHub server: rates, latency, loss",
    long_about = None,
    disable_help_subcommand = true
)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) scenario: ScenarioArgs,
}

impl Args {
    /// Parses flags. The first one is the name of the scenario: `echo`, `fanout`, `topics`, `idle`,
    /// `churn`, `slow` or `recover`. `deeperhub-ws bench SCENARIO --help` lists the flags of each.
    ///
    /// # Errors
    ///
    /// [`BenchError::InvalidArgs`] with the name of the flag and the values that it takes.
    pub fn from_flags<F: Into<OsString>>(flags: impl IntoIterator<Item = F>) -> Result<Self, BenchError> {
        let name = std::iter::once(OsString::from("bench"));
        Self::try_parse_from(name.chain(flags.into_iter().map(Into::into))).map_err(|error| {
            let text = error.to_string();
            BenchError::InvalidArgs(text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned())
        })
    }

    /// Returns `true` if `--json` is set: the caller should print the report as JSON.
    pub fn prints_json(&self) -> bool {
        self.scenario.output().json
    }

    /// Returns `true` if `--fail-on-loss` is set: the caller should treat faults as a failure.
    pub fn fails_on_loss(&self) -> bool {
        match &self.scenario {
            ScenarioArgs::Echo { loss, .. }
            | ScenarioArgs::Fanout { loss, .. }
            | ScenarioArgs::Topics { loss, .. }
            | ScenarioArgs::Slow { loss, .. }
            | ScenarioArgs::Recover { loss, .. } => loss.fail_on_loss,
            ScenarioArgs::Idle { .. } | ScenarioArgs::Churn { .. } => false,
        }
    }
}

/// The scenarios, each with the flags that it takes.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum ScenarioArgs {
    /// Round trips: each connection sends messages and gets them back
    Echo {
        #[command(flatten)]
        server: ServerArgs,
        /// Number of connections
        #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "100", help_heading = LOAD)]
        connections: usize,
        #[command(flatten)]
        messages: MessageArgs,
        #[command(flatten)]
        stop: StopArgs,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        loss: LossArgs,
    },
    /// One topic: every subscriber gets every message
    Fanout {
        #[command(flatten)]
        server: ServerArgs,
        /// Number of subscribers
        #[arg(long, value_name = "N", visible_alias = "connections", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "100", help_heading = LOAD)]
        subscribers: usize,
        #[command(flatten)]
        publishers: PublisherArgs,
        #[command(flatten)]
        messages: MessageArgs,
        #[command(flatten)]
        stop: StopArgs,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        loss: LossArgs,
    },
    /// Many topics: publishers rotate over them, each subscriber has one
    Topics {
        #[command(flatten)]
        server: ServerArgs,
        /// Number of subscribers, each subscribed to one topic
        #[arg(long, value_name = "N", visible_alias = "connections", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "100", help_heading = LOAD)]
        subscribers: usize,
        /// Number of topics; at most as many as subscribers
        #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "100", help_heading = LOAD)]
        topics: usize,
        #[command(flatten)]
        publishers: PublisherArgs,
        #[command(flatten)]
        messages: MessageArgs,
        #[command(flatten)]
        stop: StopArgs,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        loss: LossArgs,
    },
    /// Idle connections: open, subscribe, stay open
    Idle {
        #[command(flatten)]
        server: ServerArgs,
        /// Number of connections
        #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "1000", help_heading = LOAD)]
        connections: usize,
        /// Time to keep the connections open after the last one opened
        #[arg(long, value_name = "TIME", value_parser = nonzero_time, default_value = "10s", help_heading = DURATION)]
        duration: Time,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Connection churn: connect, subscribe, close, repeat
    Churn {
        #[command(flatten)]
        server: ServerArgs,
        /// Number of concurrent connections
        #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "50", help_heading = LOAD)]
        connections: usize,
        /// Measured time
        #[arg(long, value_name = "TIME", value_parser = nonzero_time, default_value = "10s", help_heading = DURATION)]
        duration: Time,
        /// Time under load before the measurement
        #[arg(long, value_name = "TIME", default_value = "1s", help_heading = DURATION)]
        warmup: Time,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// One topic with slow consumers: some subscribers never read
    Slow {
        #[command(flatten)]
        server: ServerArgs,
        /// Number of subscribers that read
        #[arg(long, value_name = "N", visible_alias = "connections", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "100", help_heading = LOAD)]
        subscribers: usize,
        /// Number of subscribers that never read
        ///
        /// Their receive buffers are small, so that the server's queues fill up soon.
        #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "10", help_heading = LOAD)]
        slow_readers: usize,
        #[command(flatten)]
        publishers: PublisherArgs,
        #[command(flatten)]
        messages: MessageArgs,
        #[command(flatten)]
        stop: StopArgs,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        loss: LossArgs,
    },
    /// Topics with history: clients are cut, miss messages, and return in a storm
    ///
    /// The topics `bench.>` need a history: start the server with `--topic 'bench.>: history=1000'`.
    Recover {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        recover: RecoverArgs,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        loss: LossArgs,
    },
}

impl ScenarioArgs {
    fn output(&self) -> &OutputArgs {
        match self {
            Self::Echo { output, .. }
            | Self::Fanout { output, .. }
            | Self::Topics { output, .. }
            | Self::Idle { output, .. }
            | Self::Churn { output, .. }
            | Self::Slow { output, .. }
            | Self::Recover { output, .. } => output,
        }
    }
}

/// The server and how to connect to it.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct ServerArgs {
    /// WebSocket URL of the server
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/", help_heading = SERVER)]
    pub(crate) url: ServerUrl,

    /// Token that every connection sends as `Authorization: Bearer TOKEN`
    ///
    /// Other users of this machine can read flags: use a token that was made for this run.
    #[arg(long, value_name = "TOKEN", value_parser = token, help_heading = SERVER)]
    pub(crate) token: Option<Token>,

    /// PEM file of the certificate authorities to trust for wss:// [default: the system's]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "insecure", help_heading = SERVER)]
    pub(crate) ca: Option<PathBuf>,

    /// Accept any certificate; for test certificates only
    #[arg(long, help_heading = SERVER)]
    pub(crate) insecure: bool,

    /// Offer permessage-deflate and read compressed messages
    #[arg(long, help_heading = SERVER)]
    pub(crate) compression: bool,

    /// Local address to connect from; repeatable, connections rotate over the addresses
    ///
    /// One local address has about 28,000 ports for one address and port of a server. On loopback,
    /// 127.0.0.2, 127.0.0.3 and so on work without setup.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', help_heading = SERVER)]
    pub(crate) source: Vec<IpAddr>,

    /// Timeout for opening a connection: connect, handshake and subscribe
    #[arg(long, value_name = "TIME", value_parser = nonzero_time, default_value = "10s", help_heading = SERVER)]
    pub(crate) connect_timeout: Time,

    /// Number of threads of the bench
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, 256), default_value = "1", help_heading = SERVER)]
    pub(crate) threads: usize,
}

/// The number of publishers.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct PublisherArgs {
    /// Number of publishers
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_STREAMS_U64), default_value = "1", help_heading = LOAD)]
    pub(crate) publishers: usize,
}

const IN_FLIGHT_DETAILS: &str = "\
A sender sends its next message when all deliveries of an earlier one have arrived. Finds the \
maximum throughput of a server; says nothing about latency under a given load.";

fn in_flight_summary() -> String {
    format!("Closed loop: messages that each sender keeps in flight [default: {DEFAULT_IN_FLIGHT}]")
}

const RATE_DETAILS: &str = "\
Latency counts from the time at which a message was due, so that a stall of the server is not hidden.";

fn rate_summary() -> String {
    format!("Open loop: messages per second of all senders together [default of `slow`: {DEFAULT_SLOW_RATE}]")
}

/// The size of messages and their rate.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct MessageArgs {
    /// Bytes of JSON in each message
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(MIN_PAYLOAD_BYTES as u64, MAX_SIZE_BYTES), default_value = "128", help_heading = LOAD)]
    pub(crate) size: usize,

    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, 1_000_000), conflicts_with = "rate", help = in_flight_summary(), long_help = format!("{}\n\n{IN_FLIGHT_DETAILS}", in_flight_summary()), help_heading = LOAD)]
    pub(crate) in_flight: Option<u32>,

    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, MAX_RATE_PER_SECOND), help = rate_summary(), long_help = format!("{}\n\n{RATE_DETAILS}", rate_summary()), help_heading = LOAD)]
    pub(crate) rate: Option<u64>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct StopArgs {
    /// Stop after this many messages of all senders together, instead of after a time
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, 1 << 39), conflicts_with_all = ["duration", "warmup"], help_heading = DURATION)]
    pub(crate) messages: Option<u64>,

    #[arg(long, value_name = "TIME", value_parser = nonzero_time, help = format!("Measured time [default: {}]", Time(DEFAULT_DURATION)), help_heading = DURATION)]
    pub(crate) duration: Option<Time>,

    #[arg(long, value_name = "TIME", help = format!("Time under load before the measurement [default: {}]", Time(DEFAULT_WARMUP)), help_heading = DURATION)]
    pub(crate) warmup: Option<Time>,
}

/// The form and the parts of the report.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct OutputArgs {
    /// Print one JSON object instead of text
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) json: bool,

    /// Process id of a server on this machine: adds its CPU time and memory to the report; Linux
    /// only
    #[arg(long, value_name = "PID", value_parser = whole::<u32>(1, u32::MAX as u64), help_heading = OUTPUT)]
    pub(crate) server_pid: Option<u32>,
}

/// The exit code for faults.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct LossArgs {
    /// Exit with 1 if messages were lost, duplicated or out of order
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) fail_on_loss: bool,
}

/// A bearer token. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Parses the `b64token` of RFC 6750 section 2.1.
fn token(text: &str) -> Result<Token, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !text.is_empty() && text.bytes().all(allowed) {
        Ok(Token(text.to_owned()))
    } else {
        Err("expected a token such as `deeperhub-ws token` prints, of A-Z a-z 0-9 - . _ ~ + / =".to_owned())
    }
}

/// Parses a duration other than 0.
fn nonzero_time(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    if time.0.is_zero() { Err("expected a duration longer than 0, such as 10s".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests;
