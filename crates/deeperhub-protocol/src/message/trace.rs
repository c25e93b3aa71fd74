//! W3C trace context, as `meta` and the headers of the server API carry it.

use std::borrow::Cow;

/// Where in a distributed trace a message belongs: W3C `traceparent` and `tracestate`.
///
/// What [`Self::new`] makes is fit for a header: a `traceparent` of the form that the
/// recommendation gives, and a `tracestate` only beside one. Fields may be set to anything; who
/// does so answers for the form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceContext<'a> {
    /// Version, trace id, parent id and flags, as `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
    pub traceparent: Option<Cow<'a, str>>,
    /// What tracing systems add to it, not looked into.
    pub tracestate: Option<Cow<'a, str>>,
}

impl<'a> TraceContext<'a> {
    /// The longest `tracestate` that is taken over, in bytes: as much as the recommendation asks
    /// everyone to carry (section 3.3.1.5).
    pub const MAX_TRACESTATE_BYTES: usize = 512;

    /// Takes what is well formed and leaves out what is not, as the recommendation asks for: a
    /// broken trace is no reason to refuse a message. Without a good `traceparent` there is no
    /// `tracestate`.
    #[must_use]
    pub fn new(traceparent: Option<Cow<'a, str>>, tracestate: Option<Cow<'a, str>>) -> Self {
        let traceparent = traceparent.filter(|text| is_traceparent(text.as_bytes()));
        let tracestate = tracestate.filter(|text| traceparent.is_some() && is_tracestate(text.as_bytes()));
        Self { traceparent, tracestate }
    }

    /// The same, borrowing from this one.
    #[must_use]
    pub fn borrow(&self) -> TraceContext<'_> {
        TraceContext {
            traceparent: self.traceparent.as_deref().map(Cow::Borrowed),
            tracestate: self.tracestate.as_deref().map(Cow::Borrowed),
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.traceparent.is_none() && self.tracestate.is_none()
    }
}

/// Section 3.2: `version-traceid-parentid-flags` in lower case hexadecimal digits. Version `ff`
/// is forbidden, ids of zeros only are invalid; later versions may go on behind the flags.
fn is_traceparent(text: &[u8]) -> bool {
    let (Some(known), Some(rest)) = (text.get(..55), text.get(55..)) else { return false };
    let mut fields = known.split(|&byte| byte == b'-');
    let mut hex = |digits: usize| {
        let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        fields.next().filter(|field| field.len() == digits && field.iter().all(lower))
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let is_zero = |id: &[u8]| id.iter().all(|&byte| byte == b'0');
    let rest_fits = match rest.split_first() {
        None => true,
        Some((first, _)) => version != b"00" && *first == b'-' && rest.iter().all(u8::is_ascii_graphic),
    };
    version != b"ff" && !is_zero(trace) && !is_zero(parent) && rest_fits
}

/// What may stand in a header of that size; its list is the tracing systems' own matter.
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
    fn tracestate_is_fit_for_a_header() {
        let (longest, too_long) = ("x".repeat(512), "x".repeat(513));
        for (text, taken) in
            [("", false), ("a\nb", false), ("é", false), (&longest, true), (&too_long, false)]
        {
            let context = TraceContext::new(Some(GOOD.into()), Some(text.into()));
            assert_eq!(context.tracestate.is_some(), taken, "{text:?}");
        }
    }
}
