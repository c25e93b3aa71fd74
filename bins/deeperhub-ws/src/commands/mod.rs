//! Subcommands other than `serve`.

mod api_client;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod health;
mod pinned_certificate;
pub(crate) mod schema;
pub(crate) mod token;
pub(crate) mod top;
