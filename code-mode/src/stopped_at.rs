//! The line at which a limit stopped a cell.
#![allow(unsafe_code, reason = "V8 calls back with raw pointers")]

use std::ffi::c_void;

use crate::cell::CellShared;
use crate::natives::call_site;

/// The context of a guided cell; in a slot of its isolate.
#[derive(Clone)]
pub(crate) struct InterruptedIn(pub(crate) v8::Global<v8::Context>);

/// Interrupts the program of a cell, notes which line runs, and terminates it. V8 interrupts a
/// program where it would also notice a termination; a program that never gets there must be
/// terminated as well, a moment later.
pub(crate) fn note_and_terminate(isolate: &v8::IsolateHandle, shared: &CellShared) {
    let data = std::ptr::from_ref(shared).cast_mut().cast();
    isolate.request_interrupt(note, data);
}

unsafe extern "C" fn note(isolate: v8::UnsafeRawIsolatePtr, data: *mut c_void) {
    // SAFETY: `data` is the `CellShared` of the cell whose isolate is running this;
    // `run` holds it until that isolate is disposed of.
    let shared = unsafe { &*data.cast::<CellShared>() };
    // SAFETY: V8 passes the isolate that it interrupts, on its own thread.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
    if let Some(InterruptedIn(context)) = isolate.get_slot::<InterruptedIn>().cloned() {
        v8::scope!(let scope, &mut isolate);
        let context = v8::Local::new(scope, &context);
        let scope = &mut v8::ContextScope::new(scope, context);
        if let Some(at) = call_site(scope) {
            shared.set_stopped_at(at);
        }
    }
    isolate.terminate_execution();
}
