//! Sends requests to a collector: OTLP over gRPC, or over HTTP as protobuf.

use std::io::{self, Write};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
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
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};

use super::environment::{Protocol, Target};

/// The most that is read of a collector's answer.
const MAX_ANSWER: usize = 64 * 1024;

/// What we call ourselves.
const AGENT: &str = concat!("deeperhub-ws/", env!("CARGO_PKG_VERSION"));

/// One collector.
#[derive(Debug)]
pub(crate) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, tonic::body::Body>,
    url: Uri,
    protocol: Protocol,
    headers: HeaderMap,
    timeout: Duration,
    is_compressed: bool,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// Nothing came back in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// It could not be sent, or the answer not be read.
    #[error("{0}")]
    Connection(String),
    /// HTTP said no.
    #[error("the collector answered {status}")]
    Http { status: StatusCode, retry_after: Option<Duration> },
    /// gRPC said no.
    #[error("the collector answered {:?}: {}", .0.code(), .0.message())]
    Grpc(Box<Status>),
}

impl ExportError {
    /// Whether the same request may be taken later (OTLP specification, "Failures" and "Retryable").
    pub(crate) fn is_transient(&self) -> bool {
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
                    // What is not gRPC's own: connections that could not be made.
                    | Code::Unknown
            ),
        }
    }

    /// When the collector wants to be asked again, where it says so.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Http { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("certificates cannot be read")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the endpoint is no URL: {0}")]
    Url(#[from] http::uri::InvalidUri),
    #[error("{0:?} cannot be a header")]
    Header(String),
}

impl Client {
    pub(crate) fn new(target: &Target) -> Result<Self, ClientError> {
        let url: Uri = target.url.to_string().parse()?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(target.timeout));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let tls = tls(target, url.scheme_str() == Some("https"))?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .pool_idle_timeout(Duration::from_secs(90))
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new());
        let http = match target.protocol {
            Protocol::Grpc => {
                builder.http2_only(true);
                builder.build(connector.enable_http2().wrap_connector(plain(target)))
            }
            Protocol::HttpProtobuf => builder.build(connector.enable_http1().wrap_connector(plain(target))),
        };
        Ok(Self {
            http,
            url,
            protocol: target.protocol,
            headers: headers(target)?,
            timeout: target.timeout,
            is_compressed: target.is_compressed,
        })
    }

    /// Sends spans; answers how many of them were rejected.
    pub(crate) async fn send_spans(&self, request: ExportTraceServiceRequest) -> Result<u64, ExportError> {
        let send = async {
            match self.protocol {
                Protocol::HttpProtobuf => {
                    let answer = self.post(&request).await?;
                    Ok(ExportTraceServiceResponse::decode(&*answer).unwrap_or_default())
                }
                Protocol::Grpc => {
                    let mut client = TraceServiceClient::with_origin(self.http.clone(), self.url.clone());
                    if self.is_compressed {
                        client = client.send_compressed(CompressionEncoding::Gzip);
                    }
                    let answer = client.export(self.with_headers(request)).await;
                    answer
                        .map(tonic::Response::into_inner)
                        .map_err(|status| ExportError::Grpc(Box::new(status)))
                }
            }
        };
        let answer = self.in_time(send).await?;
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }

    /// Sends metrics; answers how many points of them were rejected.
    pub(crate) async fn send_metrics(
        &self,
        request: ExportMetricsServiceRequest,
    ) -> Result<u64, ExportError> {
        let send = async {
            match self.protocol {
                Protocol::HttpProtobuf => {
                    let answer = self.post(&request).await?;
                    Ok(ExportMetricsServiceResponse::decode(&*answer).unwrap_or_default())
                }
                Protocol::Grpc => {
                    let mut client = MetricsServiceClient::with_origin(self.http.clone(), self.url.clone());
                    if self.is_compressed {
                        client = client.send_compressed(CompressionEncoding::Gzip);
                    }
                    let answer = client.export(self.with_headers(request)).await;
                    answer
                        .map(tonic::Response::into_inner)
                        .map_err(|status| ExportError::Grpc(Box::new(status)))
                }
            }
        };
        let answer = self.in_time(send).await?;
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_data_points);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }

    async fn in_time<T>(&self, send: impl Future<Output = Result<T, ExportError>>) -> Result<T, ExportError> {
        match tokio::time::timeout(self.timeout, send).await {
            Ok(result) => result,
            Err(_) => Err(ExportError::TimedOut(self.timeout)),
        }
    }

    fn with_headers<T>(&self, request: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(request);
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(self.headers.clone());
        request
    }

    async fn post(&self, message: &impl Message) -> Result<Vec<u8>, ExportError> {
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
        let answer = self.http.request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        if !status.is_success() {
            let retry_after =
                answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(ExportError::Http { status, retry_after: retry_after.map(Duration::from_secs) });
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        body.map(|body| body.to_bytes().to_vec()).map_err(|error| broken(&*error))
    }
}

fn plain(target: &Target) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(target.timeout));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector
}

/// Trusts the system's certificates, or those of the file that is named instead.
fn tls(target: &Target, is_needed: bool) -> Result<ClientConfig, ClientError> {
    let fault = |error: Box<dyn std::error::Error + Send + Sync>| ClientError::Certificates(error);
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(error.into()))?;
    let config = match &target.certificate {
        _ if !is_needed => builder.with_root_certificates(RootCertStore::empty()),
        None => builder.with_native_roots().map_err(|error| fault(error.into()))?,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fault(error.into()))? {
                roots
                    .add(certificate.map_err(|error| fault(error.into()))?)
                    .map_err(|error| fault(error.into()))?;
            }
            if roots.is_empty() {
                let nothing = format!("{} holds no certificate", path.display());
                return Err(fault(io::Error::other(nothing).into()));
            }
            builder.with_root_certificates(roots)
        }
    };
    Ok(config.with_no_client_auth())
}

fn headers(target: &Target) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    for (name, value) in &target.headers.0 {
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

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
