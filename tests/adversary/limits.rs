//! One scenario for each limit: attackers at exactly that limit.

use std::time::Duration;

use crate::attack::{Attack, Limits};
use crate::scenario::{BUDGET, Scenario, ServerSetup};

/// Duration of a scenario in the short form.
const SHORT_RUN: Duration = Duration::from_secs(1);

/// Attacks a server in one of the setups. Over all attacks, every setup is used.
async fn check(attack: Attack, clients: usize, flags: &[&str]) {
    let at = Attack::ALL.iter().position(|&other| other == attack).unwrap_or_default();
    check_in(ServerSetup::pairs()[at % 8], attack, clients, flags).await;
}

async fn check_in(setup: ServerSetup, attack: Attack, clients: usize, flags: &[&str]) {
    let scenario = Scenario::new(setup.adapted_to(attack), flags, BUDGET, Limits::default()).await;
    scenario.check(attack, clients, SHORT_RUN).await;
}

macro_rules! scenes {
    ($($name:ident: $clients:literal $attack:ident $flags:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            check(Attack::$attack, $clients, &$flags).await;
        }
    )*};
}

scenes! {
    handshake_flood: 8 Handshakes [];
    bursts_of_reconnecting_clients: 8 Reconnects [];
    slow_request_heads: 200 SlowHeads ["--handshake-timeout", "600ms"];
    unfinished_handshakes: 200 HalfOpen ["--handshake-timeout", "600ms"];
    echoes_of_maximum_size: 16 FullEchoes [];
    publishes_that_inflate_to_the_maximum_size: 32 UnwantedPublishes [];
    binary_messages_of_maximum_size: 8 Binary [];
    empty_final_deflate_blocks: 64 EmptyBlocks [];
    messages_in_the_most_fragments: 3 Fragments [];
    json_of_maximum_size_and_depth: 8 DeepJson [];
    shortest_messages: 64 ShortMessages [];
    messages_that_are_not_json: 64 Garbage [];
    publishes_to_each_other: 16 FanOut [];
    subscriptions_at_max_connections: 60 LongNames ["--max-connections", "40"];
    handshake_flood_at_max_connections_per_ip: 30 Handshakes ["--max-connections-per-ip", "20"];
    tokens_with_an_invalid_signature: 32 WrongTokens [];
    ping_flood: 100 Pings [];
    overlapping_patterns_of_128_levels: 10 DeepPatterns [];
    subscriptions_to_long_names: 40 LongNames [];
    pattern_churn: 16 PatternChurn [];
    echoes_that_nobody_reads: 40 UnreadEchoes [];
    publishes_that_nobody_reads: 24 UnreadFanOut [];
    slow_readers: 60 SlowReaders [];
    full_histories: 16 FullHistories [];
    histories_of_new_topics: 32 NewHistories [];
    histories_at_max_streams: 32 NewHistories ["--max-streams", "100"];
    replays_of_histories: 16 Replays [];
    replays_that_nobody_reads: 40 UnreadReplays [];
    reads_of_histories: 32 HistoryReads [];
}

#[tokio::test]
async fn tls_handshake_flood() {
    check_in(ServerSetup::pairs()[5], Attack::Handshakes, 8, &[]).await;
}

#[tokio::test]
async fn unfinished_tls_handshakes() {
    check_in(ServerSetup::pairs()[4], Attack::HalfOpen, 200, &["--handshake-timeout", "600ms"]).await;
}

/// Echoes of the maximum size as fast as the byte rate allows.
#[tokio::test]
async fn echoes_at_the_byte_rate_limit() {
    let limits = Limits { rate: 3.0, burst: 15.0, ..Limits::default() };
    let scenario =
        Scenario::new(ServerSetup::pairs()[6], &["--byte-rate-limit", "200000"], BUDGET, limits).await;
    scenario.check(Attack::FullEchoes, 40, SHORT_RUN).await;
}

/// 216,000 distinct names.
#[tokio::test]
#[ignore = "long: 216,000 names"]
async fn names_of_1700_clients() {
    // One address has fewer bursts than this many clients need.
    let flags = ["--max-connections", "2000", "--rate-limit", "0"];
    let setup = ServerSetup { has_two_workers: true, ..ServerSetup::pairs()[0] };
    let scenario = Scenario::new(setup, &flags, 512 << 20, Limits::default()).await;
    scenario.check(Attack::LongNames, 1688, Duration::from_secs(20)).await;
}

#[tokio::test]
async fn large_replies_reach_the_client_that_caused_them() {
    check_large_replies(24, 40.0, SHORT_RUN).await;
}

#[tokio::test]
#[ignore = "long: gigabytes of replies"]
async fn gigabytes_of_replies_reach_the_client_that_caused_them() {
    check_large_replies(78, 200.0, Duration::from_secs(20)).await;
}

/// Sends compressed echoes of 1 MiB that come back uncompressed, with 64 MiB of queue for each
/// client: far more than the server may hold. Each attacker compares the replies with its own
/// messages.
async fn check_large_replies(clients: usize, burst: f64, time: Duration) {
    let setup = ServerSetup {
        has_two_workers: false,
        has_io_uring: true,
        has_tls: false,
        is_compressed: true,
        has_tokens: false,
    };
    let flags = ["--max-message-bytes", "1048576", "--max-queue-bytes", "67108864"];
    let limits = Limits { message_bytes: 1 << 20, burst, ..Limits::default() };
    Scenario::new(setup, &flags, 512 << 20, limits).await.check(Attack::FullEchoes, clients, time).await;
}

/// Attacks each limit in every setup.
#[tokio::test]
#[ignore = "long: 20 minutes"]
async fn every_attack_in_every_setup() {
    for attack in Attack::ALL {
        for setup in ServerSetup::pairs() {
            let scenario =
                Scenario::new(setup.adapted_to(attack), &LONG_RUN_FLAGS, BUDGET, Limits::default()).await;
            scenario.check(attack, 100, Duration::from_secs(5)).await;
        }
    }
}

/// Flags with a handshake timeout shorter than the scenario.
const LONG_RUN_FLAGS: [&str; 2] = ["--handshake-timeout", "2s"];
