//! Many random faults in a row, while clients publish and read. They take minutes, so they run by a
//! command of their own, see `CONTRIBUTING.md`.

use std::time::Duration;

use tokio::task::block_in_place;

use super::journals::{Checked, RULE, Trial, TrialRecord};
use super::node;
use super::node_faults::{Balancers, wait_until_joined};
use super::store_faults::with_data_on_disk;
use crate::support::{Broker, Engine, Proxy, Server, has_brokers};

const NAMES: [&str; 3] = ["a", "b", "c"];

const TOPICS: [&str; 2] = ["kept.1", "kept.2"];

/// Returns the number in an environment variable.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is '{text}'; expected a number")),
        Err(_) => default,
    }
}

/// Three nodes, each with a link to the broker that can be cut.
struct Hub {
    broker: Broker,
    links: [Proxy; 3],
    nodes: [Server; 3],
    balancers: Balancers,
    random: fastrand::Rng,
}

impl Hub {
    async fn start(flags: &[&str], seed: u64) -> Self {
        let broker = Broker::start_with(Engine::Redis, flags);
        let links = [(); 3].map(|()| Proxy::start(broker.address));
        let nodes = std::array::from_fn(|index| Self::node(&links, index));
        wait_until_joined(&nodes).await;
        let balancers = Balancers::new(&nodes).await;
        Self { broker, links, nodes, balancers, random: fastrand::Rng::with_seed(seed) }
    }

    fn node(links: &[Proxy; 3], index: usize) -> Server {
        let flags = [RULE, &["--drain-timeout", "1s"]].concat();
        node(&Engine::Redis.url(links[index].address), NAMES[index], &flags)
    }

    async fn pause_up_to(&mut self, longest_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(..longest_ms))).await;
    }

    /// Causes a random fault that must lose nothing. Waits until it is over, and returns its name.
    async fn fault(&mut self) -> &'static str {
        let index = self.random.usize(..3);
        let name = match self.random.u8(..9) {
            0 | 1 => {
                let (signal, name) = *self.random.choice(&[("KILL", "kill"), ("TERM", "stop")]).expect("two");
                self.nodes[index].signal(signal);
                self.balancers.route(&self.nodes, Some(index));
                block_in_place(|| self.nodes[index].wait());
                self.nodes[index] = block_in_place(|| Self::node(&self.links, index));
                name
            }
            2 => {
                self.nodes[index].signal("STOP");
                self.pause_up_to(7000).await;
                self.nodes[index].signal("CONT");
                "pause of a node"
            }
            3 => {
                self.links[index].cut();
                self.pause_up_to(6000).await;
                self.links[index].mend();
                "cut link"
            }
            4 => {
                self.links[index].slow(Duration::from_millis(30));
                self.pause_up_to(3000).await;
                self.links[index].slow(Duration::ZERO);
                "slow link"
            }
            5 => {
                block_in_place(|| self.broker.kill());
                self.pause_up_to(3000).await;
                block_in_place(|| self.broker.restart());
                "kill of the broker"
            }
            6 => {
                self.broker.signal("STOP");
                self.pause_up_to(5000).await;
                self.broker.signal("CONT");
                "pause of the broker"
            }
            kind => {
                let kind = ["normal", "pubsub"][kind as usize - 7];
                block_in_place(|| self.broker.redis_lines(&format!("CLIENT KILL TYPE {kind}")));
                "killed connections"
            }
        };
        wait_until_joined(&self.nodes).await;
        self.balancers.route(&self.nodes, None);
        name
    }
}

/// Runs trials of two topics with a fault in each round.
async fn run(flags: &[&str], mut fault: impl AsyncFnMut(&mut Hub) -> &'static str) -> Vec<TrialRecord> {
    let seed = setting("DEEPERHUB_FAULT_SEED", u64::from(std::process::id()));
    let rounds = setting("DEEPERHUB_FAULT_ROUNDS", 100);
    println!("DEEPERHUB_FAULT_SEED={seed}");
    let mut hub = Hub::start(flags, seed).await;
    let urls = hub.balancers.urls();
    let mut trials = Vec::new();
    for topic in TOPICS {
        trials.push(Trial::start(topic, &urls, &urls).await);
    }
    for round in 0..rounds {
        println!("{round}: {}", fault(&mut hub).await);
        for trial in &trials {
            trial.run_for(30).await;
        }
    }
    let mut records = Vec::new();
    for trial in trials {
        records.push(trial.finish(&hub.nodes[0]).await);
    }
    println!("{} acknowledged", records.iter().map(TrialRecord::acknowledged).sum::<usize>());
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn random_faults_lose_and_repeat_nothing() {
    if !has_brokers() {
        return;
    }
    for record in run(with_data_on_disk(Engine::Redis), async |hub| hub.fault().await).await {
        record.check_lossless();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn random_losses_of_the_store_are_told() {
    if !has_brokers() {
        return;
    }
    let records = run(&[], async |hub| match hub.random.u8(..4) {
        0 => {
            let keys = ["m", "", "m {deeperhub:h:kept.1}"][hub.random.usize(..3)];
            block_in_place(|| hub.broker.redis_lines(&format!("DEL {{deeperhub:h:kept.1}}{keys}")));
            "lost keys"
        }
        1 => {
            block_in_place(|| hub.broker.redis_lines("FLUSHALL"));
            "lost data"
        }
        // The broker restarts empty in some of these.
        _ => hub.fault().await,
    });
    for record in records.await {
        record.check_journals(Checked::WithOnce);
        for journal in &record.journals {
            let reasons = ["epoch", "trimmed", "lost", "ahead"];
            assert!(journal.holes.iter().all(|hole| reasons.contains(&hole.as_str())), "{:?}", journal.holes);
        }
    }
}
