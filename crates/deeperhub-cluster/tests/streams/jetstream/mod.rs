//! Tests of JetStream alone: streams of rules, shared offsets, replicas and rights.

mod access;
mod appends;
mod losses;
mod reads;
mod replicas;
mod resends;
mod server;

pub(crate) use server::Server;
