//! Watches a running hub in a terminal, over its server API.
//!
//! [`run`] draws connections, rates and the busiest topics and clients until a key or the caller
//! ends it. [`ApiClient`] sends single requests, and opens streams of events.

mod api_client;
mod event_stream;
mod pinned_certificate;
mod sample;
mod state;
mod units;
mod view;

use std::io::{self, IsTerminal};
use std::pin::pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

pub use api_client::{ApiClient, ApiError};
pub use event_stream::{EventStream, ServerSentEvent};

use clap::Args;
use deeperhub_args::Time;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::runtime::Runtime;

use self::sample::Sample;
use self::state::State;

/// Maximum time between two reads of the keyboard.
const KEY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Options of `top`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TopArgs {
    /// Poll the server at this interval
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval, help_heading = "Top")]
    interval: Time,
}

/// Parses the polling interval, at least 100 ms.
fn interval(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    if time.0 < Duration::from_millis(100) {
        return Err("expected at least 100ms".to_owned());
    }
    Ok(time)
}

/// Message from the polling thread to the thread that draws the screen.
enum TopEvent {
    Sample(Box<Result<Sample, ApiError>>),
    /// The caller ended `top`.
    Exit,
}

/// Watches the hub until the user presses a key that ends `top`, or the future of `stop` is ready.
/// Calls `stop` in the context of a runtime.
///
/// # Errors
///
/// A sentence for the operator: the first request failed, standard output is not a terminal, or the
/// terminal cannot be used.
pub fn run<S>(
    client: ApiClient,
    args: &TopArgs,
    stop: impl FnOnce() -> io::Result<S> + Send + 'static,
) -> Result<(), String>
where
    S: Future<Output = ()>,
{
    let interval = args.interval.0;
    let address_text = client.address().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot create a runtime: {error}"))?;
    // The first request precedes the switch to the full screen, so that its error stays readable.
    let first_sample = runtime.block_on(Sample::request(&client)).map_err(|error| error.to_string())?;
    if !io::stdout().is_terminal() {
        return Err(
            "standard output is not a terminal; GET /v1/stats and /v1/top return the same as JSON".to_owned()
        );
    }
    let (events, receiver) = mpsc::sync_channel(4);
    let poll = move || {
        // An error closes the channel, and the screen then shows that polling stopped.
        let _ = poll_server(&runtime, &client, interval, stop, &events);
    };
    thread::Builder::new()
        .name("top-client".to_owned())
        .spawn(poll)
        .map_err(|error| format!("cannot start a thread: {error}"))?;

    // `try_init` also installs a panic hook that restores the terminal.
    let mut terminal = ratatui::try_init().map_err(|error| format!("cannot use the terminal: {error}"))?;
    let mut state = State::default();
    state.add_sample(first_sample);
    let shown = show(&mut terminal, &mut state, &address_text, &receiver);
    let restored = ratatui::try_restore();
    shown.and(restored).map_err(|error| format!("cannot use the terminal: {error}"))
}

/// Polls the server at the interval until the future of `stop` is ready or the receiver is dropped.
/// The thread is not joined, because it has nothing to clean up.
fn poll_server<S: Future<Output = ()>>(
    runtime: &Runtime,
    client: &ApiClient,
    interval: Duration,
    stop: impl FnOnce() -> io::Result<S>,
    events: &mpsc::SyncSender<TopEvent>,
) -> io::Result<()> {
    runtime.block_on(async {
        let mut stopped = pin!(stop()?);
        loop {
            let next_sample = async {
                tokio::time::sleep(interval).await;
                Sample::request(client).await
            };
            tokio::select! {
                sample = next_sample => {
                    if events.send(TopEvent::Sample(Box::new(sample))).is_err() {
                        return Ok(());
                    }
                }
                () = &mut stopped => break,
            }
        }
        // An error means that the drawing thread has ended already.
        let _ = events.send(TopEvent::Exit);
        Ok(())
    })
}

/// Draws the screen and reads keys until a key or the caller ends `top`.
fn show(
    terminal: &mut DefaultTerminal,
    state: &mut State,
    address: &str,
    receiver: &mpsc::Receiver<TopEvent>,
) -> io::Result<()> {
    let mut is_stale = true;
    loop {
        if is_stale {
            terminal.draw(|frame| view::draw(state, address, frame))?;
        }
        is_stale = false;
        match receiver.recv_timeout(KEY_POLL_INTERVAL) {
            Ok(TopEvent::Sample(result)) => {
                match *result {
                    Ok(sample) => state.add_sample(sample),
                    Err(error) => state.error = Some(short_error(&error)),
                }
                is_stale = true;
            }
            Ok(TopEvent::Exit) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                state.error = Some("polling stopped".to_owned());
                thread::sleep(KEY_POLL_INTERVAL);
            }
        }
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    if !state.on_key(key) {
                        return Ok(());
                    }
                    is_stale = true;
                }
                Event::Resize(..) => is_stale = true,
                _ => {}
            }
        }
    }
}

/// Returns the error in a few words, for the first line of the screen.
fn short_error(error: &ApiError) -> String {
    match error {
        ApiError::Unreachable { .. } => "no answer".to_owned(),
        ApiError::Unauthorized { .. } => "the key is refused".to_owned(),
        ApiError::Refused { message, .. } => message.clone(),
        ApiError::Unexpected { reason, .. } => reason.clone(),
    }
}
