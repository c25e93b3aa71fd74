//! Serves clients: from settings to a running node, until a signal arrives.

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
use deeperhub_node::{CustomMetric, MetricKind, Node};
use deeperhub_security::files::FileStamp;
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

/// Timeout for the last export to a collector.
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
            .map_err(|error| ServeError::system("cannot create a runtime", error))?;
        let signals = {
            let _context = runtime.enter();
            signals::listen().map_err(|error| ServeError::system("cannot handle signals", error))?
        };
        Ok(Self { runtime, signals })
    }
}

/// Error that kept the server from starting or stopped it.
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
    let check = move || Preflight::new(&address, api.as_ref(), config);
    let Some(preflight) = unless_stopped(&mut stops, check).await? else {
        info!("Stopped during start");
        return Ok(());
    };
    let Preflight { clients, api, telemetry, warnings } = preflight?;
    for warning in &warnings {
        warn!("{warning}");
    }

    // The API's port comes first: if it is taken, no client may have connected.
    let api_socket = match api {
        Some(api) => Some(api::listen(api).await?),
        None => None,
    };
    settings.node.tracer = telemetry.tracer_with_client_rate(settings.telemetry.trace_client_rate);
    add_process_metrics(&mut settings, lost_lines, telemetry.panics());
    let node = match start_node(clients, &settings, &mut stops).await? {
        Started::Node(node) => *node,
        Started::Stopped(node) => {
            if let Some(node) = node {
                node.drain(settings.drain_timeout).await;
                node.stop().await;
            }
            info!("Stopped during start");
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
        info!(clients = %address, api = api_address.map(tracing::field::display), "Server started");
    }

    let (result, ended) = {
        let serving = serve_until_stopped(node, api, &mut stops, settings.drain_timeout);
        while_watching(serving, reloader, reload_signals, ignored, memory).await
    };
    if ended == Shutdown::Graceful {
        // Ends after the queued events, as the node closed the bus. An error is a logged panic.
        let _ = event_log.await;
        // Last, because everything before it may record spans.
        telemetry.stop(TELEMETRY_FLUSH_TIMEOUT).await;
    }
    info!("Server stopped");
    Ok(result?)
}

/// Adds the metrics of the process to those of the node.
fn add_process_metrics(settings: &mut Settings, lost_lines: SharedCounter, exporter_panics: SharedCounter) {
    settings.node.custom_gauges = allocator::GAUGES.to_vec();
    settings.node.custom_gauges.push(supervise::GAUGE);
    settings.node.custom_metrics =
        settings.api.iter().flat_map(|api| api.config.metrics.custom_metrics()).collect();
    settings.node.custom_metrics.push(counter(
        "deeperhub_log_lines_lost_total",
        "Log lines dropped because standard error was too slow",
        lost_lines,
    ));
    settings.node.custom_metrics.push(counter(
        "deeperhub_exporter_panics_total",
        "Panics of the tasks that export spans and metrics",
        exporter_panics,
    ));
}

fn counter(name: &'static str, help: &'static str, counter: SharedCounter) -> CustomMetric {
    CustomMetric::new(name, help, Unit::None, MetricKind::Counter, move || counter.value())
}

/// Prints the start line to standard output, for people and for programs that wait for the ports.
/// A closed pipe is no error.
async fn print_start_line(line: String) {
    let write = tokio::task::spawn_blocking(move || {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    });
    if tokio::time::timeout(START_LINE_TIMEOUT, write).await.is_err() {
        warn!("Standard output blocked; start line skipped");
    }
}

/// Collects everything that reloads on SIGHUP or when files change.
fn new_reloader(settings: &Settings, mut live: SettingsReload) -> Reloader {
    let mut reloader = Reloader::default();
    // On SIGHUP only, because a half-edited settings file must not take effect.
    reloader.watch("settings", Vec::new(), FileStamp::default(), move || live.reload());
    if let Some(auth) = &settings.auth {
        auth.watch(&mut reloader);
    }
    let api_tls = settings.api.as_ref().and_then(|api| api.tls.as_ref());
    for tls in settings.tls.iter().chain(api_tls) {
        tls.watch(&mut reloader);
    }
    reloader
}

/// Runs reloads and the memory watch while `serving` runs.
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

/// Kind of shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    /// All parts ended in order.
    Graceful,
    /// A second signal arrived: running parts are dropped.
    Immediate,
}

/// Waits for a signal or a failure, then drains and ends all parts in the order of their
/// dependencies.
async fn serve_until_stopped(
    node: Node,
    mut api: Option<ApiTask>,
    stops: &mut StopSignals,
    drain_timeout: Duration,
) -> (Result<(), ServeError>, Shutdown) {
    let mut result = Ok(());
    let handle = node.handle();
    tokio::select! {
        signal = stops.recv() => info!(signal, ?drain_timeout, "Draining connections"),
        taken = handle.failed() => {
            error!(%taken, "Node ID taken; draining");
            result = Err(ServeError::NodeIdTaken(taken));
        }
        error = ApiTask::failed(&mut api) => {
            error!(%error, "Server API failed; draining");
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
            warn!(signal, "Second signal; exiting at once");
            Shutdown::Immediate
        }
    };
    (result, ended)
}
