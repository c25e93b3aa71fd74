//! Runs a server under attack beside healthy clients and checks latency, memory and cleanup.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use crate::attack::{Attack, Attackers, COMPRESSED, ConnectOptions, Limits};
use crate::healthy::{HealthyClients, Report};
use crate::support::{Authority, Issuer, Server, from_now, http, over_tls};
use crate::wire::Duplex;

/// Configuration of the server and of its clients' connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerSetup {
    pub(crate) has_two_workers: bool,
    pub(crate) has_io_uring: bool,
    pub(crate) has_tls: bool,
    pub(crate) is_compressed: bool,
    /// The server requires tokens; every other attacker has none.
    pub(crate) has_tokens: bool,
}

impl ServerSetup {
    /// Returns eight setups in which any two settings take all four combinations of values.
    pub(crate) fn pairs() -> [Self; 8] {
        std::array::from_fn(|row| {
            let bit = |n: usize| row >> n & 1 == 1;
            Self {
                has_two_workers: bit(0),
                has_io_uring: bit(1),
                has_tls: bit(2),
                is_compressed: bit(0) != bit(1),
                has_tokens: bit(0) != bit(2),
            }
        })
    }

    /// Returns the setup with the settings that an attack needs.
    pub(crate) fn adapted_to(mut self, attack: Attack) -> Self {
        self.is_compressed |= attack.is_compressed_only();
        self.has_tokens |= attack == Attack::WrongTokens;
        self
    }
}

impl fmt::Display for ServerSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.has_two_workers { "2 workers" } else { "1 worker" })?;
        f.write_str(if self.has_io_uring { ", io_uring auto" } else { ", io_uring off" })?;
        f.write_str(if self.has_tls { ", TLS" } else { ", no TLS" })?;
        f.write_str(if self.is_compressed { ", compressed" } else { ", plain" })?;
        f.write_str(if self.has_tokens { ", tokens" } else { ", no tokens" })
    }
}

/// Default `--max-memory`.
pub(crate) const BUDGET: u64 = 320 << 20;

/// Memory that may remain after an attack: worker buffers and what the allocator retains.
const MEMORY_SLACK: u64 = 64 << 20;

/// Bound on p99 of healthy clients on an otherwise idle machine.
const MAX_P99: Duration = Duration::from_secs(1);

/// Most that a busy machine raises the bound.
const MAX_SLOWDOWN: f64 = 8.0;

/// Time after which an attack must have left nothing behind.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(25);

/// Serializes scenarios: each one loads the whole machine.
static ONE_SCENARIO: Mutex<()> = Mutex::const_new(());

/// A server to attack, with its measurements before the attack.
pub(crate) struct Scenario {
    setup: ServerSetup,
    pub(crate) server: Server,
    /// An idle server whose echo latency shows how busy the machine is.
    control: Server,
    budget: u64,
    limits: Limits,
    authority: Option<Authority>,
    issuer: Option<Issuer>,
    resident: u64,
    files: usize,
    _only: MutexGuard<'static, ()>,
}

impl Scenario {
    /// Starts the server with further flags and a memory budget.
    pub(crate) async fn new(setup: ServerSetup, flags: &[&str], budget: u64, limits: Limits) -> Self {
        let only = ONE_SCENARIO.lock().await;
        let authority = setup.has_tls.then(Authority::new);
        let identity = authority.as_ref().map(|authority| authority.server("server"));
        let issuer = setup.has_tokens.then(|| Issuer::new("a secret of 32 bytes, which is enough"));
        let memory = budget.to_string();
        let mut all = vec![
            "--workers",
            if setup.has_two_workers { "2" } else { "1" },
            "--io-uring",
            if setup.has_io_uring { "auto" } else { "off" },
        ];
        if !flags.contains(&"--max-memory") {
            all.extend(["--max-memory", &memory]);
        }
        all.extend(identity.iter().flat_map(|identity| identity.flags()));
        let secret = issuer.as_ref().map(Issuer::file);
        if let Some(secret) = &secret {
            all.extend(["--auth-secret-file", secret, "--auth-required"]);
        }
        all.extend(Attack::HISTORY_FLAGS);
        all.extend(flags);
        let server = Server::start(&all);
        let control = Server::start(&["--workers", "1"]);
        let (resident, files) = (server.resident_bytes(), server.open_files());
        Self { setup, server, control, budget, limits, authority, issuer, resident, files, _only: only }
    }

    /// Returns the connection options of clients with all permissions.
    pub(crate) fn options(&self) -> ConnectOptions {
        let tls = self.authority.as_ref().map(|authority| {
            let mut config = (*authority.trusting(None)).clone();
            // Full handshakes only.
            config.resumption = rustls::client::Resumption::disabled();
            let config = Arc::new(config);
            let tls: crate::attack::Tls = Arc::new(move |stream: TcpStream| {
                let config = Arc::clone(&config);
                Box::pin(async move { Ok(Box::new(over_tls(stream, &config).await?) as Box<dyn Duplex>) })
            });
            tls
        });
        let claims = json!({"sub": "ada", "exp": from_now(Duration::from_secs(3600))});
        ConnectOptions {
            address: self.server.clients,
            tls,
            offer: self.setup.is_compressed.then_some(COMPRESSED),
            token: self.issuer.as_ref().map(|issuer| issuer.token(&claims)),
            limits: self.limits,
        }
    }

    /// Returns attackers' connection options: every other attacker has no token if tokens are
    /// required.
    pub(crate) fn attacker_options(&self) -> Vec<ConnectOptions> {
        let good = self.options();
        let bad = good.token.is_some().then(|| ConnectOptions { token: None, ..good.clone() });
        std::iter::once(good).chain(bad).collect()
    }

    /// Runs an attack beside healthy clients and checks all guarantees.
    ///
    /// # Panics
    ///
    /// If a guarantee does not hold, with the measurements.
    pub(crate) async fn check(self, attack: Attack, clients: usize, time: Duration) {
        self.check_all(&[(attack, clients)], time).await;
    }

    /// Runs several attacks at once; otherwise like [`Self::check`].
    pub(crate) async fn check_all(self, attacks: &[(Attack, usize)], time: Duration) {
        let what: Vec<_> = attacks
            .iter()
            .map(|(attack, clients)| {
                format!("{clients} × {} ({}, {})", attack.name(), attack.limit(), attack.allowance())
            })
            .collect();
        let (what, setup) = (what.join(" and "), self.setup);
        let healthy = self.healthy();
        let mut attackers = Attackers::default();
        for &(attack, clients) in attacks {
            attackers.spawn(attack, &self.attacker_options(), clients);
        }
        let before = self.server.scheduled();
        let seen = self.wait_while_ready(&healthy, time).await;
        let counters = attackers.stop().await;
        let (report, control) = self.stop_healthy(healthy);
        let slowdown = slowdown(before, self.server.scheduled());
        let attackers = counters.as_ref().map_or_else(Clone::clone, ToString::to_string);
        let mib = |bytes: u64| bytes >> 20;
        let scene = format!(
            "{what} ({setup}): {attackers}; healthy: {}; idle server: {}; slowdown by other programs {slowdown:.1}; \
             peak memory {} MiB of {} MiB",
            report.as_ref().map_or_else(Clone::clone, ToString::to_string),
            control.as_ref().map_or_else(Clone::clone, ToString::to_string),
            mib(self.server.peak_resident_bytes()),
            mib(self.budget),
        );
        println!("{scene}");
        assert!(counters.is_ok(), "an attacker got wrong bytes: {scene}");
        assert!(
            counters.is_ok_and(|counters| counters.connections() > 0),
            "no attacker could connect: {scene}"
        );
        let report = report.unwrap_or_else(|error| panic!("{error}; {scene}"));
        seen.unwrap_or_else(|error| panic!("{error}; {scene}"));
        let control = control.map_or(Duration::ZERO, |control| control.p99());
        let bound = MAX_P99.mul_f64(slowdown.min(MAX_SLOWDOWN)).max(5 * control);
        assert!(report.p99() <= bound, "p99 of healthy clients is over {bound:?}: {scene}");
        assert!(
            self.server.peak_resident_bytes() <= self.budget / 10 * 11,
            "peak memory is over --max-memory + 10 %: {scene}"
        );
        self.check_cleanup(&scene).await;
    }

    /// Starts healthy clients at this server and at the idle one.
    pub(crate) fn healthy(&self) -> [HealthyClients; 2] {
        let start = |options, echoes, pairs| {
            HealthyClients::start(&[options], echoes, pairs).unwrap_or_else(|error| panic!("{error}"))
        };
        [start(self.options(), 4, 2), start(ConnectOptions::plain(self.control.clients), 1, 0)]
    }

    /// Stops healthy clients and returns the reports of this server and of the idle one.
    pub(crate) fn stop_healthy(
        &self,
        healthy: [HealthyClients; 2],
    ) -> (Result<Report, String>, Result<Report, String>) {
        let [here, there] = healthy;
        (here.stop(), there.stop())
    }

    /// Waits and checks readiness meanwhile.
    pub(crate) async fn wait_while_ready(
        &self,
        healthy: &[HealthyClients; 2],
        time: Duration,
    ) -> Result<(), String> {
        let end = Instant::now() + time;
        while Instant::now() < end && !healthy[0].has_failed() {
            tokio::time::sleep(Duration::from_millis(100).min(time)).await;
            let began = Instant::now();
            let response = http(self.server.api(), "GET /health/ready", &[], "").await;
            if response.status != 200 {
                return Err(format!("/health/ready answered {}: {}", response.status, response.body));
            }
            if began.elapsed() > Duration::from_secs(10) {
                return Err(format!("/health/ready took {:?}", began.elapsed()));
            }
        }
        Ok(())
    }

    /// Waits until connections, subscriptions, topics, queues, files and memory are back at their
    /// values before the attack.
    pub(crate) async fn check_cleanup(&self, scene: &str) {
        let end = Instant::now() + CLEANUP_TIMEOUT;
        loop {
            let left = self.left().await;
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < end,
                "{CLEANUP_TIMEOUT:?} after the attack there still are: {left}; {scene}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the metrics that differ from before the attack.
    async fn left(&self) -> String {
        let metrics = http(self.server.api(), "GET /metrics", &[], "").await.body;
        let mut left = Vec::new();
        for name in [
            "deeperhub_connections_active",
            "deeperhub_subscriptions",
            "deeperhub_topics",
            "deeperhub_queue_bytes",
        ] {
            let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            if value != Some("0") {
                left.push(format!("{name} {}", value.unwrap_or("(missing)")));
            }
        }
        let topics = http(self.server.api(), "GET /v1/topics", &[], "").await.body;
        if !topics.contains(r#""topics":[]"#) {
            left.push(format!("topics {}", topics.chars().take(200).collect::<String>()));
        }
        let (files, resident) = (self.server.open_files(), self.server.resident_bytes());
        if files > self.files + 4 {
            left.push(format!("{files} open files, {} before", self.files));
        }
        if resident > self.resident + MEMORY_SLACK {
            left.push(format!("{resident} bytes of memory, {} before", self.resident));
        }
        left.join(", ")
    }
}

/// Returns the factor by which other programs slowed a server down: the time that its threads ran
/// or waited for a CPU, divided by the time that they ran.
fn slowdown(before: (Duration, Duration), after: (Duration, Duration)) -> f64 {
    let ran = after.0.saturating_sub(before.0).as_secs_f64();
    let waited = after.1.saturating_sub(before.1).as_secs_f64();
    1.0 + waited / ran.max(0.001)
}
