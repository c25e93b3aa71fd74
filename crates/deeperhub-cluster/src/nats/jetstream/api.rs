//! Requests to JetStream's API, and their answers.

use serde::Deserialize;
use serde_json::Value;

use super::super::client::Client;
use super::super::request::{Message, RequestError, Subscription};
use crate::driver::BROKER_TIMEOUT;
use crate::store::ReadError;

/// Code of the API: the stream does not exist.
pub(super) const NOT_FOUND: u64 = 10059;

/// Code of the API: the stream has no such message.
pub(super) const NO_MESSAGE: u64 = 10037;

/// Code of the API: another stream has the subjects.
pub(super) const OVERLAPS: u64 = 10065;

/// Code of the API: a stream of this name has other settings.
pub(super) const NAME_IN_USE: u64 = 10058;

/// Code of the API: the message went to another stream than its publisher expected.
const WRONG_STREAM: u64 = 10060;

/// Code of the API: more messages wait for the stream than it takes.
const TOO_MANY: u64 = 10167;

/// Codes of the API that tell of full resources, which do not pass within a moment.
const FULL: [u64; 4] = [10002, 10023, 10028, 10047];

/// Reason why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("JetStream did not answer in time")]
    TimedOut,
    #[error("no server answers for JetStream")]
    NoResponders,
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("{description} (error {code} of JetStream)")]
    Refused { status: u64, code: u64, description: String },
}

impl ApiError {
    pub(super) const fn is(&self, expected: u64) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == expected)
    }

    /// Returns `true` if the stream is not the one that was expected, or does not exist.
    pub(crate) const fn is_of_other_stream(&self) -> bool {
        self.is(WRONG_STREAM) || self.is(NOT_FOUND)
    }

    /// Returns `true` if the same request may succeed in a moment; for example, while the servers
    /// elect a leader.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NoResponders => true,
            Self::Refused { code: TOO_MANY, .. } => true,
            Self::Refused { status: 503, code, .. } => !FULL.contains(code),
            _ => false,
        }
    }

    /// Returns `true` if the server did not refuse the request, but was not reached.
    pub(crate) const fn is_of_connection(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Lost(_))
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::TimedOut => Self::TimedOut,
            RequestError::NoResponders => Self::NoResponders,
            RequestError::Lost(error) => Self::Lost(error.0),
            RequestError::TooLarge => Self::Refused { status: 413, code: 0, description: error.to_string() },
        }
    }
}

impl From<ApiError> for ReadError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::TimedOut => Self::TimedOut,
            ApiError::Lost(reason) => Self::Lost(reason),
            refused => Self::Refused(refused.to_string()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct ErrorField {
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl From<ErrorField> for ApiError {
    fn from(ErrorField { code, err_code, description }: ErrorField) -> Self {
        Self::Refused { status: code, code: err_code, description }
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    error: Option<ErrorField>,
}

/// Acknowledgement of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    /// `true` if the stream had a message of the same identity before.
    pub(crate) is_duplicate: bool,
}

#[derive(Debug, Deserialize)]
struct AckFields {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ErrorField>,
}

impl Ack {
    /// Parses the answer to a message.
    pub(crate) fn parse(answer: &Message) -> Result<Self, ApiError> {
        if answer.headers().status().is_some() {
            return Err(ApiError::NoResponders);
        }
        Self::parse_payload(&answer.payload)
    }

    fn parse_payload(payload: &[u8]) -> Result<Self, ApiError> {
        let fields: AckFields = serde_json::from_slice(payload).map_err(|_| unexpected())?;
        match fields.error {
            Some(error) => Err(error.into()),
            None if fields.seq > 0 => {
                Ok(Self { stream: fields.stream, sequence: fields.seq, is_duplicate: fields.duplicate })
            }
            None => Err(unexpected()),
        }
    }
}

pub(super) fn unexpected() -> ApiError {
    ApiError::Refused { status: 0, code: 0, description: "unexpected answer".to_owned() }
}

/// Requests with one answer each.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
}

impl Api {
    pub(crate) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Calls an operation of the API.
    pub(super) async fn call(&self, operation: &str, request: &Value) -> Result<Value, ApiError> {
        let subject = format!("$JS.API.{operation}");
        let payload = if request.is_null() { String::new() } else { request.to_string() };
        let answer = self.request(&subject, &[], payload.as_bytes()).await?;
        let outcome: Answer = serde_json::from_slice(&answer.payload).map_err(|_| unexpected())?;
        match outcome.error {
            Some(error) => Err(error.into()),
            None => serde_json::from_slice(&answer.payload).map_err(|_| unexpected()),
        }
    }

    /// Appends a message to a stream.
    pub(super) async fn append(
        &self,
        subject: String,
        payload: Vec<u8>,
        headers: &[(&str, &str)],
    ) -> Result<Ack, ApiError> {
        let answer = self.request(&subject, headers, &payload).await?;
        Ack::parse(&answer)
    }

    /// Reads one message of a stream. Returns `None` if there is none.
    pub(super) async fn direct(&self, stream: &str, request: &Value) -> Result<Option<Message>, ApiError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let message = self.request(&subject, &[], request.to_string().as_bytes()).await?;
        Ok(message.headers().status().is_none().then_some(message))
    }

    /// Reads the message of a sequence. Returns `None` if there is none.
    pub(crate) async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Message>, ApiError> {
        self.direct(stream, &serde_json::json!({ "seq": sequence })).await
    }

    async fn request(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> Result<Message, ApiError> {
        Ok(self.client.request(subject, headers, payload).await?)
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }
}

/// A request whose answer can have several messages.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) subject: String,
    pub(super) request: Value,
    /// `true` if a message of its own ends the answer.
    pub(super) is_batch: bool,
}

/// Requests that are made at once, with a subscription for all answers.
pub(super) struct Exchanges {
    client: Client,
    inbox: String,
    answers: Subscription,
    next: u64,
}

impl Exchanges {
    /// Subscribes below a subject of this connection alone.
    pub(super) fn new(client: Client, inbox: String) -> Result<Self, ApiError> {
        let answers = client.subscribe_owned(&format!("{inbox}.*")).map_err(RequestError::from)?;
        Ok(Self { client, inbox, answers, next: 0 })
    }

    /// Makes requests, and returns the messages of each answer in the order of the requests. A
    /// message with a status is the last one.
    pub(super) async fn run(&mut self, calls: &[Call]) -> Result<Vec<Vec<Message>>, ApiError> {
        let mut answers = vec![Vec::new(); calls.len()];
        let mut open = vec![true; calls.len()];
        let mut count = calls.len();
        let first = self.next;
        self.next += calls.len() as u64;
        for (number, call) in (first..).zip(calls) {
            let reply = format!("{}.{number}", self.inbox);
            let payload = call.request.to_string();
            self.client.publish(&call.subject, Some(&reply), &[], payload.as_bytes())?;
        }
        while count > 0 {
            let next = tokio::time::timeout(BROKER_TIMEOUT, self.answers.next()).await;
            let message = next.map_err(|_| ApiError::TimedOut)?.map_err(RequestError::from)?;
            let number = message.subject().rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
            // Answers of an earlier exchange, which has failed, have lower numbers.
            let Some(index) = number.and_then(|number| usize::try_from(number.checked_sub(first)?).ok())
            else {
                continue;
            };
            let (Some(call), Some(is_open), Some(answer)) =
                (calls.get(index), open.get_mut(index), answers.get_mut(index))
            else {
                continue;
            };
            if *is_open && (message.headers().status().is_some() || !call.is_batch) {
                *is_open = false;
                count -= 1;
            }
            answer.push(message);
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_parsed() {
        let ack = |sequence, is_duplicate| Ack { stream: "s".to_owned(), sequence, is_duplicate };
        assert_eq!(Ack::parse_payload(br#"{"stream":"s","seq":1}"#), Ok(ack(1, false)));
        assert_eq!(Ack::parse_payload(br#"{"stream":"s","seq":2,"duplicate": true}"#), Ok(ack(2, true)));
        let error = Ack::parse_payload(
            br#"{"error":{"code":400,"err_code":10060,"description":"no"},"stream":"s","seq":0}"#,
        );
        let error = error.unwrap_err();
        assert!(error.is_of_other_stream() && !error.is_transient());
        assert_eq!(Ack::parse_payload(b"+OK"), Err(unexpected()));
    }

    #[test]
    fn errors_that_pass_are_told_from_full_servers() {
        let refused = |status, code| ApiError::Refused { status, code, description: String::new() };
        for (error, is_transient) in [
            (refused(503, 10008), true),
            (refused(503, 10023), false),
            (refused(400, 10060), false),
            (refused(429, 10167), true),
            (ApiError::NoResponders, true),
            (ApiError::TimedOut, false),
        ] {
            assert_eq!(error.is_transient(), is_transient, "{error}");
        }
    }
}
