//! Serving: from settings to a node that runs, until a signal comes.

mod api;
pub(crate) mod error;
mod preflight;
mod start;
mod start_line;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;
use deeperhub_listener::MemoryBudget;
use deeperhub_metrics::{SharedCounter, Unit};
use deeperhub_node::{Node, NumberKind, OwnNumber};
use deeperhub_security::files::Stamp;
use tokio::runtime::{self, Runtime};
use tracing::{error, info, warn};

use self::api::ApiTask;
use self::error::ServeError;
pub(crate) use self::preflight::preflight;
use self::preflight::{Preflight, telemetry_settings};
use self::start::{Started, start_node};
use self::start_line::start_line;
use crate::config::effective::Settings;
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::resolve::resolve;
use crate::exit::{FAILED, bad_configuration};
use crate::log::queue::LogQueue;
use crate::log::{self, events};
use crate::process::signals::{self, IgnoredSignals, ReloadSignals, Signals, StopSignals};
use crate::process::{allocator, memory, nofile, supervise};
use crate::reload::Reloader;
use crate::reload::settings::SettingsReload;

/// Shutdown timeout for blocking tasks, such as name look-ups or files on a lost disk.
const BLOCKING_TASKS_TIMEOUT: Duration = Duration::from_secs(1);

/// What a collector is given to take what is left at the end.
const TELEMETRY_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for flushing the last log lines to standard error.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout for writing the start line to standard output.
const START_LINE_TIMEOUT: Duration = Duration::from_secs(1);

/// The runtime and signal handlers of the control thread, set up before settings are read.
#[derive(Debug)]
pub(crate) struct Control {
    /// Runs everything except client connections, which have their own threads. Nothing on it
    /// blocks.
    runtime: Runtime,
    signals: Signals,
}

impl Control {
    /// Installs signal handlers: from now on, signals are kept instead of ending the process.
    pub(crate) fn new() -> Result<Self, ServeError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ServeError::system("cannot make a runtime", error))?;
        let signals = {
            let _context = runtime.enter();
            signals::listen().map_err(|error| ServeError::system("cannot listen to signals", error))?
        };
        Ok(Self { runtime, signals })
    }
}

/// Reason that the server did not start or stopped.
#[derive(Debug)]
enum RunError {
    Config(Vec<ConfigError>),
    Serve(ServeError),
}

impl From<ServeError> for RunError {
    fn from(error: ServeError) -> Self {
        Self::Serve(error)
    }
}

/// Serves until a signal arrives. Settings come from `flags`, the environment and the file, and are
/// reloaded on SIGHUP. Sets up the process-wide log and limit of open files.
pub(crate) fn serve(control: Control, flags: Vec<ArgMatches>) -> ExitCode {
    let Control { runtime, signals } = control;
    let mut log = None;
    let served = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(signals, flags, &mut log))));
    let result = served.unwrap_or(Err(ServeError::Panic.into()));
    runtime.shutdown_timeout(BLOCKING_TASKS_TIMEOUT);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Config(errors)) => bad_configuration(&errors),
        Err(RunError::Serve(error)) => {
            let line = format!("error: {error}\n");
            match &log {
                // After all queued lines, and without blocking on a stalled reader.
                Some(log) => log.line(&line),
                None => drop(io::stderr().write_all(line.as_bytes())),
            }
            ExitCode::from(FAILED)
        }
    };
    if let Some(log) = log {
        log.flush(LOG_FLUSH_TIMEOUT);
    }
    code
}

/// Runs `work`, which may block, off the control thread. Returns `None` if a stop signal arrives
/// first; the work is then abandoned.
async fn unless_stopped<T: Send + 'static>(
    stops: &mut StopSignals,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, ServeError> {
    tokio::select! {
        done = tokio::task::spawn_blocking(work) => {
            done.map(Some).map_err(|error| ServeError::system("the start failed", io::Error::other(error)))
        }
        _ = stops.recv() => Ok(None),
    }
}

async fn run(signals: Signals, flags: Vec<ArgMatches>, log: &mut Option<LogQueue>) -> Result<(), RunError> {
    let Signals { mut stops, reload_signals, ignored } = signals;
    let own = flags.clone();
    let read = move || Layers::read(&own, std::env::vars_os()).and_then(resolve);
    let mut settings = match unless_stopped(&mut stops, read).await? {
        Some(settings) => settings.map_err(RunError::Config)?,
        None => return Ok(()),
    };
    let (level, queue) =
        log::install(settings.log).map_err(|error| ServeError::system("cannot write a log", error))?;
    let lost_lines = queue.lost();
    *log = Some(queue);
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    let listener = &settings.node.listener;
    if let Err(sentence) =
        nofile::raise(listener.max_connections, listener.workers, settings.api_connections())
    {
        warn!("{sentence}");
    }
    let config = telemetry_settings(&settings);
    let (address, api) = (settings.address.clone(), settings.api.as_ref().map(|api| api.address.clone()));
    let prepare = move || Preflight::new(&address, api.as_ref(), config);
    let Some(preflight_result) = unless_stopped(&mut stops, prepare).await? else {
        info!("Stopped during the start.");
        return Ok(());
    };
    let Preflight { clients, api, telemetry, warnings } = preflight_result?;
    for warning in &warnings {
        warn!("{warning}");
    }

    // The API's port first: when it is taken, no client must have been let in.
    let api_socket = match api {
        Some(api) => Some(api::listen(api).await?),
        None => None,
    };
    settings.node.tracer = telemetry.tracer(settings.telemetry.trace_client_rate);
    settings.node.gauges = allocator::GAUGES.to_vec();
    settings.node.gauges.push(supervise::GAUGE);
    settings.node.numbers = settings.api.iter().flat_map(|api| api.config.metrics.numbers()).collect();
    settings.node.numbers.push(counter(
        "deeperhub_log_lines_lost_total",
        "Lines of the log that were dropped, as standard error was not read in time",
        lost_lines,
    ));
    settings.node.numbers.push(counter(
        "deeperhub_exporter_panics_total",
        "Panics of the tasks that export spans and metrics, which go on",
        telemetry.panics(),
    ));
    let node = match start_node(clients, &settings, &mut stops).await? {
        Started::Node(node) => *node,
        Started::Stopped(node) => {
            if let Some(node) = node {
                node.drain(settings.drain_timeout).await;
                node.stop().await;
            }
            info!("Stopped during the start.");
            return Ok(());
        }
    };
    let memory = settings.node.listener.memory.clone();
    let telemetry = telemetry.start(&node.handle());
    let clients = node.local_addrs().to_vec();
    let api = api_socket.map(|(socket, address)| ApiTask::start(socket, address, &node, &settings));
    let api_address = api.as_ref().map(|api| api.address);
    let event_log = events::spawn(node.handle(), level.watch());

    let live = SettingsReload {
        flags,
        running: settings.effective.clone(),
        api_key: settings.api.as_ref().and_then(|api| api.config.api_key.clone()),
        node: node.handle(),
        api: api.as_ref().map(|api| api.config.clone()),
        level,
    };
    let reloader = new_reloader(&settings, live);

    print_start_line(start_line(&settings, &clients, api_address).to_string()).await;
    for address in &clients {
        info!(clients = %address, api = api_address.map(tracing::field::display), "Serving.");
    }

    let (result, ended) = {
        let serving = serve_until_stopped(node, api, &mut stops, settings.drain_timeout);
        while_watching(serving, reloader, reload_signals, ignored, memory).await
    };
    if ended == Shutdown::Graceful {
        // The node closed the bus, so this ends after what waits there; an error is a panic that was told.
        let _ = event_log.await;
        // The last, as everything before it may record.
        telemetry.stop(TELEMETRY_FLUSH_TIMEOUT).await;
    }
    info!("Stopped.");
    Ok(result?)
}

fn counter(name: &'static str, help: &'static str, counter: SharedCounter) -> OwnNumber {
    OwnNumber::new(name, help, Unit::None, NumberKind::Counter, move || counter.value())
}

/// To standard output, for people and for programs that wait for the ports; that nobody reads it is no fault.
async fn print_start_line(line: String) {
    let write = tokio::task::spawn_blocking(move || {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    });
    if tokio::time::timeout(START_LINE_TIMEOUT, write).await.is_err() {
        warn!("Standard output blocked; continuing without the start line.");
    }
}

/// What is read again on SIGHUP and when files change.
fn new_reloader(settings: &Settings, mut live: SettingsReload) -> Reloader {
    let mut reloader = Reloader::default();
    // On SIGHUP only: whoever edits a file of many settings says when it is ready.
    reloader.watch("settings", Vec::new(), Stamp::default(), move || live.reload());
    if let Some(auth) = &settings.auth {
        auth.watch(&mut reloader);
    }
    if let Some(tls) = &settings.tls {
        tls.watch(&mut reloader);
    }
    reloader
}

/// Reads again what is to be read again, and looks at the memory, for as long as `serving` lasts.
async fn while_watching<T>(
    serving: impl Future<Output = T>,
    reloader: Reloader,
    reload_signals: ReloadSignals,
    ignored: IgnoredSignals,
    memory: Option<Arc<MemoryBudget>>,
) -> T {
    tokio::select! {
        result = serving => result,
        never = reloader.run(reload_signals) => match never {},
        never = ignored.log() => match never {},
        never = supervise::restart_on_panic("memory", || memory::watch(memory.clone())) => match never {},
    }
}

/// How the end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    /// One after the other.
    Graceful,
    /// A second signal came: what runs is dropped.
    Immediate,
}

/// Waits for a signal, then drains and ends everything in the order in which one needs the other.
async fn serve_until_stopped(
    node: Node,
    mut api: Option<ApiTask>,
    stops: &mut StopSignals,
    drain_timeout: Duration,
) -> (Result<(), ServeError>, Shutdown) {
    let mut result = Ok(());
    let handle = node.handle();
    tokio::select! {
        signal = stops.recv() => info!(signal, ?drain_timeout, "Stopping; clients are told to come back later."),
        taken = handle.failed() => {
            error!(%taken, "Stopping.");
            result = Err(ServeError::NodeIdTaken(taken));
        }
        error = ApiTask::failed(&mut api) => {
            error!(%error, "Stopping, as there is no server API any more.");
            result = Err(error);
        }
    }
    let end = async move {
        node.drain(drain_timeout).await;
        node.stop().await;
        if let Some(api) = api {
            api.stop().await;
        }
    };
    let ended = tokio::select! {
        () = end => Shutdown::Graceful,
        signal = stops.recv() => {
            warn!(signal, "A second signal came; nothing is waited for any more.");
            Shutdown::Immediate
        }
    };
    (result, ended)
}
