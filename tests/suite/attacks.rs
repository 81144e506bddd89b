//! What a hostile cell may try, each with what it must meet: a clear error of
//! that cell, while another cell of its session and another session continue.
//!
//! All against real workers in their sandbox.

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::Provider;
use code_mode_protocol::{CellResponse, Limits, WaitRequest};

use crate::support::{
    Agent, Session, brief, error_text, exec, open, options, run, session_of, texts,
};

/// Limits that make attacks quick to end. Processor time is short only where it
/// is the target, so that no other promise depends on a machine's speed.
fn tight(expected: &str) -> Limits {
    let cpu_time = if expected == CPU { 500 } else { 60_000 };
    Limits::default()
        .max_heap_bytes(48 << 20)
        .max_cpu_time(Some(Duration::from_millis(cpu_time)))
        .max_output_bytes(1 << 20)
        .max_stored_bytes(1 << 20)
        .max_pending_tool_calls(1000)
        .max_pending_timers(1000)
}

/// Runs a cell to its end, whatever it yields on the way.
async fn to_the_end(session: &Session, source: &str) -> CellResponse {
    wait_to_the_end(session, exec(session, source).await).await
}

async fn wait_to_the_end(session: &Session, mut seen: CellResponse) -> CellResponse {
    while !seen.is_final() {
        let wait = WaitRequest::new(seen.cell_id().clone());
        seen = session.wait(wait).await.expect("observed");
    }
    seen
}

/// Runs an attack beside a cell of its session and one of another session, which
/// must both continue; returns its error.
async fn attack(source: &str, expected: &str) -> String {
    let provider = Provider::new(options()).expect("the program is there");
    let session = || session_of(&provider, Arc::new(Agent::default()), tight(expected));
    let sessions = [session().await, session().await];
    let bystander = "yield_control(); await tools.echo(); text('unharmed')";
    let beside: Vec<_> = [&sessions[0], &sessions[1]]
        .map(|session| session.execute(brief(bystander)))
        .into_iter()
        .collect();
    let mut cells = Vec::new();
    for started in beside {
        cells.push(started.await.expect("admitted"));
    }
    let response = to_the_end(&sessions[0], source).await;
    let error = error_text(&response).unwrap_or("no error").to_owned();
    for (started, session) in cells.into_iter().zip(&sessions) {
        let first = started.outcome().await.expect("observed");
        let seen = wait_to_the_end(session, first).await;
        assert_eq!(texts(&seen).last(), Some(&"unharmed"), "{source}");
    }
    assert_eq!(
        texts(&exec(&sessions[0], "text('on')").await),
        ["on"],
        "{source}"
    );
    provider.shutdown().await;
    error
}

macro_rules! attacks {
    ($($name:ident: $source:expr => $error:expr;)*) => {$(
        #[test]
        fn $name() {
            run(async {
                let error = attack($source, $error).await;
                assert!(error.contains($error), "{}", error);
            });
        }
    )*};
}

const HEAP: &str = "heap limit of 50331648 bytes exceeded";
const CPU: &str = "CPU time limit of 500 ms exceeded";
const OUTPUT: &str = "output limit of 1048576 bytes exceeded";
const STACK: &str = "Maximum call stack size exceeded";

attacks! {
    // Memory.
    objects_without_end: "const a = []; for (;;) a.push({x: 1})" => HEAP;
    an_array_that_doubles: "let a = [1]; for (;;) a = a.concat(a)" => HEAP;
    strings_without_end: "const a = []; for (let i = 0;; i++) a.push(('x' + i).repeat(1000) + i)" => HEAP;
    flat_strings_of_half_a_gigabyte: "const a = []; for (;;) { const s = 'x'.repeat(2 ** 28); a.push(s + 'y'); s.charCodeAt(5); a[a.length - 1].lastIndexOf('y', 1) }" => "";
    one_buffer_of_eight_gigabytes: "new Uint8Array(2 ** 33).fill(1)" => "";
    buffers_without_end: "const a = []; for (;;) a.push(new Uint8Array(10 ** 6).fill(1))" => HEAP;
    a_map_without_end: "const m = new Map(); for (let i = 0;; i++) m.set(i, {i})" => HEAP;
    a_set_of_symbols_without_end: "const s = new Set(); for (;;) s.add(Symbol())" => HEAP;
    closures_without_end: "const a = []; for (let i = 0;; i++) a.push(() => i)" => HEAP;
    bigints_without_end: "const a = []; for (let n = 1n << 60000n;; n++) a.push(n)" => HEAP;
    promises_without_end: "const a = []; for (;;) a.push(new Promise(() => {}))" => HEAP;
    microtasks_that_breed: "const f = () => { Promise.resolve().then(f); Promise.resolve().then(f) }; f(); await new Promise(() => {})" => HEAP;
    a_generator_that_is_spread: "function* g() { for (;;) yield {} } [...g()]" => HEAP;
    a_json_bomb: "let s = '[]'; for (;;) { s = '[' + s + ',' + s + ']'; JSON.parse(s) }" => HEAP;
    a_million_fields: "const o = {}; for (let i = 0;; i++) o['f' + i] = {i}" => HEAP;
    a_class_of_a_million_fields: "const src = 'return class {' + Array.from({length: 10 ** 6}, (_, i) => 'f' + i + '=' + i).join(';') + '}'; new (new Function(src)())()" => "";
    functions_made_from_text: "const a = []; for (let i = 0;; i++) a.push(new Function('return ' + i))" => HEAP;
    regexps_without_end: "const a = []; for (let i = 0;; i++) { const r = new RegExp('a{' + i + '}b|c*' + i); r.test('aaa'); a.push(r) }" => "";
    errors_with_long_stacks: "Error.stackTraceLimit = Infinity; const a = []; const f = n => n ? f(n - 1) : a.push(new Error('x').stack); for (;;) f(500)" => HEAP;
    weak_references_that_stay: "const a = [], k = []; for (;;) { const o = {}; k.push(o); a.push(new WeakRef(o)) }" => HEAP;
    finalizers_without_end: "const r = new FinalizationRegistry(() => {}); const k = []; for (;;) { const o = {}; k.push(o); r.register(o, {}) }" => HEAP;
    intl_objects_without_end: "const a = []; for (;;) a.push(new Intl.NumberFormat('de'))" => "";

    // Processor time.
    an_endless_loop: "while (true) {}" => CPU;
    a_loop_that_catches_everything: "for (;;) { try { for (;;) {} } catch {} finally { for (;;) {} } }" => CPU;
    microtasks_without_end: "const f = () => Promise.resolve().then(f); f(); await new Promise(() => {})" => "limit of";
    a_regexp_bomb: "/^(a+)+$/.test('a'.repeat(50) + 'b')" => CPU;
    a_regexp_bomb_in_replace: "'x'.repeat(40).replace(/(x+x+)+y/g, '')" => CPU;
    a_sort_whose_order_never_ends: "[3, 2, 1].sort(() => { for (;;) {} })" => CPU;
    a_getter_that_never_returns: "text({get a() { for (;;) {} }})" => CPU;
    a_tojson_that_never_returns: "await tools.echo({toJSON() { for (;;) {} }})" => CPU;
    a_tostring_that_never_returns: "throw {toString() { for (;;) {} }}" => CPU;
    a_proxy_that_never_answers: "new Proxy({}, {get() { for (;;) {} }}).x" => CPU;
    a_thenable_that_never_settles: "await {then() { for (;;) {} }}" => CPU;
    an_iterator_without_end: "for (const x of {[Symbol.iterator]() { return {next: () => ({value: 1})} }}) ;" => CPU;
    a_bigint_of_a_million_digits: "let n = 3n; for (;;) n = n * n % (1n << 2000000n)" => CPU;
    a_timer_that_never_returns: "setTimeout(() => { for (;;) {} }, 0); await new Promise(() => {})" => CPU;
    an_async_iterator_without_end: "for await (const x of (async function* () { for (;;) yield 1 })()) ;" => CPU;
    eval_in_a_loop: "for (;;) eval('1 + 1')" => CPU;

    // The stack.
    recursion: "const f = () => f() + 1; f()" => STACK;
    recursion_through_a_proxy: "const p = new Proxy({}, {get: (t, k) => p[k]}); p.x" => STACK;
    recursion_through_a_getter: "const o = {get a() { return this.a }}; o.a" => STACK;
    recursion_through_json: "const o = {toJSON() { return JSON.stringify(o) }}; JSON.stringify(o)" => STACK;
    recursion_through_a_helper: "const o = {toJSON() { text(o) }}; text(o)" => STACK;
    recursion_through_replace: "const f = () => 'a'.replace(/a/, f); f()" => STACK;
    recursion_through_sort: "const f = () => [2, 1].sort(f); f()" => STACK;
    nested_arrays_deep_in_json: "JSON.stringify(Array(10 ** 5).fill().reduce(a => [a], []))" => "";
    a_regexp_nested_deep: "new RegExp('('.repeat(10 ** 5) + ')'.repeat(10 ** 5))" => "";
    a_source_nested_deep: "eval('['.repeat(10 ** 5) + ']'.repeat(10 ** 5))" => STACK;

    // Output, calls, timers, stored values.
    text_without_end: "for (;;) text('x'.repeat(100))" => OUTPUT;
    empty_text_without_end: "for (;;) text('')" => OUTPUT;
    images_without_end: "for (;;) image('data:image/png;base64,' + 'A'.repeat(1000))" => OUTPUT;
    content_without_end: "for (;;) content([{type: 'text', text: 'x'}])" => OUTPUT;
    one_text_that_is_too_large: "text('x'.repeat(2 ** 25))" => OUTPUT;
    yields_without_end: "for (;;) yield_control()" => CPU;
    notifications_without_end: "for (;;) notify('x')" => "";
    tool_calls_without_end: "for (;;) tools.never()" => "pending tool calls limit of 1000 calls exceeded";
    tool_calls_with_large_inputs: "const s = 'x'.repeat(10 ** 7); for (;;) tools.never(s)" => HEAP;
    timers_without_end: "for (;;) setTimeout(() => {}, 10 ** 6)" => "pending timers limit of 1000 timers exceeded";
    timers_that_are_set_and_cleared: "for (;;) clearTimeout(setTimeout(() => {}, 10 ** 6))" => CPU;
    stored_values_without_end: "for (let i = 0;; i++) store('k' + i, 'x'.repeat(1000))" => "stored values limit of 1048576 bytes exceeded";
    one_stored_value_that_is_too_large: "store('k', 'x'.repeat(2 ** 21))" => "stored values limit of 1048576 bytes exceeded";

    // Ways around.
    a_module_of_the_system: "import fs from 'node:fs'; text(fs)" => "Unsupported import in exec: node:fs";
    an_import_at_run_time: "await import('file:///etc/passwd')" => "unsupported import in exec";
    a_worker_thread: "new Worker('x')" => "Worker is not defined";
    memory_shared_between_threads: "new SharedArrayBuffer(8)" => "SharedArrayBuffer is not defined";
    web_assembly: "new WebAssembly.Memory({initial: 1})" => "WebAssembly is not defined";
    a_constructed_hidden_error: "try { image('x') } catch (e) { new e.constructor('y') }" => "HelperError cannot be constructed";
    exit_with_a_loop_after_it: "try { exit() } finally { for (;;) {} }" => "no error";
}

#[test]
fn nothing_of_one_cells_globals_reaches_another() {
    run(async {
        let opened = open(Arc::new(Agent::default()), Limits::default()).await;
        let poison =
            "globalThis.leak = 1; Object.prototype.leak = 1; Array.prototype.map = () => 'x';
            Promise.prototype.then = null; JSON.parse = null; tools.echo = null; text = 1";
        exec(&opened.session, poison).await;
        let clean = exec(
            &opened.session,
            "text(typeof leak + typeof {}.leak + [1].map(x => x) + typeof JSON.parse + await tools.echo(5))",
        )
        .await;
        assert_eq!(texts(&clean), ["undefinedundefined1function5"]);
    });
}

#[test]
fn overwritten_builtins_neither_break_nor_hijack_helpers_and_tools() {
    run(async {
        let opened = open(Arc::new(Agent::default()), Limits::default()).await;
        let source = "
            const seen = [];
            const spy = name => function () { seen.push(name) };
            const {defineProperty} = Object;
            for (const [object, keys] of [
                [JSON, ['stringify', 'parse']],
                [Map.prototype, ['forEach', 'get', 'set', 'has']],
                [Array.prototype, ['push', 'shift', 'values', 'forEach']],
                [Reflect, ['get', 'set', 'has', 'apply', 'ownKeys', 'defineProperty']],
                [Object, ['defineProperty', 'keys']],
                [Function.prototype, ['call', 'apply', 'bind']],
                [Error, ['captureStackTrace']],
            ]) for (const key of keys) object[key] = spy(key);
            for (const key of ['value', 'writable', 'enumerable', 'get', 'next', 'result', '0']) {
                defineProperty(Object.prototype, key, {__proto__: null, set: spy(key), get() { return undefined }, configurable: true});
            }
            globalThis.Promise = spy('Promise'); globalThis.Map = spy('Map'); globalThis.Proxy = spy('Proxy');
            text({a: 1}); store('k', {b: 2}); text(load('k'));
            text(await tools.echo({c: 3}));
            for await (const {index, status} of as_settled([tools.echo(1)])) text(index + status);
            try { image('x') } catch (e) { text(e.message) }
            text(seen.length);";
        let response = exec(&opened.session, source).await;
        assert_eq!(error_text(&response), None);
        assert_eq!(
            texts(&response),
            [
                "{\"a\":1}",
                "{\"b\":2}",
                "{\"c\":3}",
                "0fulfilled",
                "Tool call failed: invalid image output. Pass a base64 data URI instead",
                "0"
            ]
        );
    });
}

#[test]
#[cfg(target_os = "linux")]
fn every_layer_of_the_sandbox_holds_here_and_every_native_probe_is_refused() {
    let output = std::process::Command::new(crate::support::program())
        .args(["doctor", "--json"])
        .output()
        .expect("the program starts");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let probes = report["probes"].as_array().expect("probes");
    assert!(probes.len() >= 60);
    for probe in probes {
        assert_eq!(probe["refused"], true, "{probe}");
    }
    // Layers that this machine's kernel or container does not give are named, not
    // silently left out.
    for layer in report["sandbox"].as_array().expect("layers") {
        assert!(
            layer["holds"] == true || layer["why"].as_str().is_some_and(|why| !why.is_empty()),
            "{layer}"
        );
    }
}

#[test]
fn a_required_sandbox_that_is_not_complete_is_refused() {
    run(async {
        let options = options().sandbox(code_mode_host::Sandbox::Required);
        let info = code_mode_host::Examiner::new(options.clone())
            .expect("the program is there")
            .report()
            .await;
        let provider = Provider::new(options).expect("the program is there");
        let opened = provider.create_session(Arc::new(Agent::default())).await;
        match info {
            Ok(info) => {
                assert!(code_mode_host::SandboxLayer::missing(&info.sandbox).is_empty());
                assert!(opened.is_ok());
            }
            // Where a layer is missing here, this is the refusal.
            Err(error) => {
                assert!(
                    error.to_string().contains("sandbox is not complete"),
                    "{error}"
                );
                assert!(opened.is_err());
            }
        }
    });
}
