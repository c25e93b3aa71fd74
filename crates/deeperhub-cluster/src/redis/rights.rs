//! Rights of a user that nodes need, and which of them an access list withholds.
//!
//! The server answers a command that is not allowed before it looks at its arguments. So each command
//! is sent once, to keys and channels that nobody uses.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Client, Cmd, Pipeline, RedisError, ServerError, Value, cmd};

use super::script;
use crate::names::Names;
use crate::store::CheckError;

/// Time after which what the commands write expires, should its removal fail, in milliseconds.
const LIFETIME_MS: u32 = 10_000;

/// Returns the rights that the user lacks, as `ACL SETUSER` takes them. With `topic`, streams are
/// checked, too: with the keys of this topic, which no client can use.
pub(super) async fn missing(
    client: &Client,
    connection: &mut MultiplexedConnection,
    names: &Names,
    topic: Option<&str>,
) -> Result<Vec<String>, CheckError> {
    let mut commands = vec![("+publish", cmd("PUBLISH").arg(names.no_responders()).arg("").to_owned())];
    commands.extend(topic.into_iter().flat_map(|topic| stream_commands(&names.stream(topic))));
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for (_, command) in &commands {
        pipeline.add_command(command.clone());
    }
    let replies = connection
        .req_packed_commands(&pipeline, 0, pipeline.len())
        .await
        .map_err(|error| CheckError(error.to_string()))?;
    let keys = format!("~{{{}*", names.stream_prefix());
    let mut missing = Vec::new();
    let mut add = |right: &str| {
        if !missing.iter().any(|other| other == right) {
            missing.push(right.to_owned());
        }
    };
    for ((right, _), reply) in commands.iter().zip(&replies) {
        match reply {
            Value::ServerError(error) if is_forbidden(error) => {
                add(right_of(&script::text(error), right, &keys))
            }
            _ => {}
        }
    }
    for (right, error) in subscriptions(client, names).await? {
        add(right_of(&error, right, &keys));
    }
    Ok(missing)
}

/// Returns each right that streams need besides keys, with a command that needs it.
fn stream_commands(list: &str) -> Vec<(&'static str, Cmd)> {
    let (meta, once) = (format!("{list}m"), format!("{list}o0"));
    // The type of each key is always the same, also for scripts.
    vec![
        ("+script|load", cmd("SCRIPT").arg("LOAD").arg("return 1").to_owned()),
        ("+evalsha", cmd("EVALSHA").arg("0".repeat(40)).arg(0).to_owned()),
        ("+time", cmd("TIME")),
        ("+set", cmd("SET").arg(&meta).arg("").arg("PX").arg(LIFETIME_MS).to_owned()),
        ("+get", cmd("GET").arg(&meta).to_owned()),
        ("+rpush", cmd("RPUSH").arg(list).arg("").to_owned()),
        ("+lrange", cmd("LRANGE").arg(list).arg(0).arg(0).to_owned()),
        ("+llen", cmd("LLEN").arg(list).to_owned()),
        ("+ltrim", cmd("LTRIM").arg(list).arg(0).arg(0).to_owned()),
        ("+pexpire", cmd("PEXPIRE").arg(list).arg(LIFETIME_MS).to_owned()),
        ("+hget", cmd("HGET").arg(&once).arg("f").to_owned()),
        ("+hset", cmd("HSET").arg(&once).arg("f").arg(0).to_owned()),
        ("+hlen", cmd("HLEN").arg(&once).to_owned()),
        ("+hincrby", cmd("HINCRBY").arg(&once).arg("f").arg(1).to_owned()),
        // A time in the past removes the key.
        ("+pexpireat", cmd("PEXPIREAT").arg(&once).arg(1).to_owned()),
        ("+del", cmd("DEL").arg(list).arg(&meta).arg(&once).to_owned()),
    ]
}

/// Subscribes and unsubscribes on a connection of its own. Returns the rights whose commands the
/// server refused, with its words.
async fn subscriptions(client: &Client, names: &Names) -> Result<Vec<(&'static str, String)>, CheckError> {
    let lost = |error: &RedisError| CheckError(error.to_string());
    let mut refused = Vec::new();
    let channel = names.no_responders();
    let (mut sink, _stream) = client.get_async_pubsub().await.map_err(|error| lost(&error))?.split();
    let mut note = |right, result: Result<(), RedisError>| match result {
        Ok(()) => Ok(()),
        Err(error) => {
            refused.push((right, script::refusal(&error).ok_or_else(|| lost(&error))?));
            Ok(())
        }
    };
    note("+subscribe", sink.subscribe(&channel).await)?;
    note("+psubscribe", sink.psubscribe(format!("{channel}.*")).await)?;
    note("+unsubscribe", sink.unsubscribe(&channel).await)?;
    note("+punsubscribe", sink.punsubscribe(format!("{channel}.*")).await)?;
    Ok(refused)
}

fn is_forbidden(error: &ServerError) -> bool {
    error.code() == "NOPERM"
}

/// Returns the right that a refusal is about: the command's, or that for keys or channels.
fn right_of<'r>(refusal: &str, command: &'r str, keys: &'r str) -> &'r str {
    // Redis 7: "No permissions to access a key". Redis 6: "one of the keys used as arguments".
    let is_about = |what: &str| {
        refusal.contains(&format!("access {what}")) || refusal.contains(&format!("one of the {what}s"))
    };
    if is_about("a key") || is_about("key") {
        keys
    } else if refusal.contains(" channel") {
        "&*"
    } else {
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_all_versions_name_a_right() {
        let keys = "~{deeperhub:h:*";
        for (refusal, right) in [
            ("NOPERM this user has no permissions to run the 'lrange' command or its subcommand", "+lrange"),
            ("NOPERM User hub has no permissions to run the 'lrange' command", "+lrange"),
            ("NOPERM this user has no permissions to access one of the keys used as arguments", keys),
            ("NOPERM No permissions to access a key", keys),
            ("NOPERM this user has no permissions to access one of the channels used as arguments", "&*"),
            ("NOPERM No permissions to access the 'deeperhub:x' channel", "&*"),
            ("NOPERM No permissions to access a channel", "&*"),
        ] {
            assert_eq!(right_of(refusal, "+lrange", keys), right, "{refusal}");
        }
    }
}
