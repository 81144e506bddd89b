//! A span of another program.

/// A span of another program, in the two texts of W3C Trace Context. Nothing here reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceContext {
    /// The span: `00-TRACE-SPAN-FLAGS`.
    pub traceparent: String,
    /// What tracing systems add to it, where they add something.
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// The longest `traceparent` that is passed on, in bytes. The one of version 00 has 55.
    pub const MAX_TRACEPARENT: usize = 256;
    /// The longest `tracestate` that is passed on, in bytes: what W3C Trace Context asks everybody
    /// to pass on.
    pub const MAX_TRACESTATE: usize = 512;

    /// The span that the texts of a stranger name. `None` where there is no `traceparent`, or where
    /// it is longer than [`MAX_TRACEPARENT`](Self::MAX_TRACEPARENT) or has other characters than
    /// visible ASCII. A `tracestate` that is longer than
    /// [`MAX_TRACESTATE`](Self::MAX_TRACESTATE), or that no HTTP header could hold, is left out.
    pub fn new(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        let fits = |text: &&str, most: usize| {
            !text.is_empty()
                && text.len() <= most
                && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        };
        let traceparent = traceparent.filter(|text| fits(text, Self::MAX_TRACEPARENT))?;
        let tracestate = tracestate.filter(|text| fits(text, Self::MAX_TRACESTATE));
        Some(Self {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_no_text_of_a_header_is_left_out() {
        let parent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let whole = TraceContext::new(parent, Some("vendor=1")).expect("a span");
        assert_eq!(whole.tracestate.as_deref(), Some("vendor=1"));
        for bad in ["", "a\nb", "ä", &"x".repeat(513)] {
            let context = TraceContext::new(parent, Some(bad)).expect("a span");
            assert_eq!(context.tracestate, None, "{bad}");
        }
        for bad in ["", "a\nb", "ä", &"x".repeat(257)] {
            assert_eq!(TraceContext::new(Some(bad), None), None, "{bad}");
        }
        assert_eq!(TraceContext::new(None, Some("vendor=1")), None);
    }
}
