//! The configuration: options as typed, their layers, and the settings that they resolve to.

pub(crate) mod default_file;
pub(crate) mod effective;
pub(crate) mod error;
mod file;
pub(crate) mod help;
pub(crate) mod layers;
pub(crate) mod options;
pub(crate) mod origin;
pub(crate) mod resolve;
mod rule_tables;
pub(crate) mod values;
