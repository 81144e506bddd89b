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
    /// The longest `tracestate` that is passed on, in bytes: what W3C Trace Context asks everybody
    /// to pass on.
    pub const MAX_TRACESTATE: usize = 512;
    /// The most members of a `tracestate`, by W3C Trace Context.
    pub const MAX_MEMBERS: usize = 32;

    /// The span that the texts of a stranger name. `None` where there is no `traceparent`, or where
    /// it is not one by W3C Trace Context, level 2. A `tracestate` that is longer than
    /// [`MAX_TRACESTATE`](Self::MAX_TRACESTATE), or is not a list of members, is left out.
    pub fn new(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        let traceparent = traceparent.filter(|text| is_parent(text))?;
        let tracestate = tracestate.filter(|text| is_state(text));
        Some(Self {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate.map(str::to_owned),
        })
    }
}

/// Whether a text is a `traceparent`: of version 00 exactly, of a later one at its beginning.
fn is_parent(text: &str) -> bool {
    /// The longest of a version that nobody knows yet.
    const LONGEST: usize = 256;
    let is_hex = |part: &str, len: usize| {
        part.len() == len
            && part
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_id = |part: &str, len| is_hex(part, len) && part.bytes().any(|byte| byte != b'0');
    let mut parts = text.splitn(5, '-');
    let mut next = || parts.next().unwrap_or_default();
    let (version, trace, span, flags, rest) = (next(), next(), next(), next(), parts.next());
    let known = is_hex(version, 2) && version != "ff" && is_id(trace, 32) && is_id(span, 16);
    let is_later = version != "00" && text.len() <= LONGEST && text.bytes().all(is_visible);
    known && is_hex(flags, 2) && (rest.is_none() || is_later)
}

/// Whether a text is a `tracestate`: members `KEY=VALUE` with keys of their own.
fn is_state(text: &str) -> bool {
    let is_key =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    let mut keys = Vec::new();
    let mut members = text
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']));
    let are_members = members.all(|member| {
        let Some((key, value)) = member.split_once('=') else {
            // Empty members are allowed between others.
            return member.is_empty();
        };
        let is_new = !keys.contains(&key);
        keys.push(key);
        is_new
            && (1..=256).contains(&key.len())
            && key.bytes().all(is_key)
            && (1..=256).contains(&value.len())
            && value
                .bytes()
                .all(|byte| byte == b' ' || is_visible(byte) && byte != b'=')
    });
    are_members
        && text.len() <= TraceContext::MAX_TRACESTATE
        && (1..=TraceContext::MAX_MEMBERS).contains(&keys.len())
}

fn is_visible(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_a_traceparent_of_the_grammar_is_passed_on() {
        let later = PARENT.replacen("00", "cc", 1);
        for good in [PARENT, &later, &format!("{later}-more")] {
            assert!(TraceContext::new(Some(good), None).is_some(), "{good}");
        }
        for bad in [
            "",
            "a\nb",
            &"x".repeat(55),
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &format!("{PARENT}-x"),
            &format!(" {PARENT}"),
            &PARENT.replace("-01", "-zz"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            &format!("{later}-{}", "x".repeat(256)),
            &format!("{later}-\n"),
        ] {
            assert_eq!(TraceContext::new(Some(bad), None), None, "{bad}");
        }
        assert_eq!(TraceContext::new(None, Some("vendor=1")), None);
    }

    #[test]
    fn only_a_tracestate_of_the_grammar_is_passed_on() {
        let state = |text: &str| TraceContext::new(Some(PARENT), Some(text))?.tracestate;
        for good in ["vendor=1", "a=b, t@v=x y", "a=b,,c=d"] {
            assert_eq!(state(good).as_deref(), Some(good));
        }
        let many: Vec<String> = (0..33).map(|number| format!("k{number}=v")).collect();
        for bad in [
            "",
            " ",
            "=",
            ",,",
            "a",
            "a=",
            "A=b",
            "a=b,a=c",
            "a=b=c",
            "a=\n",
            "a=\u{e4}",
            &many.join(","),
            &format!("a={}", "x".repeat(600)),
        ] {
            assert_eq!(state(bad), None, "{bad}");
        }
    }
}
