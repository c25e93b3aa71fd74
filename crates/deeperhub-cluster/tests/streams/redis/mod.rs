//! Tests of Redis alone: its keys, scripts, rights and settings.

mod access;
mod appends;
mod losses;
mod once;
mod reads;
mod resends;
mod server;

pub(crate) use server::Server;
