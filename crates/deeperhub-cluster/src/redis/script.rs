//! Scripts that keep streams: loading them, and loading them again if the server has lost them.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, ServerError, ServerErrorKind, Value};

/// Number of times that commands are sent again because the server has lost their script.
const MAX_RELOADS: usize = 3;

/// A script, and its digest after it was loaded on a connection.
#[derive(Debug)]
pub(super) struct Script {
    source: &'static str,
    digest: Option<String>,
}

/// Joins the scripts' shared beginning with a script of its own.
macro_rules! script {
    ($file:literal) => {
        $crate::redis::script::Script::new(concat!(include_str!("common.lua"), "\n", include_str!($file)))
    };
}
pub(super) use script;

impl Script {
    pub(super) const fn new(source: &'static str) -> Self {
        Self { source, digest: None }
    }

    /// Loads the script, if this was not done on this connection.
    pub(super) async fn load(&mut self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        if self.digest.is_none() {
            self.digest = Some(load(connection, self.source).await?);
        }
        Ok(())
    }

    /// Returns a call of the loaded script with its keys.
    pub(super) fn call(&self, keys: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.digest.as_deref().unwrap_or_default()).arg(keys.len()).arg(keys);
        command
    }
}

async fn load(connection: &mut MultiplexedConnection, source: &str) -> Result<String, RedisError> {
    redis::cmd("SCRIPT").arg("LOAD").arg(source).query_async(connection).await
}

/// Sends commands in one pipeline, and returns their replies in order. A reply may be an error of
/// the server. Calls of scripts that the server has lost are sent again after the others.
pub(super) async fn send(
    connection: &mut MultiplexedConnection,
    pipeline: &Pipeline,
    scripts: &[&Script],
) -> Result<Vec<Value>, RedisError> {
    let mut replies = connection.req_packed_commands(pipeline, 0, pipeline.len()).await?;
    if replies.len() != pipeline.len() {
        return Err((redis::ErrorKind::UnexpectedReturnType, "unexpected number of replies").into());
    }
    for _ in 0..MAX_RELOADS {
        let lost: Vec<usize> = (0..replies.len()).filter(|at| is_lost_script(replies.get(*at))).collect();
        if lost.is_empty() {
            break;
        }
        for script in scripts {
            load(connection, script.source).await?;
        }
        let mut again = Pipeline::with_capacity(lost.len());
        for (at, command) in pipeline.cmd_iter().enumerate() {
            if lost.binary_search(&at).is_ok() {
                again.add_command(command.clone());
            }
        }
        let further = connection.req_packed_commands(&again, 0, again.len()).await?;
        for (at, reply) in lost.into_iter().zip(further) {
            if let Some(place) = replies.get_mut(at) {
                *place = reply;
            }
        }
    }
    Ok(replies)
}

fn is_lost_script(reply: Option<&Value>) -> bool {
    matches!(reply, Some(Value::ServerError(error)) if error.kind() == Some(ServerErrorKind::NoScript))
}

/// Returns `true` if the server cannot be used any more, for example because it has become a
/// replica. In scripts, versions before 7 put the reason into the text.
pub(super) fn is_fatal(error: &ServerError) -> bool {
    use ServerErrorKind::{BusyLoading, MasterDown, ReadOnly};
    matches!(error.kind(), Some(ReadOnly | BusyLoading | MasterDown))
        || error.details().is_some_and(|details| details.contains("-READONLY "))
}

/// Returns the server's words.
pub(super) fn text(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

/// Returns the server's words if it refused a command; `None` if the connection is lost, or if the
/// server cannot be used any more. A refusal is an answer to the node's request, which is not repeated.
pub(super) fn refusal(error: &RedisError) -> Option<String> {
    let is_lost = error.is_unrecoverable_error() || error.is_io_error() || error.is_timeout();
    if is_lost {
        return None;
    }
    let code = error.code()?;
    // As in `is_fatal`: the same request can be answered on another connection, or later.
    if ["LOADING", "MASTERDOWN", "READONLY"].contains(&code) {
        return None;
    }
    Some(error.detail().map_or_else(|| code.to_owned(), |detail| format!("{code} {detail}")))
}

/// Reads big-endian numbers of eight bytes from the start of a reply.
pub(super) fn numbers<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(bytes.get(..N * 8)?.chunks_exact(8)) {
        *number = u64::from_be_bytes(bytes.try_into().ok()?);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_loads_its_data_or_is_a_replica_refuses_nothing() {
        let refusal_of = |reply: &str| {
            let value = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
            refusal(&value.extract_error().unwrap_err())
        };
        assert_eq!(refusal_of("LOADING Redis is loading the dataset in memory"), None);
        assert_eq!(refusal_of("MASTERDOWN Link with MASTER is down"), None);
        assert_eq!(refusal_of("READONLY You can't write against a read only replica."), None);
        let refused = refusal_of("NOPERM this user has no permissions to run the 'script|load' command");
        assert!(refused.is_some_and(|text| text.starts_with("NOPERM ")));
    }

    #[test]
    fn numbers_need_all_their_bytes() {
        let bytes = [&7_u64.to_be_bytes()[..], &u64::MAX.to_be_bytes()].concat();
        assert_eq!(numbers(&bytes), Some([7, u64::MAX]));
        assert_eq!(numbers::<1>(&bytes), Some([7]));
        assert_eq!(numbers::<2>(&bytes[..15]), None);
    }
}
