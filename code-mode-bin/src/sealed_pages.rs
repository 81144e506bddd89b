//! Memory that V8 seals for each isolate, kept once for all that wait.
//!
//! An isolate has tables of pointers of its own. Their first segments are filled
//! while it is made and then sealed: no more written to. They have the same content
//! in every isolate of a process, and are 64 KiB of the 860 that a waiting cell has.
//! So while a cell waits its sealed segments become another view of one copy.

use std::cell::Cell;
use std::io;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap_fixed,
};

use crate::large_pages::page_size;

/// What V8 seals at once: a segment of a table.
const SEGMENT: usize = 64 << 10;
/// How many segments are known of one isolate, and how many contents at all. V8 has
/// four tables for each.
const MAX: usize = 8;

/// A segment of the isolate of this thread.
#[derive(Clone, Copy)]
struct Sealed {
    /// 0 where there is none.
    address: usize,
    /// Whether it is a view of the one copy.
    shared: bool,
}

const NONE: Sealed = Sealed {
    address: 0,
    shared: false,
};

thread_local! {
    /// Plain memory without a destructor, because it is reached from `mprotect`.
    static SEALED: Cell<[Sealed; MAX]> = const { Cell::new([NONE; MAX]) };
}

/// The one copy of a content, in whole pages: shared memory that can be read only, for
/// as long as the process lives. What comes after it in a segment was never written to.
#[derive(Clone, Copy)]
struct Copied {
    address: usize,
    len: usize,
}

static COPIES: Mutex<[Option<Copied>; MAX]> = Mutex::new([None; MAX]);

/// Keeps sealed memory once.
pub(crate) struct SealedPages;

impl code_mode::IsolateMemory for SealedPages {
    fn isolate_begins(&self) {
        SEALED.set([NONE; MAX]);
    }

    fn isolate_waits(&self) {
        SEALED.set(SEALED.get().map(|sealed| Sealed {
            shared: sealed.shared || (sealed.address != 0 && share(sealed.address)),
            ..sealed
        }));
    }
}

/// Memory was made readable and no more.
pub(crate) fn sealed(address: usize, len: usize) {
    let mut all = SEALED.get();
    let is_known = all.iter().any(|sealed| sealed.address == address);
    let place = all.iter_mut().find(|sealed| sealed.address == 0);
    if len == SEGMENT
        && !is_known
        && let Some(place) = place
    {
        *place = Sealed {
            address,
            shared: false,
        };
        SEALED.set(all);
    }
}

/// Memory is about to be made more than readable: what is shared of it becomes its
/// isolate's own.
///
/// # Errors
/// Where there is no memory for that.
pub(crate) fn unseal(address: usize, len: usize) -> io::Result<()> {
    let mut all = SEALED.get();
    for sealed in &mut all {
        if (address..address.saturating_add(len)).contains(&sealed.address) {
            if sealed.shared {
                make_own(sealed.address)?;
            }
            *sealed = NONE;
        }
    }
    SEALED.set(all);
    Ok(())
}

/// The content of a segment, or of a part of one.
///
/// # Safety
/// The memory is mapped, and nobody writes to it as long as the result is used.
unsafe fn content<'a>(address: usize, len: usize) -> &'a [u8] {
    // SAFETY: by the caller's promise.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), len) }
}

/// Makes a segment a view of the one copy of its content; `false` where that cannot
/// be done.
fn share(address: usize) -> bool {
    // SAFETY: V8 has sealed this segment of the calling thread's isolate, which lives.
    // It would be made writable on this thread, and `unseal` forget it then.
    let segment = unsafe { content(address, SEGMENT) };
    let mut copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    let equal = |copied: &&Copied| {
        // SAFETY: a copy is never unmapped or written to.
        let copy = unsafe { content(copied.address, copied.len) };
        segment.starts_with(copy)
    };
    let copied = match copies.iter().flatten().find(equal) {
        Some(copied) => *copied,
        None => {
            let Some(place) = copies.iter_mut().find(|copied| copied.is_none()) else {
                return false;
            };
            let Ok(copied) = copy(segment) else {
                return false;
            };
            *place.insert(copied)
        }
    };
    // SAFETY: the range is the segment or its beginning, which is replaced at once by
    // memory that can be read as before and has the same content, so that nobody who
    // reads it sees a difference. Of size 0, what is to be moved is another view of
    // the copy, which stays where it is.
    let view = unsafe {
        mremap_fixed(
            std::ptr::with_exposed_provenance_mut(copied.address),
            0,
            copied.len,
            MremapFlags::MAYMOVE,
            std::ptr::with_exposed_provenance_mut(address),
        )
    };
    view.is_ok()
}

/// A copy of what was written of a segment.
fn copy(segment: &[u8]) -> io::Result<Copied> {
    let page = page_size().ok_or(io::ErrorKind::Unsupported)?;
    let is_empty = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let written = segment.chunks(page).rposition(|page| !is_empty(page));
    let len = written.map_or(0, |last| (last + 1) * page);
    if len == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choosing changes no memory
    // that is in use. It has `len` bytes, of which nobody else knows yet.
    unsafe {
        let copied = mmap_anonymous(null_mut(), len, protection, MapFlags::SHARED)?;
        copied
            .cast::<u8>()
            .copy_from_nonoverlapping(segment.as_ptr(), len);
        mprotect(copied, len, MprotectFlags::READ)?;
        Ok(Copied {
            address: copied.expose_provenance(),
            len,
        })
    }
}

/// Makes a segment that is a view memory of its own again, with the same content.
fn make_own(address: usize) -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the new mapping is as long as the segment, which is mapped and can be
    // read, and which the mapping then replaces at once, with the content it had.
    unsafe {
        let own = mmap_anonymous(null_mut(), SEGMENT, protection, MapFlags::PRIVATE)?;
        let segment = std::ptr::with_exposed_provenance_mut::<u8>(address);
        own.cast::<u8>().copy_from_nonoverlapping(segment, SEGMENT);
        mremap_fixed(own, SEGMENT, SEGMENT, MremapFlags::MAYMOVE, segment.cast())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use code_mode::IsolateMemory;

    use super::*;

    /// A segment has so much written to it: some pages, and not whole ones.
    const WRITTEN: usize = 8193;

    /// What V8 does: fills a segment in part, and seals it.
    fn segment(byte: u8) -> usize {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which is written to within its length.
        unsafe {
            let new =
                mmap_anonymous(null_mut(), SEGMENT, protection, MapFlags::PRIVATE).expect("mapped");
            new.cast::<u8>().write_bytes(byte, WRITTEN);
            assert_eq!(libc::mprotect(new, SEGMENT, libc::PROT_READ), 0);
            new.expose_provenance()
        }
    }

    fn wait() {
        SealedPages.isolate_waits();
    }

    /// The protection of the mapping at an address, and the file that it shows.
    fn mapping(address: usize) -> (String, String) {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("readable");
        let number = |text: &str| usize::from_str_radix(text, 16).expect("a number");
        let of = maps.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (begin, end) = fields[0].split_once('-')?;
            (number(begin)..number(end))
                .contains(&address)
                .then(|| (fields[1].to_owned(), fields[4].to_owned()))
        });
        of.expect("mapped")
    }

    fn has(address: usize, byte: u8) -> bool {
        // SAFETY: a segment of these tests stays mapped.
        let content = unsafe { content(address, SEGMENT) };
        let (written, rest) = content.split_at(WRITTEN);
        written.iter().all(|b| *b == byte) && rest.iter().all(|b| *b == 0)
    }

    #[test]
    fn equal_segments_of_cells_that_wait_are_one_and_others_are_not() {
        let segments = [1, 1, 2].map(|byte| {
            SealedPages.isolate_begins();
            let address = segment(byte);
            wait();
            wait();
            assert!(has(address, byte));
            mapping(address)
        });
        assert!(segments.iter().all(|(protection, _)| protection == "r--s"));
        assert_eq!(segments[0], segments[1]);
        assert_ne!(segments[0], segments[2]);
    }

    #[test]
    fn a_segment_that_is_unsealed_is_its_isolates_own_again() {
        SealedPages.isolate_begins();
        let (first, second) = (segment(3), segment(3));
        wait();
        assert_eq!(mapping(first), mapping(second));
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let memory = std::ptr::with_exposed_provenance_mut::<u8>(first);
        // SAFETY: the segment is mapped, and this test's alone.
        unsafe {
            assert_eq!(libc::mprotect(memory.cast(), SEGMENT, writable), 0);
            assert!(has(first, 3));
            memory.write_bytes(4, WRITTEN);
        }
        wait();
        assert!(has(first, 4) && has(second, 3));
        assert_eq!(mapping(first).0, "rw-p");
    }

    #[test]
    fn what_an_isolate_that_is_gone_had_is_left_alone() {
        SealedPages.isolate_begins();
        let gone = segment(5);
        // SAFETY: nothing refers to the segment.
        let unmapped =
            unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(gone), SEGMENT) };
        unmapped.expect("unmapped");
        SealedPages.isolate_begins();
        wait();
    }

    #[test]
    fn a_segment_that_nothing_was_written_to_is_left_alone() {
        SealedPages.isolate_begins();
        let empty = segment(0);
        wait();
        assert_eq!(mapping(empty).0, "r--p");
    }
}
