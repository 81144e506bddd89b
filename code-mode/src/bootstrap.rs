//! How the context of a cell is made, as the startup snapshot holds it.
//!
//! This file is compiled twice: into the build script, which makes the snapshot,
//! and into the library, which makes isolates from it. Both must agree on the
//! order of [`Callbacks::external_references`] and on V8's flags.

use std::borrow::Cow;
use std::ffi::c_void;

use v8::MapFnTo;

const BOOTSTRAP_JS: &str = include_str!("bootstrap.js");

/// The globals of guided sessions, by what they are about.
const WEB_JS: [(&str, &str); 6] = [
    ("code-mode:console", include_str!("web/console.js")),
    ("code-mode:events", include_str!("web/events.js")),
    ("code-mode:encoding", include_str!("web/encoding.js")),
    ("code-mode:url", include_str!("web/url.js")),
    ("code-mode:platform", include_str!("web/platform.js")),
    ("code-mode:mcp", include_str!("web/mcp.js")),
];

/// The flags that V8 runs with.
///
/// Cells are short. Optimising a function on another thread pays only for one
/// that is really hot, and where it lands in the middle of a runaway recursion
/// the stack of the error depends on when it did; so it starts later than V8's
/// default of some hundred calls. Loops are optimised as early as ever.
///
/// Where the compiler unrolls loops, it leaves out the check by which a loop that seems short can
/// be stopped. V8 15.2 does so for an endless loop around a short one, as
/// `for (;;) new Array(1000).fill(1)`, which only the end of the process stops then.
const V8_FLAGS: &str =
    "--stack-size=900 --invocation-count-for-maglev=20000 --no-turboshaft-loop-unrolling";

/// A native function of the bootstrap, as the data of its JavaScript function.
/// Numbers from [`FIRST_TOOL`] on are tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Native {
    Text,
    Image,
    Audio,
    Content,
    GeneratedImage,
    Store,
    Load,
    Notify,
    YieldControl,
    Exit,
    SetTimeout,
    ClearTimeout,
    /// `(message)`: throws a helper's error.
    Refuse,
    /// `()`: the names of all tools, in order and each once.
    ToolNames,
    /// `(name)`: whether there is such a tool.
    HasTool,
    /// `(name)`: the tool's function.
    ToolFunction,
    /// `JSON.parse`, for texts that cannot exhaust the heap before anybody
    /// notices.
    JsonParse,
    /// `(key, value)`: the replacer of a tool's input with large texts.
    #[allow(dead_code, reason = "the build script has no use for it")]
    LeaveOut,
    /// `(text)`: puts out what the program wrote to its console.
    Log,
    /// `(error)`: the cell fails with it once its tasks are done.
    Fail,
    /// `(name)`: the error about an unknown tool.
    UnknownTool,
    ServerTools,
    /// `(message)`: a tool's error, not thrown.
    ToolError,
    /// `(name)`: the declaration of a tool that there is.
    Declaration,
    /// `(name)`: the same, or an error with the nearest names.
    DescribeTool,
    /// `(query, limit, server, detail)`: the matches, as JSON.
    SearchTools,
    /// `(callback, ms)`: a timer that runs until it is cleared.
    SetRepeating,
    /// `(value, transfer, refuse)`: a structured clone.
    Clone,
    /// `(view)`: fills it with random bytes.
    FillRandom,
    /// `()`: a random UUID.
    Uuid,
    /// `()`: milliseconds since the cell began.
    NowMs,
    /// `()`: when the cell began, in milliseconds since 1970.
    TimeOrigin,
    /// `(text)`: a `Uint8Array` of its UTF-8.
    EncodeUtf8,
    /// `(label)`: the name of an encoding, if there is such a label.
    EncodingName,
    /// `(encoding, bytes, state, stream, fatal, ignoreBOM)`: `[text, state]`, or nothing
    /// where the bytes are malformed.
    DecodeText,
    /// `(text)`: what `atob` gives, or nothing.
    Base64Decode,
    /// `(text)`: what `btoa` gives, or nothing.
    Base64Encode,
    /// `(url, base?)`: its parts, or nothing.
    ParseUrl,
    /// `(url, part, value)`: the parts of the changed URL.
    SetUrl,
    /// `(query)`: pairs.
    ParseForm,
    /// `(pairs)`: a query.
    FormText,
    /// `()`: a random number from 0 up to 1.
    RandomUnit,
}

/// See [`Native`].
#[allow(dead_code, reason = "the build script has no use for it")]
pub(crate) const FIRST_TOOL: u32 = 64;

/// The native functions that are globals of a cell, with their `length`.
const GLOBALS: &[(&str, Native, i32)] = &[
    ("text", Native::Text, 1),
    ("image", Native::Image, 2),
    ("audio", Native::Audio, 1),
    ("content", Native::Content, 1),
    ("generatedImage", Native::GeneratedImage, 1),
    ("store", Native::Store, 2),
    ("load", Native::Load, 1),
    ("notify", Native::Notify, 1),
    ("yield_control", Native::YieldControl, 0),
    ("exit", Native::Exit, 0),
    ("setTimeout", Native::SetTimeout, 2),
    ("clearTimeout", Native::ClearTimeout, 1),
];

/// The native functions that only `bootstrap.js` sees.
const HOOKS: &[(&str, Native, i32)] = &[
    ("refuse", Native::Refuse, 1),
    ("toolNames", Native::ToolNames, 0),
    ("hasTool", Native::HasTool, 1),
    ("toolFunction", Native::ToolFunction, 1),
    ("parse", Native::JsonParse, 2),
];

/// The native functions behind the globals of guided sessions.
const WEB_HOOKS: &[(&str, Native, i32)] = &[
    ("log", Native::Log, 1),
    ("fail", Native::Fail, 1),
    ("setTimer", Native::SetTimeout, 2),
    ("clearTimer", Native::ClearTimeout, 1),
    ("unknownTool", Native::UnknownTool, 2),
    ("serverTools", Native::ServerTools, 1),
    ("toolError", Native::ToolError, 1),
    ("declarationOf", Native::Declaration, 1),
    ("describeTool", Native::DescribeTool, 1),
    ("searchTools", Native::SearchTools, 4),
    ("setRepeating", Native::SetRepeating, 2),
    ("clone", Native::Clone, 3),
    ("fillRandom", Native::FillRandom, 1),
    ("uuid", Native::Uuid, 0),
    ("nowMs", Native::NowMs, 0),
    ("timeOrigin", Native::TimeOrigin, 0),
    ("encodeUtf8", Native::EncodeUtf8, 1),
    ("encodingName", Native::EncodingName, 1),
    ("decodeText", Native::DecodeText, 6),
    ("base64Decode", Native::Base64Decode, 1),
    ("base64Encode", Native::Base64Encode, 1),
    ("parseUrl", Native::ParseUrl, 2),
    ("setUrl", Native::SetUrl, 3),
    ("parseForm", Native::ParseForm, 1),
    ("formText", Native::FormText, 1),
    ("randomUnit", Native::RandomUnit, 0),
];

/// The globals of guided sessions; made when first read too.
#[allow(dead_code, reason = "the build script has no use for it")]
pub(crate) const GUIDED_GLOBALS: [&str; 26] = [
    "console",
    "structuredClone",
    "queueMicrotask",
    "URL",
    "URLSearchParams",
    "TextEncoder",
    "TextDecoder",
    "atob",
    "btoa",
    "AbortController",
    "AbortSignal",
    "DOMException",
    "Event",
    "CustomEvent",
    "EventTarget",
    "setTimeout",
    "setInterval",
    "clearInterval",
    "crypto",
    "performance",
    "search_tools",
    "describe_tool",
    "read_resource",
    "output",
    "tools",
    "ALL_TOOLS",
];

/// The globals that are made when first read.
pub(crate) const LAZY_GLOBALS: [&str; 2] = ["tools", "ALL_TOOLS"];

impl Native {
    /// Every function, by its number.
    #[allow(dead_code, reason = "the build script has no use for it")]
    pub(crate) const ALL: [Self; 42] = [
        Self::Text,
        Self::Image,
        Self::Audio,
        Self::Content,
        Self::GeneratedImage,
        Self::Store,
        Self::Load,
        Self::Notify,
        Self::YieldControl,
        Self::Exit,
        Self::SetTimeout,
        Self::ClearTimeout,
        Self::Refuse,
        Self::ToolNames,
        Self::HasTool,
        Self::ToolFunction,
        Self::JsonParse,
        Self::LeaveOut,
        Self::Log,
        Self::Fail,
        Self::UnknownTool,
        Self::ServerTools,
        Self::ToolError,
        Self::Declaration,
        Self::DescribeTool,
        Self::SearchTools,
        Self::SetRepeating,
        Self::Clone,
        Self::FillRandom,
        Self::Uuid,
        Self::NowMs,
        Self::TimeOrigin,
        Self::EncodeUtf8,
        Self::EncodingName,
        Self::DecodeText,
        Self::Base64Decode,
        Self::Base64Encode,
        Self::ParseUrl,
        Self::SetUrl,
        Self::ParseForm,
        Self::FormText,
        Self::RandomUnit,
    ];
}

/// The program's two functions that a context refers to: the native function
/// behind every helper and tool, and the getter of [`LAZY_GLOBALS`].
#[derive(Clone, Copy)]
pub(crate) struct Callbacks<N, L> {
    pub(crate) native: N,
    pub(crate) lazy: L,
}

impl<N, L> Callbacks<N, L>
where
    N: MapFnTo<v8::FunctionCallback> + Copy,
    L: MapFnTo<v8::AccessorNameGetterCallback> + Copy,
{
    /// What a snapshot refers to outside itself, by place.
    pub(crate) fn external_references(self) -> Cow<'static, [v8::ExternalReference]> {
        Cow::Owned(vec![
            v8::ExternalReference {
                function: self.native.map_fn_to(),
            },
            v8::ExternalReference {
                pointer: self.lazy.map_fn_to() as *const () as *mut c_void,
            },
        ])
    }
}

/// Starts V8 in this process. Call once.
pub(crate) fn initialize_v8() {
    // The data is of the ICU that V8 was built with; a mismatch is a mistake of
    // the build and shows in every locale-dependent test.
    let _ = v8::icu::set_common_data_78(deno_core_icudata::ICU_DATA);
    v8::V8::set_flags_from_string(V8_FLAGS);
    let platform = v8::new_default_platform(1, false).make_shared();
    v8::V8::initialize_platform(platform);
    v8::V8::initialize();
}

/// A snapshot of a cell's context, or `None` where V8 makes none.
pub(crate) fn create_snapshot<N, L>(callbacks: Callbacks<N, L>) -> Option<Vec<u8>>
where
    N: MapFnTo<v8::FunctionCallback> + Copy,
    L: MapFnTo<v8::AccessorNameGetterCallback> + Copy,
{
    let mut isolate = v8::Isolate::snapshot_creator(Some(callbacks.external_references()), None);
    {
        v8::scope!(let scope, &mut isolate);
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        let internals = {
            let scope = &mut v8::ContextScope::new(scope, context);
            install(scope, context, callbacks)?
        };
        scope.set_default_context(context);
        scope.add_context_data(context, internals);
    }
    let blob = isolate.create_blob(v8::FunctionCodeHandling::Keep)?;
    Some(blob.to_vec())
}

/// Makes a plain context that of a cell; returns what `bootstrap.js` returns.
fn install<'s, N, L>(
    scope: &mut v8::PinScope<'s, '_>,
    context: v8::Local<'s, v8::Context>,
    callbacks: Callbacks<N, L>,
) -> Option<v8::Local<'s, v8::Object>>
where
    N: MapFnTo<v8::FunctionCallback> + Copy,
    L: MapFnTo<v8::AccessorNameGetterCallback> + Copy,
{
    let native_function = callbacks.native;
    let global = context.global(scope);
    let hooks = v8::Object::new(scope);
    for (name, native, length) in HOOKS.iter().chain(WEB_HOOKS) {
        set_native(scope, hooks, name, *native, *length, native_function)?;
    }
    let bootstrap = evaluated(scope, "code-mode:bootstrap", BOOTSTRAP_JS)?;
    let bootstrap = v8::Local::<v8::Function>::try_from(bootstrap).ok()?;
    let mut web = Vec::new();
    for (name, source) in WEB_JS {
        web.push(evaluated(scope, name, source)?);
    }
    let web = v8::Array::new_with_elements(scope, &web);
    // `as_settled` and `stream_settled` become globals before the natives, and
    // all of them after the language's own.
    for name in LAZY_GLOBALS {
        let key = v8::String::new(scope, name)?;
        global.set_lazy_data_property(scope, key.into(), callbacks.lazy)?;
    }
    for (name, native, length) in GLOBALS {
        set_native(scope, global, name, *native, *length, native_function)?;
    }
    let internals = bootstrap.call(scope, global.into(), &[hooks.into(), web.into()])?;
    internals.to_object(scope)
}

/// What a script of ours evaluates to.
fn evaluated<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: &str,
    source: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let source = v8::String::new(scope, source)?;
    let origin = origin(scope, name, false)?;
    let script = v8::Script::compile(scope, source, Some(&origin))?;
    script.run(scope)
}

/// Where a source comes from, as stack frames name it.
pub(crate) fn origin<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: &str,
    is_module: bool,
) -> Option<v8::ScriptOrigin<'s>> {
    let name = v8::String::new(scope, name)?;
    Some(v8::ScriptOrigin::new(
        scope,
        name.into(),
        0,
        0,
        false,
        -1,
        None,
        false,
        false,
        is_module,
        None,
    ))
}

fn set_native(
    scope: &mut v8::PinScope,
    object: v8::Local<v8::Object>,
    name: &str,
    native: Native,
    length: i32,
    callback: impl MapFnTo<v8::FunctionCallback>,
) -> Option<()> {
    let key = v8::String::new(scope, name)?;
    let number = v8::Integer::new_from_unsigned(scope, native as u32);
    let function = v8::Function::builder(callback)
        .data(number.into())
        .length(length)
        .constructor_behavior(v8::ConstructorBehavior::Throw)
        .build(scope)?;
    function.set_name(key);
    object.create_data_property(scope, key.into(), function.into())?;
    Some(())
}
