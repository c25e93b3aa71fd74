//! Trace and span IDs as numbers.

use std::fmt;

use super::TraceContext;

/// A parsed W3C `traceparent`: trace ID, span ID and sampled flag.
///
/// Neither ID is zero, because W3C Trace Context forbids zero IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanContext {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
}

impl SpanContext {
    /// A placeholder for the decision not to sample, for use inside a program; not a real span. Its
    /// trace ID is the highest one, so that no sampling ratio selects it.
    pub const UNSAMPLED: Self = Self { trace_id: u128::MAX, span_id: u64::MAX, sampled: false };

    /// Creates a span context. Returns `None` if an ID is zero.
    #[must_use]
    pub const fn new(trace_id: u128, span_id: u64, sampled: bool) -> Option<Self> {
        if trace_id == 0 || span_id == 0 { None } else { Some(Self { trace_id, span_id, sampled }) }
    }

    /// Parses a `traceparent`. Returns `None` if it is malformed (W3C Trace Context section 3.2);
    /// the caller treats a malformed one as absent.
    ///
    /// ```
    /// use deeperhub_protocol::message::SpanContext;
    ///
    /// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    /// let span = SpanContext::parse(text).expect("it is well formed");
    /// assert_eq!((span.span_id(), span.is_sampled()), (0x00f0_67aa_0ba9_02b7, true));
    /// assert_eq!(span.to_string(), text);
    /// assert_eq!(SpanContext::parse("00-0-0-01"), None);
    /// ```
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let context = TraceContext::new(Some(traceparent.into()), None);
        Self::from_context(&context)
    }

    /// Returns the IDs of a trace context; `None` if its `traceparent` is absent or malformed.
    #[must_use]
    pub fn from_context(context: &TraceContext<'_>) -> Option<Self> {
        let text = context.traceparent.as_deref()?;
        let trace_id = u128::from_str_radix(text.get(3..35)?, 16).ok()?;
        let span_id = u64::from_str_radix(text.get(36..52)?, 16).ok()?;
        let flags = u8::from_str_radix(text.get(53..55)?, 16).ok()?;
        Self::new(trace_id, span_id, flags & 1 == 1)
    }

    /// Returns the trace ID.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// Returns the span ID.
    #[must_use]
    pub const fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Returns `true` if the trace is sampled (the flag `01`).
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }
}

impl fmt::Display for SpanContext {
    /// Writes a `traceparent` of version 00, which has 55 bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_sampled_flag_is_the_lowest_bit_in_later_versions() {
        let parse = |flags: &str| {
            SpanContext::parse(&format!("00-{:032x}-{:016x}-{flags}", 1, 2)).map(|span| span.is_sampled())
        };
        assert_eq!(parse("00"), Some(false));
        assert_eq!(parse("01"), Some(true));
        assert_eq!(parse("03"), Some(true));
        assert_eq!(parse("fe"), Some(false));
        assert_eq!(parse("0x"), None);
    }

    #[test]
    fn zero_ids_are_rejected() {
        assert_eq!(SpanContext::new(0, 1, true), None);
        assert_eq!(SpanContext::new(1, 0, true), None);
        assert_eq!(SpanContext::from_context(&TraceContext::default()), None);
    }

    proptest! {
        #[test]
        fn a_written_span_context_parses_to_the_same_value(trace_id in 1..u128::MAX, span_id in 1..u64::MAX, sampled: bool) {
            let span = SpanContext::new(trace_id, span_id, sampled);
            prop_assert_eq!(SpanContext::parse(&span.unwrap().to_string()), span);
        }

        #[test]
        fn any_text_parses_without_panic(text in "\\PC{0,60}") {
            let _ = SpanContext::parse(&text);
            let _ = SpanContext::from_context(&TraceContext { traceparent: Some(text.into()), tracestate: None });
        }
    }
}
