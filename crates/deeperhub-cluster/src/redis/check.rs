//! Checks whether a server can keep streams.

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisError, Value};

use super::script::{self, Script, script};
use super::{client, connect_error, reader};
use crate::config::Config;
use crate::driver::BROKER_TIMEOUT;
use crate::names::Names;
use crate::store::{CheckError, MIN_REDIS_VERSION, NEEDED_REDIS, StoreFinding, is_evicting};

/// Topic of the stream that the check appends to. Clients cannot use topics that start with `$`.
const TOPIC: &str = "$store-check";

/// Time after which the check's stream expires, should its removal fail, in milliseconds.
const LIFETIME_MS: u32 = 10_000;

pub(crate) async fn check_store(config: &Config) -> Result<Vec<StoreFinding>, CheckError> {
    let mut last_error = CheckError("no server".to_owned());
    for server in config.url.servers() {
        let connected = match client(config, server) {
            Ok(client) => connect(&client, server.scheme() == "rediss").await,
            Err(error) => Err(error.0),
        };
        match connected {
            Ok(connection) => return check(connection, config).await,
            Err(error) => last_error = CheckError(error),
        }
    }
    Err(last_error)
}

async fn connect(client: &Client, over_tls: bool) -> Result<MultiplexedConnection, String> {
    reader::connect(client, BROKER_TIMEOUT).await.map_err(|error| connect_error(error, over_tls).0)
}

async fn check(
    mut connection: MultiplexedConnection,
    config: &Config,
) -> Result<Vec<StoreFinding>, CheckError> {
    let mut findings = Vec::new();
    match redis::cmd("INFO").query_async::<String>(&mut connection).await {
        Ok(info) => judge_info(&info, &mut findings),
        Err(error) => findings.push(StoreFinding::Unknown(refusal(&error)?)),
    }
    // A server that is too old would refuse the steps, too.
    if !findings.iter().any(StoreFinding::is_error)
        && let Err(error) = try_steps(&mut connection, config).await
    {
        findings.push(StoreFinding::Refused(refusal(&error)?));
    }
    Ok(findings)
}

/// Returns the server's words, or an error if the connection was lost.
fn refusal(error: &RedisError) -> Result<String, CheckError> {
    script::refusal(error).ok_or_else(|| CheckError(error.to_string()))
}

/// Judges the reply of `INFO`.
fn judge_info(info: &str, findings: &mut Vec<StoreFinding>) {
    let field =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    // Valkey tells the version of Redis that it is compatible with.
    if let Some(version) = field("redis_version") {
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major < MIN_REDIS_VERSION) {
            findings.push(StoreFinding::OldVersion { version: version.to_owned(), needed: NEEDED_REDIS });
        }
    } else {
        findings.push(StoreFinding::Unknown("INFO has no redis_version".to_owned()));
    }
    if field("arch_bits") == Some("32") {
        findings.push(StoreFinding::NarrowNumbers);
    }
    if field("cluster_enabled") == Some("1") {
        findings.push(StoreFinding::ClusterMode);
    }
    // Without a limit nothing is evicted.
    let is_limited = field("maxmemory").is_some_and(|bytes| bytes != "0");
    if let Some(policy) = field("maxmemory_policy").filter(|policy| is_limited && is_evicting(policy)) {
        findings.push(StoreFinding::Evicts(policy.to_owned()));
    }
}

/// Runs each script once, on a stream of the check's own.
async fn try_steps(connection: &mut MultiplexedConnection, config: &Config) -> Result<(), RedisError> {
    let names = Names::new(config.prefix.clone(), ':');
    let list = names.stream(TOPIC);
    let keys = [list.clone(), format!("{list}m"), format!("{list}o0"), format!("{list}o1")];
    let [list, meta, once, other_once] = keys.each_ref().map(String::as_str);
    let mut scripts = [script!("append.lua"), script!("read.lua"), script!("reset.lua")];
    for script in &mut scripts {
        script.load(connection).await?;
    }
    let [append, read, reset] = &scripts;
    // No node parses the envelopes: none follows the topic. Their head ends with their sequence and
    // an empty name.
    let head = |sequence: u8| [&[0; 17][..], &[sequence, 0]].concat();
    let channel = names.topic(TOPIC);
    // The second append is marked as resent: it looks for the first one and finds it. The third one
    // removes the first one from the list.
    for (sequence, mark) in [(1, ""), (1, "1"), (2, "")] {
        let mut command = append.call(&[list, meta, once, other_once]);
        command.arg(&channel).arg(head(sequence)).arg("").arg(1).arg(LIFETIME_MS).arg(LIFETIME_MS);
        command.arg(0).arg(0).arg(mark).arg("").arg(sequence);
        run(connection, command, append).await?;
    }
    let mut command = read.call(&[list, meta]);
    command.arg(0).arg(0).arg(1).arg(1024).arg(LIFETIME_MS);
    run(connection, command, read).await?;
    let mut command = reset.call(&[list, meta]);
    command.arg(&channel).arg(head(3)).arg("").arg(LIFETIME_MS).arg(0).arg(0).arg("");
    run(connection, command, reset).await?;
    let mut look = redis::pipe();
    look.cmd("TIME").cmd("GET").arg(meta).cmd("PEXPIRE").arg(meta).arg(LIFETIME_MS).ignore();
    look.query_async::<Value>(connection).await?;
    // The rest expires if this fails.
    let _ = redis::cmd("DEL").arg(&keys).query_async::<Value>(connection).await;
    Ok(())
}

async fn run(
    connection: &mut MultiplexedConnection,
    command: redis::Cmd,
    script: &Script,
) -> Result<(), RedisError> {
    let mut pipeline = redis::pipe();
    pipeline.add_command(command);
    let replies = script::send(connection, &pipeline, &[script]).await?;
    for reply in replies {
        reply.extract_error()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(info: &str) -> Vec<StoreFinding> {
        let mut findings = Vec::new();
        judge_info(&info.replace('\n', "\r\n"), &mut findings);
        findings
    }

    #[test]
    fn servers_are_judged_by_their_info() {
        let good = "# Server\nredis_version:7.0.15\narch_bits:64\n# Memory\nmaxmemory:0\nmaxmemory_policy:noeviction\n";
        assert_eq!(findings(good), []);
        let old = good.replace("7.0.15", "5.0.14");
        assert_eq!(
            findings(&old),
            [StoreFinding::OldVersion { version: "5.0.14".to_owned(), needed: NEEDED_REDIS }]
        );
        let narrow = good.replace("arch_bits:64", "arch_bits:32");
        assert_eq!(findings(&narrow), [StoreFinding::NarrowNumbers]);
        let clustered = format!("{good}cluster_enabled:1\n");
        assert_eq!(findings(&clustered), [StoreFinding::ClusterMode]);
        assert!(matches!(&findings("")[..], [finding @ StoreFinding::Unknown(_)] if !finding.is_error()));
    }

    #[test]
    fn policies_that_evict_are_a_warning_if_memory_is_limited() {
        for (policy, evicts) in [("noeviction", false), ("allkeys-lru", true), ("volatile-ttl", true)] {
            let info = format!("redis_version:7.2.4\nmaxmemory:1000\nmaxmemory_policy:{policy}\n");
            let expected = evicts.then(|| StoreFinding::Evicts(policy.to_owned()));
            assert_eq!(findings(&info), Vec::from_iter(expected));
            assert_eq!(findings(&info.replace(":1000", ":0")), []);
        }
        assert!(!StoreFinding::Evicts(String::new()).is_error());
    }
}
