//! Limits of a client.

use std::time::Duration;

/// Limits of a client. The defaults fit most applications.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Shortest delay before a second attempt to connect (0.5 s). The first attempt comes within
    /// twice this time.
    pub min_delay: Duration,
    /// Longest delay before an attempt to connect, unless the server asks for a longer one (20 s).
    pub max_delay: Duration,
    /// Time after which an attempt that is not open has failed (10 s).
    pub connect_timeout: Duration,
    /// Time after which a connection that does not answer a `ping` is dropped (10 s).
    pub pong_timeout: Duration,
    /// Bytes of text that wait in a subscription until the application takes them (1 MiB).
    pub max_queue_bytes: usize,
    /// Bytes of text that wait to be sent (1 MiB).
    pub max_pending_bytes: usize,
    /// Time after which an echo or a read of history fails (30 s).
    pub request_timeout: Duration,
    /// Time after which a publish fails that was sent and not answered (2 min). The server
    /// recognises a repeated publish for two minutes.
    pub publish_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(10),
            pong_timeout: Duration::from_secs(10),
            max_queue_bytes: 1 << 20,
            max_pending_bytes: 1 << 20,
            request_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(120),
        }
    }
}
