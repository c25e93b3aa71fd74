//! The broker's address and the limits of the connection to it.

use std::fmt;
use std::path::PathBuf;

use url::Url;

use crate::names;

/// Configuration of a node's connection to its cluster.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Address of the broker.
    pub url: BrokerUrl,
    /// Prefix of all names on the broker. It separates hubs that share a broker. 1 to 64 bytes of
    /// `A-Z a-z 0-9 _ -`. Default `deeperhub`.
    pub prefix: String,
    /// Byte limit of each of three queues: messages for the broker, messages from the broker for
    /// this node, and answers to other nodes. If a queue is full, messages are dropped and counted.
    /// Default 16 MiB.
    pub queue_bytes: usize,
    /// For NATS: a credentials file (JWT and seed), or a file with the seed of an nkey.
    pub credentials: Option<PathBuf>,
    /// PEM file with the CAs that sign the broker's certificate; `None` trusts the system's.
    pub ca: Option<PathBuf>,
    /// Maximum payload that the node accepts from its clients and its backend. If the limit that
    /// the broker announces is too small for such a payload and its envelope, a warning is logged.
    /// The default 0 disables the warning.
    pub max_payload_bytes: usize,
    /// For JetStream: number of servers that keep a copy of each stream, 1 to 5. Default 1.
    pub stream_replicas: u8,
    /// For JetStream: where its servers keep streams. Default [`StreamStorage::File`].
    pub stream_storage: StreamStorage,
}

/// Where the servers of JetStream keep streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamStorage {
    /// In memory. A single server that restarts loses them, so streams begin with a new epoch.
    Memory,
    /// In files.
    #[default]
    File,
}

impl Config {
    /// Returns the defaults for a broker.
    #[must_use]
    pub fn new(url: BrokerUrl) -> Self {
        Self {
            url,
            prefix: "deeperhub".to_owned(),
            queue_bytes: 16 << 20,
            credentials: None,
            ca: None,
            max_payload_bytes: 0,
            stream_replicas: 1,
            stream_storage: StreamStorage::File,
        }
    }
}

/// Returns `true` if the text is a valid [`Config::prefix`].
#[must_use]
pub fn is_prefix(text: &str) -> bool {
    names::is_prefix(text)
}

/// A kind of broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// NATS. Streams need JetStream, 2.11 or later.
    Nats,
    /// Redis publish/subscribe; also Valkey and other servers with its protocol.
    Redis,
}

impl Engine {
    /// Returns `true` if the program was built with the engine.
    #[must_use]
    pub const fn is_built_in(self) -> bool {
        match self {
            Self::Nats => cfg!(feature = "nats"),
            Self::Redis => cfg!(feature = "redis"),
        }
    }

    /// Returns the approximate memory that the client uses per subscription, in bytes (see
    /// the costs in `docs/cluster.md`).
    pub(crate) const fn subscription_bytes(self) -> usize {
        match self {
            Self::Nats => 64,
            Self::Redis => 256,
        }
    }

    /// Returns the engine's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Redis => "redis",
        }
    }
}

/// Address of a broker: one or more servers, separated by commas, such as
/// `nats://user:password@host:4222`, `tls://host`, `redis://:password@host:6379` or
/// `rediss://host`.
///
/// Servers after the first may omit scheme and user, which are then those of the first. `Display`
/// and `Debug` mask secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    engine: Engine,
    servers: Vec<Url>,
}

/// Reason why a text is not a [`BrokerUrl`]. The error does not quote the text, which may contain a
/// password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerUrlError {
    /// The text is not a URL, or has no host.
    #[error("expected a URL such as nats://host:4222 or redis://host:6379")]
    InvalidUrl,
    /// The scheme is unknown.
    #[error("expected the scheme nats, tls (NATS over TLS), redis or rediss (Redis over TLS)")]
    UnknownScheme,
    /// The servers have different schemes.
    #[error("expected servers of one scheme only")]
    MixedSchemes,
    /// The URL has a path, query or fragment without a meaning.
    #[error("expected nothing after the host and the port")]
    UnexpectedPath,
    /// The program was built without the engine.
    #[error("this program was built without the engine {0}")]
    NotBuiltIn(&'static str),
}

impl BrokerUrl {
    /// Returns the URL of a simulated server that keeps streams.
    #[cfg(feature = "simulation")]
    pub(crate) const fn simulated() -> Self {
        Self { engine: Engine::Redis, servers: Vec::new() }
    }

    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// Returns [`BrokerUrlError`] if the text is not a broker's address, or if the engine is not
    /// built in.
    pub fn parse(text: &str) -> Result<Self, BrokerUrlError> {
        let mut servers: Vec<Url> = Vec::new();
        for part in text.split(',') {
            let server = match servers.first() {
                Some(first) if !part.contains("://") => {
                    let mut url = parse(&format!("{}://{part}", first.scheme()))?;
                    if url.username().is_empty() && url.password().is_none() {
                        // Both calls succeed for a URL with a host.
                        let _ = url.set_username(first.username());
                        let _ = url.set_password(first.password());
                    }
                    url
                }
                _ => parse(part)?,
            };
            if servers.first().is_some_and(|first| first.scheme() != server.scheme()) {
                return Err(BrokerUrlError::MixedSchemes);
            }
            servers.push(server);
        }
        let engine = match servers.first().map(Url::scheme) {
            Some("nats" | "tls") => Engine::Nats,
            Some("redis" | "rediss") => Engine::Redis,
            _ => return Err(BrokerUrlError::UnknownScheme),
        };
        for server in &servers {
            // Many Redis URLs have a database number. It does not affect publish/subscribe.
            let database = server.path().trim_start_matches('/');
            let path_fits = match engine {
                Engine::Nats => database.is_empty(),
                Engine::Redis => database.parse::<u16>().is_ok() || database.is_empty(),
            };
            if !path_fits || server.query().is_some() || server.fragment().is_some() {
                return Err(BrokerUrlError::UnexpectedPath);
            }
        }
        if !engine.is_built_in() {
            return Err(BrokerUrlError::NotBuiltIn(engine.name()));
        }
        Ok(Self { engine, servers })
    }

    /// Returns the kind of broker.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Returns the servers, at least one. The URLs hold secrets.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn servers(&self) -> &[Url] {
        &self.servers
    }
}

fn parse(text: &str) -> Result<Url, BrokerUrlError> {
    let url = Url::parse(text).map_err(|_| BrokerUrlError::InvalidUrl)?;
    if !matches!(url.scheme(), "nats" | "tls" | "redis" | "rediss") {
        return Err(BrokerUrlError::UnknownScheme);
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(BrokerUrlError::InvalidUrl);
    }
    Ok(url)
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let mut shown = server.clone();
            if shown.password().is_some() {
                let _ = shown.set_password(Some("********"));
            } else if !shown.username().is_empty() && self.engine == Engine::Nats {
                // NATS takes a user without a password as a token.
                let _ = shown.set_username("********");
            }
            f.write_str(shown.as_str().trim_end_matches('/'))?;
        }
        Ok(())
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(all(test, feature = "nats", feature = "redis"))]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, BrokerUrlError>) {
        let shown = BrokerUrl::parse(text).map(|url| url.to_string());
        assert_eq!(shown.as_deref().map_err(|error| *error), expected, "{text}");
    }

    #[test]
    fn urls_of_both_engines_are_accepted() {
        for text in [
            "nats://localhost:4222",
            "tls://hub.example",
            "redis://[::1]:6379",
            "rediss://h:1/0",
            "redis://h/2",
        ] {
            check(text, Ok(text));
        }
    }

    #[test]
    fn secrets_are_masked() {
        check("nats://me:secret@h:1", Ok("nats://me:********@h:1"));
        check("nats://token@h:1", Ok("nats://********@h:1"));
        check("redis://:secret@h:1", Ok("redis://:********@h:1"));
        check("redis://me@h:1", Ok("redis://me@h:1"));
        let url = BrokerUrl::parse("nats://me:secret@a:1,b:2").unwrap();
        assert_eq!(format!("{url:?}"), "nats://me:********@a:1,nats://me:********@b:2");
        assert_eq!(url.servers()[1].password(), Some("secret"));
    }

    #[test]
    fn other_texts_are_rejected() {
        use BrokerUrlError::{InvalidUrl, MixedSchemes, UnexpectedPath, UnknownScheme};
        for (text, error) in [
            ("", InvalidUrl),
            ("localhost:4222", UnknownScheme),
            ("nats://", InvalidUrl),
            ("http://h", UnknownScheme),
            ("nats://a,redis://b", MixedSchemes),
            ("nats://a,tls://b", MixedSchemes),
            ("nats://a,", InvalidUrl),
            ("nats://a/b", UnexpectedPath),
            ("redis://a/x", UnexpectedPath),
            ("redis://a?protocol=resp3", UnexpectedPath),
        ] {
            check(text, Err(error));
        }
    }
}
