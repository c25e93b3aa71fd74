//! Sends OTLP requests to a collector over gRPC or HTTP.

use std::error::Error as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};

use crate::config::{Destination, Protocol};

/// Maximum bytes of a response body over HTTP. Limits memory use if the endpoint is not a
/// collector.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Time after which an idle connection to the collector is closed.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(90);

/// Value of the `User-Agent` header: name and version of the hub, independent of `service.name`.
const USER_AGENT_VALUE: &str = concat!("deeperhub-ws/", env!("CARGO_PKG_VERSION"));

/// Client that sends spans or metrics to one destination.
#[derive(Debug)]
pub(crate) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, tonic::body::Body>,
    url: Uri,
    protocol: Protocol,
    headers: HeaderMap,
    timeout: Duration,
    is_compressed: bool,
}

/// Error of one attempt to export.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// No response arrived in time.
    #[error("no response within {0:?}")]
    TimedOut(Duration),
    /// The request could not be built.
    #[error("cannot build the request: {0}")]
    Request(String),
    /// The connection failed before the whole response arrived.
    #[error("{0}")]
    Connection(String),
    /// The response had a status of 2xx and a body over [`MAX_RESPONSE_BYTES`].
    #[error("the collector's response is over {MAX_RESPONSE_BYTES} bytes")]
    ResponseTooLong,
    /// The response had an HTTP status other than 2xx.
    #[error("the collector responded with {status}")]
    Http { status: StatusCode, retry_after: Option<Duration> },
    /// The response had a gRPC status other than OK.
    #[error("the collector responded with {:?}: {}", .0.code(), .0.message())]
    Grpc(Box<Status>),
}

impl ExportError {
    /// Returns `true` if a retry may succeed (OTLP specification, "Failures" and "Retryable").
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Connection(_) => true,
            // A response over the limit has confirmed the export with its status, so a retry would
            // send the data twice.
            Self::ResponseTooLong | Self::Request(_) => false,
            Self::Http { status, .. } => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::Grpc(status) => matches!(
                status.code(),
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
                    // tonic also uses this status for connections that failed.
                    | Code::Unknown
            ),
        }
    }

    /// Returns the delay that the collector requested in `Retry-After`.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Http { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// An error of any type.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Error of creating a client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The TLS library does not support its own default versions.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The system has no CA certificates that can be read.
    #[error("cannot read the system's CA certificates")]
    SystemRoots(#[source] io::Error),
    /// A file of certificates cannot be read, or contains invalid ones.
    #[error("cannot use the certificates in {}", .0.display())]
    Certificates(PathBuf, #[source] BoxError),
    /// The file of the client's private key cannot be read, or contains no valid key.
    #[error("cannot use the private key in {}", .0.display())]
    PrivateKey(PathBuf, #[source] BoxError),
    /// The client certificate and its key do not belong together.
    #[error("cannot use the client certificate in {} with its key", .0.display())]
    Identity(PathBuf, #[source] rustls::Error),
    #[error("invalid endpoint URL: {0}")]
    Url(#[from] http::uri::InvalidUri),
    #[error("invalid header {0:?}")]
    Header(String),
}

impl Client {
    pub(crate) fn new(destination: &Destination) -> Result<Self, ClientError> {
        let url: Uri = destination.url.to_string().parse()?;
        let tls = tls_config(destination, url.scheme_str() == Some("https"))?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new());
        let http = match destination.protocol {
            Protocol::Grpc => {
                builder.http2_only(true);
                builder.build(connector.enable_http2().wrap_connector(http_connector(destination)))
            }
            Protocol::HttpProtobuf => {
                builder.build(connector.enable_http1().wrap_connector(http_connector(destination)))
            }
        };
        Ok(Self {
            http,
            url,
            protocol: destination.protocol,
            headers: header_map(destination)?,
            timeout: destination.timeout,
            is_compressed: destination.is_compressed,
        })
    }

    /// Sends spans and returns how many of them the collector rejected.
    pub(crate) async fn send_spans(&self, request: ExportTraceServiceRequest) -> Result<u64, ExportError> {
        let response: ExportTraceServiceResponse = self
            .with_timeout(async {
                match self.protocol {
                    Protocol::HttpProtobuf => self.post(&request).await,
                    Protocol::Grpc => {
                        let mut client = TraceServiceClient::with_origin(self.http.clone(), self.url.clone());
                        if self.is_compressed {
                            client = client.send_compressed(CompressionEncoding::Gzip);
                        }
                        grpc_response(client.export(self.grpc_request(request)).await)
                    }
                }
            })
            .await?;
        Ok(rejected_count(response.partial_success.map(|partial| partial.rejected_spans)))
    }

    /// Sends metrics and returns how many data points the collector rejected.
    pub(crate) async fn send_metrics(
        &self,
        request: ExportMetricsServiceRequest,
    ) -> Result<u64, ExportError> {
        let response: ExportMetricsServiceResponse = self
            .with_timeout(async {
                match self.protocol {
                    Protocol::HttpProtobuf => self.post(&request).await,
                    Protocol::Grpc => {
                        let mut client =
                            MetricsServiceClient::with_origin(self.http.clone(), self.url.clone());
                        if self.is_compressed {
                            client = client.send_compressed(CompressionEncoding::Gzip);
                        }
                        grpc_response(client.export(self.grpc_request(request)).await)
                    }
                }
            })
            .await?;
        Ok(rejected_count(response.partial_success.map(|partial| partial.rejected_data_points)))
    }

    async fn with_timeout<T>(
        &self,
        send: impl Future<Output = Result<T, ExportError>>,
    ) -> Result<T, ExportError> {
        match tokio::time::timeout(self.timeout, send).await {
            Ok(result) => result,
            Err(_) => Err(ExportError::TimedOut(self.timeout)),
        }
    }

    fn grpc_request<T>(&self, request: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(request);
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(self.headers.clone());
        request
    }

    /// Sends a message over HTTP and returns the message of the response. If the body of the
    /// response is not OTLP, returns an empty message, because the status has confirmed the export.
    async fn post<R: Message + Default>(&self, message: &impl Message) -> Result<R, ExportError> {
        let request_error = |error: &dyn std::error::Error| ExportError::Request(with_causes(error));
        let connection_error = |error: &dyn std::error::Error| ExportError::Connection(with_causes(error));
        let mut body = message.encode_to_vec();
        let mut request = Request::post(self.url.clone());
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if self.is_compressed {
                body = gzip(&body).map_err(|error| request_error(&error))?;
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        let request =
            request.body(tonic::body::Body::new(Full::from(body))).map_err(|error| request_error(&error))?;
        let response = self.http.request(request).await.map_err(|error| connection_error(&error))?;
        let status = response.status();
        if !status.is_success() {
            let retry_after =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(ExportError::Http { status, retry_after: retry_after.map(Duration::from_secs) });
        }
        let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ExportError::ResponseTooLong
            } else {
                connection_error(&*error)
            }
        })?;
        Ok(R::decode(body.to_bytes()).unwrap_or_default())
    }
}

/// Returns the message of a gRPC response.
fn grpc_response<R>(response: Result<tonic::Response<R>, Status>) -> Result<R, ExportError> {
    response.map(tonic::Response::into_inner).map_err(|status| match status.source() {
        // tonic created this status, because the connection failed.
        Some(error) => ExportError::Connection(with_causes(error)),
        None => ExportError::Grpc(Box::new(status)),
    })
}

/// Converts the number of rejected items of a response. A missing or negative number counts as 0.
fn rejected_count(count: Option<i64>) -> u64 {
    count.and_then(|count| u64::try_from(count).ok()).unwrap_or_default()
}

fn http_connector(destination: &Destination) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(destination.timeout));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector
}

/// Builds the TLS configuration: trusts the configured CAs or the system's, and presents a client
/// certificate if one is configured. If `is_https` is `false`, reads no certificates and trusts
/// none.
fn tls_config(destination: &Destination, is_https: bool) -> Result<ClientConfig, ClientError> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?;
    if !is_https {
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let builder = match destination.certificate.as_deref() {
        None => builder.with_native_roots().map_err(ClientError::SystemRoots)?,
        Some(path) => {
            let invalid = |error: BoxError| ClientError::Certificates(path.to_owned(), error);
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path).map_err(invalid)? {
                roots.add(certificate).map_err(|error| invalid(error.into()))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    let Some((certificate_path, key_path)) = &destination.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate_path)
        .map_err(|error| ClientError::Certificates(certificate_path.clone(), error))?;
    let key = PrivateKeyDer::from_pem_file(key_path)
        .map_err(|error| ClientError::PrivateKey(key_path.clone(), error.into()))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| ClientError::Identity(certificate_path.clone(), error))
}

/// Reads the certificates of a PEM file.
///
/// # Errors
///
/// If the file cannot be read, is not PEM, or holds no certificate.
pub fn certificates(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Box<dyn std::error::Error + Send + Sync>> {
    let certificates = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() { Err("it holds no certificate".into()) } else { Ok(certificates) }
}

/// Returns the headers of each request: `User-Agent` and the configured ones.
fn header_map(destination: &Destination) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    for (name, value) in &destination.headers.0 {
        let invalid = || ClientError::Header(name.clone());
        let mut value = HeaderValue::from_str(value).map_err(|_| invalid())?;
        value.set_sensitive(true);
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| invalid())?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Returns the texts of an error and of its sources, outermost first.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmed_export_is_not_retried() {
        assert!(!ExportError::ResponseTooLong.is_retryable());
        assert!(ExportError::Connection("reset".to_owned()).is_retryable());
        assert!(ExportError::TimedOut(Duration::from_secs(1)).is_retryable());
    }
}
