//! The heap limit of one cell.
#![allow(unsafe_code, reason = "V8 calls back with raw pointers")]

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;

use code_mode_protocol::Limit;

use crate::cell::{CellShared, Stop};

/// The heap limit of one cell in its isolate.
pub(crate) struct HeapGuard {
    // Boxed, because V8 holds its address.
    _watch: Box<HeapWatch>,
}

struct HeapWatch {
    shared: Arc<CellShared>,
    /// Room for the stack to unwind in once the limit is hit; V8 ends the process
    /// without one.
    extensions: Cell<u32>,
}

/// How often the limit is raised while a stopped cell unwinds, and how far: what
/// runs when the limit is hit may be one operation on a string as large as V8
/// allows, which V8 finishes before it notices that it must stop.
const MAX_EXTENSIONS: u32 = 3;
const EXTENSION: usize = 1 << 30;

impl HeapGuard {
    /// Watches the isolate of a cell. The guard must live as long as the isolate.
    pub(crate) fn install(isolate: &mut v8::OwnedIsolate, shared: &Arc<CellShared>) -> Self {
        let watch = Box::new(HeapWatch {
            shared: shared.clone(),
            extensions: Cell::new(0),
        });
        let data = std::ptr::from_ref(&*watch).cast_mut().cast::<c_void>();
        isolate.add_near_heap_limit_callback(near_heap_limit, data);
        isolate.add_gc_prologue_callback(before_gc, data, v8::GCType::kGCTypeAll);
        isolate.add_gc_epilogue_callback(after_gc, data, v8::GCType::kGCTypeAll);
        Self { _watch: watch }
    }
}

/// V8 is about to run out of the cell's heap.
unsafe extern "C" fn near_heap_limit(data: *mut c_void, current: usize, _: usize) -> usize {
    // SAFETY: `data` is the watch that `HeapGuard::install` registered; the guard
    // lives as long as the isolate that calls this.
    let watch = unsafe { &*data.cast::<HeapWatch>() };
    let limit = watch.shared.limits.heap_bytes() as u64;
    watch.shared.stop(Stop::Limit(Limit::Heap.exceeded(limit)));
    let extensions = watch.extensions.get();
    watch.extensions.set(extensions + 1);
    if extensions < MAX_EXTENSIONS {
        current.saturating_add(EXTENSION)
    } else {
        current
    }
}

/// The heap is never fuller than when V8 is about to collect.
unsafe extern "C" fn before_gc(
    isolate: v8::UnsafeRawIsolatePtr,
    _kind: v8::GCType,
    _flags: v8::GCCallbackFlags,
    data: *mut c_void,
) {
    // SAFETY: as in `near_heap_limit`.
    let watch = unsafe { &*data.cast::<HeapWatch>() };
    // SAFETY: V8 passes the isolate that is about to collect, on its own thread.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
    let statistics = isolate.get_heap_statistics();
    watch
        .shared
        .heap_used(statistics.used_heap_size() + statistics.external_memory());
}

/// Counts what the heap's own limit leaves out: array buffers and external
/// strings.
unsafe extern "C" fn after_gc(
    isolate: v8::UnsafeRawIsolatePtr,
    _kind: v8::GCType,
    _flags: v8::GCCallbackFlags,
    data: *mut c_void,
) {
    // SAFETY: as in `near_heap_limit`.
    let watch = unsafe { &*data.cast::<HeapWatch>() };
    // SAFETY: V8 passes the isolate that just collected, on its own thread.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
    let statistics = isolate.get_heap_statistics();
    let used = statistics.used_heap_size() + statistics.external_memory();
    watch.shared.heap_used(used);
    let limit = watch.shared.limits.heap_bytes();
    if used > limit {
        let exceeded = Limit::Heap.exceeded(limit as u64);
        watch.shared.stop(Stop::Limit(exceeded));
    }
}
