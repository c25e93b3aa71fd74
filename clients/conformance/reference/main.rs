//! A small client with planted faults.
fn main() {}
