//! V8 in this process, and isolates from the startup snapshot.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use v8::MapFnTo;

use crate::bootstrap::{self, Callbacks};
use crate::natives::{lazy_global, native};
use crate::pool::Pool;

/// The startup snapshot, made by the build script; empty where the build was for
/// another target.
static SNAPSHOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/snapshot.bin"));

/// The program's side of what a snapshot refers to.
fn callbacks() -> Callbacks<
    impl MapFnTo<v8::FunctionCallback> + Copy,
    impl MapFnTo<v8::AccessorNameGetterCallback> + Copy,
> {
    Callbacks {
        native,
        lazy: lazy_global,
    }
}

/// V8 and the pool of ready isolates of this process.
///
/// V8 can be started once in a process and never again; all engines are handles
/// to one.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) pool: Arc<Pool>,
}

/// See [`Engine::forbid_machine_code`].
static JITLESS: AtomicBool = AtomicBool::new(false);

impl Engine {
    /// Makes V8 interpret JavaScript and regular expressions without ever compiling
    /// them to machine code: most known ways to take V8 over need its compilers, or
    /// memory that can be both written and run. Code that runs hot gets several times
    /// slower; `docs/PERFORMANCE.md` has figures. Call before [`new`](Self::new).
    pub fn forbid_machine_code() {
        JITLESS.store(true, Ordering::Relaxed);
    }

    /// The engine of this process; starts V8 at the first call.
    pub fn new() -> Self {
        static ENGINE: OnceLock<Engine> = OnceLock::new();
        ENGINE
            .get_or_init(|| {
                v8::V8::set_entropy_source(|buffer| getrandom::fill(buffer).is_ok());
                if JITLESS.load(Ordering::Relaxed) {
                    v8::V8::set_flags_from_string("--jitless");
                }
                bootstrap::initialize_v8();
                Self {
                    pool: Arc::new(Pool::new()),
                }
            })
            .clone()
    }

    /// Whether V8 was built with its heap sandbox: a bug in V8 then corrupts the heap of cells and
    /// nothing else of the process. `Cargo.toml` says for which targets it is.
    pub const HAS_HEAP_SANDBOX: bool = cfg!(all(
        target_os = "linux",
        target_arch = "x86_64",
        target_env = "gnu"
    ));

    /// V8's version, for example `15.2.0`.
    pub fn v8_version() -> &'static str {
        v8::V8::get_version()
    }

    /// Sets the time zone that cells see, by its IANA name; one that ICU does not
    /// know is ignored. Where nothing is set, ICU looks at the system's files,
    /// which a sandboxed process cannot read. Call after [`new`](Self::new) and
    /// before the first cell.
    pub fn set_time_zone(name: &str) {
        let _ = v8::icu::set_default_time_zone(name);
    }

    /// Makes an isolate ready in the background, ahead of the first cell.
    pub fn prewarm(&self) {
        self.pool.prewarm();
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

/// The blob that isolates start from.
fn snapshot() -> &'static [u8] {
    static MADE_NOW: OnceLock<Vec<u8>> = OnceLock::new();
    if SNAPSHOT.is_empty() {
        MADE_NOW.get_or_init(|| bootstrap::create_snapshot(callbacks()).unwrap_or_default())
    } else {
        SNAPSHOT
    }
}

/// An isolate with a cell's context in it, used by nobody yet.
pub(crate) struct ReadyIsolate {
    // Fields drop in order: the context before its isolate.
    pub(crate) context: v8::Global<v8::Context>,
    pub(crate) internals: v8::Global<v8::Object>,
    pub(crate) isolate: v8::OwnedIsolate,
    pub(crate) heap_bytes: usize,
}

/// Cells are short: a small young generation touches fewer pages.
const MAX_YOUNG_GENERATION: usize = 16 << 20;

/// Globals that V8 adds to a context after it was made from the snapshot, or
/// that must be in the snapshot for that to work.
const HIDDEN_GLOBALS: [&str; 4] = ["Atomics", "SharedArrayBuffer", "WebAssembly", "console"];

extern "C" fn no_wasm(_: v8::Local<v8::Context>, _: v8::Local<v8::String>) -> bool {
    false
}

impl ReadyIsolate {
    /// Makes one on the calling thread, where it must be used. Its heap limit
    /// cannot be changed later: how much memory outside the heap V8 lets a cell
    /// have before it collects garbage depends on it too.
    pub(crate) fn new(heap_bytes: usize) -> Self {
        let params = v8::CreateParams::default()
            .snapshot_blob(v8::StartupData::from(snapshot()))
            .external_references(callbacks().external_references())
            .allow_atomics_wait(false)
            .set_max_old_generation_size_in_bytes(heap_bytes)
            .set_max_young_generation_size_in_bytes(MAX_YOUNG_GENERATION.min(heap_bytes / 4));
        let mut isolate = v8::Isolate::new(params);
        isolate.set_microtasks_policy(v8::MicrotasksPolicy::Explicit);
        // The global is deleted below; this refuses whatever else may reach it.
        isolate.set_allow_wasm_code_generation_callback(no_wasm);
        let (context, internals) = {
            v8::scope!(let scope, &mut isolate);
            let context = v8::Context::new(scope, v8::ContextOptions::default());
            let scope = &mut v8::ContextScope::new(scope, context);
            let global = context.global(scope);
            for name in HIDDEN_GLOBALS {
                if let Some(name) = v8::String::new(scope, name) {
                    global.delete(scope, name.into());
                }
            }
            let internals = scope
                .get_context_data_from_snapshot_once::<v8::Object>(0)
                .unwrap_or_else(|_| v8::Object::new(scope));
            (
                v8::Global::new(scope, context),
                v8::Global::new(scope, internals),
            )
        };
        Self {
            context,
            internals,
            isolate,
            heap_bytes,
        }
    }
}
