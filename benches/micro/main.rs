//! Micro benchmarks of what a message passes on its way: `cargo bench -p deeperhub-benches`.
//!
//! Each shows one step alone, with everything in the cache: good for comparing two versions of a step, not for adding
//! up. What a whole server does is measured by the program `compare`.

mod counting;
mod messages;
mod routing;
mod wire;

fn main() {
    divan::main();
}
