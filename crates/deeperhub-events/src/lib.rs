//! A bounded event bus for what happens on a WebSocket hub
