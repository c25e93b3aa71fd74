//! Requests to the server API of a running hub.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use deeperhub_args::{Address, Host};
use deeperhub_security::Secret;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{EventStream, pinned_certificate};

/// Timeout of a request, from connecting to the end of the body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum bytes of a response body, more than the server API sends. Limits memory use if the
/// address belongs to another server.
const MAX_BODY_BYTES: usize = 4 << 20;

/// Error of a request, for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The connection failed, or the response did not arrive in time.
    #[error("cannot reach the server API at {address}: {source} (set its address with --api-listen)")]
    Unreachable {
        /// The API's address.
        address: Address,
        /// Error of the connection.
        source: io::Error,
    },
    /// The key is missing or wrong.
    #[error(
        "the server API at {address} refuses the key: set the server's key with --api-key or DEEPERHUB_API_KEY"
    )]
    Unauthorized {
        /// The API's address.
        address: Address,
    },
    /// The server API answered with an error.
    #[error("{message}")]
    Refused {
        /// Status of the response.
        status: u16,
        /// Code of the error; empty if the answer has none.
        code: String,
        /// Explanation of the server.
        message: String,
    },
    /// The response is not from the server API, or is from another version of it.
    #[error("the server at {address} is no server API of this version: {reason}")]
    Unexpected {
        /// The API's address.
        address: Address,
        /// The difference from an expected response.
        reason: String,
    },
}

/// A client of one server API. Its connection stays open between requests.
#[derive(Debug)]
pub struct ApiClient {
    address: Address,
    key: Option<Secret>,
    timeout: Duration,
    scheme: &'static str,
    http: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl ApiClient {
    /// Returns the API's address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Creates a client for the API at `address`. With `tls_cert`, the client connects over TLS and
    /// accepts only a server with the first certificate of that file.
    ///
    /// # Errors
    ///
    /// If the certificate cannot be read.
    pub fn new(address: Address, key: Option<Secret>, tls_cert: Option<&Path>) -> Result<Self, String> {
        let (scheme, tls) = match tls_cert {
            Some(file) => ("https", pinned_certificate::trust_only(file)?),
            // The connector needs a TLS configuration, although it connects without TLS.
            None => ("http", pinned_certificate::trust_nothing()?),
        };
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let http = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { address, key, timeout: REQUEST_TIMEOUT, scheme, http })
    }

    /// Sends a GET request and decodes the JSON of a response with status 200.
    pub(crate) async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let response = self.get(path).await?;
        match response.status() {
            StatusCode::OK => {
                serde_json::from_slice(response.body()).map_err(|error| self.unexpected(error.to_string()))
            }
            StatusCode::UNAUTHORIZED => Err(self.unauthorized()),
            status => Err(self.unexpected(format!("{path} answered {}", status.as_u16()))),
        }
    }

    /// Sends a GET request and reads the whole response.
    ///
    /// All calls must be in the context of the same runtime, which runs the client's connection.
    pub async fn get(&self, path: &str) -> Result<Response<Bytes>, ApiError> {
        let request = self.request(path, &[])?;
        let exchange = async {
            let (head, body) = self.http.request(request).await?.into_parts();
            let body = Limited::new(body, MAX_BODY_BYTES).collect().await?.to_bytes();
            Ok::<_, Box<dyn Error + Send + Sync>>(Response::from_parts(head, body))
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.exchange_error(&*error)),
            Err(_) => Err(self.timed_out()),
        }
    }

    /// Opens a stream of server-sent events. With the ID of the last event of an earlier stream, it
    /// continues after that event.
    ///
    /// # Errors
    ///
    /// If the server does not answer, or not with a stream. [`ApiError::Refused`] has the error of
    /// the server API.
    pub async fn events(&self, path: &str, last_event_id: Option<&str>) -> Result<EventStream<'_>, ApiError> {
        let id = last_event_id.map(|id| ("last-event-id", id));
        let request = self.request(path, id.as_slice())?;
        let open = async {
            let (head, body) = self.http.request(request).await?.into_parts();
            if head.status == StatusCode::OK {
                return Ok(Ok((head, body)));
            }
            let body = Limited::new(body, MAX_BODY_BYTES).collect().await?.to_bytes();
            Ok::<_, Box<dyn Error + Send + Sync>>(Err(Response::from_parts(head, body)))
        };
        let (head, body) = match tokio::time::timeout(self.timeout, open).await {
            Ok(Ok(Ok(opened))) => opened,
            Ok(Ok(Err(response))) => return Err(self.refused(path, &response)),
            Ok(Err(error)) => return Err(self.exchange_error(&*error)),
            Err(_) => return Err(self.timed_out()),
        };
        let content_type = head.headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        if !content_type.starts_with(b"text/event-stream") {
            return Err(self.unexpected(format!("{path} is no stream of events")));
        }
        Ok(EventStream::new(self, body))
    }

    /// Creates a GET request with the key and these headers.
    fn request(&self, path: &str, headers: &[(&str, &str)]) -> Result<Request<Empty<Bytes>>, ApiError> {
        let uri = format!("{}://{}{path}", self.scheme, connectable(&self.address));
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.key {
            // A key that is not a valid header value cannot be the server's key.
            let value = [b"Bearer ", key.expose()].concat();
            let mut value = HeaderValue::from_maybe_shared(value).map_err(|_| self.unauthorized())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Empty::new()).map_err(|error| self.unexpected(error.to_string()))
    }

    /// Returns the error of a response that is not a success.
    fn refused(&self, path: &str, response: &Response<Bytes>) -> ApiError {
        /// Body of an error response.
        #[derive(Deserialize)]
        struct Body {
            error: Detail,
        }

        #[derive(Deserialize)]
        struct Detail {
            code: String,
            message: String,
        }

        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            return self.unauthorized();
        }
        match serde_json::from_slice(response.body()) {
            Ok(Body { error: Detail { code, message } }) => {
                ApiError::Refused { status: status.as_u16(), code, message }
            }
            // For example a proxy's answer.
            Err(_) if status.is_server_error() => ApiError::Refused {
                status: status.as_u16(),
                code: String::new(),
                message: format!("{} answered {}", self.address, status.as_u16()),
            },
            Err(_) => self.unexpected(format!("{path} answered {}", status.as_u16())),
        }
    }

    /// Converts the error of an exchange: `Unreachable` if an I/O error caused it, and otherwise
    /// `Unexpected`.
    pub(crate) fn exchange_error(&self, error: &(dyn Error + 'static)) -> ApiError {
        let mut causes = std::iter::successors(Some(error), |&error| error.source());
        match causes.find_map(|error| error.downcast_ref::<io::Error>()) {
            Some(error) => {
                let source = match error.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(error.kind(), error.to_string()),
                };
                self.unreachable(source)
            }
            None => self.unexpected(format!("it does not speak HTTP ({})", with_causes(error))),
        }
    }

    pub(crate) fn timed_out(&self) -> ApiError {
        self.unreachable(io::ErrorKind::TimedOut.into())
    }

    fn unreachable(&self, source: io::Error) -> ApiError {
        ApiError::Unreachable { address: self.address.clone(), source }
    }

    fn unauthorized(&self) -> ApiError {
        ApiError::Unauthorized { address: self.address.clone() }
    }

    pub(crate) fn unexpected(&self, reason: String) -> ApiError {
        ApiError::Unexpected { address: self.address.clone(), reason }
    }
}

/// Returns the messages of an error and its causes, outermost first.
fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Returns the address to connect to: the same one, or loopback if the server listens on all
/// interfaces.
fn connectable(address: &Address) -> Address {
    let host = match &address.host {
        Host::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Host::Ip(Ipv4Addr::LOCALHOST.into()),
        Host::Ip(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Host::Ip(Ipv6Addr::LOCALHOST.into()),
        host => host.clone(),
    };
    Address { host, port: address.port }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Sends a request to a server that gives this response. Returns the result and the request.
    fn exchange(
        response: &'static [u8],
        key: Option<Secret>,
        timeout: Duration,
    ) -> (Result<Response<Bytes>, ApiError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(response).unwrap();
            if response.is_empty() {
                // Stays silent until the client disconnects.
                let _ = stream.read(&mut byte);
            }
            String::from_utf8(request).unwrap().to_lowercase()
        });
        let address = Address { host: Host::Ip(server.ip()), port: server.port() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(async {
            let client = ApiClient { timeout, ..ApiClient::new(address, key, None).unwrap() };
            client.get("/x").await
        });
        drop(runtime);
        (result, serving.join().unwrap())
    }

    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn status_and_body_are_read() {
        for (response, expected) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"[..], Some((200, "{}"))),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
                Some((200, "{}")),
            ),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Some((503, ""))),
            (b"HTTP/1.1 200\r\n\r\n", Some((200, ""))),
            (b"SSH-2.0-OpenSSH\r\n", None),
            (b"HTTP/1.1 OK\r\n\r\n", None),
            (b"\xFF\xFE\n", None),
            (b"HTTP/1.1 ", None),
        ] {
            let (result, request) = exchange(response, None, TEST_TIMEOUT);
            assert!(request.starts_with("get /x http/1.1\r\n"), "{request}");
            match (&result, expected) {
                (Ok(response), Some((status, body))) => {
                    assert_eq!((response.status().as_u16(), &**response.body()), (status, body.as_bytes()));
                }
                (Err(ApiError::Unexpected { .. }), None) => {}
                _ => panic!("{}: {result:?}", response.escape_ascii()),
            }
        }
    }

    #[test]
    fn the_key_is_sent() {
        let key = Secret::new(b"k".to_vec());
        let (_, request) = exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Some(key), TEST_TIMEOUT);
        assert!(request.contains("\r\nauthorization: bearer k\r\n"), "{request}");
    }

    #[test]
    fn a_silent_server_times_out() {
        let (result, _) = exchange(b"", None, Duration::from_millis(50));
        match result.unwrap_err() {
            ApiError::Unreachable { source, .. } => assert_eq!(source.kind(), io::ErrorKind::TimedOut),
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn a_server_on_every_interface_is_reached_on_loopback() {
        for (listen, expected) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.1.2.3:1", "10.1.2.3:1")]
        {
            let listen: Address = listen.parse().unwrap();
            assert_eq!(connectable(&listen).to_string(), expected);
        }
    }
}
