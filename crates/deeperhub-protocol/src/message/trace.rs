//! W3C trace context, carried in `meta` and in headers of the server API.

use std::borrow::Cow;

/// The position of a message in a distributed trace: W3C `traceparent` and `tracestate`.
///
/// [`Self::new`] drops values that are not valid as headers, and a `tracestate` without a
/// `traceparent`. Code that sets the fields directly must ensure both rules itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceContext<'a> {
    /// Version, trace ID, parent ID and flags, such as
    /// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
    pub traceparent: Option<Cow<'a, str>>,
    /// Vendor-specific trace state, not interpreted.
    pub tracestate: Option<Cow<'a, str>>,
}

impl<'a> TraceContext<'a> {
    /// Maximum length of a `tracestate` in bytes. Every participant in a trace must propagate at
    /// least this length (W3C Trace Context section 3.3.1.5).
    pub const MAX_TRACESTATE_BYTES: usize = 512;

    /// Creates a context from the well-formed values and drops the others. A malformed trace
    /// context must not invalidate a message. Without a valid `traceparent`, `tracestate` is
    /// dropped too.
    #[must_use]
    pub fn new(traceparent: Option<Cow<'a, str>>, tracestate: Option<Cow<'a, str>>) -> Self {
        let traceparent = traceparent.filter(|text| is_traceparent(text.as_bytes()));
        let tracestate = tracestate.filter(|text| traceparent.is_some() && is_tracestate(text.as_bytes()));
        Self { traceparent, tracestate }
    }

    /// Returns the same context with borrowed values.
    #[must_use]
    pub fn borrow(&self) -> TraceContext<'_> {
        TraceContext {
            traceparent: self.traceparent.as_deref().map(Cow::Borrowed),
            tracestate: self.tracestate.as_deref().map(Cow::Borrowed),
        }
    }

    /// Returns `true` if there is no trace context.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.traceparent.is_none() && self.tracestate.is_none()
    }
}

/// Returns `true` for `version-traceid-parentid-flags` in lower-case hexadecimal digits (W3C Trace
/// Context section 3.2). Version `ff` and zero IDs are invalid. In versions after `00`, more fields
/// can follow the flags.
fn is_traceparent(text: &[u8]) -> bool {
    let Some((version_00, rest)) = text.split_at_checked(55) else { return false };
    let mut fields = version_00.split(|&byte| byte == b'-');
    let mut hex = |digits: usize| {
        let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        fields.next().filter(|field| field.len() == digits && field.iter().all(lower))
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let is_zero = |id: &[u8]| id.iter().all(|&byte| byte == b'0');
    let is_rest_valid = match rest.split_first() {
        None => true,
        Some((first, _)) => version != b"00" && *first == b'-' && rest.iter().all(u8::is_ascii_graphic),
    };
    version != b"ff" && !is_zero(trace) && !is_zero(parent) && is_rest_valid
}

/// Returns `true` if `text` is valid as a header value and is within the length limit. Does not
/// check the list of vendors inside.
fn is_tracestate(text: &[u8]) -> bool {
    (1..=TraceContext::MAX_TRACESTATE_BYTES).contains(&text.len())
        && text.iter().all(|&byte| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn traceparent(text: &str) -> Option<String> {
        TraceContext::new(Some(text.into()), None).traceparent.map(Cow::into_owned)
    }

    #[test]
    fn well_formed_traceparents_are_kept() {
        for text in [
            GOOD,
            "00-00000000000000000000000000000001-0000000000000001-00",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what.comes",
        ] {
            assert_eq!(traceparent(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn malformed_traceparents_are_dropped() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.x",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-\n",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "éé-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01",
        ] {
            assert_eq!(traceparent(text), None, "{text:?}");
        }
    }

    #[test]
    fn tracestate_needs_a_traceparent() {
        let both = TraceContext::new(Some(GOOD.into()), Some("a=1, b=2".into()));
        assert_eq!(both.tracestate.as_deref(), Some("a=1, b=2"));
        assert!(TraceContext::new(None, Some("a=1".into())).is_empty());
        assert!(TraceContext::new(Some("bad".into()), Some("a=1".into())).is_empty());
    }

    #[test]
    fn tracestate_must_be_valid_as_a_header() {
        let (longest, too_long) = ("x".repeat(512), "x".repeat(513));
        for (text, is_valid) in
            [("", false), ("a\nb", false), ("é", false), (&longest, true), (&too_long, false)]
        {
            let context = TraceContext::new(Some(GOOD.into()), Some(text.into()));
            assert_eq!(context.tracestate.is_some(), is_valid, "{text:?}");
        }
    }
}
