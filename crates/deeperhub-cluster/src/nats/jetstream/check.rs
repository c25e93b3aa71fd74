//! Checks whether a server can keep streams.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::client::Client;
use super::super::connect_client;
use super::super::request::{Message, RequestError};
use super::super::wire::command;
use super::api::{Ack, Api, ApiError};
use super::config;
use super::names::{StreamNames, parse_stream};
use crate::broker::Shared;
use crate::config::Config;
use crate::envelope::{Envelope, Message as Content, Origin};
use crate::link::LinkError;
use crate::names::Names;
use crate::store::{CheckError, StoreFinding, StreamLimits, unix_ms};

/// Oldest version that keeps streams: it reads several messages with one request, and keeps single
/// messages longer than a stream's age.
const MIN_VERSION: (u64, u64) = (2, 11);
const NEEDED: &str = "NATS 2.11";

/// Codes of the API: JetStream is not enabled on the server, or not for the account.
const NOT_ENABLED: [u64; 2] = [10076, 10039];

/// Name under which the check introduces itself.
const NODE: &str = "store-check";

/// Start of the reason for which a server refuses a user.
const LOGIN_REFUSED: &str = "nats: authorization violation";

/// Time after which a check ends without a result.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// Age of the stream of a check that was broken off. Clocks of nodes may differ a little.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Topic of the check. Clients cannot use topics that start with `$`.
const TOPIC: &str = "$store-check";

/// Start of the token of each check's stream.
const TOKEN_START: &str = "-store-check-";

/// Checks whether a server can keep streams. `shared` is that of the node that asks, if one does. It
/// remembers which servers have proved it: they need no further stream of the check's own.
pub(crate) async fn check_store(
    config: &Config,
    shared: Option<Arc<Shared>>,
) -> Result<Vec<StoreFinding>, CheckError> {
    let config = config.clone();
    on_own_thread(move || async move {
        let client = match reach(&config).await? {
            Ok(client) => client,
            Err(finding) => return Ok(vec![finding]),
        };
        let (version, server) = (client.server_version(), client.server_id());
        let is_proved = shared.as_ref().is_some_and(|shared| shared.jetstream.is_proved(&server));
        let check = Check { api: Api::new(client), findings: Vec::new() };
        let findings = check.run(&config, &version, is_proved).await?;
        if let Some(shared) = shared.filter(|_| findings.is_empty() && !is_proved) {
            shared.jetstream.prove(server);
        }
        Ok(findings)
    })
    .await
}

/// Checks whether nodes can exchange messages over a server.
pub(crate) async fn check_broker(config: &Config) -> Result<Vec<StoreFinding>, CheckError> {
    let config = config.clone();
    on_own_thread(move || async move {
        let client = match reach(&config).await? {
            Ok(client) => client,
            Err(finding) => return Ok(vec![finding]),
        };
        let mut check = Check { api: Api::new(client), findings: Vec::new() };
        check.try_messages(&config).await?;
        Ok(check.findings)
    })
    .await
}

/// Makes a check on a thread of its own, because a connection stays on one thread.
async fn on_own_thread<F>(check: impl FnOnce() -> F + Send + 'static) -> Result<Vec<StoreFinding>, CheckError>
where
    F: Future<Output = Result<Vec<StoreFinding>, CheckError>>,
{
    let (sender, outcome) = oneshot::channel();
    let failed = |error: std::io::Error| CheckError(error.to_string());
    std::thread::Builder::new()
        .name("store-check".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let outcome = runtime.map_err(failed).and_then(|runtime| {
                // A timer needs the runtime.
                let outcome = runtime.block_on(async { timeout(CHECK_TIMEOUT, check()).await });
                outcome.unwrap_or_else(|_| Err(CheckError("it did not answer in time".to_owned())))
            });
            // The caller may have gone.
            let _ = sender.send(outcome);
        })
        .map_err(failed)?;
    outcome.await.unwrap_or_else(|_| Err(CheckError("the check has failed".to_owned())))
}

/// Connects to the first server that is reached. Returns a finding if a server refused the login.
async fn reach(config: &Config) -> Result<Result<Client, StoreFinding>, CheckError> {
    let mut last_error = CheckError("no server".to_owned());
    for server in config.url.servers() {
        match connect_client(config, NODE, server).await {
            Ok(client) => {
                client.keep_violations();
                return Ok(Ok(client));
            }
            Err(error) if error.0.contains(LOGIN_REFUSED) => {
                return Ok(Err(StoreFinding::LoginRefused(error.0)));
            }
            Err(error) => last_error = CheckError(error.0),
        }
    }
    Err(last_error)
}

/// Subject, content and headers of a request.
type Step<'s> = (String, Value, &'s [(&'s str, &'s str)]);

struct Check {
    api: Api,
    findings: Vec<StoreFinding>,
}

impl Check {
    async fn run(
        mut self,
        config: &Config,
        version: &str,
        is_proved: bool,
    ) -> Result<Vec<StoreFinding>, CheckError> {
        if is_old(version) {
            let finding = StoreFinding::OldVersion { version: version.to_owned(), needed: NEEDED };
            return Ok(vec![finding]);
        }
        match self.request("$JS.API.INFO".to_owned(), Value::Null, &[]).await? {
            Some(Err(error)) if is_missing(&error) => {
                return Ok(vec![StoreFinding::NoJetStream(error.to_string())]);
            }
            Some(Err(error)) => self.findings.push(StoreFinding::Refused(error.to_string())),
            _ if is_proved => self.try_rights(config).await?,
            _ => self.try_steps(config).await?,
        }
        Ok(self.findings)
    }

    /// Makes requests that need the rights of streams, and that change nothing: the stream does not
    /// exist, and settings are invalid.
    async fn try_rights(&mut self, config: &Config) -> Result<(), CheckError> {
        let names = StreamNames::new(&config.prefix, TOPIC);
        let api = |operation: &str| format!("$JS.API.{operation}.{}", names.stream(1));
        let invalid = json!([]);
        for subject in [
            "$JS.API.STREAM.NAMES".to_owned(),
            api("STREAM.CREATE"),
            api("STREAM.INFO"),
            api("STREAM.UPDATE"),
            names.message(TOPIC),
            names.mark(TOPIC),
            api("DIRECT.GET"),
            api("STREAM.MSG.GET"),
            format!("{}.check", api("CONSUMER.CREATE")),
            api("STREAM.DELETE"),
        ] {
            // Only a missing right is a finding.
            self.request(subject, invalid.clone(), &[]).await?;
        }
        self.try_flow_control(&names.stream(1)).await
    }

    /// Answers a question of a consumer that does not exist.
    async fn try_flow_control(&mut self, stream: &str) -> Result<(), CheckError> {
        let client = self.api.client().clone();
        let subject = format!("$JS.FC.{stream}.check.check");
        let write = |out: &mut Vec<u8>| command::publish(out, &[subject.as_bytes()], b"");
        client.write(write).map_err(|error| CheckError(error.0))?;
        self.take_violations().await
    }

    /// Waits until the server has told what it does not permit.
    async fn take_violations(&mut self) -> Result<(), CheckError> {
        let client = self.api.client();
        client.confirm().await.map_err(|error| CheckError(error.0))?;
        self.findings.extend(client.take_violations().into_iter().map(StoreFinding::MissingRight));
        Ok(())
    }

    /// Subscribes to and publishes on the subjects of nodes.
    async fn try_messages(&mut self, config: &Config) -> Result<(), CheckError> {
        let lost = |error: LinkError| CheckError(error.0);
        let names = Names::new(config.prefix.clone(), '.');
        // Nodes ignore the goodbye of a node that they do not know.
        let origin = Origin { node: NODE, incarnation: 0 };
        let goodbye = Envelope { origin, sequence: 1, message: Content::Bye }.write();
        let client = self.api.client().clone();
        for subject in [names.broadcast(), names.node(NODE), names.topic(TOPIC)] {
            client.subscribe(&subject).map_err(lost)?;
            client.write(|out| command::publish(out, &[subject.as_bytes()], &goodbye)).map_err(lost)?;
        }
        self.take_violations().await
    }

    /// Makes each request that streams need, with a stream of the check's own.
    async fn try_steps(&mut self, config: &Config) -> Result<(), CheckError> {
        let second = std::time::Duration::from_secs(1);
        let limits = StreamLimits { messages: 1, ttl: second, forget: second };
        // Checks of several nodes at the same time must not have the same subjects.
        let random = getrandom::u64().map_err(|error| CheckError(error.to_string()))?;
        let names = StreamNames::new(&config.prefix, &format!("{TOPIC}-{random:x}"));
        let stream = names.stream(unix_ms());
        let mut wanted = config::wanted(&names, &limits, config, TOPIC);
        if let Some(wanted) = wanted.as_object_mut() {
            wanted.insert("name".to_owned(), json!(stream));
        }
        let api = |operation: &str| format!("$JS.API.{operation}.{stream}");
        let expected = ("Nats-Expected-Stream", stream.as_str());
        let (message, mark) = (names.message(TOPIC), names.mark(TOPIC));
        let consumer = json!({
            "stream_name": stream,
            "action": "create",
            "config": { "name": "check", "ack_policy": "none", "mem_storage": true },
        });
        let steps: [Step<'_>; 10] = [
            ("$JS.API.STREAM.NAMES".to_owned(), json!({ "subject": names.all() }), &[]),
            (api("STREAM.CREATE"), wanted.clone(), &[]),
            (api("STREAM.INFO"), Value::Null, &[]),
            (api("STREAM.UPDATE"), wanted, &[]),
            (message.clone(), json!(1), &[expected, ("Nats-Msg-Id", "1")]),
            (mark, json!(1), &[expected, ("Nats-TTL", "never")]),
            (message.clone(), json!(1), &[expected, ("Nats-Rollup", "sub")]),
            (api("DIRECT.GET"), json!({ "last_by_subj": message }), &[]),
            (api("STREAM.MSG.GET"), json!({ "last_by_subj": message }), &[]),
            (format!("{}.check", api("CONSUMER.CREATE")), consumer, &[]),
        ];
        let mut is_refused = false;
        for (subject, request, headers) in steps {
            match self.request(subject, request, headers).await? {
                // Steps after one that has failed fail for its sake.
                Some(Err(error)) if !is_refused => {
                    is_refused = true;
                    if self.findings.is_empty() {
                        self.findings.push(StoreFinding::Refused(error.to_string()));
                    }
                }
                _ => {}
            }
        }
        self.try_flow_control(&stream).await?;
        if let Some(Err(error)) = self.request(api("STREAM.DELETE"), Value::Null, &[]).await?
            && self.findings.is_empty()
        {
            self.findings.push(StoreFinding::Refused(error.to_string()));
        }
        if self.findings.is_empty() {
            self.remove_leftovers(config).await;
        }
        Ok(())
    }

    /// Removes the streams of checks that were broken off. The next check tries again what fails.
    async fn remove_leftovers(&self, config: &Config) {
        let subjects = format!("{}.h.*.c.{TOPIC}", config.prefix);
        let Ok(answer) = self.api.call("STREAM.NAMES", &json!({ "subject": subjects })).await else { return };
        let streams = answer.get("streams").and_then(Value::as_array).into_iter().flatten();
        for stream in streams.filter_map(Value::as_str) {
            let Some((token, created_ms)) = parse_stream(&config.prefix, stream) else { continue };
            let age_ms = u128::from(unix_ms().saturating_sub(created_ms));
            if token.starts_with(TOKEN_START) && age_ms > MAX_AGE.as_millis() {
                let _ = self.api.call(&format!("STREAM.DELETE.{stream}"), &Value::Null).await;
            }
        }
    }

    /// Makes a request. Returns `None` after a finding: the user lacks the right.
    async fn request(
        &mut self,
        subject: String,
        request: Value,
        headers: &[(&str, &str)],
    ) -> Result<Option<Result<(), ApiError>>, CheckError> {
        let client = self.api.client();
        let payload = if request.is_null() { String::new() } else { request.to_string() };
        let answer = tokio::select! {
            answer = client.request(&subject, headers, payload.as_bytes()) => answer,
            // The server does not answer a request that it does not permit.
            violation = client.violation() => match violation {
                Ok(violation) => {
                    self.findings.push(StoreFinding::MissingRight(violation));
                    return Ok(None);
                }
                Err(error) => Err(RequestError::Lost(error)),
            },
        };
        match answer {
            Ok(answer) => Ok(Some(outcome(&answer))),
            Err(RequestError::Lost(error)) => Err(CheckError(error.0)),
            Err(error) => Ok(Some(Err(error.into()))),
        }
    }
}

/// Returns the error of an answer: of the API, of an append, or of a read.
fn outcome(answer: &Message) -> Result<(), ApiError> {
    if let Some(status) = answer.headers().status() {
        let description = answer.headers().description().to_owned();
        return Err(ApiError::Refused { status: status.into(), code: 0, description });
    }
    let has_error = serde_json::from_slice::<Value>(&answer.payload)
        .is_ok_and(|answer| answer.get("error").is_some_and(|error| !error.is_null()));
    if has_error { Ack::parse(answer).map(drop) } else { Ok(()) }
}

/// Returns `true` if there is no JetStream for the account.
fn is_missing(error: &ApiError) -> bool {
    match error {
        ApiError::NoResponders => true,
        ApiError::Refused { code, .. } => NOT_ENABLED.contains(code),
        _ => false,
    }
}

/// Returns `true` if a server is too old. One that tells no version is not.
fn is_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u64>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < MIN_VERSION,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, expected) in [
            ("2.9.10", true),
            ("2.10.29", true),
            ("2.11.0", false),
            ("2.15.1", false),
            ("3.0.0-beta.1", false),
            ("", false),
        ] {
            assert_eq!(is_old(version), expected, "{version}");
        }
    }
}
