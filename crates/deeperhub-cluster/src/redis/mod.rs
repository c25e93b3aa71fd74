//! Redis: one connection that publishes and appends, one that receives subscriptions, and one that
//! reads streams.

mod check;
mod reader;
mod rights;
mod script;
mod sender;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{Client, RedisError, TlsCertificates, Value};
use url::Url;

use crate::broker::Shared;
use crate::config::Config;
use crate::cover::is_pattern;
use crate::driver::BROKER_TIMEOUT;
use crate::link::{self, Link, LinkError};
use crate::names::Names;

pub(crate) use check::{check_broker, check_store};
pub(crate) use reader::Reader;
pub(crate) use sender::Sender;

/// Maximum length of a string in Redis by default (`proto-max-bulk-len`).
const MAX_BULK_BYTES: usize = 512 << 20;

/// Maximum number of messages in one batch of the receiver.
const MAX_READ_MESSAGES: usize = 512;

pub(crate) struct Subscriber {
    sink: PubSubSink,
    names: Names,
    /// Number of subscribed patterns per glob, because `a.*` and `a.>` have the same glob.
    globs: HashMap<String, u32>,
}

pub(crate) struct Receiver {
    stream: PubSubStream,
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> Self {
        Self::new(error)
    }
}

/// Connects to a server. Rejects replicas, because they accept a publish and do not pass it on.
pub(crate) async fn connect(shared: &Arc<Shared>, attempt: usize) -> Result<Link, LinkError> {
    let servers = shared.config.url.servers();
    let server = servers.get(attempt % servers.len().max(1)).ok_or_else(|| LinkError::new("no server"))?;
    let client = client(&shared.config, server)?;
    let names = Names::new(shared.config.prefix.clone(), ':');
    let mut connection = reader::connect(&client, BROKER_TIMEOUT)
        .await
        .map_err(|error| connect_error(error, server.scheme() == "rediss"))?;
    if is_replica(&mut connection).await {
        return Err(LinkError::new("the server is a replica, which does not carry messages to the others"));
    }
    let (mut sink, stream) = client.get_async_pubsub().await?.split();
    sink.subscribe(vec![names.broadcast(), names.node(&shared.node)]).await?;
    shared.max_envelope.store(MAX_BULK_BYTES, Ordering::Relaxed);
    Ok(Link {
        sender: link::Sender::Redis(Sender::new(connection, names.clone())),
        subscriber: link::Subscriber::Redis(Subscriber { sink, names: names.clone(), globs: HashMap::new() }),
        receiver: link::Receiver::Redis(Receiver { stream }),
        reader: link::Reader::Redis(Box::new(Reader::new(client, names))),
        echoes_own: true,
    })
}

/// Returns `true` if the server says that it is a replica. An access list may forbid the question. The
/// operator must then make sure that the server is none.
async fn is_replica(connection: &mut MultiplexedConnection) -> bool {
    let role = redis::cmd("ROLE").query_async::<Value>(connection).await;
    matches!(role, Ok(Value::Array(role)) if matches!(role.first(), Some(Value::BulkString(role)) if role == b"slave"))
}

fn client(config: &Config, server: &Url) -> Result<Client, LinkError> {
    Ok(match &config.ca {
        None => Client::open(server.clone())?,
        Some(ca) => {
            let unreadable = |error| LinkError(format!("cannot read {}: {error}", ca.display()));
            let root_cert = Some(std::fs::read(ca).map_err(unreadable)?);
            Client::build_with_tls(server.clone(), TlsCertificates { client_tls: None, root_cert })?
        }
    })
}

/// Adds a hint to an error of connecting. If only one side uses TLS, the server does not answer or
/// closes the connection, and the library's error does not show the reason.
fn connect_error(error: RedisError, over_tls: bool) -> LinkError {
    let is_dropped = error.is_connection_dropped();
    if over_tls && (is_dropped || error.is_timeout()) {
        LinkError(format!("no TLS connection was made ({error}): does this port speak TLS?"))
    } else if is_dropped {
        LinkError(format!("no connection was made ({error}): does this port want TLS (rediss://)?"))
    } else {
        error.into()
    }
}

impl Subscriber {
    /// Returns the channels of the topics and the globs of the patterns in `names`.
    fn split(&self, names: &[Arc<str>]) -> (Vec<String>, Vec<String>) {
        let (patterns, topics): (Vec<_>, Vec<_>) = names.iter().partition(|name| is_pattern(name));
        (
            topics.into_iter().map(|topic| self.names.topic(topic)).collect(),
            patterns.into_iter().map(|pattern| self.names.glob(pattern)).collect(),
        )
    }

    pub(crate) async fn subscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        let (channels, mut globs) = self.split(names);
        globs.retain(|glob| {
            let patterns = self.globs.entry(glob.clone()).or_default();
            *patterns += 1;
            *patterns == 1
        });
        if !channels.is_empty() {
            self.sink.subscribe(channels).await?;
        }
        if !globs.is_empty() {
            self.sink.psubscribe(globs).await?;
        }
        Ok(())
    }

    pub(crate) async fn unsubscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        let (channels, mut globs) = self.split(names);
        globs.retain(|glob| {
            let patterns = self.globs.get_mut(glob);
            let is_last = patterns.is_none_or(|patterns| {
                *patterns -= 1;
                *patterns == 0
            });
            if is_last {
                self.globs.remove(glob);
            }
            is_last
        });
        if !channels.is_empty() {
            self.sink.unsubscribe(channels).await?;
        }
        if !globs.is_empty() {
            self.sink.punsubscribe(globs).await?;
        }
        Ok(())
    }
}

impl Receiver {
    pub(crate) async fn next(&mut self, batch: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let mut next = self.stream.next().await;
        loop {
            let Some(message) = next else {
                return Err(LinkError::new("the connection for subscriptions was lost"));
            };
            batch.push(Bytes::copy_from_slice(message.get_payload_bytes()));
            if batch.len() >= MAX_READ_MESSAGES {
                return Ok(());
            }
            match self.stream.next().now_or_never() {
                Some(more) => next = more,
                None => return Ok(()),
            }
        }
    }
}
