//! OpenTelemetry collectors behind TLS.

use serde_json::json;

use crate::support::{Authority, Client, Collector, Server, TlsFront, text};
use crate::telemetry::{FAST_EXPORT, check_one_trace};

/// Starts a plaintext collector for each protocol.
async fn collectors() -> [(Collector, &'static str); 2] {
    [(Collector::grpc().await, "grpc"), (Collector::http().await, "http/protobuf")]
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_is_exported_over_tls_with_headers() {
    let authority = Authority::new();
    let identity = authority.server("collector");
    for (collector, protocol) in collectors().await {
        let front = TlsFront::start(&identity, None, collector.address).await;
        let variables = [
            FAST_EXPORT[0],
            FAST_EXPORT[1],
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", text(&authority.cert)),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20tenant-key,x-tenant=blue"),
        ];
        let server = Server::start_with(&["--otlp-endpoint", &front.url()], &variables);
        check_one_trace(&collector, &server).await;
        collector.metric("process_resident_memory", |_| true).await;
        assert_eq!(collector.header("authorization").as_deref(), Some("Bearer tenant-key"), "{protocol}");
        assert_eq!(collector.header("x-tenant").as_deref(), Some("blue"), "{protocol}");
        assert!(!server.stderr().contains("tenant-key"), "{}", server.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_requires_a_client_certificate_gets_one() {
    let authority = Authority::new();
    let (identity, own) = (authority.server("collector"), authority.client("hub"));
    for (collector, protocol) in collectors().await {
        let front = TlsFront::start(&identity, Some(&authority), collector.address).await;
        let variables = [
            FAST_EXPORT[0],
            FAST_EXPORT[1],
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", text(&authority.cert)),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", text(&own.cert)),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", text(&own.key)),
        ];
        let server = Server::start_with(&["--otlp-endpoint", &front.url()], &variables);
        check_one_trace(&collector, &server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_collector_gets_nothing_and_the_hub_serves() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let identity = strangers.server("collector");
    for (collector, protocol) in collectors().await {
        let front = TlsFront::start(&identity, None, collector.address).await;
        let variables = [
            FAST_EXPORT[0],
            FAST_EXPORT[1],
            ("OTEL_BSP_EXPORT_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", text(&authority.cert)),
        ];
        let server = Server::start_with(&["--otlp-endpoint", &front.url()], &variables);
        let mut client = Client::connect(&server).await;
        let reply = client.request(&json!({"type": "echo", "data": 1})).await;
        assert_eq!(reply["type"], "echo");
        server.wait_for_stderr("Export of spans failed");
        let log = server.stderr();
        assert!(log.contains("certificate"), "the reason is logged: {log}");
        assert!(collector.spans_so_far().is_empty());
        assert_eq!(client.request(&json!({"type": "echo", "data": 2})).await["data"], 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_certificate_file_is_named_and_the_hub_serves() {
    let variables = [("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")];
    let server = Server::start_with(&["--otlp-endpoint", "https://localhost:4318"], &variables);
    server.wait_for_stderr("spans cannot be exported: ");
    let log = server.stderr();
    assert!(log.contains("/nowhere/ca.pem"), "{log}");
    let mut client = Client::connect(&server).await;
    assert_eq!(client.request(&json!({"type": "echo", "data": 1})).await["data"], 1);
}
