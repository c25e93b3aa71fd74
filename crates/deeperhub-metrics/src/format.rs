//! Text formats and their negotiation.

/// A text format of [`Registry::encode_as`](crate::Registry::encode_as).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Prometheus text 0.0.4, which every scraper supports. The format has no end mark.
    Prometheus,
    /// OpenMetrics 1.0, which has units and exemplars and ends with `# EOF`.
    OpenMetrics,
}

impl Format {
    /// Returns the media type for the `Content-Type` header.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Chooses the format for a request's `Accept` header (RFC 9110 section 12.5.1). If the request
    /// has several `Accept` headers, the caller joins them with commas.
    ///
    /// Returns OpenMetrics only if the header names it with a quality value that is not below that
    /// of plain text. The header of Prometheus does. Otherwise returns Prometheus text, even if
    /// `Accept` allows neither format.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        let (mut open_metrics, mut plain) = (0, 0);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(|part| part.trim_matches([' ', '\t']));
            let media_type = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1000, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                if name.eq_ignore_ascii_case("q") {
                    quality = parse_quality(value);
                } else if name.eq_ignore_ascii_case("version") {
                    version = Some(value.trim_matches('"'));
                }
            }
            if media_type.eq_ignore_ascii_case("application/openmetrics-text") {
                if version.is_none_or(|version| version == "1.0.0") {
                    open_metrics = quality.max(open_metrics);
                }
            } else if ["text/plain", "text/*", "*/*"].iter().any(|text| media_type.eq_ignore_ascii_case(text))
            {
                plain = quality.max(plain);
            }
        }
        if open_metrics > 0 && open_metrics >= plain { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// Parses a quality value, a number from 0 to 1 with at most three decimals. Returns it in
/// thousandths, or 0 if it is invalid.
fn parse_quality(quality: &str) -> u32 {
    let (whole, decimals) = quality.split_once('.').unwrap_or((quality, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    match whole {
        "0" => format!("{decimals:0<3}").parse().unwrap_or(0),
        "1" if decimals.bytes().all(|byte| byte == b'0') => 1000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn open_metrics_is_chosen_if_the_request_prefers_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.2";
        for accept in [
            prometheus,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            "text/plain;q=0.5, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0.001",
        ] {
            assert_eq!(Format::negotiate(Some(accept)), Format::OpenMetrics, "{accept}");
        }
    }

    #[test]
    fn other_requests_get_prometheus_text() {
        for accept in [
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/json",
            "",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=0.1234",
            "application/openmetrics-text;q=0.499,text/*;q=0.5",
            "application/openmetrics-text; q=0.9, */*",
        ] {
            assert_eq!(Format::negotiate(Some(accept)), Format::Prometheus, "{accept}");
        }
        assert_eq!(Format::negotiate(None), Format::Prometheus);
    }

    proptest! {
        #[test]
        fn any_accept_header_is_negotiated(accept in "(application/openmetrics-text|text/plain|\\*/\\*|[;,=q0-9. ]|\\PC){0,12}") {
            let _ = Format::negotiate(Some(&accept));
        }

        #[test]
        fn the_higher_quality_value_decides(open in 0..=1000_u32, plain in 0..=1000_u32) {
            let quality = |q: u32| format!("{}.{:03}", q / 1000, q % 1000);
            let accept = format!("text/plain;q={}, application/openmetrics-text;q={}", quality(plain), quality(open));
            let expected = if open > 0 && open >= plain { Format::OpenMetrics } else { Format::Prometheus };
            prop_assert_eq!(Format::negotiate(Some(&accept)), expected);
        }
    }
}
