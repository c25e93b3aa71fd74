//! A WebSocket listener: accept, handshake, worker threads and connections, for your own sessions.
mod config;
pub use config::Config;
