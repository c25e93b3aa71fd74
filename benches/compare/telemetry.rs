//! Measures the cost of telemetry: compares deeperhub-ws with several kinds of telemetry to
//! deeperhub-ws without telemetry.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scenario::{SCENARIOS, Scenario};
use crate::servers::{Running, Tools, wait_for};
use crate::table::median;

/// Interval of scrapes and exports. It is much shorter than usual, so that their cost becomes
/// visible.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);

/// Suffixes of the names of the measured scenarios.
const MEASURED: [&str; 4] =
    ["128 B, 1 in flight", "128 B, 8 in flight", "1,000 topics, 128 B", "connections, 128 B"];

/// The telemetry of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    Off,
    /// Metrics, scraped and exported.
    Metrics,
    /// Metrics, and traces of 1 % of the messages.
    Traces,
    /// Counting of the busiest topics and clients.
    Busiest,
}

impl Setup {
    const ALL: [Self; 4] = [Self::Off, Self::Metrics, Self::Traces, Self::Busiest];

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metrics => "metrics, scraped and exported every second",
            Self::Traces => "metrics, and traces at 1 %",
            Self::Busiest => "metrics, and the busiest topics and clients",
        }
    }

    /// Returns the path of the server API to request at each interval.
    const fn polled_path(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Metrics | Self::Traces => Some("/metrics"),
            Self::Busiest => Some("/v1/top"),
        }
    }
}

/// Measures in interleaved rounds and returns the table.
pub(crate) fn measure_cost(tools: &Tools, rounds: usize, seconds: u64, only: &str) -> String {
    let is_measured = |scenario: &&Scenario| {
        MEASURED.iter().any(|end| scenario.name.ends_with(end)) && scenario.name.contains(only)
    };
    let scenarios: Vec<_> = SCENARIOS.iter().filter(is_measured).collect();
    tools.move_off_server_core();
    // Indexed by scenario and setup; a failed round is `None`.
    let mut figures = vec![vec![Vec::new(); Setup::ALL.len()]; scenarios.len()];
    for round in 0..rounds {
        for (scenario, figures) in scenarios.iter().zip(&mut figures) {
            for turn in 0..Setup::ALL.len() {
                let index = (round + turn) % Setup::ALL.len();
                let setup = Setup::ALL[index];
                eprintln!("round {} of {rounds}: {}, {}", round + 1, scenario.name, setup.name());
                let figure = measure(tools, setup, scenario, seconds);
                if let Err(error) = &figure {
                    eprintln!("  skipped: {error}");
                }
                figures[index].push(figure.ok());
            }
        }
    }
    table(&scenarios, &figures)
}

fn table(scenarios: &[&Scenario], figures: &[Vec<Vec<Option<f64>>>]) -> String {
    let mut text = String::from(
        "| scenario | telemetry | CPU µs per message (range) | ratio to off (range) |\n|---|---|---|---|\n",
    );
    for (scenario, figures) in scenarios.iter().zip(figures) {
        for (setup, rounds) in Setup::ALL.iter().zip(figures) {
            let without = figures.first().into_iter().flatten();
            let ratios =
                rounds.iter().zip(without).filter_map(|(with, without)| Some((*with)? / (*without)?));
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                scenario.name,
                setup.name(),
                spread(rounds.iter().flatten().copied(), 2),
                spread(ratios, 3),
            );
        }
    }
    text
}

/// Formats the median, the minimum and the maximum.
fn spread(figures: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    match (median(&figures), figures.as_slice()) {
        (Some(median), [min, .., max]) => format!("{median:.digits$} ({min:.digits$}-{max:.digits$})"),
        (Some(median), _) => format!("{median:.digits$}"),
        _ => "-".to_owned(),
    }
}

/// Returns the server's CPU time per message in microseconds.
fn measure(tools: &Tools, setup: Setup, scenario: &Scenario, seconds: u64) -> Result<f64, Box<dyn Error>> {
    let receiver_port = free_port()?;
    let _receiver = tools.start_on("1", "otlp-receiver", &[receiver_port.to_string()], &[])?;
    wait_for(receiver_port)?;

    let (port, api_port) = (free_port()?, free_port()?);
    let endpoint = format!("http://127.0.0.1:{receiver_port}");
    let api = format!("127.0.0.1:{api_port}");
    let mut flags = tools.limits();
    let mut variables = Vec::new();
    match setup {
        Setup::Off => flags.extend(["--api-listen", "off", "--otlp-endpoint", "off"]),
        Setup::Busiest => flags.extend(["--api-listen", &api, "--otlp-endpoint", "off"]),
        Setup::Metrics | Setup::Traces => {
            flags.extend(["--api-listen", &api, "--otlp-endpoint", &endpoint, "--trace-sample-ratio"]);
            flags.push(if setup == Setup::Traces { "0.01" } else { "0" });
            variables.push(("OTEL_METRIC_EXPORT_INTERVAL", SCRAPE_INTERVAL.as_millis().to_string()));
        }
    }
    if setup == Setup::Metrics {
        variables.push(("OTEL_TRACES_EXPORTER", "none".to_owned()));
    }
    let port_text = port.to_string();
    flags.extend(["--port", &port_text]);
    let flags: Vec<_> = flags.into_iter().map(str::to_owned).collect();
    let server = tools.start_on("0", "deeperhub-ws", &flags, &variables)?;
    wait_for(port)?;

    let poller = setup.polled_path().map(|path| Poller::start(api_port, path));
    let figures = tools.bench(&server, port, scenario, seconds)?;
    if let Some(poller) = poller {
        poller.stop()?;
    }
    // The server flushes its exporters when it stops. The receiver must then have exactly the kinds
    // of telemetry that the setup exports.
    server.terminate()?;
    let counts: Value = serde_json::from_str(&http_get(receiver_port, "/counts")?)?;
    let received = |what: &str| counts[what].as_u64().unwrap_or_default() > 0;
    let exports = matches!(setup, Setup::Metrics | Setup::Traces);
    if received("metrics") != exports || received("spans") != (setup == Setup::Traces) {
        return Err(format!("the receiver got {counts}").into());
    }
    figures.cpu.ok_or_else(|| "the bench reports no CPU time".into())
}

fn free_port() -> Result<u16, Box<dyn Error>> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Requests a path with GET and returns the body of the response.
fn http_get(port: u16, path: &str) -> Result<String, Box<dyn Error>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("not an HTTP response")?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(head.to_owned().into()) }
}

/// A thread that requests a path of the server API at each interval.
struct Poller {
    is_stopped: Arc<AtomicBool>,
    /// The last error.
    error: Arc<Mutex<Option<String>>>,
    thread: thread::JoinHandle<()>,
}

impl Poller {
    fn start(port: u16, path: &'static str) -> Self {
        let (is_stopped, error) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (stopped, last_error) = (Arc::clone(&is_stopped), Arc::clone(&error));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let next = Instant::now() + SCRAPE_INTERVAL;
                if let Err(error) = http_get(port, path) {
                    *last_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some(error.to_string());
                }
                while Instant::now() < next && !stopped.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self { is_stopped, error, thread }
    }

    fn stop(self) -> Result<(), Box<dyn Error>> {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the polling thread panicked")?;
        let error = self.error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        error.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Running {
    /// Sends SIGTERM to the process and waits for it.
    fn terminate(mut self) -> Result<(), Box<dyn Error>> {
        let status = std::process::Command::new("kill").arg(self.0.id().to_string()).status()?;
        if !status.success() {
            return Err("cannot send SIGTERM to the server".into());
        }
        self.0.wait()?;
        Ok(())
    }
}
