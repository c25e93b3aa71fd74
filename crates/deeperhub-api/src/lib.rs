//! The HTTP server API of a hub node
