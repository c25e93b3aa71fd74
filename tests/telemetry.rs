//! Traces and metrics that leave the hub, taken by a collector of OpenTelemetry's own definition.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

use crate::support::{Client, Collector, Server};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Sends soon, so that no test waits long.
const SOON: [(&str, &str); 2] = [("OTEL_BSP_SCHEDULE_DELAY", "20"), ("OTEL_METRIC_EXPORT_INTERVAL", "100")];

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn server(collector: &Collector, flags: &[&str], variables: &[(&str, &str)]) -> Server {
    let url = collector.url();
    let mut all = vec!["--otlp-endpoint", &url];
    all.extend(flags);
    let variables: Vec<_> = SOON.iter().chain(variables).copied().collect();
    Server::start_with(&all, &variables)
}

async fn subscribed(server: &Server, topic: &str) -> Client {
    let mut client = Client::connect(server).await;
    let reply = client.ask(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
    assert_eq!(reply["type"], "subscribed", "{reply}");
    client
}

fn publish(topic: &str, meta: &Value) -> Value {
    json!({"type": "publish", "id": 1, "data": {"topic": topic, "message": 1}, "meta": meta})
}

/// The trace id, span id and flags of a delivery.
fn context(message: &Value) -> (String, String, String) {
    let text =
        message["meta"]["traceparent"].as_str().unwrap_or_else(|| panic!("no traceparent in {message}"));
    let parts: Vec<_> = text.split('-').map(str::to_owned).collect();
    assert_eq!((parts.len(), parts[0].as_str()), (4, "00"), "{text}");
    (parts[1].clone(), parts[2].clone(), parts[3].clone())
}

/// Publishes in a trace and looks at what the subscriber and the collector get.
async fn check_one_trace(collector: &Collector, server: &Server) {
    let mut subscriber = subscribed(server, "news.local").await;
    let mut publisher = Client::connect(server).await;
    let meta = json!({"traceparent": traceparent("01"), "tracestate": "vendor=1"});
    let reply = publisher.ask(&publish("news.local", &meta)).await;
    assert_eq!(reply["type"], "published", "{reply}");

    let delivery = subscriber.receive().await;
    assert_eq!(delivery["data"]["message"], 1);
    assert_eq!(delivery["meta"]["tracestate"], "vendor=1");
    let (trace, span, flags) = context(&delivery);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_ne!(span, PARENT, "the delivery has a context of its own");

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
    assert_eq!(links, [published.span.span_id.clone()]);

    for span in [&published, &fan_out, &deliver] {
        assert!(span.span.end_time_unix_nano >= span.span.start_time_unix_nano, "{span:?}");
        assert!(span.span.start_time_unix_nano > 1_600_000_000_000_000_000, "{span:?}");
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
async fn without_a_collector_sampled_traces_are_carried_on() {
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
