//! Serving: from settings to a node that runs, until a signal comes.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;
use deeperhub_api::SharedApiConfig;
use deeperhub_listener::{ListenOn, MemoryBudget};
use deeperhub_metrics::{SharedCounter, Unit};
use deeperhub_node::{CustomMetric, MetricKind, Node};
use deeperhub_security::files::Stamp;
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::failure::Failure;
use crate::layers::Layers;
use crate::live::LiveSettings;
use crate::log_queue::LogQueue;
use crate::problem::Problem;
use crate::reload::Reloads;
use crate::resolve::resolve;
use crate::settings::Settings;
use crate::signals::{self, HangUps, Ignored, Signals, Stops};
use crate::start_line::start_line;
use crate::telemetry::{self, TelemetryConfig, telemetry_config};
use crate::values::Address;
use crate::{FAILED, allocator, event_log, logging, memory, nofile, supervise};

/// Shutdown timeout for blocking tasks, such as name look-ups or files on a lost disk.
const LAST_TASKS: Duration = Duration::from_secs(1);

/// Time for a node to finish starting after a stop signal; as long as it waits for its broker.
const LAST_START: Duration = Duration::from_secs(3);

/// What a collector is given to take what is left at the end.
const LAST_TELEMETRY: Duration = Duration::from_secs(5);

/// Timeout for flushing the last log lines to standard error.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Timeout for writing the start line to standard output.
const FIRST_LINE: Duration = Duration::from_secs(1);

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
    pub(crate) fn take() -> Result<Self, Failure> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::system("cannot make a runtime", error))?;
        let signals = {
            let _context = runtime.enter();
            signals::listen().map_err(|error| Failure::system("cannot listen to signals", error))?
        };
        Ok(Self { runtime, signals })
    }
}

/// Reason that the server did not start or stopped.
#[derive(Debug)]
enum Ending {
    Problems(Vec<Problem>),
    Failure(Failure),
}

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Serves until a signal arrives. Settings come from `flags`, the environment and the file, and are
/// reloaded on SIGHUP. Sets up the process-wide log and limit of open files.
pub(crate) fn serve(control: Control, flags: Vec<ArgMatches>) -> ExitCode {
    let Control { runtime, signals } = control;
    let mut log = None;
    let served = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(signals, flags, &mut log))));
    let result = served.unwrap_or(Err(Failure::Panic.into()));
    runtime.shutdown_timeout(LAST_TASKS);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ending::Problems(problems)) => crate::complain(&problems),
        Err(Ending::Failure(failure)) => {
            let line = format!("error: {failure}\n");
            match &log {
                // After all queued lines, and without blocking on a stalled reader.
                Some(log) => log.line(&line),
                None => drop(io::stderr().write_all(line.as_bytes())),
            }
            ExitCode::from(FAILED)
        }
    };
    if let Some(log) = log {
        log.flush(LAST_LINES);
    }
    code
}

/// Runs `work`, which may block, off the control thread. Returns `None` if a stop signal arrives
/// first; the work is then abandoned.
async fn unless_stopped<T: Send + 'static>(
    stops: &mut Stops,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, Failure> {
    tokio::select! {
        done = tokio::task::spawn_blocking(work) => {
            done.map(Some).map_err(|error| Failure::system("the start failed", io::Error::other(error)))
        }
        _ = stops.recv() => Ok(None),
    }
}

/// Resolved addresses and exporters, which are needed before clients connect. Setting them up may
/// block.
struct Prepared {
    clients: ListenOn,
    api: Option<SocketAddr>,
    telemetry: telemetry::Prepared,
    warnings: Vec<String>,
}

impl Prepared {
    fn new(address: &Address, api: Option<&Address>, config: TelemetryConfig) -> Result<Self, Failure> {
        let clients = match address.listen_on() {
            Some(known) => known,
            None => lookup(address)?.into(),
        };
        let api = api.map(lookup).transpose()?;
        let (telemetry, warnings) = telemetry::Prepared::new(config);
        Ok(Self { clients, api, telemetry, warnings })
    }
}

/// Returns the telemetry configuration from settings and OpenTelemetry's variables.
fn exports(settings: &Settings) -> TelemetryConfig {
    telemetry_config(settings.otlp_endpoint.as_ref(), settings.trace_sample_ratio, |name| {
        std::env::var(name).ok()
    })
}

/// Resolves host names and reads exporter files as a start does, without listening. Returns the
/// warnings.
///
/// # Errors
///
/// If the server would not start.
pub(crate) fn rehearse(settings: &Settings) -> Result<Vec<String>, Failure> {
    let api = settings.api.as_ref().map(|api| &api.address);
    Ok(Prepared::new(&settings.address, api, exports(settings))?.warnings)
}

async fn run(signals: Signals, flags: Vec<ArgMatches>, log: &mut Option<LogQueue>) -> Result<(), Ending> {
    let Signals { mut stops, hang_ups, ignored } = signals;
    let own = flags.clone();
    let read = move || Layers::gather(&own, std::env::vars_os()).and_then(resolve);
    let mut settings = match unless_stopped(&mut stops, read).await? {
        Some(settings) => settings.map_err(Ending::Problems)?,
        None => return Ok(()),
    };
    let (level, queue) = logging::install(settings.log_level, settings.log_format, settings.log_queue_bytes)
        .map_err(|error| Failure::system("cannot write a log", error))?;
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
    let config = exports(&settings);
    let (address, api) = (settings.address.clone(), settings.api.as_ref().map(|api| api.address.clone()));
    let prepare = move || Prepared::new(&address, api.as_ref(), config);
    let Some(prepared) = unless_stopped(&mut stops, prepare).await? else {
        info!("Stopped during the start.");
        return Ok(());
    };
    let Prepared { clients, api, telemetry, warnings } = prepared?;
    for warning in &warnings {
        warn!("{warning}");
    }

    // The API's port first: when it is taken, no client must have been let in.
    let api_socket = match api {
        Some(api) => Some(listen_api(api).await?),
        None => None,
    };
    settings.node.tracer = telemetry.tracer(settings.trace_client_rate);
    settings.node.custom_gauges = allocator::GAUGES.to_vec();
    settings.node.custom_gauges.push(supervise::GAUGE);
    settings.node.custom_metrics = settings.api.iter().flat_map(|api| api.config.metrics.numbers()).collect();
    settings.node.custom_metrics.push(counter(
        "deeperhub_log_lines_lost_total",
        "Lines of the log that were dropped, as standard error was not read in time",
        lost_lines,
    ));
    settings.node.custom_metrics.push(counter(
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
    let api = api_socket.map(|(socket, address)| Api::start(socket, address, &node, &settings));
    let api_address = api.as_ref().map(|api| api.address);
    let event_log = event_log::spawn(node.handle(), level.watch());

    let live = LiveSettings {
        flags,
        running: settings.shown.clone(),
        api_key: settings.api.as_ref().and_then(|api| api.config.api_key.clone()),
        node: node.handle(),
        api: api.as_ref().map(|api| api.config.clone()),
        level,
    };
    let reloads = reloads(&settings, live);

    announce(start_line(&settings, &clients, api_address).to_string()).await;
    for address in &clients {
        info!(clients = %address, api = api_address.map(tracing::field::display), "Serving.");
    }

    let (result, ended) = {
        let serving = serve_until_stopped(node, api, &mut stops, settings.drain_timeout);
        while_watching(serving, reloads, hang_ups, ignored, memory).await
    };
    if ended == Ended::Completely {
        // The node closed the bus, so this ends after what waits there; an error is a panic that was told.
        let _ = event_log.await;
        // The last, as everything before it may record.
        telemetry.stop(LAST_TELEMETRY).await;
    }
    info!("Stopped.");
    Ok(result?)
}

fn counter(name: &'static str, help: &'static str, counter: SharedCounter) -> CustomMetric {
    CustomMetric::new(name, help, Unit::None, MetricKind::Counter, move || counter.value())
}

/// To standard output, for people and for programs that wait for the ports; that nobody reads it is no fault.
async fn announce(line: String) {
    let write = tokio::task::spawn_blocking(move || {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    });
    if tokio::time::timeout(FIRST_LINE, write).await.is_err() {
        warn!("Standard output blocked; continuing without the start line.");
    }
}

/// Outcome of starting a node.
enum Started {
    Node(Box<Node>),
    /// A stop signal arrived. `None` if the start did not finish in time.
    Stopped(Option<Node>),
}

/// Starts the node off the control thread, because it waits for its cluster's broker and its first
/// probes.
async fn start_node(clients: ListenOn, settings: &Settings, stops: &mut Stops) -> Result<Started, Failure> {
    let config = settings.node.clone();
    let mut starting = tokio::task::spawn_blocking(move || Node::start_on(clients, config));
    let ended = tokio::select! {
        ended = &mut starting => Ok(ended),
        signal = stops.recv() => Err(signal),
    };
    let (ended, is_stopped) = match ended {
        Ok(ended) => (ended, false),
        Err(signal) => {
            info!(signal, "Stopping during the start.");
            match tokio::time::timeout(LAST_START, starting).await {
                Ok(ended) => (ended, true),
                Err(_) => return Ok(Started::Stopped(None)),
            }
        }
    };
    let started = ended.map_err(|error| Failure::system("the start failed", io::Error::other(error)))?;
    let node = started.map_err(|error| match error {
        deeperhub_node::StartError::Listener(deeperhub_listener::StartError::Listen { address, source }) => {
            Failure::Listen { address, purpose: "clients", flag: "--port", source }
        }
        deeperhub_node::StartError::NodeIdTaken(taken) => Failure::NodeIdTaken(taken),
        error => Failure::Node(error),
    })?;
    Ok(if is_stopped { Started::Stopped(Some(node)) } else { Started::Node(Box::new(node)) })
}

async fn listen_api(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let listen = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listen.await.map_err(|source| Failure::Listen {
        address,
        purpose: "the server API",
        flag: "--api-listen",
        source,
    })
}

fn lookup(address: &Address) -> Result<SocketAddr, Failure> {
    address.resolve().map_err(|source| Failure::Lookup { address: address.clone(), source })
}

/// What is read again on SIGHUP and when files change.
fn reloads(settings: &Settings, mut live: LiveSettings) -> Reloads {
    let mut reloads = Reloads::default();
    // On SIGHUP only: whoever edits a file of many settings says when it is ready.
    reloads.watch("settings", Vec::new(), Stamp::default(), move || live.reload());
    if let Some(auth) = &settings.auth {
        auth.watch(&mut reloads);
    }
    if let Some(tls) = &settings.tls {
        tls.watch(&mut reloads);
    }
    reloads
}

/// Reads again what is to be read again, and looks at the memory, for as long as `serving` lasts.
async fn while_watching<T>(
    serving: impl Future<Output = T>,
    reloads: Reloads,
    hang_ups: HangUps,
    ignored: Ignored,
    memory: Option<Arc<MemoryBudget>>,
) -> T {
    tokio::select! {
        result = serving => result,
        never = reloads.run(hang_ups) => match never {},
        never = ignored.tell() => match never {},
        never = supervise::keep("memory", || memory::watch(memory.clone())) => match never {},
    }
}

/// How the end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// One after the other.
    Completely,
    /// A second signal came: what runs is dropped.
    AtOnce,
}

/// Waits for a signal, then drains and ends everything in the order in which one needs the other.
async fn serve_until_stopped(
    node: Node,
    mut api: Option<Api>,
    stops: &mut Stops,
    drain_timeout: Duration,
) -> (Result<(), Failure>, Ended) {
    let mut result = Ok(());
    let handle = node.handle();
    tokio::select! {
        signal = stops.recv() => info!(signal, ?drain_timeout, "Stopping; clients are told to come back later."),
        taken = handle.failed() => {
            error!(%taken, "Stopping.");
            result = Err(Failure::NodeIdTaken(taken));
        }
        failure = Api::failed(&mut api) => {
            error!(%failure, "Stopping, as there is no server API any more.");
            result = Err(failure);
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
        () = end => Ended::Completely,
        signal = stops.recv() => {
            warn!(signal, "A second signal came; nothing is waited for any more.");
            Ended::AtOnce
        }
    };
    (result, ended)
}

/// The server API while it runs.
struct Api {
    address: SocketAddr,
    config: SharedApiConfig,
    task: JoinHandle<io::Result<()>>,
    /// Dropping it asks the task to end.
    running: oneshot::Sender<()>,
}

impl Api {
    fn start(socket: TcpListener, address: SocketAddr, node: &Node, settings: &Settings) -> Self {
        let mut config = settings.api.as_ref().map(|api| api.config.clone()).unwrap_or_default();
        config.websocket_url =
            websocket_url(settings.scheme(), node.local_addr(), &settings.node.listener.paths);
        let (running, stopped) = oneshot::channel();
        let shutdown = async {
            let _: Result<(), _> = stopped.await;
        };
        let config = SharedApiConfig::from(config);
        let task = tokio::spawn(deeperhub_api::serve(socket, node.handle(), config.clone(), shutdown));
        Self { address, config, task, running }
    }

    /// Waits for a failure of what should not end by itself.
    async fn failed(api: &mut Option<Self>) -> Failure {
        match api {
            None => std::future::pending().await,
            Some(running) => {
                let ended = (&mut running.task).await;
                *api = None;
                let error = match ended {
                    Ok(Ok(())) => io::Error::other("it ended by itself"),
                    Ok(Err(error)) => error,
                    Err(error) => io::Error::other(error),
                };
                Failure::system("the server API failed", error)
            }
        }
    }

    /// Lets calls under way end.
    async fn stop(self) {
        drop(self.running);
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "The server API failed while it ended."),
            Err(error) => warn!(%error, "The server API failed while it ended."),
        }
    }
}

/// Where the page to try the hub connects to; `None` where clients come by an address that this machine has but does
/// not know, so that the page must guess.
fn websocket_url(scheme: &str, clients: SocketAddr, paths: &[String]) -> Option<String> {
    let path = paths.first().map_or("/", String::as_str);
    (!clients.ip().is_unspecified()).then(|| format!("{scheme}://{clients}{path}"))
}
