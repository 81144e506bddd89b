//! URLs and queries, by the crate `url`, which follows the WHATWG's standard.

use url::{Url, form_urlencoded, quirks};

use super::platform::{array_of_texts, text_argument};
use super::{Answer, Refusal, thrown};

type Value<'s> = v8::Local<'s, v8::Value>;

/// The longest URL or query, in UTF-16 units, and the most pairs of one: V8 cannot interrupt this
/// code.
const LONGEST: usize = 1 << 20;
const MAX_PAIRS: u32 = 100_000;

fn short_text(
    scope: &mut v8::PinScope,
    args: &v8::FunctionCallbackArguments,
    index: i32,
) -> Answer<String> {
    let text = v8::Local::<v8::String>::try_from(args.get(index));
    match text.is_ok_and(|text| text.length() > LONGEST) {
        true => Err(Refusal::from(
            "a URL or a query has 1,048,576 characters at most",
        )),
        false => Ok(text_argument(scope, args, index)),
    }
}

/// `(url, base?)`: the parts in the order that `url.js` names, or nothing.
pub(super) fn parse<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let text = short_text(scope, args, 0)?;
    let url = if args.get(1).is_undefined() {
        Url::parse(&text)
    } else {
        let base = short_text(scope, args, 1)?;
        Url::parse(&base).and_then(|base| base.join(&text))
    };
    match url {
        Ok(url) => parts(scope, &url).map(Some),
        Err(_) => Ok(None),
    }
}

/// The origin as the standard has it: of what a blob's URL names only that of HTTP, which
/// the crate is looser about.
fn origin(url: &Url) -> String {
    if url.scheme() != "blob" {
        return quirks::origin(url);
    }
    match Url::parse(url.path()) {
        Ok(inner) if matches!(inner.scheme(), "http" | "https") => quirks::origin(&inner),
        _ => "null".to_owned(),
    }
}

fn parts<'s>(scope: &mut v8::PinScope<'s, '_>, url: &Url) -> Answer<Value<'s>> {
    let origin = origin(url);
    let parts = [
        quirks::href(url),
        &origin,
        quirks::protocol(url),
        quirks::username(url),
        quirks::password(url),
        quirks::host(url),
        quirks::hostname(url),
        quirks::port(url),
        quirks::pathname(url),
        quirks::search(url),
        quirks::hash(url),
    ];
    array_of_texts(scope, parts.into_iter())
}

/// `(url, part, value)`: the parts after the part was set; a value that does not fit
/// changes nothing.
pub(super) fn set<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let href = short_text(scope, args, 0)?;
    let Ok(mut url) = Url::parse(&href) else {
        return Ok(None);
    };
    let value = short_text(scope, args, 2)?;
    // A setter that refuses leaves the URL as it was.
    let _ = match args.get(1).uint32_value(scope) {
        Some(2) => quirks::set_protocol(&mut url, &value),
        Some(3) => quirks::set_username(&mut url, &value),
        Some(4) => quirks::set_password(&mut url, &value),
        Some(5) => quirks::set_host(&mut url, &value),
        Some(6) => quirks::set_hostname(&mut url, &value),
        Some(7) => quirks::set_port(&mut url, &value),
        Some(8) => {
            quirks::set_pathname(&mut url, &value);
            Ok(())
        }
        Some(9) => {
            quirks::set_search(&mut url, &value);
            Ok(())
        }
        Some(10) => {
            quirks::set_hash(&mut url, &value);
            Ok(())
        }
        _ => Err(()),
    };
    parts(scope, &url).map(Some)
}

/// `(query)`: an array of pairs.
pub(super) fn parse_form<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Value<'s>> {
    let query = short_text(scope, args, 0)?;
    let mut pairs: Vec<Value> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        pairs.push(array_of_texts(scope, [&*name, &*value].into_iter())?);
    }
    Ok(v8::Array::new_with_elements(scope, &pairs).into())
}

/// `(pairs)`: the query.
pub(super) fn form_text<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Value<'s>> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Ok(pairs) = v8::Local::<v8::Array>::try_from(args.get(0)) {
        if pairs.length() > MAX_PAIRS {
            return Err(Refusal::from("a query has 100,000 pairs at most"));
        }
        let mut room = LONGEST;
        for index in 0..pairs.length() {
            let pair = thrown(pairs.get_index(scope, index))?;
            if let Ok(pair) = v8::Local::<v8::Array>::try_from(pair) {
                let [name, value] = [0, 1].map(|side| pair.get_index(scope, side));
                let [name, value] = [thrown(name)?, thrown(value)?];
                let length = |text: Value| {
                    v8::Local::<v8::String>::try_from(text).map_or(0, |text| text.length())
                };
                room = room
                    .checked_sub(length(name) + length(value))
                    .ok_or(Refusal::from("a query has 1,048,576 characters at most"))?;
                let name = name.to_rust_string_lossy(scope);
                let value = value.to_rust_string_lossy(scope);
                query.append_pair(&name, &value);
            }
        }
    }
    let query = query.finish();
    Ok(thrown(v8::String::new(scope, &query))?.into())
}
