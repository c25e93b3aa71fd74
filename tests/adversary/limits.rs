//! Each limit, with a crowd of clients at exactly that limit.

use std::time::Duration;

use crate::attack::{Attack, Limits};
use crate::stage::{BUDGET, Stage, Variation};

/// How long the short form of a scene goes on.
const SHORT: Duration = Duration::from_millis(1500);

/// Attacks a server with a setting of its own for each attack, so that all pairs of settings occur.
async fn check(attack: Attack, clients: usize, flags: &[&str]) {
    let at = Attack::ALL.iter().position(|&other| other == attack).unwrap_or_default();
    let variation = Variation::pairs()[at % 8].suits(attack);
    Stage::new(variation, flags, BUDGET, Limits::default()).await.check(attack, clients, SHORT).await;
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
    handshakes_without_end: 8 Handshakes [];
    bursts_of_clients_that_come_back: 8 Reconnects [];
    heads_in_crumbs: 200 SlowHeads ["--handshake-timeout", "1s"];
    handshakes_that_stop: 200 HalfOpen ["--handshake-timeout", "1s"];
    echoes_of_full_size: 16 FullEchoes [];
    publishes_of_full_size_that_inflate_from_little: 32 UnwantedPublishes [];
    binary_messages_of_full_size: 8 Binary [];
    empty_final_blocks: 64 EmptyBlocks [];
    messages_in_the_most_fragments: 3 Fragments [];
    json_of_full_size_and_depth: 8 DeepJson [];
    the_shortest_messages: 64 ShortMessages [];
    messages_that_are_no_json: 64 Garbage [];
    publishes_to_each_other: 16 FanOut [];
    names_by_more_clients_than_may_connect: 60 LongNames ["--max-connections", "40"];
    handshakes_of_an_address_that_has_its_connections: 30 Handshakes ["--max-connections-per-ip", "20"];
    tokens_that_are_not_good: 32 WrongTokens [];
    pings: 100 Pings [];
    overlapping_patterns_of_128_levels: 10 DeepPatterns [];
    subscriptions_to_long_names: 40 LongNames [];
    patterns_that_come_and_go: 16 PatternChurn [];
    echoes_that_are_never_read: 40 UnreadEchoes [];
    publishes_that_are_never_read: 24 UnreadFanOut [];
    readers_of_20_kilobytes_a_second: 60 SlowReaders [];
}

/// Messages of full size as fast as a limit of bytes allows.
#[tokio::test]
async fn echoes_at_the_limit_of_bytes() {
    let limits = Limits { rate: 3.0, burst: 15.0, ..Limits::default() };
    let stage = Stage::new(Variation::pairs()[6], &["--byte-rate-limit", "200000"], BUDGET, limits).await;
    stage.check(Attack::FullEchoes, 40, SHORT).await;
}

/// As many names as a server with many clients may have to keep.
#[tokio::test]
#[ignore = "long: 216,000 names"]
async fn names_of_1700_clients() {
    let stage =
        Stage::new(Variation::pairs()[1], &["--max-connections", "2000"], 512 << 20, Limits::default()).await;
    stage.check(Attack::LongNames, 1688, Duration::from_secs(20)).await;
}

/// What 78 clients make the server answer at once is far more than it may hold.
#[tokio::test]
async fn answers_to_bombs_reach_those_they_belong_to() {
    check_big_answers(24, 40.0, SHORT).await;
}

#[tokio::test]
#[ignore = "long: gigabytes of answers"]
async fn answers_of_gigabytes_reach_those_they_belong_to() {
    check_big_answers(78, 200.0, Duration::from_secs(20)).await;
}

/// Compressed echoes of 1 MiB whose answers cannot be compressed, with room for 64 MiB in each queue. Each attacker
/// compares what it gets.
async fn check_big_answers(clients: usize, burst: f64, time: Duration) {
    let variation = Variation {
        has_two_workers: false,
        has_io_uring: true,
        has_tls: false,
        is_compressed: true,
        has_tokens: false,
    };
    let flags = ["--max-message-bytes", "1048576", "--max-queue-bytes", "67108864"];
    let limits = Limits { message_bytes: 1 << 20, burst, ..Limits::default() };
    Stage::new(variation, &flags, 512 << 20, limits).await.check(Attack::FullEchoes, clients, time).await;
}

/// Each limit in all pairs of settings.
#[tokio::test]
#[ignore = "long: 20 minutes"]
async fn each_limit_in_all_pairs_of_settings() {
    for attack in Attack::ALL {
        for variation in Variation::pairs() {
            let stage = Stage::new(variation.suits(attack), &LONG, BUDGET, Limits::default()).await;
            stage.check(attack, 100, Duration::from_secs(5)).await;
        }
    }
}

/// The defaults, with a shorter time for handshakes: they are given up while the scene goes on.
const LONG: [&str; 2] = ["--handshake-timeout", "2s"];
