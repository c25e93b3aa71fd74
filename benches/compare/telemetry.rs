//! What telemetry costs: the same server with more and more of it, against itself without.

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

/// How often metrics are scraped and exported: much more often than anybody does, so that their cost shows.
const EVERY: Duration = Duration::from_secs(1);

/// The scenarios that are measured, by the ends of their names.
const MEASURED: [&str; 4] =
    ["128 B, 1 under way", "128 B, 8 under way", "1,000 topics, 128 B", "connections, 128 B"];

/// One way to run the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    Off,
    Metrics,
    Traces,
    Busiest,
}

impl Setup {
    const ALL: [Self; 4] = [Self::Off, Self::Metrics, Self::Traces, Self::Busiest];

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metrics => "metrics, scraped and exported each second",
            Self::Traces => "the same, and traces at 1 %",
            Self::Busiest => "metrics, and the busiest counted for /v1/top",
        }
    }

    /// What the API is asked for each second.
    const fn asked(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Metrics | Self::Traces => Some("/metrics"),
            Self::Busiest => Some("/v1/top"),
        }
    }
}

/// Measures in interleaved rounds, and gives the table.
pub(crate) fn cost(tools: &Tools, rounds: usize, seconds: u64, only: &str) -> String {
    let is_measured = |scenario: &&Scenario| {
        MEASURED.iter().any(|end| scenario.name.ends_with(end)) && scenario.name.contains(only)
    };
    let scenarios: Vec<_> = SCENARIOS.iter().filter(is_measured).collect();
    tools.step_aside();
    // By scenario, then setup; a round that failed is `None`.
    let mut figures = vec![vec![Vec::new(); Setup::ALL.len()]; scenarios.len()];
    for round in 0..rounds {
        for (scenario, figures) in scenarios.iter().zip(&mut figures) {
            for turn in 0..Setup::ALL.len() {
                let index = (round + turn) % Setup::ALL.len();
                let setup = Setup::ALL[index];
                eprintln!("round {} of {rounds}: {}, {}", round + 1, scenario.name, setup.name());
                let figure = measure(tools, setup, scenario, seconds);
                if let Err(error) = &figure {
                    eprintln!("  left out: {error}");
                }
                figures[index].push(figure.ok());
            }
        }
    }
    table(&scenarios, &figures)
}

fn table(scenarios: &[&Scenario], figures: &[Vec<Vec<Option<f64>>>]) -> String {
    let mut text = String::from(
        "| scenario | telemetry | CPU µs each (range) | of that without (range) |\n|---|---|---|---|\n",
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

/// Median, least and most.
fn spread(figures: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    match (median(&figures), figures.as_slice()) {
        (Some(median), [least, .., most]) => format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"),
        (Some(median), _) => format!("{median:.digits$}"),
        _ => "-".to_owned(),
    }
}

/// Microseconds of the server's processor time for each message.
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
            variables.push(("OTEL_METRIC_EXPORT_INTERVAL", EVERY.as_millis().to_string()));
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

    let asker = setup.asked().map(|path| Asker::start(api_port, path));
    let figures = tools.bench(&server, port, scenario, seconds)?;
    if let Some(asker) = asker {
        asker.end()?;
    }
    // What was to be exported has arrived: the last of it comes at the server's end.
    server.terminate()?;
    let counts: Value = serde_json::from_str(&ask(receiver_port, "/counts")?)?;
    let came = |what: &str| counts[what].as_u64().unwrap_or_default() > 0;
    let exports = matches!(setup, Setup::Metrics | Setup::Traces);
    if came("metrics") != exports || came("spans") != (setup == Setup::Traces) {
        return Err(format!("the receiver got {counts}").into());
    }
    figures.cpu.ok_or_else(|| "the bench tells no processor time".into())
}

fn free_port() -> Result<u16, Box<dyn Error>> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The body of what a server answers.
fn ask(port: u16, path: &str) -> Result<String, Box<dyn Error>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(head.to_owned().into()) }
}

/// Asks the API again and again, as a scraper or an operator's screen does.
struct Asker {
    ends: Arc<AtomicBool>,
    /// The first failure.
    failed: Arc<Mutex<Option<String>>>,
    thread: thread::JoinHandle<()>,
}

impl Asker {
    fn start(port: u16, path: &'static str) -> Self {
        let (ends, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (end, failure) = (Arc::clone(&ends), Arc::clone(&failed));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let next = Instant::now() + EVERY;
                if let Err(error) = ask(port, path) {
                    *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some(error.to_string());
                }
                while Instant::now() < next && !end.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self { ends, failed, thread }
    }

    fn end(self) -> Result<(), Box<dyn Error>> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the asking thread panicked")?;
        let failed = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Running {
    /// Asks the process to end, and waits for it.
    fn terminate(mut self) -> Result<(), Box<dyn Error>> {
        let status = std::process::Command::new("kill").arg(self.0.id().to_string()).status()?;
        if !status.success() {
            return Err("the server cannot be told to end".into());
        }
        self.0.wait()?;
        Ok(())
    }
}
