//! Reads OpenTelemetry's environment variables.
//!
//! Several programs can share these variables. As their specification demands, an invalid value
//! causes a warning and counts as not set.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use deeperhub_args::{HttpUrl, Ratio, Switchable};
use deeperhub_node::trace::Sampler;

use crate::config::{Destination, Headers, Overrides, Protocol, Service, TelemetryConfig};

/// A kind of telemetry. Some variables exist for each kind and for all kinds together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// Returns the signal's name in variables.
    const fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// Returns the path that OTLP/HTTP appends to the base endpoint.
    const fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }
}

impl TelemetryConfig {
    /// Creates a configuration from the `OTEL_*` variables and `overrides`, which take precedence.
    /// `read` returns the value of a variable.
    #[must_use]
    pub fn from_variables(
        service: Service,
        overrides: &Overrides,
        read: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let mut reader = Reader { read: &read, warnings: Vec::new() };
        let is_disabled = reader.flag("OTEL_SDK_DISABLED") || overrides.endpoint == Some(Switchable::Off);
        let endpoint = match &overrides.endpoint {
            Some(Switchable::On(url)) => Some(url),
            _ => None,
        };
        let traces = (!is_disabled).then(|| reader.destination(Signal::Traces, endpoint)).flatten();
        let metrics = (!is_disabled).then(|| reader.destination(Signal::Metrics, endpoint)).flatten();
        let sampler = match overrides.sample_ratio {
            Some(ratio) => Sampler::parent_based(ratio.0),
            None => reader.sampler(),
        };
        let resource = reader.resource();
        let max_queued_spans = reader.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1, 1 << 20) as usize;
        let max_batch_spans = reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1, 1 << 16) as usize;
        let batch_delay = reader.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000);
        let export_timeout = reader.milliseconds("OTEL_BSP_EXPORT_TIMEOUT", 30_000);
        let metrics_interval = reader.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000);
        let warnings = if traces.is_none() && metrics.is_none() { Vec::new() } else { reader.warnings };
        Self {
            service,
            traces,
            metrics,
            sampler,
            resource,
            max_queued_spans,
            max_batch_spans: max_batch_spans.min(max_queued_spans),
            batch_delay,
            export_timeout,
            metrics_interval,
            warnings,
        }
    }
}

/// Looks variables up and collects warnings about invalid values.
struct Reader<'r> {
    read: &'r dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// Returns a variable's value. A blank value counts as not set.
    fn text(&self, name: &str) -> Option<String> {
        (self.read)(name).filter(|text| !text.trim().is_empty())
    }

    /// Returns name and value of the variable for the signal, or else of the one for all signals.
    fn signal_variable(&self, signal: Signal, suffix: &str) -> Option<(String, String)> {
        let for_signal = format!("OTEL_EXPORTER_OTLP_{}_{suffix}", signal.name());
        let for_all = format!("OTEL_EXPORTER_OTLP_{suffix}");
        [for_signal, for_all].into_iter().find_map(|name| self.text(&name).map(|text| (name, text)))
    }

    fn warn(&mut self, name: &str, value: &str, expected: &str) {
        self.warnings.push(format!("ignoring '{value}' of {name}: expected {expected}"));
    }

    fn flag(&mut self, name: &str) -> bool {
        match self.text(name) {
            None => false,
            Some(text) if text.eq_ignore_ascii_case("true") => true,
            Some(text) => {
                if !text.eq_ignore_ascii_case("false") {
                    self.warn(name, &text, "true or false");
                }
                false
            }
        }
    }

    fn number(&mut self, name: &str, default: u64, min: u64, max: u64) -> u64 {
        let Some(text) = self.text(name) else { return default };
        text.parse().ok().filter(|number| (min..=max).contains(number)).unwrap_or_else(|| {
            self.warn(name, &text, &format!("a whole number from {min} to {max}"));
            default
        })
    }

    fn milliseconds(&mut self, name: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, default, 1, 24 * 3_600_000))
    }

    /// Returns a signal's destination. Returns `None` if neither `endpoint_override` nor a variable
    /// names an endpoint, because telemetry is exported only on request.
    fn destination(&mut self, signal: Signal, endpoint_override: Option<&HttpUrl>) -> Option<Destination> {
        let name = format!("OTEL_{}_EXPORTER", signal.name());
        if let Some(exporter) = self.text(&name) {
            let names: Vec<_> = exporter.split(',').map(str::trim).collect();
            if names.contains(&"none") {
                return None;
            }
            if let Some(unknown) = names.iter().find(|&&exporter| exporter != "otlp") {
                self.warn(&name, unknown, "otlp or none");
            }
        }
        let (base, signal_endpoint) = match endpoint_override {
            Some(url) => (Some(url.clone()), None),
            None => {
                let signal_variable = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name());
                (self.url("OTEL_EXPORTER_OTLP_ENDPOINT"), self.url(&signal_variable))
            }
        };
        // The path is appended to the base only; the variable of a signal names a complete URL.
        let has_path = signal_endpoint.is_some();
        let endpoint = signal_endpoint.or(base)?;
        let protocol = self.protocol(signal, &endpoint);
        let url = match protocol {
            Protocol::HttpProtobuf if !has_path => endpoint.below(signal.path()),
            Protocol::HttpProtobuf | Protocol::Grpc => endpoint,
        };
        let headers = self.headers(signal);
        let timeout = match self.signal_variable(signal, "TIMEOUT") {
            Some((name, _)) => self.milliseconds(&name, 10_000),
            None => Destination::DEFAULT_TIMEOUT,
        };
        let is_compressed = match self.signal_variable(signal, "COMPRESSION") {
            Some((_, text)) if text.eq_ignore_ascii_case("gzip") => true,
            Some((name, text)) => {
                if !text.eq_ignore_ascii_case("none") {
                    self.warn(&name, &text, "gzip or none");
                }
                false
            }
            None => false,
        };
        let certificate = self.signal_variable(signal, "CERTIFICATE").map(|(_, path)| path.into());
        let identity = self.identity(signal);
        Some(Destination { url, protocol, headers, timeout, is_compressed, certificate, identity })
    }

    /// Returns the files of the client certificate and its key. Ignores one without the other, with
    /// a warning.
    fn identity(&mut self, signal: Signal) -> Option<(PathBuf, PathBuf)> {
        let certificate = self.signal_variable(signal, "CLIENT_CERTIFICATE");
        let key = self.signal_variable(signal, "CLIENT_KEY");
        match (certificate, key) {
            (Some((_, certificate)), Some((_, key))) => Some((certificate.into(), key.into())),
            (None, None) => None,
            (Some((name, path)), None) | (None, Some((name, path))) => {
                self.warn(&name, &path, "a certificate and its key, each in its variable");
                None
            }
        }
    }

    fn url(&mut self, name: &str) -> Option<HttpUrl> {
        let text = self.text(name)?;
        match text.trim().parse() {
            Ok(url) => Some(url),
            Err(expected) => {
                let expected: String = expected;
                self.warn(name, &text, expected.trim_start_matches("expected "));
                None
            }
        }
    }

    /// Returns the protocol that a variable names. Without one, returns gRPC if the endpoint has
    /// gRPC's conventional port 4317, and otherwise HTTP.
    fn protocol(&mut self, signal: Signal, endpoint: &HttpUrl) -> Protocol {
        if let Some((name, text)) = self.signal_variable(signal, "PROTOCOL") {
            match text.trim() {
                "grpc" => return Protocol::Grpc,
                "http/protobuf" => return Protocol::HttpProtobuf,
                _ => self.warn(&name, &text, "grpc or http/protobuf"),
            }
        }
        if endpoint.port() == Some(4317) { Protocol::Grpc } else { Protocol::HttpProtobuf }
    }

    fn headers(&mut self, signal: Signal) -> Headers {
        let Some((name, text)) = self.signal_variable(signal, "HEADERS") else { return Headers::default() };
        let (pairs, invalid) = pairs(&text);
        if invalid > 0 {
            self.warn(&name, &format!("{invalid} of its entries"), "name=value,name=value");
        }
        Headers(pairs)
    }

    fn sampler(&mut self) -> Sampler {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        let Some(text) = self.text(NAME) else { return Sampler::parent_based(1.0) };
        match text.trim() {
            "always_on" => Sampler::by_trace_id(1.0),
            "always_off" => Sampler::by_trace_id(0.0),
            "traceidratio" => Sampler::by_trace_id(self.sampler_ratio()),
            "parentbased_always_on" => Sampler::parent_based(1.0),
            "parentbased_always_off" => Sampler::parent_based(0.0),
            "parentbased_traceidratio" => Sampler::parent_based(self.sampler_ratio()),
            _ => {
                let expected =
                    "always_on, always_off, traceidratio or one of these with parentbased_ before it";
                self.warn(NAME, &text, expected);
                Sampler::parent_based(1.0)
            }
        }
    }

    fn sampler_ratio(&mut self) -> f64 {
        const NAME: &str = "OTEL_TRACES_SAMPLER_ARG";
        let Some(text) = self.text(NAME) else { return 1.0 };
        match text.trim().parse::<Ratio>() {
            Ok(ratio) => ratio.0,
            Err(_) => {
                self.warn(NAME, &text, "a number from 0 to 1");
                1.0
            }
        }
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let (mut attributes, invalid) = self.text(NAME).map(|text| pairs(&text)).unwrap_or_default();
        if invalid > 0 {
            self.warn(NAME, &format!("{invalid} of its entries"), "name=value,name=value");
        }
        if let Some(service) = self.text("OTEL_SERVICE_NAME") {
            attributes.retain(|(name, _)| name != "service.name");
            attributes.push(("service.name".to_owned(), service));
        }
        attributes
    }
}

/// Parses `name=value,name=value` with percent-encoding (the syntax of W3C Baggage). Returns the
/// pairs and the number of invalid entries.
fn pairs(text: &str) -> (Vec<(String, String)>, usize) {
    let entries: Vec<_> = text.split(',').filter(|entry| !entry.trim().is_empty()).collect();
    let pairs: Vec<_> = entries
        .iter()
        .filter_map(|entry| {
            let (name, value) = entry.split_once('=')?;
            let name = name.trim();
            (!name.is_empty()).then_some((name.to_owned(), percent_decode(value.trim())?.into_owned()))
        })
        .collect();
    let invalid = entries.len() - pairs.len();
    (pairs, invalid)
}

/// Decodes percent-encoding. Returns `None` if the encoding is invalid or the result is not UTF-8.
fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut encoded = text.bytes();
    while let Some(byte) = encoded.next() {
        if byte == b'%' {
            let mut digit = || char::from(encoded.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service::new("hub", "1.2.3")
    }

    fn config(endpoint: Option<&str>, variables: &[(&str, &str)]) -> TelemetryConfig {
        let endpoint = endpoint.map(|text| text.parse().unwrap());
        TelemetryConfig::from_variables(service(), &Overrides { endpoint, sample_ratio: None }, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn check(endpoint: Option<&str>, variables: &[(&str, &str)], expected: Option<(&str, Protocol)>) {
        let config = config(endpoint, variables);
        let traces = config.traces.map(|destination| (destination.url.to_string(), destination.protocol));
        assert_eq!(traces.as_ref().map(|(url, protocol)| (url.as_str(), *protocol)), expected);
    }

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_named() {
        check(None, &[], None);
        check(None, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], None);
        check(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], None);
    }

    #[test]
    fn the_port_chooses_the_protocol_if_no_variable_does() {
        use Protocol::{Grpc, HttpProtobuf};
        check(Some("http://c:4317"), &[], Some(("http://c:4317", Grpc)));
        check(Some("http://c:4318"), &[], Some(("http://c:4318/v1/traces", HttpProtobuf)));
        check(Some("http://c"), &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Some(("http://c", Grpc)));
        let explicit = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
        check(Some("http://c:4317"), &explicit, Some(("http://c:4317/v1/traces", HttpProtobuf)));
    }

    #[test]
    fn a_signals_own_endpoint_is_used_unchanged() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/base/"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:9/spans"),
        ];
        check(None, &variables, Some(("http://t:9/spans", Protocol::HttpProtobuf)));
        let metrics = config(None, &variables).metrics.unwrap();
        assert_eq!(metrics.url.to_string(), "http://c:4318/base/v1/metrics");
        check(Some("http://ours:1"), &variables, Some(("http://ours:1/v1/traces", Protocol::HttpProtobuf)));
    }

    #[test]
    fn export_can_be_switched_off() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
        check(None, &[endpoint, ("OTEL_SDK_DISABLED", "TRUE")], None);
        check(None, &[endpoint, ("OTEL_TRACES_EXPORTER", "none")], None);
        check(Some("off"), &[endpoint], None);
        assert!(config(None, &[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).metrics.is_some());
        assert!(config(None, &[endpoint, ("OTEL_METRICS_EXPORTER", "none")]).metrics.is_none());
    }

    #[test]
    fn bad_values_are_warned_about_and_ignored() {
        let config = config(
            Some("http://c"),
            &[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
                ("OTEL_TRACES_SAMPLER", "sometimes"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,nonsense,b=%zz"),
            ],
        );
        assert_eq!((config.max_queued_spans, config.sampler), (2048, Sampler::parent_based(1.0)));
        let destination = config.traces.unwrap();
        assert_eq!(
            (destination.protocol, destination.timeout),
            (Protocol::HttpProtobuf, Duration::from_secs(10))
        );
        assert_eq!(destination.headers.0, [("a".to_owned(), "1".to_owned())]);
        for name in ["PROTOCOL", "SAMPLER", "QUEUE_SIZE", "TIMEOUT", "HEADERS"] {
            assert!(config.warnings.iter().any(|warning| warning.contains(name)), "{name}");
        }
    }

    #[test]
    fn samplers_have_their_specified_names() {
        for (name, argument, expected) in [
            ("always_on", "", Sampler::by_trace_id(1.0)),
            ("always_off", "", Sampler::by_trace_id(0.0)),
            ("traceidratio", "0.25", Sampler::by_trace_id(0.25)),
            ("parentbased_traceidratio", "0.25", Sampler::parent_based(0.25)),
            ("parentbased_traceidratio", "2", Sampler::parent_based(1.0)),
            ("parentbased_always_off", "", Sampler::parent_based(0.0)),
        ] {
            let variables = [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)];
            assert_eq!(config(Some("http://c"), &variables).sampler, expected, "{name}");
        }
        let overrides = Overrides { sample_ratio: Some(Ratio(0.5)), endpoint: None };
        let overridden =
            TelemetryConfig::from_variables(service(), &overrides, |_| Some("always_off".to_owned()));
        assert_eq!(overridden.sampler, Sampler::parent_based(0.5));
    }

    #[test]
    fn the_service_name_variable_wins_over_the_attribute() {
        let variables = [
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a, deployment.environment.name=prod%2Ceu"),
            ("OTEL_SERVICE_NAME", "b"),
        ];
        let expected = [("deployment.environment.name", "prod,eu"), ("service.name", "b")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(config(None, &variables).resource, expected);
    }

    #[test]
    fn an_identity_has_a_certificate_and_a_key() {
        let certificate = ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem");
        let key = ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/c.key");
        let both = config(Some("https://c"), &[certificate, key]);
        assert_eq!(both.traces.unwrap().identity, Some(("/c.pem".into(), "/c.key".into())));
        assert_eq!(both.metrics.unwrap().identity, None);
        assert!(both.warnings.iter().any(|warning| warning.contains("CLIENT_CERTIFICATE")));
    }

    #[test]
    fn headers_are_not_shown() {
        let config =
            config(Some("http://c"), &[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")]);
        let traces = config.traces.unwrap();
        assert_eq!(traces.headers.0[0].1, "Bearer hunter2");
        assert!(!format!("{traces:?}").contains("hunter2"));
    }
}
