//! `top`: watches a running server in a terminal.

mod sample;
mod state;
mod units;
mod view;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::sample::Sample;
use self::state::State;
use crate::commands::api_client::{ApiClient, ApiError, api_address};
use crate::config::options::ApiOptions;
use crate::exit::FAILED;
use crate::process::signals::{self, Signals};
use deeperhub_args::Time;
use tokio::runtime::Runtime;

/// Maximum wait for a response before keys are read.
const KEY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Options of `top`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct TopArgs {
    /// Poll the server at this interval
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval, help_heading = "Top")]
    interval: Time,
}

fn interval(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    if time.0 < Duration::from_millis(100) {
        return Err("expected at least 100ms".to_owned());
    }
    Ok(time)
}

/// Message to the thread that draws the screen.
enum TopEvent {
    Answer(Box<Result<Sample, ApiError>>),
    /// A signal asked `top` to exit.
    End,
}

/// Watches the server API of `options` until `q` is pressed.
pub(crate) fn run(options: ApiOptions, top: &TopArgs) -> ExitCode {
    match watch(options, top.interval.0) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(io::stderr(), "error: {problem}");
            ExitCode::from(FAILED)
        }
    }
}

fn watch(options: ApiOptions, interval: Duration) -> Result<(), String> {
    let address = api_address(options.api_listen)?;
    let shown = address.to_string();
    let client = ApiClient::new(address, options.api_key, options.api_tls_cert.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot create a runtime: {error}"))?;
    // Before the screen changes, so that an error stays readable.
    let first = runtime.block_on(Sample::request(&client)).map_err(|error| error.to_string())?;
    if !io::stdout().is_terminal() {
        return Err(
            "standard output is not a terminal; GET /v1/stats and /v1/top return the same as JSON".to_owned()
        );
    }
    let (events, receiver) = mpsc::sync_channel(4);
    let poll = move || {
        // After an error the channel closes, which the screen shows.
        let _ = poll_server(&runtime, &client, interval, &events);
    };
    thread::Builder::new()
        .name("top-client".to_owned())
        .spawn(poll)
        .map_err(|error| format!("cannot start a thread: {error}"))?;

    // Restores the terminal on a panic, too.
    let mut terminal = ratatui::try_init().map_err(|error| format!("cannot use the terminal: {error}"))?;
    let mut state = State::default();
    state.add_sample(first);
    let ended = show(&mut terminal, &mut state, &shown, &receiver);
    let restored = ratatui::try_restore();
    ended.and(restored).map_err(|error| format!("cannot use the terminal: {error}"))
}

/// Polls the server every `interval` until a signal arrives or the receiver is gone. The thread is
/// not joined, as it holds no resources.
fn poll_server(
    runtime: &Runtime,
    client: &ApiClient,
    interval: Duration,
    events: &mpsc::SyncSender<TopEvent>,
) -> io::Result<()> {
    runtime.block_on(async {
        let Signals { mut stops, mut reload_signals, .. } = signals::listen()?;
        loop {
            let next_sample = async {
                tokio::time::sleep(interval).await;
                Sample::request(client).await
            };
            tokio::select! {
                sample = next_sample => {
                    if events.send(TopEvent::Answer(Box::new(sample))).is_err() {
                        return Ok(());
                    }
                }
                _ = stops.recv() => break,
                // The terminal was closed.
                () = reload_signals.recv() => break,
            }
        }
        // An error means that the screen has ended already.
        let _ = events.send(TopEvent::End);
        Ok(())
    })
}

/// Draws the screen and reads keys until one of them, or a signal, exits.
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
            Ok(TopEvent::Answer(answer)) => {
                match *answer {
                    Ok(sample) => state.add_sample(sample),
                    Err(error) => state.error = Some(short_error(&error)),
                }
                is_stale = true;
            }
            Ok(TopEvent::End) => return Ok(()),
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
        ApiError::Unexpected { reason, .. } => reason.clone(),
    }
}
