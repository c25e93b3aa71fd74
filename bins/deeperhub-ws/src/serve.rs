//! Serving: from settings to a node that runs, until a signal comes.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;
use deeperhub_api::SharedApiConfig;
use deeperhub_listener::MemoryBudget;
use deeperhub_node::Node;
use deeperhub_security::files::Stamp;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::failure::Failure;
use crate::live::LiveSettings;
use crate::logging::Level;
use crate::reload::Reloads;
use crate::settings::Settings;
use crate::signals::{self, HangUps, Stops};
use crate::start_line::start_line;
use crate::telemetry::{Prepared, telemetry_config};
use crate::values::Address;
use crate::{FAILED, allocator, event_log, logging, memory, nofile};

/// What tasks that block (name look-ups) are given at the end.
const LAST_TASKS: Duration = Duration::from_secs(1);

/// What a collector is given to take what is left at the end.
const LAST_TELEMETRY: Duration = Duration::from_secs(5);

/// Serves until a signal comes. `flags` are those that the settings are of, to read them again. Everything process-wide is
/// set up here: log, limit of open files, signals.
pub(crate) fn serve(settings: Settings, flags: Vec<ArgMatches>) -> ExitCode {
    match prepare(&settings).and_then(|(runtime, level)| {
        let result = runtime.block_on(run(settings, flags, level));
        runtime.shutdown_timeout(LAST_TASKS);
        result
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "error: {failure}");
            ExitCode::from(FAILED)
        }
    }
}

/// The runtime that carries everything but clients' connections, which have threads of their own.
fn prepare(settings: &Settings) -> Result<(runtime::Runtime, Level), Failure> {
    let level = logging::install(settings.log_level, settings.log_format)
        .map_err(|error| Failure::system("cannot write a log", io::Error::other(error)))?;
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    let listener = &settings.node.listener;
    if let Err(sentence) =
        nofile::raise(listener.max_connections, listener.workers, settings.api_connections())
    {
        warn!("{sentence}");
    }
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| (runtime, level))
        .map_err(|error| Failure::system("cannot make a runtime", error))
}

async fn run(mut settings: Settings, flags: Vec<ArgMatches>, level: Level) -> Result<(), Failure> {
    // Before all else: a signal that comes during the start is not to be lost.
    let (mut stops, hang_ups) =
        signals::listen().map_err(|error| Failure::system("cannot listen to signals", error))?;
    // The API's port first: when it is taken, no client must have been let in.
    let api_socket = match &settings.api {
        Some(api) => Some(listen_api(&api.address).await?),
        None => None,
    };
    let telemetry = Prepared::new(telemetry_config(
        settings.otlp_endpoint.as_ref(),
        settings.trace_sample_ratio,
        |name| std::env::var(name).ok(),
    ));
    settings.node.tracer = telemetry.tracer();
    settings.node.gauges = allocator::GAUGES.to_vec();
    settings.node.numbers = settings.api.iter().flat_map(|api| api.config.metrics.numbers()).collect();
    let node = start_node(&settings)?;
    let memory = settings.node.listener.memory.clone();
    let telemetry = telemetry.start(&node.handle());
    let clients = node.local_addr();
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

    announce(&start_line(&settings, clients, api_address));
    info!(%clients, api = api_address.map(tracing::field::display), "Serving.");

    let (result, ended) = {
        let serving = serve_until_stopped(node, api, &mut stops, settings.drain_timeout);
        while_watching(serving, reloads, hang_ups, memory).await
    };
    if ended == Ended::Completely {
        // The node closed the bus, so this ends after what waits there; an error is a panic that was told.
        let _ = event_log.await;
        // The last, as everything before it may record.
        telemetry.stop(LAST_TELEMETRY).await;
    }
    info!("Stopped.");
    result
}

/// To standard output, for people and for programs that wait for the ports; that nobody reads it is no fault.
fn announce(line: &impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn start_node(settings: &Settings) -> Result<Node, Failure> {
    let address = lookup(&settings.address)?;
    Node::start(address, settings.node.clone()).map_err(|error| match error {
        deeperhub_node::StartError::Listener(deeperhub_listener::StartError::Listen { source, .. }) => {
            Failure::Listen { address: settings.address.clone(), purpose: "clients", flag: "--port", source }
        }
        deeperhub_node::StartError::NodeIdTaken(taken) => Failure::NodeIdTaken(taken),
        error => Failure::Node(error),
    })
}

async fn listen_api(address: &Address) -> Result<(TcpListener, SocketAddr), Failure> {
    let socket = lookup(address)?;
    let listen = async {
        let listener = TcpListener::bind(socket).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listen.await.map_err(|source| Failure::Listen {
        address: address.clone(),
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
    memory: Option<Arc<MemoryBudget>>,
) -> T {
    tokio::select! {
        result = serving => result,
        never = reloads.run(hang_ups) => match never {},
        never = memory::watch(memory) => match never {},
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
