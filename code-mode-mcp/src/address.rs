//! Addresses of resources, which can be written in many ways.
//!
//! A rule names an address in one of them. Which others mean the same is the server's decision, so a
//! rule that forbids is compared with every form that a known parser of addresses makes of it.

use url::Url;

/// The forms of an address that some server may take it for, the address itself first.
pub(crate) fn forms(address: &str) -> Vec<String> {
    let mut forms = vec![address.to_owned()];
    let mut add = |form: String| {
        if !forms.contains(&form) {
            forms.push(form);
        }
    };
    add(plain(address));
    // What browsers, Node and most libraries read: the host in small letters and without what its
    // scheme implies, numbers of hosts in their usual form, no tabs, no steps up.
    if let Ok(mut url) = Url::parse(address) {
        let host = url.host_str().and_then(|host| host.strip_suffix('.'));
        if let Some(host) = host.map(str::to_owned) {
            // A full stop at the end of a name changes nothing.
            let _ = url.set_host(Some(&host));
        }
        add(url.to_string());
        add(plain(url.as_str()));
    }
    forms
}

/// Why an address that no server lists is not sent, where it has something that parsers read
/// differently.
pub(crate) fn oddity(address: &str) -> Option<&'static str> {
    let authority = address.split_once(':').map_or(address, |(_, rest)| rest);
    let authority = authority.trim_start_matches('/');
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    if address.chars().any(char::is_control) {
        Some("an address has no control characters")
    } else if address.contains('\\') {
        Some("an address has no backslash")
    } else if address.contains("://") && authority.contains('@') {
        Some("an address with a user's name is not sent")
    } else if address.starts_with(char::is_whitespace) || address.ends_with(char::is_whitespace) {
        Some("an address does not begin or end with a space")
    } else {
        None
    }
}

/// Percent signs decoded, slashes in a row as one, and no step up or nowhere. Servers differ in
/// what of this they do.
fn plain(address: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(address).decode_utf8_lossy();
    let decoded = decoded.replace('\\', "/");
    let (scheme, path) = decoded.split_once("://").unwrap_or(("", &decoded));
    let mut steps: Vec<&str> = Vec::new();
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => drop(steps.pop()),
            step => steps.push(step),
        }
    }
    // An address without a host begins with a third slash.
    let begin = if path.starts_with('/') { "/" } else { "" };
    let between = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{between}{begin}{}", steps.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_of_an_address_is_what_a_parser_makes_of_it() {
        for (address, form) in [
            ("file:///se\tcret/key", "file:///secret/key"),
            ("file:///pub\\..\\secret/key", "file:///secret/key"),
            ("file:///pub/..%5csecret/key", "file:///secret/key"),
            ("file://localhost/secret/key", "file:///secret/key"),
            ("https://INTERNAL.example/x", "https://internal.example/x"),
            (
                "https://internal.example:0443/x",
                "https://internal.example/x",
            ),
            ("https://internal.example./x", "https://internal.example/x"),
            ("https:///internal.example/x", "https://internal.example/x"),
            (
                "https://internal.example?/x",
                "https://internal.example/?/x",
            ),
            ("https://internal。example/x", "https://internal.example/x"),
            ("http://0x7f000001:80/x", "http://127.0.0.1/x"),
            ("http://127.1/x", "http://127.0.0.1/x"),
        ] {
            let forms = forms(address);
            assert!(forms.contains(&form.to_owned()), "{address}: {forms:?}");
        }
    }

    #[test]
    fn what_parsers_read_differently_is_odd() {
        for odd in [
            "file:///a\tb",
            "file:///a\\b",
            "https://u@internal.example/x",
            "https://@internal.example/x",
            " file:///a",
        ] {
            assert!(oddity(odd).is_some(), "{odd:?}");
        }
        for plain in [
            "file:///a b",
            "mailto:x@example.org",
            "note://a/x@y",
            "git:a",
        ] {
            assert_eq!(oddity(plain), None, "{plain:?}");
        }
    }
}
