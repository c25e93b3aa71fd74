//! Exported traces and metrics, received by a collector built from OpenTelemetry's own definitions.

use std::process::{Command, Stdio};

use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Client, Collector, Peer, ROOT, Server, http, install, metric, wait_for};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Settings for fast export, so that tests do not wait long.
pub(crate) const FAST_EXPORT: [(&str, &str); 2] =
    [("OTEL_BSP_SCHEDULE_DELAY", "20"), ("OTEL_METRIC_EXPORT_INTERVAL", "100")];

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

pub(crate) fn server(collector: &Collector, flags: &[&str], variables: &[(&str, &str)]) -> Server {
    let url = collector.url();
    let mut all = vec!["--otlp-endpoint", &url];
    all.extend(flags);
    let variables: Vec<_> = FAST_EXPORT.iter().chain(variables).copied().collect();
    Server::start_with(&all, &variables)
}

async fn subscribed(server: &Server, topic: &str) -> Client {
    let mut client = Client::connect(server).await;
    let reply = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
    assert_eq!(reply["type"], "subscribed", "{reply}");
    client
}

fn publish(topic: &str, meta: &Value) -> Value {
    json!({"type": "publish", "id": 1, "data": {"topic": topic, "message": 1}, "meta": meta})
}

/// Returns the trace id, span id and flags of a delivery.
fn context(message: &Value) -> (String, String, String) {
    let text =
        message["meta"]["traceparent"].as_str().unwrap_or_else(|| panic!("no traceparent in {message}"));
    let parts: Vec<_> = text.split('-').map(str::to_owned).collect();
    assert_eq!((parts.len(), parts[0].as_str()), (4, "00"), "{text}");
    (parts[1].clone(), parts[2].clone(), parts[3].clone())
}

/// Publishes within a trace and checks the subscriber's message and the collector's spans.
pub(crate) async fn check_one_trace(collector: &Collector, server: &Server) {
    let mut subscriber = subscribed(server, "news.local").await;
    let mut publisher = Client::connect(server).await;
    let meta = json!({"traceparent": traceparent("01"), "tracestate": "vendor=1"});
    let reply = publisher.request(&publish("news.local", &meta)).await;
    assert_eq!(reply["type"], "published", "{reply}");

    let delivery = subscriber.receive().await;
    assert_eq!(delivery["data"]["message"], 1);
    assert_eq!(delivery["meta"]["tracestate"], "vendor=1");
    let (trace, span, flags) = context(&delivery);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_ne!(span, PARENT, "the delivery has its own span");

    let published = collector.span("publish", |span| span.name == "publish" && span.trace_id == TRACE).await;
    assert_eq!((published.span_id.as_str(), published.parent_id.as_str()), (span.as_str(), PARENT));
    assert_eq!(published.span.kind(), SpanKind::Producer);
    assert_eq!(published.span.trace_state, "vendor=1");
    for (name, value) in [
        ("messaging.system", "deeperhub"),
        ("messaging.operation.name", "publish"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", "news.local"),
        ("messaging.client.id", publisher.id()),
        ("messaging.message.body.size", "1"),
        ("client.address", "127.0.0.1"),
        ("deeperhub.subscribers", "1"),
    ] {
        assert_eq!(published.attributes.get(name).map(String::as_str), Some(value), "{name}");
    }

    let fan_out = collector.span("fan_out", |span| span.name == "fan_out" && span.trace_id == TRACE).await;
    assert_eq!(fan_out.parent_id, published.span_id);
    assert_eq!(fan_out.attributes["deeperhub.subscribers"], "1");
    assert!(fan_out.attributes["deeperhub.bytes"].parse::<u64>().is_ok_and(|bytes| bytes > 100));
    assert!(fan_out.attributes["deeperhub.queue_wait_seconds"].parse::<f64>().is_ok());

    let deliver = collector.span("deliver", |span| span.name == "deliver" && span.trace_id == TRACE).await;
    assert_eq!(deliver.parent_id, fan_out.span_id);
    assert_eq!(deliver.attributes["messaging.client.id"], subscriber.id());
    let links: Vec<_> = deliver.span.links.iter().map(|link| link.span_id.clone()).collect();
    assert_eq!(links, std::slice::from_ref(&published.span.span_id));

    for span in [&published, &fan_out, &deliver] {
        assert!(span.span.end_time_unix_nano >= span.span.start_time_unix_nano, "{span:?}");
        assert!(span.span.start_time_unix_nano > 1_600_000_000_000_000_000, "{span:?}");
    }
}

#[tokio::test]
async fn a_publish_to_a_topic_with_history_has_its_offset() {
    let collector = Collector::grpc().await;
    let protocol = [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let server = server(&collector, &["--topic", "kept.>: history=5"], &protocol);
    let mut publisher = Client::connect(&server).await;
    publisher.request(&publish("kept.client", &json!({}))).await;
    publisher.request(&publish("plain", &json!({}))).await;
    for _ in 0..2 {
        let call = "POST /v1/topics/kept.backend/messages";
        assert_eq!(http(server.api(), call, &[], "1").await.status, 200);
    }
    for (topic, offset) in [
        ("kept.client", Some("1")),
        ("kept.backend", Some("1")),
        ("kept.backend", Some("2")),
        ("plain", None),
    ] {
        let span = collector.span("publish", |span| {
            let attribute = |name| span.attributes.get(name).map(String::as_str);
            span.name == "publish"
                && attribute("messaging.destination.name") == Some(topic)
                && attribute("deeperhub.offset") == offset
        });
        span.await;
    }
}

#[tokio::test]
async fn publish_and_deliveries_belong_to_the_publishers_trace_over_grpc() {
    let collector = Collector::grpc().await;
    let server = server(&collector, &[], &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    check_one_trace(&collector, &server).await;
}

#[tokio::test]
async fn publish_and_deliveries_belong_to_the_publishers_trace_over_http() {
    let collector = Collector::http().await;
    check_one_trace(&collector, &server(&collector, &[], &[])).await;
}

#[tokio::test]
async fn publish_and_deliveries_belong_to_the_publishers_trace_compressed() {
    for (collector, protocol) in
        [(Collector::grpc().await, "grpc"), (Collector::http().await, "http/protobuf")]
    {
        let variables =
            [("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip")];
        check_one_trace(&collector, &server(&collector, &[], &variables)).await;
    }
}

#[tokio::test]
async fn sampled_traces_are_propagated_without_a_collector() {
    let server = Server::start(&[]);
    let mut subscriber = subscribed(&server, "news").await;
    let mut publisher = Client::connect(&server).await;
    publisher.send(&publish("news", &json!({"traceparent": traceparent("01")}))).await;
    let (trace, span, flags) = context(&subscriber.receive().await);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_ne!(span, PARENT);

    for meta in [
        json!({"traceparent": traceparent("00")}),
        json!({"traceparent": "00-00000000000000000000000000000000-00f067aa0ba902b7-01"}),
        json!({"traceparent": "nonsense", "tracestate": "a=1"}),
        json!({"traceparent": 7}),
        json!({}),
    ] {
        publisher.send(&publish("news", &meta)).await;
        let delivery = subscriber.receive().await;
        assert_eq!(delivery["data"]["message"], 1, "{delivery}");
        assert_eq!(delivery.get("meta"), None, "{meta} is not sampled: {delivery}");
    }
}

async fn connect_with_header(server: &Server, name: &'static str, value: &str) -> Client {
    let mut request = server.url("/ws").into_client_request().expect("a URL");
    request.headers_mut().insert(name, value.parse().expect("a header's value"));
    Client::connect_with(request).await.unwrap_or_else(|error| panic!("refused: {error}"))
}

#[tokio::test]
async fn a_server_api_publish_is_a_child_of_its_request() {
    let collector = Collector::http().await;
    let server = server(&collector, &[], &[]);
    let mut subscriber = subscribed(&server, "news").await;
    let headers = [format!("traceparent: {}", traceparent("01")), "tracestate: vendor=1".to_owned()];
    let headers: Vec<_> = headers.iter().map(String::as_str).collect();
    let response = http(server.api(), "POST /v1/topics/news/messages", &headers, "{}").await;
    assert_eq!(response.status, 200);

    let delivery = subscriber.receive().await;
    let (trace, span, _) = context(&delivery);
    assert_eq!((trace.as_str(), &delivery["meta"]["tracestate"]), (TRACE, &json!("vendor=1")));

    let published = collector.span("publish", |span| span.name == "publish").await;
    let call = collector
        .span("the call", |span| span.span.kind() == SpanKind::Server && span.trace_id == TRACE)
        .await;
    assert_eq!((&published.trace_id, &published.span_id), (&trace, &span));
    assert_eq!((&published.parent_id, call.parent_id.as_str()), (&call.span_id, PARENT));
    assert_eq!(call.name, "POST /v1/topics/{topic}/messages");
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/topics/{topic}/messages"),
        ("url.path", "/v1/topics/news/messages"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(call.attributes.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[tokio::test]
async fn publishes_without_a_trace_belong_to_the_handshakes_trace() {
    let collector = Collector::http().await;
    let server = server(&collector, &["--trace-sample-ratio", "0"], &[]);
    let mut subscriber = subscribed(&server, "news").await;
    let mut publisher = connect_with_header(&server, "traceparent", &traceparent("01")).await;

    let handshake = collector.span("the handshake", |span| span.name == "GET /ws").await;
    assert_eq!((handshake.trace_id.as_str(), handshake.parent_id.as_str()), (TRACE, PARENT));
    assert_eq!(handshake.span.kind(), SpanKind::Server);
    assert_eq!(handshake.attributes["http.response.status_code"], "101");
    assert_eq!(handshake.attributes["url.path"], "/ws");

    publisher.send(&publish("news", &json!({}))).await;
    assert_eq!(context(&subscriber.receive().await).0, TRACE);
    let other = "00-11111111111111111111111111111111-2222222222222222-01";
    publisher.send(&publish("news", &json!({"traceparent": other}))).await;
    assert_eq!(context(&subscriber.receive().await).0, "1".repeat(32));
}

#[tokio::test]
async fn a_delivery_links_to_the_subscribers_handshake_trace() {
    let collector = Collector::http().await;
    let server = server(&collector, &["--trace-sample-ratio", "0"], &[]);
    let mut subscriber = connect_with_header(&server, "traceparent", &traceparent("01")).await;
    subscriber.request(&json!({"type": "subscribe", "data": {"topic": "news"}})).await;
    let other = "00-11111111111111111111111111111111-2222222222222222-01";
    let mut publisher = Client::connect(&server).await;
    publisher.send(&publish("news", &json!({"traceparent": other}))).await;
    let deliver = collector.span("deliver", |span| span.name == "deliver").await;
    let links: Vec<_> = deliver.span.links.iter().map(|link| link.trace_id.clone()).collect();
    let hexed = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let links: Vec<_> = links.iter().map(|id| hexed(id)).collect();
    assert_eq!(links, ["1".repeat(32), TRACE.to_owned()]);
}

#[tokio::test]
async fn only_the_first_deliveries_of_a_fan_out_have_spans() {
    let collector = Collector::http().await;
    let server = server(&collector, &["--trace-sample-ratio", "0", "--workers", "1"], &[]);
    let mut subscribers = Vec::new();
    for _ in 0..40 {
        subscribers.push(subscribed(&server, "news").await);
    }
    let mut publisher = Client::connect(&server).await;
    publisher.send(&publish("news", &json!({"traceparent": traceparent("01")}))).await;
    let first = context(&subscribers[0].receive().await);
    for subscriber in &mut subscribers[1..] {
        assert_eq!(context(&subscriber.receive().await), first, "encoded once for all subscribers");
    }
    let fan_out = collector.span("fan_out", |span| span.name == "fan_out").await;
    assert_eq!(fan_out.attributes["deeperhub.subscribers"], "40");
    let delivers = collector.spans_so_far().iter().filter(|span| span.name == "deliver").count();
    assert_eq!(delivers, 16);
}

#[tokio::test]
async fn a_refused_message_has_a_failed_span() {
    let collector = Collector::http().await;
    let server = server(&collector, &["--max-subscriptions", "1"], &[]);
    let mut client = subscribed(&server, "a").await;
    let meta = json!({"traceparent": traceparent("01")});
    let reply = client.request(&json!({"type": "subscribe", "data": {"topic": "b"}, "meta": meta})).await;
    assert_eq!(reply["data"]["code"], "too_many_subscriptions");
    let span = collector.span("subscribe", |span| span.trace_id == TRACE && span.name == "subscribe").await;
    assert_eq!(span.attributes["error.type"], "too_many_subscriptions");
    assert_eq!(span.span.status.map(|status| status.code()), Some(StatusCode::Error));
}

/// Publishes messages outside a trace and returns how many started one.
pub(crate) async fn sampled(server: &Server, count: usize) -> usize {
    let mut subscriber = subscribed(server, "news").await;
    let mut publisher = Client::connect(server).await;
    let mut sampled = 0;
    for _ in 0..count {
        publisher.send(&publish("news", &json!({}))).await;
        sampled += usize::from(subscriber.receive().await.get("meta").is_some());
    }
    sampled
}

#[tokio::test]
async fn new_traces_are_recorded_by_ratio() {
    let collector = Collector::http().await;
    let all = server(&collector, &[], &[]);
    assert_eq!(sampled(&all, 20).await, 20);
    collector.spans(20, |span| span.name == "publish" && span.parent_id.is_empty()).await;

    let none = server(&collector, &["--trace-sample-ratio", "0"], &[]);
    assert_eq!(sampled(&none, 20).await, 0);
    let mut subscriber = subscribed(&none, "news").await;
    let response = http(none.api(), "POST /v1/topics/news/messages", &[], "{}").await;
    assert_eq!((response.status, subscriber.receive().await.get("meta")), (200, None));

    let by_variable = server(&collector, &[], &[("OTEL_TRACES_SAMPLER", "always_off")]);
    assert_eq!(sampled(&by_variable, 20).await, 0);

    let flags = ["--trace-sample-ratio", "0.5", "--rate-limit", "0"];
    let half = sampled(&server(&collector, &flags, &[]), 200).await;
    assert!((50..150).contains(&half), "{half} of 200");
}

/// Returns the metric of spans lost for a reason.
async fn lost_spans(server: &Server, reason: &str) -> u64 {
    let text = http(server.api(), "GET /metrics", &[], "").await.body;
    let name = format!("deeperhub_trace_spans_dropped_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name}in {text}")).parse().expect("a number")
}

async fn wait_for_lost(server: &Server, reason: &str) -> u64 {
    wait_for("lost spans", async {
        loop {
            let lost = lost_spans(server, reason).await;
            if lost > 0 {
                return lost;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_late_collector_gets_the_queued_spans() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for protocol in ["grpc", "http/protobuf"] {
        let url = format!("http://{address}");
        let variables = [FAST_EXPORT[0], FAST_EXPORT[1], ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
        let server = Server::start_with(&["--otlp-endpoint", &url], &variables);
        assert_eq!(sampled(&server, 3).await, 3, "clients do not wait for the collector");
        let listener = TcpListener::bind(address).await.unwrap();
        let collector =
            if protocol == "grpc" { Collector::grpc_on(listener) } else { Collector::http_on(listener) };
        collector.spans(3, |span| span.name == "publish").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_a_collector_refuses_are_counted() {
    let collector = Collector::http().await;
    collector.refuse(Some(503));
    // A short export timeout, so that the batch is dropped.
    let server = server(&collector, &[], &[("OTEL_BSP_EXPORT_TIMEOUT", "1")]);
    assert_eq!(sampled(&server, 3).await, 3);
    collector.wait_for_refusals(1).await;
    assert!(wait_for_lost(&server, "export_failed").await >= 1);
    server.wait_for_stderr("Export of spans failed");
    collector.refuse(None);
    assert_eq!(sampled(&server, 3).await, 3);
    collector.spans(3, |span| span.name == "publish").await;
    server.wait_for_stderr("Export of spans recovered");
}

/// A `Retry-After` that overflows `Instant` must not end the exporter.
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_retry_after_does_not_stop_the_exporter() {
    let collector = Collector::http().await;
    for (round, retry_after) in
        ["18446744073709551615", "18446744073709551616", "-1", "Fri, 31 Dec 9999 23:59:59 GMT"]
            .into_iter()
            .enumerate()
    {
        collector.refuse(Some(503));
        collector.retry_after(retry_after);
        let server = server(&collector, &[], &[("OTEL_BSP_EXPORT_TIMEOUT", "500")]);
        assert_eq!(sampled(&server, 3).await, 3);
        assert!(wait_for_lost(&server, "export_failed").await >= 1, "{retry_after}");
        collector.refuse(None);
        assert_eq!(sampled(&server, 3).await, 3);
        collector.spans(3 * (round + 1), |span| span.name == "publish").await;
        assert!(!server.stderr().contains("panicked"), "{retry_after}: {}", server.stderr());
    }
}

#[tokio::test]
async fn clients_cannot_force_every_message_to_be_sampled() {
    let collector = Collector::http().await;
    let meta = json!({"traceparent": traceparent("01")});
    for (rate, ratio, expected) in [("0", "0", 0..=0), ("5", "0", 5..=150), ("0", "1", 200..=200)] {
        let flags = ["--trace-client-rate", rate, "--trace-sample-ratio", ratio, "--rate-limit", "0"];
        let server = server(&collector, &flags, &[]);
        let mut subscriber = subscribed(&server, "news").await;
        let mut publisher = Client::connect(&server).await;
        let mut recorded = 0;
        for _ in 0..200 {
            publisher.send(&publish("news", &meta)).await;
            recorded += usize::from(subscriber.receive().await["meta"]["traceparent"].is_string());
        }
        assert!(expected.contains(&recorded), "{recorded} with {flags:?}");
        let limited = metric(&server, "deeperhub_trace_clients_limited_total").await;
        let over = if ratio == "1" { 200 } else { 200 - recorded };
        assert_eq!(limited, over as u64, "{recorded} are recorded");
        // The rate for clients does not limit backends.
        for _ in 0..20 {
            let headers = [format!("traceparent: {}", traceparent("01"))];
            let response = http(server.api(), "POST /v1/topics/news/messages", &[&headers[0]], "1").await;
            assert_eq!(response.status, 200);
            assert_eq!(context(&subscriber.receive().await).0, TRACE);
        }
    }
}

#[tokio::test]
async fn spans_that_the_collector_rejects_are_counted() {
    let collector = Collector::grpc().await;
    collector.reject(1);
    let server = server(&collector, &[], &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    assert_eq!(sampled(&server, 1).await, 1);
    wait_for_lost(&server, "rejected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_collector_loses_spans_and_delays_nothing() {
    // Accepts connections and does nothing else.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let variables =
        [FAST_EXPORT[0], ("OTEL_BSP_MAX_QUEUE_SIZE", "8"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")];
    let flags = ["--otlp-endpoint", &url, "--rate-limit", "0", "--drain-timeout", "0"];
    let mut server = Server::start_with(&flags, &variables);
    assert_eq!(sampled(&server, 100).await, 100);
    assert!(wait_for_lost(&server, "queue_full").await > 50);
    server.signal("TERM");
    assert!(server.wait().success(), "it ends although the collector does not answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_flushed_at_shutdown() {
    let collector = Collector::grpc().await;
    // Far longer than the test: only the shutdown flushes it.
    let variables = [("OTEL_BSP_SCHEDULE_DELAY", "3600000"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let mut server = server(&collector, &["--drain-timeout", "0"], &variables);
    assert_eq!(sampled(&server, 5).await, 5);
    assert_eq!(collector.spans_so_far().len(), 0);
    server.signal("TERM");
    assert!(server.wait().success());
    collector.spans(5, |span| span.name == "publish").await;
}

#[tokio::test]
async fn exported_metrics_match_the_scraped_ones() {
    for (collector, protocol) in
        [(Collector::grpc().await, "grpc"), (Collector::http().await, "http/protobuf")]
    {
        let variables = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue%20one"),
            ("OTEL_SERVICE_NAME", "hub-under-test"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ];
        let server = server(&collector, &[], &variables);
        assert_eq!(sampled(&server, 4).await, 4);

        let metric = collector
            .metric("deeperhub_messages_received", |data| match data {
                metric::Data::Sum(sum) => {
                    sum.is_monotonic
                        && sum.data_points.iter().any(|point| {
                            point.value == Some(number_data_point::Value::AsInt(4))
                                && point
                                    .attributes
                                    .iter()
                                    .any(|label| format!("{label:?}").contains("publish"))
                        })
                }
                _ => false,
            })
            .await;
        assert!(!metric.description.is_empty());
        let latency = collector
            .metric("deeperhub_publish_latency", |data| match data {
                metric::Data::Histogram(histogram) => histogram.data_points[0].count == 4,
                _ => false,
            })
            .await;
        assert_eq!(latency.unit, "s");
        let Some(metric::Data::Histogram(histogram)) = latency.data else { panic!("it is a histogram") };
        let point = &histogram.data_points[0];
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 4);
        assert!(point.exemplars.iter().all(|exemplar| exemplar.trace_id.len() == 16));
        assert!(!point.exemplars.is_empty());
        collector.metric("process_resident_memory", |data| matches!(data, metric::Data::Gauge(_))).await;

        assert_eq!(collector.header("x-tenant").as_deref(), Some("blue one"));
        collector.spans(4, |span| span.name == "publish").await;
        let resource = collector.resource();
        assert_eq!(resource["service.name"], "hub-under-test");
        assert_eq!(resource["deployment.environment.name"], "test");
        assert!(resource.contains_key("service.instance.id"));
    }
}

#[tokio::test]
async fn variables_can_switch_telemetry_off() {
    let collector = Collector::http().await;
    let url = collector.url();
    for switched_off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        let variables =
            [FAST_EXPORT[0], FAST_EXPORT[1], ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), switched_off];
        let server = Server::start_with(&[], &variables);
        assert_eq!(sampled(&server, 3).await, 0, "{switched_off:?}");
    }
    let by_variable = [FAST_EXPORT[0], FAST_EXPORT[1], ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str())];
    let server = Server::start_with(&[], &by_variable);
    assert_eq!(sampled(&server, 3).await, 3);
    collector.spans(3, |span| span.name == "publish").await;
}

#[tokio::test]
async fn openmetrics_exemplars_name_traces() {
    let collector = Collector::http().await;
    let server = server(&collector, &["--trace-sample-ratio", "0"], &[]);
    let mut subscriber = subscribed(&server, "news").await;
    let mut publisher = Client::connect(&server).await;
    publisher.send(&publish("news", &json!({"traceparent": traceparent("01")}))).await;
    let (_, span, _) = context(&subscriber.receive().await);
    let exemplar = format!(" # {{trace_id=\"{TRACE}\",span_id=\"{span}\"}} ");
    wait_for("an exemplar", async {
        loop {
            let headers = ["Accept: application/openmetrics-text"];
            let text = http(server.api(), "GET /metrics", &headers, "").await.body;
            let found = text.lines().find(|line| line.contains(&exemplar));
            if let Some(line) = found {
                assert!(line.starts_with("deeperhub_publish_latency_seconds_bucket{le="), "{line}");
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let plain = http(server.api(), "GET /metrics", &[], "").await.body;
    assert!(!plain.contains("trace_id"), "the Prometheus text format has no exemplars");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_within_a_trace_have_its_id() {
    let collector = Collector::http().await;
    let flags = ["--log-format", "json", "--log-level", "debug", "--max-subscriptions", "1"];
    let server = server(&collector, &flags, &[]);
    let mut client = subscribed(&server, "a").await;
    let meta = json!({"traceparent": traceparent("01")});
    client.request(&json!({"type": "subscribe", "data": {"topic": "b"}, "meta": meta})).await;
    let header = format!("traceparent: {}", traceparent("01"));
    http(server.api(), "GET /v1/topics", &[&header], "").await;
    server.wait_for_stderr("Call answered");
    for message in ["Message answered with an error", "Call answered"] {
        let log = server.stderr();
        let line =
            log.lines().find(|line| line.contains(message)).unwrap_or_else(|| panic!("{message} in {log}"));
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        assert_eq!((&line["message"], &line["trace_id"]), (&json!(message), &json!(TRACE)));
        assert_eq!(line["span_id"].as_str().map(str::len), Some(16));
    }
}

fn promtool(arguments: &[&str], input: &str) {
    use std::io::Write;

    install(&[Peer::Prometheus]);
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&text));
}

#[tokio::test]
async fn promtool_accepts_the_metrics() {
    let server = Server::start(&[]);
    sampled(&server, 3).await;
    promtool(&["check", "metrics"], &http(server.api(), "GET /metrics", &[], "").await.body);
}

#[test]
fn promtool_accepts_the_alerts_and_their_tests() {
    let file = |name: &str| format!("{ROOT}/deploy/prometheus/{name}");
    promtool(&["check", "rules", &file("alerts.yml")], "");
    promtool(&["test", "rules", &file("alerts_test.yml")], "");
    promtool(&["check", "config", &file("prometheus.yml")], "");
}
