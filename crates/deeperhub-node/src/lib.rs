//! The hub itself: sessions, commands, drain, and the handle that embedding programs use.

mod config;
mod handle;
mod phase;

pub use config::Config;
pub use handle::{ClientInfo, ClientNotFound, CursorError, Delivered, NodeHandle, Page, TopicInfo};
pub use phase::Phase;
