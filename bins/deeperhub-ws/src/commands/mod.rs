//! The subcommands that do not serve.

pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod health;
mod http_get;
pub(crate) mod schema;
pub(crate) mod token;
pub(crate) mod top;
