//! Micro benchmarks of the steps that a message takes: `cargo bench -p deeperhub-benches`.
//!
//! Each benchmark runs one step alone, with all data in the cache. Use them to compare two versions
//! of a step; they do not add up to a server. The program `compare` measures whole servers.

mod counting;
mod history;
mod messages;
mod publishing;
mod queueing;
mod routing;
mod wire;

// Private modules of the listener, included from its source.
#[allow(dead_code, unreachable_pub, unused_imports, reason = "the listener uses more of it")]
#[path = "../../crates/deeperhub-listener/src/arena.rs"]
mod arena;
#[allow(dead_code, unreachable_pub, unused_imports, reason = "the listener uses more of it")]
#[path = "../../crates/deeperhub-listener/src/outbox/mod.rs"]
mod outbox;

fn main() {
    divan::main();
}
