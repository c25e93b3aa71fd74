//! Origin policy, rate limits, tokens and TLS configuration for WebSocket servers
