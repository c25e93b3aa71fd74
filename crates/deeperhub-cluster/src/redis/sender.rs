//! The connection that publishes, and appends to streams.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

use super::script::{self, Script, script};
use crate::batch::{Batch, Destination, Outbound};
use crate::link::LinkError;
use crate::names::Names;
use crate::store::{AppendError, AppendOutcome, AppendTarget, Appended, StorePosition};

/// Length of the reply to an append: the fields that the script filled in.
const STAMP_BYTES: usize = crate::envelope::STAMP_BYTES;

/// Sending part.
pub(crate) struct Sender {
    connection: MultiplexedConnection,
    names: Names,
    script: Script,
}

impl Sender {
    pub(super) const fn new(connection: MultiplexedConnection, names: Names) -> Self {
        Self { connection, names, script: script!("append.lua") }
    }

    /// Sends a batch, and returns the outcomes of its appends. `is_resent` says that the server may
    /// have got the batch before.
    pub(crate) async fn send(
        &mut self,
        batch: &Batch,
        is_resent: bool,
    ) -> Result<Vec<AppendOutcome>, LinkError> {
        if batch.has_appends() {
            return self.send_appends(batch, is_resent).await;
        }
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for outbound in batch.iter() {
            self.add_publish(&mut pipeline, outbound);
        }
        pipeline.query_async::<()>(&mut self.connection).await?;
        Ok(Vec::new())
    }

    /// Adds the command for an envelope that is no append.
    fn add_publish(&self, pipeline: &mut Pipeline, outbound: Outbound<'_>) {
        let channel = match outbound.to {
            Destination::Topic { start, len } => {
                let topic = outbound.envelope.get(*start..start + len).unwrap_or_default();
                self.names.topic(&String::from_utf8_lossy(topic))
            }
            Destination::Node(node) => self.names.node(node),
            // Callers pass no appends.
            Destination::All | Destination::Append(_) => self.names.broadcast(),
        };
        pipeline.cmd("PUBLISH").arg(channel).arg(outbound.envelope).ignore();
    }

    /// Sends a batch with appends. Each command has a reply of its own, so that a message that the
    /// server refuses does not hold up the others.
    async fn send_appends(
        &mut self,
        batch: &Batch,
        is_resent: bool,
    ) -> Result<Vec<AppendOutcome>, LinkError> {
        let refusal = match self.script.load(&mut self.connection).await {
            Ok(()) => None,
            Err(error) => match script::refusal(&error) {
                Some(refusal) => Some(refusal),
                None => return Err(error.into()),
            },
        };
        let mut pipeline = Pipeline::with_capacity(batch.len());
        let mut appends = Vec::new();
        for outbound in batch.iter() {
            match outbound.to {
                Destination::Append(target) => {
                    if refusal.is_none() {
                        self.add_append(&mut pipeline, target, outbound.envelope, is_resent);
                        appends.push(Some(target));
                    }
                }
                _ => {
                    self.add_publish(&mut pipeline, outbound);
                    appends.push(None);
                }
            }
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        if let Some(refusal) = refusal {
            for outbound in batch.iter() {
                if let Destination::Append(target) = outbound.to {
                    outcomes.push((target.number, Err(AppendError::Refused(refusal.clone()))));
                }
            }
        }
        if pipeline.is_empty() {
            return Ok(outcomes);
        }
        let replies = script::send(&mut self.connection, &pipeline, &[&self.script]).await?;
        for (target, reply) in appends.into_iter().zip(replies) {
            match (target, reply) {
                (_, Value::ServerError(error)) if script::is_fatal(&error) => {
                    return Err(LinkError::new(script::text(&error)));
                }
                (None, Value::ServerError(error)) => return Err(LinkError::new(script::text(&error))),
                (None, _) => {}
                (Some(target), Value::ServerError(error)) => {
                    outcomes.push((target.number, Err(AppendError::Refused(script::text(&error)))));
                }
                (Some(target), reply) => outcomes.push((target.number, parse_reply(&reply))),
            }
        }
        Ok(outcomes)
    }

    fn add_append(&self, pipeline: &mut Pipeline, target: &AppendTarget, envelope: &[u8], is_resent: bool) {
        let topic = envelope.get(target.topic..target.topic + target.topic_len).unwrap_or_default();
        let topic = String::from_utf8_lossy(topic);
        let list = self.names.stream(&topic);
        let meta = format!("{list}m");
        let mut command = match &target.once {
            None => self.script.call(&[&list, &meta]),
            Some(_) => self.script.call(&[&list, &meta, &format!("{list}o0"), &format!("{list}o1")]),
        };
        let known = target.known.unwrap_or(StorePosition { epoch: 0, offset: 0 });
        let limits = &target.limits;
        command
            .arg(self.names.topic(&topic))
            .arg(envelope.get(..target.stamp).unwrap_or_default())
            .arg(envelope.get(target.stamp + STAMP_BYTES..).unwrap_or_default())
            .arg(limits.messages.max(1))
            .arg(limits.ttl_ms())
            .arg(limits.position_ms())
            .arg(known.epoch)
            .arg(known.offset)
            .arg(if is_resent { "1" } else { "" });
        if let Some(once) = &target.once {
            command.arg(&*once.user).arg(&*once.text);
        }
        pipeline.add_command(command);
    }
}

fn parse_reply(reply: &Value) -> Result<Appended, AppendError> {
    let Value::BulkString(bytes) = reply else {
        return Err(AppendError::Refused("the message was appended before".to_owned()));
    };
    match script::numbers(bytes) {
        Some([epoch, offset, _, time]) => Ok(Appended {
            position: StorePosition { epoch, offset },
            time,
            is_repeat: bytes.len() > STAMP_BYTES,
        }),
        None => Err(AppendError::Refused(format!("unexpected reply of {} bytes", bytes.len()))),
    }
}
