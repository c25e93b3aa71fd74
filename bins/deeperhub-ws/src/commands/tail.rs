//! `tail`: prints the messages of a topic with history.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use deeperhub_node::{Epoch, Topic};
use deeperhub_top::{ApiClient, ApiError, EventStream, ServerSentEvent};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::api::api_address;
use super::config::topic;
use super::top::stop_signal;
use crate::config::options::ApiOptions;
use crate::exit::failed;

/// Pause before the first attempt to connect again. Each further pause is twice as long.
const FIRST_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause between two attempts to connect. A stream that lasted longer was no failure.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Options of `tail`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct TailArgs {
    /// Print the messages of this topic, for which a rule of --topic keeps messages
    // The ID differs from that of --topic, which this command accepts too.
    #[arg(id = "tailed_topic", value_name = "TOPIC", value_parser = topic)]
    topic: Topic<'static>,

    /// Start with kept messages: -10 for the last ten, or EPOCH:OFFSET for those after a position
    ///
    /// Without this option, only messages from now on are printed.
    #[arg(long, value_name = "START", value_parser = start, help_heading = "Tail")]
    from: Option<String>,

    /// Print topic, position and publisher around each message, as clients get them
    #[arg(long, help_heading = "Tail")]
    json: bool,
}

/// Checks a start: a negative number, or a position.
fn start(text: &str) -> Result<String, String> {
    let is_number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok();
    let is_count = |count: &str| is_number(count) && count.parse() != Ok(0_u64);
    let is_position = |(epoch, offset): (&str, &str)| Epoch::parse(epoch).is_some() && is_number(offset);
    if text.strip_prefix('-').is_some_and(is_count) || text.split_once(':').is_some_and(is_position) {
        Ok(text.to_owned())
    } else {
        Err("expected a negative number such as -10, or a position EPOCH:OFFSET".to_owned())
    }
}

/// Prints messages until a signal ends `tail`, standard output is closed, or the server refuses.
pub(crate) fn run(options: ApiOptions, args: &TailArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format_args!("cannot create a runtime: {error}")),
    };
    let tailed = api_address(options.api_listen)
        .map_err(str::to_owned)
        .and_then(|address| ApiClient::new(address, options.api_key, options.api_tls_cert.as_deref()))
        .and_then(|client| {
            let report = |line: &str| {
                let _ = writeln!(io::stderr(), "{line}");
            };
            runtime.block_on(async {
                let mut output = tokio::io::stdout();
                let stopped = stop_signal().map_err(|error| format!("cannot handle signals: {error}"))?;
                tokio::select! {
                    tailed = tail(&client, args, &mut output, report) => tailed,
                    () = stopped => Ok(()),
                }
            })
        });
    // A write to a pipe that nobody reads would delay the end forever.
    runtime.shutdown_background();
    match tailed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Prints messages to `output`, and reports gaps and lost connections. Reconnects by itself, and
/// continues after the last message. Returns when nobody reads `output` any more.
///
/// # Errors
///
/// A sentence for the operator, if the first connection fails or if the server refuses a request.
async fn tail(
    client: &ApiClient,
    args: &TailArgs,
    output: &mut (impl AsyncWrite + Unpin),
    report: impl Fn(&str),
) -> Result<(), String> {
    let mut path = format!("/v1/topics/{}/tail", percent_encoded(args.topic.as_str()));
    if let Some(from) = &args.from {
        path = format!("{path}?from={from}");
    }
    let (mut last_id, mut is_first, mut pause): (Option<String>, _, _) = (None, true, FIRST_RETRY_PAUSE);
    loop {
        match client.events(&path, last_id.as_deref()).await {
            Ok(mut stream) => {
                if !std::mem::replace(&mut is_first, false) {
                    report("connected again");
                }
                let opened = Instant::now();
                let Some(lost) = follow(&mut stream, args, output, &report).await? else { return Ok(()) };
                report(&format!("connection lost, reconnecting: {lost}"));
                last_id = stream.last_event_id().map(str::to_owned).or(last_id);
                if opened.elapsed() > MAX_RETRY_PAUSE {
                    pause = FIRST_RETRY_PAUSE;
                }
            }
            Err(error) if is_first || !may_retry(&error) => return Err(error.to_string()),
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(MAX_RETRY_PAUSE);
    }
}

/// Prints the events of a stream until it is lost, and returns the reason. Returns `None` if nobody
/// reads `output` any more.
async fn follow(
    stream: &mut EventStream<'_>,
    args: &TailArgs,
    output: &mut (impl AsyncWrite + Unpin),
    report: &impl Fn(&str),
) -> Result<Option<String>, String> {
    loop {
        let event = match stream.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Some("the server closed the stream".to_owned())),
            Err(error) => return Ok(Some(error.to_string())),
        };
        match print(&event, args, output, report).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
            Err(error) => return Err(format!("cannot write to standard output: {error}")),
        }
    }
}

/// Returns `true` if another attempt can succeed without a change of the request.
fn may_retry(error: &ApiError) -> bool {
    match error {
        ApiError::Unreachable { .. } => true,
        ApiError::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
        _ => false,
    }
}

/// The members of an event's data that are printed.
#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(default)]
    epoch: &'a str,
    #[serde(default)]
    offset: u64,
    from: Option<&'a RawValue>,
    to: Option<u64>,
    #[serde(default)]
    reason: &'a str,
}

/// Prints a message, or reports a gap.
async fn print(
    event: &ServerSentEvent,
    args: &TailArgs,
    output: &mut (impl AsyncWrite + Unpin),
    report: &impl Fn(&str),
) -> io::Result<()> {
    // Raw line breaks in JSON are white space between its tokens.
    let data = event.data.replace(['\n', '\r'], " ");
    let Ok(parsed) = serde_json::from_str::<Data<'_>>(&data) else { return Ok(()) };
    match (event.name.as_str(), parsed.message) {
        ("message", Some(message)) => {
            let text = if args.json { &data } else { message.get() };
            output.write_all(format!("{text}\n").as_bytes()).await?;
            output.flush().await
        }
        ("gap", _) => {
            let Data { epoch, offset, from, to, reason, .. } = parsed;
            report(&match (from, to) {
                (Some(from), Some(to)) => format!("gap: messages {} to {to} are lost ({reason})", from.get()),
                _ => format!("gap: the topic has a new epoch, {epoch}, and continues after offset {offset}"),
            });
            Ok(())
        }
        // Events of a newer server.
        _ => Ok(()),
    }
}

/// Returns a text as a segment of a URL's path.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests;
