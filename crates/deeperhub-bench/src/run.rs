//! Carries out a run, from its arguments to its report.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use deeperhub_args::Address;
use tungstenite::handshake::client::generate_key;

use crate::args::Args;
use crate::counters::Counters;
use crate::error::BenchError;
use crate::handshake::Handshake;
use crate::open_files;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Measurements, Report};
use crate::shared_state::SharedState;
use crate::thread_state::ThreadState;
use crate::tls;
use crate::usage::UsageSampler;
use crate::worker::{Endpoint, Worker};

/// Interval at which the calling thread samples usage and checks on the workers.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// Runs a scenario against a server and returns the report. Blocks until the run is over.
///
/// Lost messages and dropped connections are not errors, but part of the report.
/// [`Report::has_faults`] checks for faulty deliveries.
///
/// # Errors
///
/// If flags contradict each other, or the run could not be carried out. In scenarios with messages,
/// every connection has to open; in `idle` and `churn`, one is enough.
pub fn run(args: Args) -> Result<Report, BenchError> {
    let plan = Plan::new(args)?;
    let progress = Progress::hidden(&plan);
    run_plan(&plan, progress)
}

/// Does the same as [`run`] and draws a progress bar on standard error if that is a terminal.
///
/// # Errors
///
/// The errors of [`run`].
pub fn run_with_progress(args: Args) -> Result<Report, BenchError> {
    let plan = Plan::new(args)?;
    let progress = Progress::on_stderr(&plan);
    run_plan(&plan, progress)
}

fn run_plan(plan: &Plan, progress: Progress) -> Result<Report, BenchError> {
    let tls = if plan.url.tls {
        let config = tls::client_config(&plan.trust).map_err(BenchError::InvalidArgs)?;
        let name = tls::server_name(&plan.url.address.host).map_err(BenchError::InvalidArgs)?;
        Some((config, name))
    } else {
        None
    };
    open_files::raise_limit(plan)?;
    let address = resolve(&plan.url.address)?;
    let return_to = plan.recover.as_ref().and_then(|recover| recover.return_to.as_ref());
    let return_address = return_to.map_or(Ok(address), resolve)?;
    check_sources(plan, address)?;
    check_sources(plan, return_address)?;
    check_server_process(plan)?;
    let (counters, measurements) = run_workers(plan, &Endpoint { address, return_address, tls }, progress)?;
    check_connections(plan, &counters)?;
    Ok(Report::new(plan, &counters, measurements))
}

fn resolve(address: &Address) -> Result<SocketAddr, BenchError> {
    address.resolve().map_err(|error| BenchError::Resolve { address: address.to_string(), error })
}

/// Checks that connections can be made from the addresses of `--source`.
fn check_sources(plan: &Plan, server: SocketAddr) -> Result<(), BenchError> {
    let Some(source) = plan.sources.iter().find(|source| source.is_ipv4() != server.is_ipv4()) else {
        return Ok(());
    };
    let family = if server.is_ipv4() { "an IPv4" } else { "an IPv6" };
    Err(BenchError::InvalidArgs(format!(
        "invalid value '{source}' for --source: the server is {}; expected {family} address of this machine",
        server.ip()
    )))
}

/// Checks that the usage of the process of `--server-pid` can be read.
fn check_server_process(plan: &Plan) -> Result<(), BenchError> {
    let Some(server) = plan.server else { return Ok(()) };
    server.usage().map(drop).map_err(|error| {
        BenchError::InvalidArgs(format!(
            "invalid value '{}' for --server-pid: its usage cannot be read ({error}); expected the process id of the \
             server on this machine",
            server.0
        ))
    })
}

/// Starts the workers, samples usage until they are done, and adds up their counters.
fn run_workers(
    plan: &Plan,
    endpoint: &Endpoint,
    mut progress: Progress,
) -> Result<(Counters, Measurements), io::Error> {
    let shared = SharedState::new(plan);
    // All connections can share a key, which only proves that the response is not a cached one.
    let handshake = Handshake::new(plan, &generate_key());
    let run_id = RandomState::new().hash_one(std::process::id()) as u32;
    let workers: Vec<_> = (0..plan.threads)
        .map(|index| {
            Worker::new(ThreadState::new(plan, &shared, &handshake, index, run_id), endpoint.clone())
        })
        .collect::<io::Result<_>>()?;
    let mut sampler = UsageSampler::new(plan);
    let mut counters = Counters::default();
    thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .enumerate()
            .map(|(index, worker)| {
                thread::Builder::new().name(format!("bench {index}")).spawn_scoped(scope, || {
                    let result = worker.run();
                    if result.is_err() {
                        // Without the stop, the other workers would wait for this one.
                        shared.stop();
                    }
                    result
                })
            })
            .collect();
        let mut running: Vec<_> =
            threads.into_iter().filter_map(|thread| thread.inspect_err(|_| shared.stop()).ok()).collect();
        if running.len() < plan.threads {
            shared.stop();
        }
        while running.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(SAMPLE_INTERVAL);
            progress.update(&shared);
            sampler.sample(plan, &shared);
            if plan.scenario.has_messages() && shared.failed.load(Relaxed) > 0 {
                // Without all connections, the run would measure something else.
                shared.stop();
            }
        }
        sampler.sample(plan, &shared);
        for thread in running.drain(..) {
            match thread.join() {
                Ok(result) => counters.add(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
    .map(|()| (counters, sampler.measurements(plan, &shared)))
}

/// Checks that as many connections opened as the scenario needs.
fn check_connections(plan: &Plan, counters: &Counters) -> Result<(), BenchError> {
    let is_missing_some =
        if plan.scenario.has_messages() { counters.failed > 0 } else { counters.opened == 0 };
    if !is_missing_some {
        return Ok(());
    }
    let kinds: Vec<_> = counters.errors.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
    let hint = match counters.errors.keys().next().map(String::as_str) {
        Some("connect_refused") => "; is a server running there?",
        Some("http_401") => "; the server requires a valid --token",
        Some("http_503") => "; the server's --max-connections may be too low",
        Some("error_unauthorized" | "error_forbidden") => "; use a --token that grants `bench.>`",
        Some("no_history") => "; start the server with --topic 'bench.>: history=1000'",
        Some("connect_no_free_port") => "; add local addresses with --source",
        _ => "",
    };
    Err(BenchError::Connect {
        failed: counters.failed,
        requested: plan.clients + plan.publishers,
        url: plan.url.to_string(),
        reasons: format!("{}{hint}", kinds.join(", ")),
    })
}
