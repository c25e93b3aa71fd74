//! What the variables of OpenTelemetry say.
//!
//! They are shared by all programs of an environment, so that, as their specification asks for, a bad value is warned
//! about and treated as absent; only our own settings are refused.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use deeperhub_node::trace::Sampler;

use deeperhub_args::{HttpUrl, Ratio, Switchable};

/// What is exported, and where to.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Where spans go; `None`: nowhere.
    pub traces: Option<Target>,
    /// Where metrics go; `None`: nowhere.
    pub metrics: Option<Target>,
    pub sampler: Sampler,
    /// Attributes of everything that is sent.
    pub resource: Vec<(String, String)>,
    /// Spans that may wait to be sent.
    pub queue: usize,
    /// Spans that are sent at once.
    pub batch: usize,
    /// How long a span waits for others to go with.
    pub delay: Duration,
    /// How long it is tried to send a batch.
    pub export_timeout: Duration,
    pub metrics_interval: Duration,
    pub warnings: Vec<String>,
}

/// Where one kind of telemetry goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The whole URL for HTTP, the origin for gRPC.
    pub url: HttpUrl,
    pub protocol: Protocol,
    /// Names and values of headers, which may be secrets.
    pub headers: Headers,
    /// For one attempt.
    pub timeout: Duration,
    pub is_compressed: bool,
    /// The certificates to trust rather than the system's.
    pub certificate: Option<PathBuf>,
    /// The certificate to show a collector that asks for one, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Headers; what they say is not shown.
#[derive(Clone, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// How telemetry is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// Kinds of telemetry, which variables tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// What HTTP appends to the endpoint.
    const fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }
}

/// Puts our settings over the variables that `read` gives by name.
pub fn telemetry_config(
    endpoint: Option<&Switchable<HttpUrl>>,
    ratio: Option<Ratio>,
    read: impl Fn(&str) -> Option<String>,
) -> TelemetryConfig {
    let mut reader = Reader { read: &read, warnings: Vec::new() };
    let disabled = reader.flag("OTEL_SDK_DISABLED") || endpoint == Some(&Switchable::Off);
    let endpoint = match endpoint {
        Some(Switchable::On(url)) => Some(url),
        _ => None,
    };
    let traces = (!disabled).then(|| reader.target(Signal::Traces, endpoint)).flatten();
    let metrics = (!disabled).then(|| reader.target(Signal::Metrics, endpoint)).flatten();
    let sampler = match ratio {
        Some(ratio) => Sampler::parent_based(ratio.0),
        None => reader.sampler(),
    };
    let resource = reader.resource();
    let queue = reader.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1, 1 << 20) as usize;
    let batch = reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1, 1 << 16) as usize;
    let delay = reader.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000);
    let export_timeout = reader.milliseconds("OTEL_BSP_EXPORT_TIMEOUT", 30_000);
    let metrics_interval = reader.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000);
    let warnings = if traces.is_none() && metrics.is_none() { Vec::new() } else { reader.warnings };
    TelemetryConfig {
        traces,
        metrics,
        sampler,
        resource,
        queue,
        batch: batch.min(queue),
        delay,
        export_timeout,
        metrics_interval,
        warnings,
    }
}

struct Reader<'r> {
    read: &'r dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// A variable's value; an empty one counts as absent.
    fn text(&self, name: &str) -> Option<String> {
        (self.read)(name).filter(|text| !text.trim().is_empty())
    }

    /// The signal's own variable, or the one for all, and its name.
    fn of_signal(&self, signal: Signal, rest: &str) -> Option<(String, String)> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{rest}", signal.name());
        let all = format!("OTEL_EXPORTER_OTLP_{rest}");
        [own, all].into_iter().find_map(|name| self.text(&name).map(|text| (name, text)))
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

    /// Where a signal goes: an endpoint must be named by us or by a variable, so that telemetry never leaves by itself.
    fn target(&mut self, signal: Signal, ours: Option<&HttpUrl>) -> Option<Target> {
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
        let (base, own) = match ours {
            Some(url) => (Some(url.clone()), None),
            None => {
                let own_name = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name());
                (self.url("OTEL_EXPORTER_OTLP_ENDPOINT"), self.url(&own_name))
            }
        };
        let endpoint = own.clone().or(base)?;
        let protocol = self.protocol(signal, &endpoint);
        let url = match (protocol, own) {
            // As it is: it names the whole path.
            (Protocol::HttpProtobuf, Some(own)) => own,
            (Protocol::HttpProtobuf, None) => endpoint.below(signal.path()),
            (Protocol::Grpc, _) => endpoint,
        };
        let headers = self.headers(signal);
        let timeout = match self.of_signal(signal, "TIMEOUT") {
            Some((name, _)) => self.milliseconds(&name, 10_000),
            None => Duration::from_secs(10),
        };
        let is_compressed = match self.of_signal(signal, "COMPRESSION") {
            Some((_, text)) if text.eq_ignore_ascii_case("gzip") => true,
            Some((name, text)) => {
                if !text.eq_ignore_ascii_case("none") {
                    self.warn(&name, &text, "gzip or none");
                }
                false
            }
            None => false,
        };
        let certificate = self.of_signal(signal, "CERTIFICATE").map(|(_, path)| path.into());
        let identity = self.identity(signal);
        Some(Target { url, protocol, headers, timeout, is_compressed, certificate, identity })
    }

    /// Both files, or neither.
    fn identity(&mut self, signal: Signal) -> Option<(PathBuf, PathBuf)> {
        let certificate = self.of_signal(signal, "CLIENT_CERTIFICATE");
        let key = self.of_signal(signal, "CLIENT_KEY");
        match (certificate, key) {
            (Some((_, certificate)), Some((_, key))) => Some((certificate.into(), key.into())),
            (None, None) => None,
            (Some((name, path)), None) | (None, Some((name, path))) => {
                self.warn(&name, &path, "a certificate and its key, each by its variable");
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

    /// Where nobody says how, the port that gRPC has by convention does, and else it is HTTP.
    fn protocol(&mut self, signal: Signal, endpoint: &HttpUrl) -> Protocol {
        if let Some((name, text)) = self.of_signal(signal, "PROTOCOL") {
            match text.trim() {
                "grpc" => return Protocol::Grpc,
                "http/protobuf" => return Protocol::HttpProtobuf,
                _ => self.warn(&name, &text, "grpc or http/protobuf"),
            }
        }
        if endpoint.port() == Some(4317) { Protocol::Grpc } else { Protocol::HttpProtobuf }
    }

    fn headers(&mut self, signal: Signal) -> Headers {
        let Some((name, text)) = self.of_signal(signal, "HEADERS") else { return Headers::default() };
        let (pairs, broken) = pairs(&text);
        if broken > 0 {
            self.warn(&name, &format!("{broken} of its entries"), "name=value,name=value");
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
        let (mut attributes, broken) = self.text(NAME).map(|text| pairs(&text)).unwrap_or_default();
        if broken > 0 {
            self.warn(NAME, &format!("{broken} of its entries"), "name=value,name=value");
        }
        if let Some(service) = self.text("OTEL_SERVICE_NAME") {
            attributes.retain(|(name, _)| name != "service.name");
            attributes.push(("service.name".to_owned(), service));
        }
        attributes
    }
}

/// `name=value,name=value` with percent-encoding, as W3C Baggage writes it, and how many entries are none.
fn pairs(text: &str) -> (Vec<(String, String)>, usize) {
    let entries: Vec<_> = text.split(',').filter(|entry| !entry.trim().is_empty()).collect();
    let pairs: Vec<_> = entries
        .iter()
        .filter_map(|entry| {
            let (name, value) = entry.split_once('=')?;
            let name = name.trim();
            (!name.is_empty()).then_some((name.to_owned(), decoded(value.trim())?.into_owned()))
        })
        .collect();
    let broken = entries.len() - pairs.len();
    (pairs, broken)
}

/// A value without its percent-encoding; `None` where that is broken.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
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

    fn config(ours: Option<&str>, variables: &[(&str, &str)]) -> TelemetryConfig {
        let endpoint = ours.map(|text| text.parse().unwrap());
        telemetry_config(endpoint.as_ref(), None, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn check(ours: Option<&str>, variables: &[(&str, &str)], expected: Option<(&str, Protocol)>) {
        let config = config(ours, variables);
        let traces = config.traces.map(|target| (target.url.to_string(), target.protocol));
        assert_eq!(traces.as_ref().map(|(url, protocol)| (url.as_str(), *protocol)), expected);
    }

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_named() {
        check(None, &[], None);
        check(None, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], None);
        check(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], None);
    }

    #[test]
    fn the_port_chooses_the_protocol_where_nobody_does() {
        use Protocol::{Grpc, HttpProtobuf};
        check(Some("http://c:4317"), &[], Some(("http://c:4317", Grpc)));
        check(Some("http://c:4318"), &[], Some(("http://c:4318/v1/traces", HttpProtobuf)));
        check(Some("http://c"), &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Some(("http://c", Grpc)));
        let odd = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
        check(Some("http://c:4317"), &odd, Some(("http://c:4317/v1/traces", HttpProtobuf)));
    }

    #[test]
    fn a_signals_own_endpoint_is_taken_as_it_is() {
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
    fn it_can_be_switched_off() {
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
        assert_eq!((config.queue, config.sampler), (2048, Sampler::parent_based(1.0)));
        let target = config.traces.unwrap();
        assert_eq!((target.protocol, target.timeout), (Protocol::HttpProtobuf, Duration::from_secs(10)));
        assert_eq!(target.headers.0, [("a".to_owned(), "1".to_owned())]);
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
        let ours = telemetry_config(None, Some(Ratio(0.5)), |_| Some("always_off".to_owned()));
        assert_eq!(ours.sampler, Sampler::parent_based(0.5));
    }

    #[test]
    fn the_service_has_the_name_that_it_is_given() {
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
        let target =
            config(Some("http://c"), &[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")]);
        let traces = target.traces.unwrap();
        assert_eq!(traces.headers.0[0].1, "Bearer hunter2");
        assert!(!format!("{traces:?}").contains("hunter2"));
    }
}
