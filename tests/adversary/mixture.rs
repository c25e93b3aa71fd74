//! Random mixtures of attacks against a server with random settings.

use std::time::Duration;

use fastrand::Rng;

use crate::attack::{Attack, Limits};
use crate::scenario::{BUDGET, Scenario, ServerSetup};

/// Environment variable with the seed of a mixture to repeat.
const SEED_VARIABLE: &str = "DEEPERHUB_ADVERSARY_SEED";

fn seed() -> u64 {
    std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

/// Runs four random attacks with up to `most` clients each against a server with random settings.
async fn check_mixture(seed: u64, most: usize, time: Duration) {
    println!("{SEED_VARIABLE}={seed}");
    let mut rng = Rng::with_seed(seed);
    let setup = ServerSetup {
        has_two_workers: rng.bool(),
        has_io_uring: rng.bool(),
        has_tls: rng.bool(),
        is_compressed: rng.bool(),
        has_tokens: rng.bool(),
    };
    let limits = Limits {
        message_bytes: *rng.choice(&[4096, 65_536, 262_144]).unwrap_or(&65_536),
        subscriptions: *rng.choice(&[16, 128, 512]).unwrap_or(&128),
        ..Limits::default()
    };
    let (message, subscriptions) = (limits.message_bytes.to_string(), limits.subscriptions.to_string());
    let queue = rng.choice(&["65536", "1048576", "8388608"]).copied().unwrap_or("1048576");
    let flags = [
        "--max-message-bytes",
        &message,
        "--max-subscriptions",
        &subscriptions,
        "--max-queue-bytes",
        queue,
        "--handshake-timeout",
        "1s",
    ];
    let mut kinds = Attack::ALL;
    rng.shuffle(&mut kinds);
    let kinds: Vec<_> = kinds
        .into_iter()
        .filter(|attack| attack.is_compressed_only() <= setup.is_compressed)
        .take(4)
        .map(|attack| (attack, rng.usize(1..=most)))
        .collect();
    println!("{setup}, {}, {kinds:?}", flags.join(" "));
    let scenario = Scenario::new(setup, &flags, BUDGET, limits).await;
    scenario.check_all(&kinds, time).await;
}

#[tokio::test]
async fn a_mixture_of_attacks() {
    check_mixture(seed(), 8, Duration::from_secs(2)).await;
}

#[tokio::test]
#[ignore = "long: 15 minutes"]
async fn mixtures_of_attacks() {
    let mut seeds = Rng::with_seed(seed());
    for _ in 0..60 {
        check_mixture(seeds.u64(..), 60, Duration::from_secs(10)).await;
    }
}
