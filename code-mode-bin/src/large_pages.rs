//! Memory for large buffers.
//!
//! A payload of megabytes is copied a few times on its way, and each copy is a
//! new buffer whose pages the kernel makes as they are first written to, which
//! takes several times as long as the copy itself. So buffers of this program
//! that are large are mapped here: with huge pages asked for, which are made 512
//! times as much at a time; growing by moving their pages instead of their
//! content; and a few that were freed are kept for the next. Everything else is
//! the system allocator's. V8 maps its own memory, and gets huge pages for what
//! is large there by way of [`mprotect`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{NonNull, null_mut};
use std::sync::Mutex;

use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap,
};

use crate::sealed_pages;

/// Memory from this size on is large: two huge pages, so that at least one fits
/// whatever the alignment.
pub(crate) const LARGE: usize = 4 << 20;
/// Mappings have a multiple of this size, so that one can serve buffers of about
/// its size. What a buffer does not use of it is never written to, and so not there.
const GRAIN: usize = 2 << 20;
/// A text of some megabytes, often a round number, and the same with a little around
/// it, are to have mappings of one length: the one is often freed before the other.
const AROUND: usize = 64 << 10;
/// The kernel aligns a mapping to pages, and none has smaller ones.
const PAGE: usize = 4096;
/// Freed mappings that are kept for the next buffer, at most.
const KEPT: usize = 4;
/// Their bytes, at most.
const KEPT_BYTES: usize = 32 << 20;

/// The program's allocator.
struct LargePages {
    kept: Mutex<[Kept; KEPT]>,
}

/// A mapping in use by nobody. The kernel may take its pages where it is short of
/// memory. An empty place has the length 0.
#[derive(Clone, Copy)]
struct Kept {
    address: usize,
    len: usize,
}

impl LargePages {
    const fn new() -> Self {
        let nothing = Kept { address: 0, len: 0 };
        Self {
            kept: Mutex::new([nothing; KEPT]),
        }
    }

    /// Keeps a freed mapping, unless there are enough.
    fn keep(&self, address: usize, len: usize) -> bool {
        let Ok(mut kept) = self.kept.lock() else {
            return false;
        };
        let bytes: usize = kept.iter().map(|mapping| mapping.len).sum();
        if bytes + len > KEPT_BYTES {
            return false;
        }
        match kept.iter_mut().find(|mapping| mapping.len == 0) {
            Some(place) => {
                *place = Kept { address, len };
                true
            }
            None => false,
        }
    }

    /// Takes a mapping of this length that is kept.
    fn take(&self, len: usize) -> Option<usize> {
        let mut kept = self.kept.lock().ok()?;
        let place = kept.iter_mut().find(|mapping| mapping.len == len)?;
        Some(std::mem::replace(place, Kept { address: 0, len: 0 }).address)
    }

    /// Memory for a large buffer, with anything in it.
    fn map(&self, size: usize) -> *mut u8 {
        let len = mapped_len(size);
        match self.take(len) {
            Some(address) => std::ptr::with_exposed_provenance_mut(address),
            None => map_new(len),
        }
    }

    /// Frees a buffer.
    ///
    /// # Safety
    /// It was made by [`Self::map`] or [`map_new`] for this size, and is used no more.
    unsafe fn unmap(&self, block: *mut u8, size: usize) {
        let len = mapped_len(size);
        // SAFETY: the range is a whole mapping, by the caller's promise. Its content
        // may go.
        let _ = unsafe { madvise(block.cast(), len, Advice::LinuxFree) };
        if !self.keep(block.expose_provenance(), len) {
            // SAFETY: the range is a whole mapping that nobody uses, by the caller's
            // promise, and it was not kept.
            let _ = unsafe { munmap(block.cast(), len) };
        }
    }
}

#[global_allocator]
static ALLOCATOR: LargePages = LargePages::new();

/// How large a page of this system is. The C library knows it; rustix would open a
/// file for it, which ends a worker that is locked in.
pub(crate) fn page_size() -> Option<usize> {
    // SAFETY: the call reads what the process was started with.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).ok().filter(|page| *page > 0)
}

/// Whether a buffer is mapped. Its layout alone decides, so that freeing and
/// growing it know where it came from.
fn is_mapped(size: usize, layout: Layout) -> bool {
    size >= LARGE && layout.align() <= PAGE
}

/// The length of a buffer's mapping. A size is at most `isize::MAX`, so that this
/// does not overflow.
fn mapped_len(size: usize) -> usize {
    (size + AROUND).next_multiple_of(GRAIN)
}

/// Memory that is all zero.
fn map_new(len: usize) -> *mut u8 {
    // SAFETY: a new mapping at an address of the kernel's choosing changes no
    // memory that is in use.
    let mapped = unsafe {
        mmap_anonymous(
            null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    let Ok(address) = mapped else {
        return null_mut();
    };
    // SAFETY: the range is the mapping just made; the advice changes how its pages
    // are made, not what they contain. Without huge pages all works the same.
    let _ = unsafe { madvise(address, len, Advice::LinuxHugepage) };
    address.cast()
}

// SAFETY: every method either hands its arguments to `System` unchanged, or deals
// in mappings of its own: of at least the size asked for, aligned to pages, in use
// by nobody else, alive until `dealloc` or `realloc`. Which of the two it is
// follows from the layout alone (`is_mapped`), and the caller promises to pass the
// layout a block was made or last resized with. Nothing here panics or allocates:
// the lock is a futex, and `rustix` makes system calls only.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout.size(), layout) {
            return self.map(layout.size());
        }
        // SAFETY: the caller's promises about `layout` are those `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout.size(), layout) {
            return map_new(mapped_len(layout.size()));
        }
        // SAFETY: the caller's promises about `layout` are those `System` asks for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_mapped(layout.size(), layout) {
            // SAFETY: by `is_mapped` the block is such a mapping, and the caller uses it
            // no more.
            return unsafe { self.unmap(block, layout.size()) };
        }
        // SAFETY: by `is_mapped` the block is of `System`, with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let was_mapped = is_mapped(layout.size(), layout);
        let is_mapped = is_mapped(new_size, layout);
        if was_mapped && is_mapped {
            let (len, new_len) = (mapped_len(layout.size()), mapped_len(new_size));
            // SAFETY: the block is a mapping of this length; the caller uses its old
            // address no more once another is returned. The kernel keeps the content
            // and the advice, and where it refuses nothing has changed.
            let moved = unsafe { mremap(block.cast(), len, new_len, MremapFlags::MAYMOVE) };
            return moved.map_or(null_mut(), <*mut _>::cast);
        }
        if !was_mapped && !is_mapped {
            // SAFETY: the block is of `System` with this layout, and the caller's
            // promises about the sizes are those `System` asks for.
            return unsafe { System.realloc(block, layout, new_size) };
        }
        // SAFETY: the caller promises that `new_size`, rounded up to the alignment,
        // is no larger than `isize::MAX` and not zero.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: `new_layout` has a size that is not zero.
        let Some(new) = NonNull::new(unsafe { self.alloc(new_layout) }) else {
            return null_mut();
        };
        // SAFETY: both blocks are at least as long as the smaller of the two sizes, and
        // do not overlap as both are alive; the old one is then used no more.
        unsafe {
            new.as_ptr()
                .copy_from_nonoverlapping(block, layout.size().min(new_size));
            self.dealloc(block, layout);
        }
        new.as_ptr()
    }
}

/// The C library's `mprotect`, in its place for everything this program links
/// statically, V8 above all.
///
/// V8 reserves its heap's address space once and makes ranges of it usable with
/// this call; there is no other place to say how their pages are to be made. One
/// large object (a string of megabytes) is one such range. Smaller ranges are left
/// alone: a heap that is mostly empty would be filled up with huge pages. What it
/// seals with this call is [kept once](sealed_pages).
///
/// # Safety
/// As `mprotect(2)`: nobody relies on what the change forbids.
#[unsafe(no_mangle)]
unsafe extern "C" fn mprotect(
    address: *mut libc::c_void,
    len: usize,
    protection: libc::c_int,
) -> libc::c_int {
    if protection != libc::PROT_READ && sealed_pages::unseal(address.addr(), len).is_err() {
        // SAFETY: the C library's `errno` of this thread is always there to be set.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
        return -1;
    }
    // SAFETY: the arguments are the caller's, who promises what the call asks for;
    // they are passed on as it takes them.
    let result = unsafe { libc::syscall(libc::SYS_mprotect, address, len, protection) };
    let usable = libc::PROT_READ | libc::PROT_WRITE;
    if result == 0 && len >= LARGE && protection == usable {
        // SAFETY: the range was mapped, or the call before had failed; the advice
        // changes how its pages are made, not what they contain. rustix leaves
        // `errno` alone.
        let _ = unsafe { madvise(address, len, Advice::LinuxHugepage) };
    }
    if result == 0 && protection == libc::PROT_READ {
        sealed_pages::sealed(address.expose_provenance(), len);
    }
    if result == 0 { 0 } else { -1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 1).expect("a layout")
    }

    #[test]
    fn a_buffer_keeps_its_content_however_it_grows_and_shrinks() {
        let mut buffer: Vec<u8> = Vec::new();
        let sizes = [
            100,
            LARGE - 1,
            LARGE,
            3 * LARGE + 7,
            LARGE + 5,
            LARGE - 2,
            10,
        ];
        let byte = |n: usize| (n % 251) as u8;
        for size in sizes {
            buffer.truncate(size);
            buffer.shrink_to_fit();
            buffer.reserve_exact(size - buffer.len());
            buffer.extend((buffer.len()..size).map(byte));
            assert!(
                buffer.iter().enumerate().all(|(n, b)| *b == byte(n)),
                "{size}"
            );
        }
    }

    #[test]
    fn zeroed_memory_is_zero_though_other_memory_was_freed() {
        for _ in 0..KEPT + 1 {
            drop(std::hint::black_box(vec![7_u8; LARGE]));
        }
        assert!(vec![0_u8; LARGE].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_freed_mapping_serves_the_next_buffer_of_about_its_size() {
        let allocator = LargePages::new();
        let (first, second) = (layout(2 * LARGE), layout(2 * LARGE + 100));
        // SAFETY: the blocks are made and freed with their own layouts, and the first
        // is not used once it is freed.
        unsafe {
            let block = allocator.alloc(first);
            allocator.dealloc(block, first);
            let next = allocator.alloc(second);
            assert_eq!(next, block);
            let other = allocator.alloc(second);
            assert_ne!(other, block);
            allocator.dealloc(next, second);
            allocator.dealloc(other, second);
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let allocator = LargePages::new();
        let sizes = [
            KEPT_BYTES,
            LARGE,
            LARGE,
            KEPT_BYTES + 1,
            2 * LARGE,
            LARGE,
            LARGE,
        ];
        for size in sizes {
            let layout = layout(size);
            // SAFETY: the block is made and freed with the same layout.
            unsafe { allocator.dealloc(allocator.alloc(layout), layout) };
        }
        let kept = allocator.kept.lock().expect("not poisoned");
        assert!(kept.iter().map(|mapping| mapping.len).sum::<usize>() <= KEPT_BYTES);
    }

    #[test]
    fn a_size_that_nothing_has_is_refused() {
        let mut buffer: Vec<u8> = Vec::new();
        assert!(buffer.try_reserve_exact(isize::MAX as usize).is_err());
        assert!(
            buffer
                .try_reserve_exact(isize::MAX as usize - 2 * GRAIN)
                .is_err()
        );
    }

    #[test]
    fn a_protection_that_cannot_be_is_refused_with_its_reason() {
        let page = std::ptr::without_provenance_mut(PAGE + 1);
        // SAFETY: the address is not one of a page, so the kernel changes nothing.
        assert_eq!(unsafe { mprotect(page, PAGE, libc::PROT_READ) }, -1);
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
