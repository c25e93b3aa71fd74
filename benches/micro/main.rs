//! Micro benchmarks of what a message passes on its way: `cargo bench -p deeperhub-benches`.
//!
//! Each shows one step alone, with everything in the cache: good for comparing two versions of a step, not for adding
//! up. What a whole server does is measured by the program `compare`.

mod counting;
mod messages;
mod queueing;
mod routing;
mod wire;

// What is no part of the listener's interface is taken from its source.
#[allow(dead_code, unreachable_pub, unused_imports, reason = "it is used in part here, and by another crate")]
#[path = "../../crates/deeperhub-listener/src/arena.rs"]
mod arena;
#[allow(dead_code, unreachable_pub, unused_imports, reason = "it is used in part here, and by another crate")]
#[path = "../../crates/deeperhub-listener/src/outbox.rs"]
mod outbox;

fn main() {
    divan::main();
}
