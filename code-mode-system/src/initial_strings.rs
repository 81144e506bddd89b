//! The arguments and the environment of this process, where the kernel has put them.
//!
//! **What it does.** It reads both in place, and can overwrite them: a copy of this process that runs what
//! strangers wrote must not find a token in an environment that it does not need.
//!
//! **The risk.** It writes to memory that the C library and the standard library refer to. `clearenv` removes what
//! refers to the environment first. The arguments are still referred to: nothing may ask for them after this.
//!
//! **When to remove it.** With `code-mode-sandbox/src/linux/split.rs`, which needs it.
#![allow(
    unsafe_code,
    reason = "the strings are known by their addresses only, and the C library by the environment"
)]

use std::ffi::CStr;
use std::ops::Range;

/// The arguments and the environment of this process.
#[derive(Debug)]
pub struct InitialStrings {
    arguments: Range<usize>,
    environment: Range<usize>,
    /// The end of the path by which the program was started, which lies behind both.
    end: usize,
    threads: usize,
}

impl InitialStrings {
    /// Where they are. `None` where the kernel does not say, as without `/proc`.
    pub fn find() -> Option<Self> {
        let stat = std::fs::read("/proc/self/stat").ok()?;
        // The second field is a name, which may have any byte; the third follows the last bracket.
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let fields = str::from_utf8(stat.get(after_name..)?).ok()?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<usize>().ok();
        let environment = number(50)?..number(51)?;
        let found = Self {
            arguments: number(48)?..number(49)?,
            end: end_of_path(environment.end),
            environment,
            threads: number(20)?,
        };
        let is_in_order = 0 < found.arguments.start
            && found.arguments.start < found.arguments.end
            && found.arguments.end <= found.environment.start
            && found.environment.start <= found.environment.end;
        is_in_order.then_some(found)
    }

    /// Whether this process had one thread when they were found.
    pub fn has_one_thread(&self) -> bool {
        self.threads == 1
    }

    /// The arguments, of which the first is the program's name.
    pub fn arguments(&self) -> impl Iterator<Item = &CStr> {
        self.strings(&self.arguments)
    }

    /// The environment, as it lies there: in its order, and also strings without `=`.
    pub fn environment(&self) -> impl Iterator<Item = &CStr> {
        self.strings(&self.environment)
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        self.environment().find_map(|pair| {
            pair.to_bytes()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
        })
    }

    fn strings(&self, range: &Range<usize>) -> impl Iterator<Item = &CStr> {
        // SAFETY: the kernel has mapped this memory for the life of the process, and says where it is. Nothing
        // writes to it but `forget`, whose caller promises that nothing has borrowed it.
        let bytes = unsafe {
            std::slice::from_raw_parts(range.start as *const u8, range.end - range.start)
        };
        bytes
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|string| CStr::from_bytes_with_nul(string).ok())
    }

    /// Overwrites both, and the path by which the program was started, so that this process has an empty environment and, in lists of processes, this title.
    ///
    /// # Safety
    /// The process has one thread, no other value of this type has borrowed these strings, and nothing calls
    /// `std::env::args` after this.
    pub unsafe fn forget(self, title: &str) {
        let all = self.arguments.start..self.end;
        // SAFETY: the memory is mapped and may be written, as in `strings`; no borrow of it is left. There is no
        // other thread that reads the environment, which has no variable any more when its strings go.
        unsafe {
            libc::clearenv();
            let bytes = std::slice::from_raw_parts_mut(all.start as *mut u8, all.end - all.start);
            bytes.fill(0);
            // The last byte stays: it ends the title.
            for (byte, of_title) in bytes[..all.end - all.start - 1]
                .iter_mut()
                .zip(title.bytes())
            {
                *byte = of_title;
            }
        }
    }
}

/// The end of the path by which the kernel has started the program. The kernel puts it behind the environment, which
/// ends here; where it has not, this is the end.
fn end_of_path(environment: usize) -> usize {
    // SAFETY: the call reads a list that the kernel has made before the first instruction.
    let path = unsafe { libc::getauxval(libc::AT_EXECFN) };
    match usize::try_from(path) {
        Ok(path) if path == environment => {
            // SAFETY: a string of the kernel's lies there for the life of the process.
            let path = unsafe { CStr::from_ptr(path as *const libc::c_char) };
            environment + path.count_bytes()
        }
        _ => environment,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_standard_library() {
        let strings = InitialStrings::find().expect("Linux with /proc");
        let bytes = |string: &CStr| string.to_bytes().to_vec();
        let arguments: Vec<_> = strings.arguments().map(bytes).collect();
        let expected: Vec<_> = std::env::args_os()
            .map(|argument| argument.as_encoded_bytes().to_vec())
            .collect();
        assert_eq!(arguments, expected);
        let path = std::env::var_os("PATH").expect("a path");
        assert_eq!(strings.variable("PATH"), Some(path.as_encoded_bytes()));
        assert_eq!(strings.variable("PATH_OF_NOTHING"), None);
        assert!(!strings.has_one_thread(), "a test has its own");
    }
}
