//! The flags of each scenario, as typed.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::server_url::ServerUrl;
use crate::stamp::{MAX_STREAMS, MIN_PAYLOAD_BYTES};
use deeperhub_args::{Time, whole};

const SERVER: &str = "Server";
const LOAD: &str = "Load";
const STOP: &str = "How long";
const OUTPUT: &str = "Output";

const MAX_CONNECTIONS: u64 = 1_000_000;
const MAX_STREAMS_U64: u64 = MAX_STREAMS as u64;
/// Well above any `max_message_bytes` that makes sense, and what a frame of ours may be in memory.
const MAX_SIZE_BYTES: u64 = 1 << 24;
const MAX_RATE_PER_SECOND: u64 = 100_000_000;

/// What to do to the server.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum Bench {
    /// Round trips: each connection sends messages and gets them back
    Echo {
        #[command(flatten)]
        server: ServerArgs,
        /// Connections
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
        /// Connections that subscribe
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
    /// Many topics: publishers take turns over them, each subscriber has one
    Topics {
        #[command(flatten)]
        server: ServerArgs,
        /// Connections that subscribe, to one topic each
        #[arg(long, value_name = "N", visible_alias = "connections", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "100", help_heading = LOAD)]
        subscribers: usize,
        /// Topics; at most as many as subscribers
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
    /// Connections that do nothing: opened, subscribed, held
    Idle {
        #[command(flatten)]
        server: ServerArgs,
        /// Connections
        #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "1000", help_heading = LOAD)]
        connections: usize,
        /// Time for which they are held once all are open
        #[arg(long, value_name = "TIME", value_parser = some_time, default_value = "10s", help_heading = STOP)]
        duration: Time,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Connect, subscribe, close, again and again
    Churn {
        #[command(flatten)]
        server: ServerArgs,
        /// Connections at a time
        #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "50", help_heading = LOAD)]
        connections: usize,
        /// Time that is measured
        #[arg(long, value_name = "TIME", value_parser = some_time, default_value = "10s", help_heading = STOP)]
        duration: Time,
        /// Time before it
        #[arg(long, value_name = "TIME", default_value = "1s", help_heading = STOP)]
        warmup: Time,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// One topic of which some subscribers never read
    Slow {
        #[command(flatten)]
        server: ServerArgs,
        /// Connections that subscribe and read
        #[arg(long, value_name = "N", visible_alias = "connections", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "100", help_heading = LOAD)]
        subscribers: usize,
        /// Connections that subscribe and never read
        ///
        /// Their receive buffers are small, so that the server soon notices.
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
}

/// Where to connect and how.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ServerArgs {
    /// Server to connect to
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/", help_heading = SERVER)]
    pub(crate) url: ServerUrl,

    /// Token that every connection brings as `Authorization: Bearer TOKEN`
    ///
    /// Other users of the machine can read flags: use one that was made for this run.
    #[arg(long, value_name = "TOKEN", value_parser = token, help_heading = SERVER)]
    pub(crate) token: Option<Token>,

    /// PEM file of the authorities that a wss:// server's certificate is checked against [default: the system's]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "insecure", help_heading = SERVER)]
    pub(crate) ca: Option<PathBuf>,

    /// Take any certificate; for test certificates only
    #[arg(long, help_heading = SERVER)]
    pub(crate) insecure: bool,

    /// Offer permessage-deflate and read what the server compresses
    #[arg(long, help_heading = SERVER)]
    pub(crate) compression: bool,

    /// Local address to connect from; may be repeated, connections take turns
    ///
    /// To one address and port of a server, one local address has about 28,000 ports. On loopback, 127.0.0.2,
    /// 127.0.0.3 and so on can be given as they are.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', help_heading = SERVER)]
    pub(crate) source: Vec<IpAddr>,

    /// Time from connecting to the end of the handshake and of subscribing
    #[arg(long, value_name = "TIME", value_parser = some_time, default_value = "10s", help_heading = SERVER)]
    pub(crate) connect_timeout: Time,

    /// Threads that carry the connections of the bench
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, 256), default_value = "1", help_heading = SERVER)]
    pub(crate) threads: usize,
}

/// Who publishes.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PublisherArgs {
    /// Connections that publish
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_STREAMS_U64), default_value = "1", help_heading = LOAD)]
    pub(crate) publishers: usize,
}

/// What is sent and how fast.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct MessageArgs {
    /// Bytes of the JSON that a message carries
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(MIN_PAYLOAD_BYTES as u64, MAX_SIZE_BYTES), default_value = "128", help_heading = LOAD)]
    pub(crate) size: usize,

    /// Closed loop: messages that each sender has under way at a time [default: 1]
    ///
    /// The next is sent when all deliveries of an earlier one are in. Shows the most that a server can do; says
    /// nothing about latency under a given load.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, 1_000_000), conflicts_with = "rate", help_heading = LOAD)]
    pub(crate) in_flight: Option<u32>,

    /// Open loop: messages a second of all senders together
    ///
    /// Latency counts from the time at which a message was due, so that a server that stops for a while cannot hide
    /// it. The default of `slow`, with 100.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, MAX_RATE_PER_SECOND), help_heading = LOAD)]
    pub(crate) rate: Option<u64>,
}

/// How much is measured.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StopArgs {
    /// Messages that are sent by all senders together, instead of a time
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, 1 << 39), conflicts_with_all = ["duration", "warmup"], help_heading = STOP)]
    pub(crate) messages: Option<u64>,

    /// Time that is measured [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = some_time, help_heading = STOP)]
    pub(crate) duration: Option<Time>,

    /// Time before it, under the same load [default: 1s]
    #[arg(long, value_name = "TIME", help_heading = STOP)]
    pub(crate) warmup: Option<Time>,
}

/// What is printed.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct OutputArgs {
    /// Print one JSON object instead of text
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) json: bool,

    /// Process of the server, where it runs on this machine: adds its processor time and memory to the report
    #[arg(long, value_name = "PID", value_parser = whole::<u32>(1, u32::MAX as u64), help_heading = OUTPUT)]
    pub(crate) server_pid: Option<u32>,
}

/// What the exit code says.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LossArgs {
    /// Exit with 1 if messages were lost, came twice or came out of order
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) fail_on_loss: bool,
}

/// A token; shows nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

fn token(text: &str) -> Result<Token, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !text.is_empty() && text.bytes().all(allowed) {
        Ok(Token(text.to_owned()))
    } else {
        Err("expected a token such as `deeperhub-ws token` prints, of A-Z a-z 0-9 - . _ ~ + / =".to_owned())
    }
}

/// A time that is not 0.
fn some_time(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    if time.0.is_zero() { Err("expected a duration longer than 0, such as 10s".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn parse(line: &str) -> Result<Bench, String> {
        let command = Bench::augment_subcommands(Command::new("bench"));
        let matches = command.try_get_matches_from(line.split(' ')).map_err(|error| error.to_string())?;
        Bench::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    /// What is refused, and what the message must name.
    fn check_refused(line: &str, named: &[&str]) {
        let message = parse(line).unwrap_err();
        for text in named {
            assert!(message.contains(text), "{text:?} is not in: {message}");
        }
    }

    #[test]
    fn every_flag_has_a_heading() {
        let command = Bench::augment_subcommands(Command::new("bench"));
        for scenario in command.get_subcommands() {
            for flag in scenario.get_arguments() {
                assert!(flag.get_help_heading().is_some(), "{} of {}", flag.get_id(), scenario.get_name());
                assert!(flag.get_help().is_some(), "{} of {}", flag.get_id(), scenario.get_name());
            }
        }
    }

    #[test]
    fn every_scenario_runs_without_flags() {
        for scenario in ["echo", "fanout", "topics", "idle", "churn", "slow"] {
            assert!(parse(&format!("bench {scenario}")).is_ok(), "{scenario}");
        }
    }

    #[test]
    fn wrong_values_are_told_with_the_flag_and_what_would_be_right() {
        check_refused(
            "bench echo --url http://localhost",
            &["--url", "http://localhost", "ws://127.0.0.1:8080/"],
        );
        check_refused("bench echo --connections 0", &["--connections", "'0'", "from 1 to"]);
        check_refused("bench echo --size 10", &["--size", "'10'", "from 40 to"]);
        check_refused("bench fanout --rate 1.5", &["--rate", "1.5", "whole number"]);
        check_refused("bench fanout --source localhost", &["--source", "localhost", "IP address"]);
        check_refused("bench idle --duration 10", &["--duration", "'10'", "10s"]);
        check_refused("bench idle --duration 0s", &["--duration", "'0s'", "longer than 0"]);
        check_refused("bench slow --slow-readers 0", &["--slow-readers", "'0'", "from 1 to"]);
    }

    #[test]
    fn flags_that_contradict_each_other_or_mean_nothing_are_refused() {
        check_refused("bench echo --rate 5 --in-flight 5", &["--rate", "--in-flight"]);
        check_refused("bench echo --messages 5 --duration 5s", &["--messages", "--duration"]);
        check_refused("bench echo --messages 5 --warmup 5s", &["--messages", "--warmup"]);
        check_refused("bench echo --ca a.pem --insecure", &["--ca", "--insecure"]);
        check_refused("bench idle --rate 5", &["--rate"]);
        check_refused("bench echo --topics 5", &["--topics"]);
        check_refused("bench paint", &["paint"]);
    }

    #[test]
    fn a_token_is_not_shown() {
        let bench = parse("bench echo --token abc.def-123").unwrap();
        assert!(!format!("{bench:?}").contains("abc"));
    }
}
