//! A bounded event bus for what happens on a WebSocket hub

/// Which events an observer wants.
#[derive(Debug, Clone)]
pub struct EventFilter {}

/// An observer's events.
#[derive(Debug)]
pub struct EventStream {}
