//! How often, and how much, this program's own code allocates for one more exec or
//! tool call. V8's own memory is not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use code_mode_host::{Provider, Sandbox};

use crate::{HI, calls, exec, in_process, options, runtime, session, tools};

/// The system's allocator, with counters.
struct Counting;

static NUMBER: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    NUMBER.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

// SAFETY: every call goes to `System` as it came, which keeps the contract; the
// counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as in `alloc`; `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What [`allocations`] knows.
pub const ALLOCATIONS: [&str; 6] = [
    "in process: warm exec, 0 tools",
    "in process: warm exec, 128 tools",
    "in process: tool call",
    "provider's side of IPC: warm exec, 0 tools",
    "provider's side of IPC: warm exec, 128 tools",
    "provider's side of IPC: tool call",
];

/// Number and bytes of allocations for one more exec or call.
pub fn allocations(scenario: &str) -> String {
    let runtime = runtime();
    runtime.block_on(async {
        if scenario.starts_with("in process") {
            let provider = in_process();
            let session = session(&provider).await;
            of_one_more(&session, scenario).await
        } else {
            let provider = Provider::new(options(Sandbox::BestEffort, 0)).expect("the program");
            let session = session(&provider).await;
            of_one_more(&session, scenario).await
        }
    })
}

async fn of_one_more(session: &code_mode_host::Session, scenario: &str) -> String {
    const TIMES: u64 = 200;
    let call = scenario.ends_with("tool call");
    let set = match scenario {
        _ if call => tools(1),
        _ if scenario.contains("128") => tools(128),
        _ => tools(0),
    };
    let measure = async |source: &str, execs: u64| {
        let before = (
            NUMBER.load(Ordering::Relaxed),
            BYTES.load(Ordering::Relaxed),
        );
        for _ in 0..execs {
            exec(session, source, &set).await;
        }
        (
            NUMBER.load(Ordering::Relaxed) - before.0,
            BYTES.load(Ordering::Relaxed) - before.1,
        )
    };
    // Queues and maps have grown to their size after that.
    let warm_up = if call {
        calls(100, false)
    } else {
        HI.to_owned()
    };
    measure(&warm_up, 20).await;
    let (number, bytes) = if call {
        let few = measure(&calls(1, false), 1).await;
        let many = measure(&calls(1 + TIMES as usize, false), 1).await;
        (many.0.saturating_sub(few.0), many.1.saturating_sub(few.1))
    } else {
        measure(HI, TIMES).await
    };
    format!("{} {}", number / TIMES, bytes / TIMES)
}
