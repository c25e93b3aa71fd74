//! Origin policy, rate limits, tokens and TLS configuration for WebSocket servers

/// Which web pages may connect.
#[derive(Debug, Clone)]
pub struct OriginPolicy {}

/// Messages that a connection may send.
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {}
