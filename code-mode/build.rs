//! Makes the startup snapshot that every isolate begins from.
//!
//! It holds the context a cell sees, with every helper installed and the hidden
//! globals gone, so that a new isolate costs a deserialisation and no script
//! runs before the cell's own. A snapshot fits the V8 that made it, so where the
//! build is for another target than the machine's own this writes an empty file
//! and the program makes its snapshot when it starts.

use std::path::PathBuf;
use std::{env, fs};

#[path = "src/bootstrap.rs"]
mod bootstrap;

/// Stands for the program's own callback, which the snapshot refers to by its
/// place in the list of external references only.
fn native(_: &mut v8::PinScope, _: v8::FunctionCallbackArguments, _: v8::ReturnValue) {}

fn lazy<'s>(
    _: &mut v8::PinScope<'s, '_>,
    _: v8::Local<'s, v8::Name>,
    _: v8::PropertyCallbackArguments<'s>,
    _: v8::ReturnValue<'_, v8::Value>,
) {
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/bootstrap.rs");
    println!("cargo:rerun-if-changed=src/bootstrap.js");
    println!("cargo:rerun-if-changed=src/web");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let native_build = env::var_os("HOST") == env::var_os("TARGET");
    let blob = if native_build {
        bootstrap::initialize_v8();
        bootstrap::create_snapshot(bootstrap::Callbacks { native, lazy })
            .expect("V8 makes a snapshot")
    } else {
        Vec::new()
    };
    fs::write(out.join("snapshot.bin"), blob).expect("the snapshot is written");
}
