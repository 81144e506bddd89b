//! Where large buffers come from.
//!
//! **What it does.** The system's allocator asks the kernel for each
//! buffer of a megabyte or more and gives it back when it is freed. A text of 8 MiB then
//! costs two thousand page faults in every process that touches it. Buffers of that size
//! come from mimalloc instead, which keeps freed ones for a while and asks for huge
//! pages. Smaller ones stay where they are: with mimalloc for everything, a process has
//! twice the memory and takes a third longer to start.
//!
//! **Gain.** 8 MiB in and 8 MiB out over `serve`: 0.66 to 0.74 of the reference's time without it,
//! 0.53 with it (`docs/PERFORMANCE.md`).
//!
//! **Risk.** A buffer must go back to where it came from. That is decided by its size
//! alone, which the caller of `dealloc` must state as it was.
//!
//! **When to remove it.** A system's allocator that keeps large buffers, or a kernel whose
//! page faults are cheap: delete this module and the dependency.
#![allow(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;

/// Buffers from this size on are large.
const LARGE: usize = 1 << 20;

/// The program's allocator: mimalloc for large buffers, the system's for the rest.
#[derive(Debug)]
pub struct LargeBuffers;

fn of(size: usize) -> &'static dyn GlobalAlloc {
    if size >= LARGE { &MiMalloc } else { &System }
}

// SAFETY: both allocators keep the contract. Each block is allocated, resized in place
// and freed by the one that its size chooses; where resizing changes the choice, the
// block is copied to a new one of the other allocator.
unsafe impl GlobalAlloc for LargeBuffers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the chosen allocator asks for.
        unsafe { of(layout.size()).alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { of(layout.size()).alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `layout` is the one that the block was allocated with, so the same
        // allocator is chosen.
        unsafe { of(layout.size()).dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if (layout.size() >= LARGE) == (new_size >= LARGE) {
            // SAFETY: the block is of this allocator, and stays with it.
            return unsafe { of(new_size).realloc(block, layout, new_size) };
        }
        // SAFETY: the caller promises that `new_size` rounded up to the alignment does not
        // overflow.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: `new_size` is not zero, by the caller's promise.
        let new_block = unsafe { self.alloc(new_layout) };
        if !new_block.is_null() {
            // SAFETY: both blocks have at least the smaller size, and the new one is
            // nobody else's. The old one is freed once, with its own layout.
            unsafe {
                std::ptr::copy_nonoverlapping(block, new_block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
        }
        new_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_grows_and_shrinks_across_the_border_keeps_its_content() {
        let sizes = [100, LARGE - 1, LARGE, 3 * LARGE, LARGE, LARGE - 1, 10];
        let layout = |size| Layout::from_size_align(size, 8).expect("a layout");
        // SAFETY: each block is used within its size and freed once with its own layout.
        unsafe {
            let mut block = LargeBuffers.alloc(layout(sizes[0]));
            block.write_bytes(7, 10);
            for pair in sizes.windows(2) {
                block = LargeBuffers.realloc(block, layout(pair[0]), pair[1]);
                let content = std::slice::from_raw_parts(block, 10);
                assert_eq!(content, [7; 10], "{pair:?}");
            }
            LargeBuffers.dealloc(block, layout(10));
        }
    }
}
