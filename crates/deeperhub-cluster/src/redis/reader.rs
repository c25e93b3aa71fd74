//! The connection for reads of streams. It is opened for the first request, so that nodes without
//! streams do without it.

use std::time::Duration;

use bytes::Bytes;
use deeperhub_protocol::Topic;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};

use super::script::{self, Script, script};
use crate::driver::BROKER_TIMEOUT;
use crate::names::Names;
use crate::store::{ReadError, Request, StorePosition, StoredEnvelope, StreamRange, StreamRead, StreamTop};

/// Sum of the bytes of the messages that one read returns. The last message may exceed it.
const MAX_READ_BYTES: usize = 256 << 10;

/// Reading part.
pub(crate) struct Reader {
    client: Client,
    names: Names,
    connection: Option<MultiplexedConnection>,
    read: Script,
    reset: Script,
}

/// Replies to the commands of one pipeline, in order.
type Replies = std::vec::IntoIter<Value>;

impl Reader {
    pub(super) const fn new(client: Client, names: Names) -> Self {
        Self { client, names, connection: None, read: script!("read.lua"), reset: script!("reset.lua") }
    }

    /// Answers requests with one exchange. If the connection fails, they all fail, and the next
    /// call makes a new one.
    pub(crate) async fn answer(&mut self, requests: Vec<Request>) {
        let replies = match tokio::time::timeout(BROKER_TIMEOUT, self.exchange(&requests)).await {
            Ok(Ok(replies)) => Ok(replies),
            Ok(Err(error)) => Err(script::refusal(&error).map_or_else(
                || if error.is_timeout() { ReadError::TimedOut } else { ReadError::Lost(error.to_string()) },
                ReadError::Refused,
            )),
            Err(_) => Err(ReadError::TimedOut),
        };
        match replies {
            Ok(replies) => {
                let mut replies = replies.into_iter();
                requests.into_iter().for_each(|request| answer_one(request, &mut replies));
            }
            Err(error) => {
                if !matches!(error, ReadError::Refused(_)) {
                    self.connection = None;
                }
                requests.into_iter().for_each(|request| request.fail(error.clone()));
            }
        }
    }

    async fn exchange(&mut self, requests: &[Request]) -> Result<Vec<Value>, RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.client, BROKER_TIMEOUT).await?,
        };
        let result = async {
            self.read.load(&mut connection).await?;
            // Only a reset needs the right to publish.
            if requests.iter().any(|request| matches!(request, Request::Reset { .. })) {
                self.reset.load(&mut connection).await?;
            }
            let mut pipeline = Pipeline::new();
            requests.iter().for_each(|request| self.add(&mut pipeline, request));
            if pipeline.is_empty() {
                return Ok(Vec::new());
            }
            script::send(&mut connection, &pipeline, &[&self.read, &self.reset]).await
        }
        .await;
        self.connection = Some(connection);
        result
    }

    /// Adds the commands of a request. [`answer_one`] takes as many replies.
    fn add(&self, pipeline: &mut Pipeline, request: &Request) {
        match request {
            Request::Streams { reads, .. } => reads.iter().for_each(|read| self.add_read(pipeline, read)),
            Request::Tops { topics, remember_ms, .. } => {
                pipeline.cmd("TIME");
                for topic in topics {
                    let meta = format!("{}m", self.names.stream(topic.as_str()));
                    pipeline.cmd("GET").arg(&meta);
                    if let Some(remember_ms) = remember_ms {
                        pipeline.cmd("PEXPIRE").arg(meta).arg(*remember_ms);
                    }
                }
            }
            Request::Reset { reset, envelope, stamp, .. } => {
                let list = self.names.stream(reset.topic.as_str());
                let mut command = self.reset.call(&[&list, &format!("{list}m")]);
                let known = reset.known.and_then(StorePosition::if_valid);
                let known = known.unwrap_or(StorePosition { epoch: 0, offset: 0 });
                command
                    .arg(self.names.topic(reset.topic.as_str()))
                    .arg(envelope.get(..*stamp).unwrap_or_default())
                    .arg(envelope.get(stamp + 16..).unwrap_or_default())
                    .arg(reset.limits.position_ms())
                    .arg(known.epoch)
                    .arg(known.offset)
                    .arg(if reset.when == crate::store::ResetWhen::StoreIsBehind { "1" } else { "" });
                pipeline.add_command(command);
            }
        }
    }

    fn add_read(&self, pipeline: &mut Pipeline, read: &StreamRead) {
        let list = self.names.stream(read.topic.as_str());
        let mut command = self.read.call(&[&list, &format!("{list}m")]);
        let after = read.after.and_then(StorePosition::if_valid);
        let after = after.unwrap_or(StorePosition { epoch: 0, offset: 0 });
        command
            .arg(after.epoch)
            .arg(after.offset)
            .arg(read.messages)
            .arg(MAX_READ_BYTES)
            .arg(if read.creates { read.limits.position_ms() } else { 0 });
        pipeline.add_command(command);
    }
}

/// Connects with timeouts for the connection and for each exchange.
pub(super) async fn connect(client: &Client, timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Takes the replies to a request and answers it.
fn answer_one(request: Request, replies: &mut Replies) {
    // The requester may have gone.
    match request {
        Request::Streams { reads, reply } => {
            let ranges = reads.iter().map(|read| parse_range(read, replies.next())).collect();
            drop(reply.send(Ok(ranges)));
        }
        Request::Tops { topics, remember_ms, reply } => {
            let time = parse_time(replies.next());
            let tops: Vec<_> = topics
                .iter()
                .map(|_| {
                    let position = parse_position(replies.next());
                    if remember_ms.is_some() {
                        replies.next();
                    }
                    position
                })
                .collect();
            let tops = time.and_then(|time| {
                tops.into_iter()
                    .map(|position| Ok(StreamTop { position: position?, progress: None, time }))
                    .collect()
            });
            drop(reply.send(tops));
        }
        Request::Reset { reply, .. } => {
            let position = parse_position(replies.next());
            drop(reply.send(position.and_then(|position| position.ok_or_else(unexpected))));
        }
    }
}

fn unexpected() -> ReadError {
    ReadError::Refused("unexpected reply".to_owned())
}

/// Returns the reply if it is no error.
fn accepted(reply: Option<Value>) -> Result<Value, ReadError> {
    match reply {
        Some(Value::ServerError(error)) => Err(ReadError::Refused(script::text(&error))),
        Some(reply) => Ok(reply),
        None => Err(unexpected()),
    }
}

/// Parses the reply of `TIME`.
fn parse_time(reply: Option<Value>) -> Result<u64, ReadError> {
    let (seconds, micros): (u64, u64) =
        redis::from_redis_value(accepted(reply)?).map_err(|_| unexpected())?;
    Ok(seconds * 1000 + micros / 1000)
}

/// Parses a meta key, or the reply to a reset. A value that is not ours counts as lost.
fn parse_position(reply: Option<Value>) -> Result<Option<StorePosition>, ReadError> {
    if matches!(&reply, Some(Value::ServerError(error)) if error.code() == "WRONGTYPE") {
        return Ok(None);
    }
    Ok(match accepted(reply)? {
        Value::BulkString(bytes) if bytes.len() >= 16 && (bytes.len() - 16) % 24 == 0 => {
            script::numbers(&bytes).map(|[epoch, offset]| StorePosition { epoch, offset })
        }
        _ => None,
    })
}

/// Parses the reply to a read. Leaves out entries that are not messages of this stream, that are
/// not in ascending order, or that have reached their age.
fn parse_range(read: &StreamRead, reply: Option<Value>) -> Result<StreamRange, ReadError> {
    let Value::Array(fields) = accepted(reply)? else { return Err(unexpected()) };
    let Ok([head, length, is_cut, entries]) = <[Value; 4]>::try_from(fields) else {
        return Err(unexpected());
    };
    let (Value::BulkString(head), Value::Int(length), Value::Array(entries)) = (head, length, entries) else {
        return Err(unexpected());
    };
    let is_cut = matches!(&is_cut, Value::BulkString(is_cut) if is_cut == b"1");
    let Some([epoch, top, time]) = script::numbers(&head) else { return Err(unexpected()) };
    if epoch == 0 {
        return Ok(StreamRange {
            top: None,
            oldest: 0,
            time,
            messages: Vec::new(),
            is_cut: false,
            kept: 0,
            whole: None,
        });
    }
    let follows_after = read.after.filter(|after| after.epoch == epoch);
    let entries: Vec<_> = match follows_after {
        Some(_) => entries,
        None => entries.into_iter().rev().collect(),
    };
    let length = u64::try_from(length).unwrap_or_default();
    let mut oldest = (top + 1).saturating_sub(length).max(1);
    let min_time = time.saturating_sub(read.limits.ttl_ms());
    let mut last = follows_after.map_or(0, |after| after.offset);
    let mut messages = Vec::with_capacity(entries.len());
    for entry in entries {
        let Value::BulkString(bytes) = entry else { return Err(unexpected()) };
        let parsed = parse_entry(bytes, &read.topic, epoch);
        let Some((message, message_time)) = parsed else { continue };
        if message.offset() <= last || message.offset() > top {
            continue;
        }
        last = message.offset();
        if message_time < min_time && messages.is_empty() {
            oldest = oldest.max(last + 1);
        } else {
            messages.push(message);
        }
    }
    let kept = (top + 1).saturating_sub(oldest);
    let top = Some(StorePosition { epoch, offset: top });
    Ok(StreamRange { top, oldest, time, messages, is_cut, kept, whole: None })
}

fn parse_entry(bytes: Vec<u8>, topic: &Topic<'_>, epoch: u64) -> Option<(StoredEnvelope, u64)> {
    StoredEnvelope::parse(Bytes::from(bytes), topic, epoch)
}
