//! A server under attack: how it is set up, who is beside the attackers, and what is looked at afterwards.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use crate::attack::{Attack, COMPRESSED, Crowd, Entrance, Limits};
use crate::healthy::{Healthy, Report};
use crate::support::{Authority, Issuer, Server, from_now, http, over_tls};
use crate::wire::Duplex;

/// How a server is set up and how clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variation {
    pub(crate) has_two_workers: bool,
    pub(crate) has_io_uring: bool,
    pub(crate) has_tls: bool,
    pub(crate) is_compressed: bool,
    /// Tokens are required; every other attacker has none.
    pub(crate) has_tokens: bool,
}

impl Variation {
    /// Eight of them, in which every two settings occur with all four pairs of their values.
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

    /// As it must be for an attack.
    pub(crate) fn suits(mut self, attack: Attack) -> Self {
        self.is_compressed |= attack.is_compressed_only();
        self.has_tokens |= attack == Attack::WrongTokens;
        self
    }
}

impl fmt::Display for Variation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.has_two_workers { "2 workers" } else { "1 worker" })?;
        f.write_str(if self.has_io_uring { ", io_uring auto" } else { ", io_uring off" })?;
        f.write_str(if self.has_tls { ", TLS" } else { ", no TLS" })?;
        f.write_str(if self.is_compressed { ", compressed" } else { ", plain" })?;
        f.write_str(if self.has_tokens { ", tokens" } else { ", no tokens" })
    }
}

/// Bytes of memory that a server may use where a scene does not say so.
pub(crate) const BUDGET: u64 = 320 << 20;

/// What memory may differ by before and after: buffers that workers keep, and what an allocator does not give back.
const SLACK: u64 = 64 << 20;

/// How long 99 of 100 answers to the healthy may take, on a machine that does nothing else.
const BOUND: Duration = Duration::from_secs(1);

/// How long it may take until nothing is left of an attack.
const AFTERMATH: Duration = Duration::from_secs(25);

/// Attackers take all of the machine, so one scene at a time.
static STAGE: Mutex<()> = Mutex::const_new(());

/// A server and those who come to it.
pub(crate) struct Stage {
    variation: Variation,
    pub(crate) server: Server,
    /// Does nothing but echo for one client, which tells how busy the machine is.
    control: Server,
    budget: u64,
    limits: Limits,
    authority: Option<Authority>,
    issuer: Option<Issuer>,
    resident: u64,
    files: usize,
    _only: MutexGuard<'static, ()>,
}

impl Stage {
    /// Starts a server with flags of a scene, and a budget of memory.
    pub(crate) async fn new(variation: Variation, flags: &[&str], budget: u64, limits: Limits) -> Self {
        let only = STAGE.lock().await;
        let authority = variation.has_tls.then(Authority::new);
        let identity = authority.as_ref().map(|authority| authority.server("server"));
        let issuer = variation.has_tokens.then(|| Issuer::new("a secret of 32 bytes, which is enough"));
        let memory = budget.to_string();
        let mut all = vec![
            "--workers",
            if variation.has_two_workers { "2" } else { "1" },
            "--io-uring",
            if variation.has_io_uring { "auto" } else { "off" },
        ];
        if !flags.contains(&"--max-memory") {
            all.extend(["--max-memory", &memory]);
        }
        all.extend(identity.iter().flat_map(|identity| identity.flags()));
        let secret = issuer.as_ref().map(Issuer::file);
        if let Some(secret) = &secret {
            all.extend(["--auth-secret-file", secret, "--auth-required"]);
        }
        all.extend(flags);
        let server = Server::start(&all);
        let control = Server::start(&["--workers", "1"]);
        let (resident, files) = (server.resident_bytes(), server.open_files());
        Self { variation, server, control, budget, limits, authority, issuer, resident, files, _only: only }
    }

    /// How clients come in who may do everything.
    pub(crate) fn entrance(&self) -> Entrance {
        let tls = self.authority.as_ref().map(|authority| {
            let mut config = (*authority.trusting(None)).clone();
            // Each handshake is a whole one.
            config.resumption = rustls::client::Resumption::disabled();
            let config = Arc::new(config);
            let tls: crate::attack::Tls = Arc::new(move |stream: TcpStream| {
                let config = Arc::clone(&config);
                Box::pin(async move { Ok(Box::new(over_tls(stream, &config).await?) as Box<dyn Duplex>) })
            });
            tls
        });
        let claims = json!({"sub": "ada", "exp": from_now(Duration::from_secs(3600))});
        Entrance {
            address: self.server.clients,
            tls,
            offer: self.variation.is_compressed.then_some(COMPRESSED),
            token: self.issuer.as_ref().map(|issuer| issuer.token(&claims)),
            limits: self.limits,
        }
    }

    /// How attackers come in: where tokens are required, every other one without.
    pub(crate) fn entrances(&self) -> Vec<Entrance> {
        let good = self.entrance();
        let bad = good.token.is_some().then(|| Entrance { token: None, ..good.clone() });
        std::iter::once(good).chain(bad).collect()
    }

    /// Lets healthy clients and attackers at the server for a while, and looks at all that must hold.
    ///
    /// # Panics
    ///
    /// When something does not hold, with what was seen.
    pub(crate) async fn check(self, attack: Attack, clients: usize, time: Duration) {
        self.check_all(&[(attack, clients)], time).await;
    }

    /// As [`Self::check`], with several attacks at once.
    pub(crate) async fn check_all(self, attacks: &[(Attack, usize)], time: Duration) {
        let what: Vec<_> = attacks
            .iter()
            .map(|(attack, clients)| {
                format!("{clients} × {} ({}, {})", attack.name(), attack.limit(), attack.allowance())
            })
            .collect();
        let (what, variation) = (what.join(" and "), self.variation);
        let healthy = self.healthy();
        let mut crowd = Crowd::default();
        for &(attack, clients) in attacks {
            crowd.gather(attack, &self.entrances(), clients);
        }
        let seen = self.watch(&healthy, time).await;
        let tally = crowd.disperse().await;
        let (report, control) = self.part(healthy);
        let attackers = tally.as_ref().map_or_else(Clone::clone, ToString::to_string);
        let mib = |bytes: u64| bytes >> 20;
        let scene = format!(
            "{what} ({variation}): {attackers}; {}on an idle server: {}peak memory {} MiB of {} MiB",
            report.as_ref().map_or_else(Clone::clone, ToString::to_string),
            control.as_ref().map_or_else(Clone::clone, ToString::to_string),
            mib(self.server.peak_resident_bytes()),
            mib(self.budget),
        );
        println!("{scene}");
        assert!(tally.is_ok(), "an attacker got what was not its own: {scene}");
        assert!(tally.is_ok_and(|tally| tally.connections() > 0), "no attacker came in: {scene}");
        let report = report.unwrap_or_else(|error| panic!("{error}; {scene}"));
        seen.unwrap_or_else(|error| panic!("{error}; {scene}"));
        let control = control.map_or(Duration::ZERO, |control| control.p99());
        let bound = BOUND.max(5 * control);
        assert!(report.p99() <= bound, "the healthy waited longer than {bound:?}: {scene}");
        assert!(
            self.server.peak_resident_bytes() <= self.budget / 10 * 11,
            "memory is over its budget by more than a tenth: {scene}"
        );
        self.check_aftermath(&scene).await;
    }

    /// Clients at this server and at the one that nobody attacks.
    pub(crate) fn healthy(&self) -> [Healthy; 2] {
        let start = |entrance, echoes, pairs| {
            Healthy::start(&[entrance], echoes, pairs).unwrap_or_else(|error| panic!("{error}"))
        };
        [start(self.entrance(), 4, 2), start(Entrance::plain(self.control.clients), 1, 0)]
    }

    /// Ends what [`Self::healthy`] began: what was seen here, and at the other server.
    pub(crate) fn part(&self, healthy: [Healthy; 2]) -> (Result<Report, String>, Result<Report, String>) {
        let [here, there] = healthy;
        (here.stop(), there.stop())
    }

    /// Waits, and asks whether the server is ready meanwhile.
    pub(crate) async fn watch(&self, healthy: &[Healthy; 2], time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        while Instant::now() < end && !healthy[0].has_failed() {
            tokio::time::sleep(Duration::from_millis(100).min(time)).await;
            let began = Instant::now();
            let answer = http(self.server.api(), "GET /health/ready", &[], "").await;
            if answer.status != 200 {
                return Err(format!("it was not ready: {}", answer.body));
            }
            if began.elapsed() > Duration::from_secs(10) {
                return Err(format!("/health/ready took {:?}", began.elapsed()));
            }
        }
        Ok(())
    }

    /// Waits until nothing is left: connections, subscriptions, topics, queues, files and memory.
    pub(crate) async fn check_aftermath(&self, scene: &str) {
        let end = Instant::now() + AFTERMATH;
        loop {
            let left = self.left().await;
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{AFTERMATH:?} after the attack there is left: {left}; {scene}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What is not as it was before anybody came.
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
                left.push(format!("{name} {}", value.unwrap_or("that does not exist")));
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
        if resident > self.resident + SLACK {
            left.push(format!("{resident} bytes of memory, {} before", self.resident));
        }
        left.join(", ")
    }
}
