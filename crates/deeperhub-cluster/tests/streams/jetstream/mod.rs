//! Tests of JetStream alone: streams of rules, shared offsets, replicas and rights.

mod access;
mod appends;
mod checks;
mod losses;
mod probes;
mod reads;
mod replicas;
mod resends;
mod server;
mod sweeps;

pub(crate) use server::Server;
