//! Runs a server: reads the settings, starts the node and everything beside it, and shuts them down
//! after a stop signal or a failure.

mod api;
pub(crate) mod error;
mod preflight;
mod start;
mod start_line;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;
use deeperhub_cluster::StoreFinding;
use deeperhub_listener::MemoryBudget;
use deeperhub_metrics::{Counter, Unit};
use deeperhub_node::{CustomMetric, HistoryStore, MetricKind, Node};
use deeperhub_security::files::FileStamp;
use deeperhub_telemetry::RunningExporters;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use self::api::ApiTask;
use self::error::ServeError;
pub(crate) use self::preflight::preflight;
use self::preflight::{Preflight, Prepared};
use self::start::{Started, start_node};
use self::start_line::start_line;
use crate::config::effective::Settings;
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::resolve::resolve;
use crate::exit::{FAILED, bad_configuration};
use crate::log::queue::LogQueue;
use crate::log::{self, Level, events};
use crate::process::signals::{self, IgnoredSignals, ReloadSignals, Signals, StopSignals};
use crate::process::{allocator, memory, nofile, supervise};
use crate::reload::Reloader;
use crate::reload::settings::SettingsReload;

/// Limits how long blocking tasks delay the exit, such as name look-ups or reads from a lost disk.
const BLOCKING_TASKS_TIMEOUT: Duration = Duration::from_secs(1);

/// Limits how long a collector that does not accept the last export delays the exit.
const TELEMETRY_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits how long a stalled reader of standard error delays the exit.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Limits how long a stalled reader of standard output delays the start.
const START_LINE_TIMEOUT: Duration = Duration::from_secs(1);

/// The runtime and signal handlers of the control thread, set up before settings are read.
#[derive(Debug)]
pub(crate) struct Control {
    /// Runs everything except client connections, which have their own threads. Its tasks must not
    /// block.
    runtime: Runtime,
    signals: Signals,
}

impl Control {
    /// Creates the runtime and installs the signal handlers. From then on, signals are queued
    /// instead of ending the process.
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

/// Error that ends a server: invalid settings, or a failure to start or to serve.
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

/// Runs a server until a stop signal or a failure, and returns the exit code. Settings are read
/// from `flags`, the environment and the file, and again on SIGHUP.
///
/// Changes state of the whole process: installs the global log and panic hook, and raises the limit
/// of open files.
pub(crate) fn serve(control: Control, flags: Vec<ArgMatches>) -> ExitCode {
    let Control { runtime, signals } = control;
    let mut log = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(signals, flags, &mut log))));
    let result = outcome.unwrap_or(Err(ServeError::Panic.into()));
    runtime.shutdown_timeout(BLOCKING_TASKS_TIMEOUT);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Config(errors)) => bad_configuration(&errors),
        Err(RunError::Serve(error)) => {
            let line = format!("error: {error}\n");
            match &log {
                // The queue keeps the order of lines and does not block on a stalled reader.
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

/// Reads the settings, starts a server and runs it. Stores the log in `log` as soon as it is
/// installed, so that the caller can write to it after an error or a panic.
async fn run(signals: Signals, flags: Vec<ArgMatches>, log: &mut Option<LogQueue>) -> Result<(), RunError> {
    let Signals { mut stops, reload_signals, ignored } = signals;
    let Some(settings) = read_settings(flags.clone(), &mut stops).await? else { return Ok(()) };
    let (log_level, log_queue) =
        log::install(settings.log).map_err(|error| ServeError::system("cannot write a log", error))?;
    let lost_log_lines = log_queue.lost();
    *log = Some(log_queue);
    let Some(server) = Server::start(settings, flags, log_level, lost_log_lines, &mut stops).await? else {
        info!("Stopped during start");
        return Ok(());
    };
    let result = server.run(&mut stops, reload_signals, ignored).await;
    info!("Server stopped");
    Ok(result?)
}

/// Reads the settings. Returns `None` if a stop signal arrives first.
async fn read_settings(
    flags: Vec<ArgMatches>,
    stops: &mut StopSignals,
) -> Result<Option<Settings>, RunError> {
    let read = move || Layers::read(&flags, std::env::vars_os()).and_then(resolve);
    unless_stopped(stops, read).await?.transpose().map_err(RunError::Config)
}

/// Runs `work`, which may block, on a thread for blocking tasks. Returns `None` if a stop signal
/// arrives first; the work then goes on, and its result is dropped.
async fn unless_stopped<T: Send + 'static>(
    stops: &mut StopSignals,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, ServeError> {
    tokio::select! {
        result = tokio::task::spawn_blocking(work) => {
            result.map(Some).map_err(|error| ServeError::system("the start failed", io::Error::other(error)))
        }
        _ = stops.recv() => Ok(None),
    }
}

/// Refuses to start if rules keep messages, and the broker of the cluster can never keep them. A
/// broker that is not reached is no reason. Returns `true` if a stop signal arrives first.
async fn refuse_broker(settings: &Settings, stops: &mut StopSignals) -> Result<bool, ServeError> {
    let Some(cluster) = &settings.node.cluster else { return Ok(false) };
    if !settings.node.history.rules.keep_history() {
        return Ok(false);
    }
    let findings = tokio::select! {
        findings = deeperhub_cluster::check_store(&cluster.broker) => findings.unwrap_or_default(),
        _ = stops.recv() => return Ok(true),
    };
    match findings.into_iter().find(StoreFinding::is_lasting) {
        Some(finding) => Err(ServeError::Broker(finding)),
        None => Ok(false),
    }
}

/// A started server: the node and everything that runs beside it.
struct Server {
    node: Node,
    api: Option<ApiTask>,
    telemetry: RunningExporters,
    event_log: JoinHandle<()>,
    reloader: Reloader,
    memory: Option<Arc<MemoryBudget>>,
    drain_timeout: Duration,
}

impl Server {
    /// Starts all parts and prints the start line. Returns `None` if a stop signal arrives first.
    async fn start(
        mut settings: Settings,
        flags: Vec<ArgMatches>,
        log_level: Level,
        lost_log_lines: Counter,
        stops: &mut StopSignals,
    ) -> Result<Option<Self>, ServeError> {
        log_warnings(&settings.warnings);
        nofile::raise_for(&settings);
        let preflight = Preflight::new(&settings);
        let Some(prepared) = unless_stopped(stops, || preflight.run()).await? else { return Ok(None) };
        let Prepared { listen_on, api_address, exporters, warnings } = prepared?;
        log_warnings(&warnings);

        // The API's port is bound first: if it is in use, no client may have connected yet.
        let api_socket = match api_address {
            Some(address) => Some(api::listen(address).await?),
            None => None,
        };
        if refuse_broker(&settings, stops).await? {
            return Ok(None);
        }
        settings.node.tracer = exporters.tracer_with_client_rate(settings.telemetry.trace_client_rate);
        add_process_metrics(&mut settings, lost_log_lines, exporters.panics());
        let node = match start_node(listen_on, &settings, stops).await? {
            Started::Node(node) => *node,
            Started::Stopped(node) => {
                if let Some(node) = node {
                    node.drain(settings.drain_timeout).await;
                    node.stop().await;
                }
                return Ok(None);
            }
        };
        let telemetry = exporters.start(&node.handle());
        let api = api_socket.map(|(socket, address)| ApiTask::start(socket, address, &node, &settings));
        let event_log = events::spawn(node.handle(), log_level.watch());
        announce(&settings, node.local_addrs(), api.as_ref().map(|api| api.address)).await;

        let settings_reload = SettingsReload {
            flags,
            running: settings.effective.clone(),
            node: node.handle(),
            api: api.as_ref().map(|api| api.config.clone()),
            level: log_level,
            has_store: settings.node.history_store != HistoryStore::Memory,
        };
        Ok(Some(Self {
            node,
            api,
            telemetry,
            event_log,
            reloader: new_reloader(&settings, settings_reload),
            memory: settings.node.listener.memory.clone(),
            drain_timeout: settings.drain_timeout,
        }))
    }

    /// Serves until a stop signal or a failure, and then shuts all parts down.
    async fn run(
        self,
        stops: &mut StopSignals,
        reload_signals: ReloadSignals,
        ignored: IgnoredSignals,
    ) -> Result<(), ServeError> {
        let serving = serve_until_stopped(self.node, self.api, stops, self.drain_timeout);
        let (result, shutdown) =
            while_watching(serving, self.reloader, reload_signals, ignored, self.memory).await;
        if shutdown == Shutdown::Graceful {
            // The task ends after the queued events, because the node closed the bus. A panic in
            // the task is logged and restarts it, so the result needs no check.
            let _ = self.event_log.await;
            // The exporters stop last, because all other parts may record spans until they end.
            self.telemetry.stop(TELEMETRY_FLUSH_TIMEOUT).await;
        }
        result
    }
}

fn log_warnings(warnings: &[String]) {
    for warning in warnings {
        warn!("{warning}");
    }
}

/// Adds the metrics of the process to those of the node.
fn add_process_metrics(settings: &mut Settings, lost_lines: Counter, exporter_panics: Counter) {
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

fn counter(name: &'static str, help: &'static str, counter: Counter) -> CustomMetric {
    CustomMetric::new(name, help, Unit::None, MetricKind::Counter, move || counter.value())
}

/// Prints the start line and logs the bound addresses.
async fn announce(settings: &Settings, client_addresses: &[SocketAddr], api_address: Option<SocketAddr>) {
    print_start_line(start_line(settings, client_addresses, api_address).to_string()).await;
    for address in client_addresses {
        info!(clients = %address, api = api_address.map(tracing::field::display), "Server started");
    }
}

/// Prints the start line to standard output, for people and for programs that wait for the ports.
/// Ignores a closed pipe. If the pipe is full, the line is printed when its reader continues.
async fn print_start_line(line: String) {
    let write = tokio::task::spawn_blocking(move || {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    });
    if tokio::time::timeout(START_LINE_TIMEOUT, write).await.is_err() {
        warn!("Standard output blocked; start line delayed");
    }
}

/// Creates the reloader of settings, keys and certificates.
fn new_reloader(settings: &Settings, mut settings_reload: SettingsReload) -> Reloader {
    let mut reloader = Reloader::default();
    // Settings reload on SIGHUP only, because a half-edited file must not take effect.
    reloader.watch("settings", Vec::new(), FileStamp::default(), move || settings_reload.reload());
    if let Some(auth) = &settings.auth {
        auth.watch(&mut reloader);
    }
    let api_tls = settings.api.as_ref().and_then(|api| api.tls.as_ref());
    for tls in settings.tls.iter().chain(api_tls) {
        tls.watch(&mut reloader);
    }
    reloader
}

/// Runs `serving` to its end. Meanwhile reloads, logs ignored signals and measures memory.
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
    /// All parts ended in the order of their dependencies.
    Graceful,
    /// A second stop signal arrived: parts that still run are dropped.
    Immediate,
}

/// Waits for a stop signal or a failure. Then drains the connections, stops the node, and stops the
/// server API, which needs the node.
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
        error = handle.failed() => {
            error!(taken = %error, "Node ID taken; draining");
            result = Err(ServeError::NodeIdTaken(error));
        }
        error = ApiTask::failed(&mut api) => {
            error!(%error, "Server API failed; draining");
            result = Err(error);
        }
    }
    let shut_down = async move {
        node.drain(drain_timeout).await;
        node.stop().await;
        if let Some(api) = api {
            api.stop().await;
        }
    };
    let shutdown = tokio::select! {
        () = shut_down => Shutdown::Graceful,
        signal = stops.recv() => {
            warn!(signal, "Second signal; exiting at once");
            Shutdown::Immediate
        }
    };
    (result, shutdown)
}
