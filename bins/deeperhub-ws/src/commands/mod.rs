//! Subcommands other than `serve`.

mod api;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod health;
pub(crate) mod schema;
pub(crate) mod tail;
pub(crate) mod token;
pub(crate) mod top;
