//! Real clients of a simulation: the core of the client library follows topics, and applications
//! check what its handles tell them.
//!
//! Nothing here knows the frames. Whatever the nodes or the client lose, repeat or hide shows in the
//! events of a handle, or in the answer to a publish. A [`Surroundings`] says where the clients run.

mod application;
mod client;
mod log;
mod operation;
mod plants;
mod publishes;
mod runs;

pub(super) use application::Progress;
pub(super) use client::{CoreClient, RealClients, describe};
pub(super) use log::{Log, Place};
pub(super) use operation::{CLIENTS, ClientOperation, choose_count, choose_history, first_operations};
pub(super) use plants::{GlueBug, is_loose, plant_glue};
pub(super) use publishes::Acknowledged;
pub(super) use runs::{Run, check_seeds, find_bugs};

use std::sync::Arc;
use std::time::Duration;

use deeperhub_client::core::Input;

/// Where real clients run: at one node, or at a cluster.
pub(super) trait Surroundings {
    type Log: Log;

    /// Handles of a client at most.
    const MAX_HANDLES: usize;

    /// Seconds after the last operation within which all must arrive.
    const LAST_SECONDS: usize;

    /// Returns the time since the start.
    fn time(&self) -> Duration;

    /// Returns the clients and the logs of all topics.
    fn parts(&mut self) -> (&mut [CoreClient], &mut [Self::Log]);

    /// Returns `true` if the subscribers of a topic get each message, or are told that it is missing.
    fn is_lossless(topic: usize) -> bool;

    /// Returns the number and the JSON of a new message.
    fn new_message(&mut self, bytes: usize) -> (u64, String);

    /// Opens a client's connection. Otherwise returns what the client is told.
    fn open(&mut self, client: u8) -> Result<(), Input<'static>>;

    /// Cuts a client's connection, which the client learns next.
    fn cut(&mut self, client: u8);

    /// Returns `true` if a client has a connection.
    fn is_open(&self, client: u8) -> bool;

    /// Returns the next text for a client.
    fn next_text(&mut self, client: u8) -> Option<Arc<str>>;

    /// Executes a client's next text. Returns `false` if there is none, or if it has to wait.
    fn execute_next(&mut self, client: u8) -> Result<bool, String>;

    /// Checks the place of a publish that was acknowledged.
    fn check_acknowledged(&mut self, acknowledged: &Acknowledged) -> Result<(), String>;

    /// Lets nodes and links do all that they can. Returns `false` if there was nothing.
    fn work(&mut self) -> Result<bool, String>;

    /// Lets a second pass.
    fn pass_second(&mut self) -> Result<(), String>;
}
