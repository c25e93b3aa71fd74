//! Sends OTLP requests to a collector over gRPC or HTTP.

use std::error::Error as _;
use std::io::{self, Write};
use std::path::Path;
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

/// Maximum size of a response body over HTTP, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The `User-Agent`, which names the exporter and not the service.
const USER_AGENT_VALUE: &str = concat!("deeperhub-ws/", env!("CARGO_PKG_VERSION"));

/// Client of one collector for one signal.
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
    /// No response came in time.
    #[error("no response within {0:?}")]
    TimedOut(Duration),
    /// The request could not be sent, or the response not be read.
    #[error("{0}")]
    Connection(String),
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
                    // Also the status of connections that could not be made.
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

/// Error of creating a client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("invalid certificates of {0}")]
    Certificates(String, #[source] Box<dyn std::error::Error + Send + Sync>),
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
            .pool_idle_timeout(Duration::from_secs(90))
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
        Ok(rejected(response.partial_success.map(|partial| partial.rejected_spans)))
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
        Ok(rejected(response.partial_success.map(|partial| partial.rejected_data_points)))
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

    /// Sends a request over HTTP. A response that is not OTLP counts as one without content.
    async fn post<A: Message + Default>(&self, message: &impl Message) -> Result<A, ExportError> {
        let broken = |error: &dyn std::error::Error| ExportError::Connection(with_causes(error));
        let mut body = message.encode_to_vec();
        let mut request = Request::post(self.url.clone());
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if self.is_compressed {
                body = gzip(&body).map_err(|error| broken(&error))?;
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        let request =
            request.body(tonic::body::Body::new(Full::from(body))).map_err(|error| broken(&error))?;
        let response = self.http.request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        if !status.is_success() {
            let retry_after =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(ExportError::Http { status, retry_after: retry_after.map(Duration::from_secs) });
        }
        let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
        let body = body.map_err(|error| match error.is::<LengthLimitError>() {
            true => ExportError::Connection(format!(
                "the collector's response is over {MAX_RESPONSE_BYTES} bytes"
            )),
            false => broken(&*error),
        })?;
        Ok(A::decode(body.to_bytes()).unwrap_or_default())
    }
}

/// Returns the message of a gRPC response.
fn grpc_response<A>(response: Result<tonic::Response<A>, Status>) -> Result<A, ExportError> {
    response.map(tonic::Response::into_inner).map_err(|status| match status.source() {
        // Not a status of the collector.
        Some(error) => ExportError::Connection(with_causes(error)),
        None => ExportError::Grpc(Box::new(status)),
    })
}

/// Returns the number of rejected items; a negative number counts as 0.
fn rejected(count: Option<i64>) -> u64 {
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
/// certificate if one is configured. Without `is_needed` no certificate is read.
fn tls_config(destination: &Destination, is_needed: bool) -> Result<ClientConfig, ClientError> {
    let of =
        |path: Option<&Path>| path.map_or_else(|| "the system".to_owned(), |path| path.display().to_string());
    let fault = |path: Option<&Path>, error: Box<dyn std::error::Error + Send + Sync>| {
        ClientError::Certificates(of(path), error)
    };
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(None, error.into()))?;
    let trusting = match destination.certificate.as_deref() {
        _ if !is_needed => builder.with_root_certificates(RootCertStore::empty()),
        None => builder.with_native_roots().map_err(|error| fault(None, error.into()))?,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path).map_err(|error| fault(Some(path), error))? {
                roots.add(certificate).map_err(|error| fault(Some(path), error.into()))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    match &destination.identity {
        Some((certificate, key)) if is_needed => {
            let chain = certificates(certificate).map_err(|error| fault(Some(certificate), error))?;
            let own = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(Some(key), error.into()))?;
            trusting.with_client_auth_cert(chain, own).map_err(|error| fault(Some(certificate), error.into()))
        }
        _ => Ok(trusting.with_no_client_auth()),
    }
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

fn header_map(destination: &Destination) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    for (name, value) in &destination.headers.0 {
        let fault = || ClientError::Header(name.clone());
        let mut value = HeaderValue::from_str(value).map_err(|_| fault())?;
        value.set_sensitive(true);
        headers.append(
            HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| fault())?,
            value,
        );
    }
    Ok(headers)
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Returns an error's text with those of its sources.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
