//! A model of JetStream: its streams, and the rules by which nodes use them.
//!
//! It repeats `nats/jetstream` and `nats/sender` of the cluster's crate: what a node knows of each
//! stream, what it compares before it appends and reads, and when it begins a new epoch. Requests of
//! one call are answered at once, without others between them. There is one replica.

mod appends;
mod known;
mod reads;
mod server;
mod session;

pub(super) use appends::{Attempt, LateAppend};
pub(super) use known::Known;
pub(super) use server::{Record, Server};
pub(super) use session::{Session, limits_of};
