//! Reading a worker's memory.

use std::io;

use code_mode_protocol::message::Lender;

/// The memory of a child process that has not been waited for, so that no other
/// process can have its id. Whether it may be read is for the system to say.
pub(super) struct ProcessMemory {
    pub(super) pid: libc::pid_t,
}

impl Lender for ProcessMemory {
    fn read(&self, address: u64, bytes: usize, to: &mut Vec<u8>) -> io::Result<()> {
        let wanted = to.len() + bytes;
        to.reserve(bytes);
        while to.len() < wanted {
            let missing = wanted - to.len();
            let done = (bytes - missing) as u64;
            let room = libc::iovec {
                iov_base: to.spare_capacity_mut().as_mut_ptr().cast(),
                iov_len: missing,
            };
            let there = libc::iovec {
                iov_base: std::ptr::without_provenance_mut(address.wrapping_add(done) as usize),
                iov_len: missing,
            };
            // SAFETY: the kernel writes at most `missing` bytes to `room`, which the spare
            // capacity has, as much was reserved. What it reads is another process's, and
            // it checks that address itself.
            let read = unsafe {
                libc::process_vm_readv(self.pid, &raw const room, 1, &raw const there, 1, 0)
            };
            match usize::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // SAFETY: the kernel says that it wrote so many bytes, behind those that
                // were there.
                Ok(read) => unsafe { to.set_len(to.len() + read) },
                Err(_) => return Err(refused(io::Error::last_os_error())),
            }
        }
        Ok(())
    }
}

/// An address that the process does not have is its lie; all else is its end.
fn refused(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EFAULT) => io::Error::new(
            io::ErrorKind::InvalidData,
            "it lent memory that it does not have",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This process may read itself.
    fn own() -> ProcessMemory {
        ProcessMemory {
            pid: std::process::id().cast_signed(),
        }
    }

    #[test]
    fn memory_is_appended_as_it_is() {
        let there: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        let mut read = b"before".to_vec();
        let address = there.as_ptr().expose_provenance() as u64;
        own()
            .read(address, there.len(), &mut read)
            .expect("readable");
        assert_eq!(read, [b"before", there.as_slice()].concat());
    }

    #[test]
    fn memory_that_is_not_there_is_a_lie() {
        let error = own()
            .read(4096, 10, &mut Vec::new())
            .expect_err("no memory");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = own().read(u64::MAX, 10, &mut Vec::new());
        assert_eq!(
            error.expect_err("no memory").kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn a_process_that_is_gone_has_no_memory() {
        let mut child = std::process::Command::new("true").spawn().expect("started");
        child.wait().expect("ended");
        let gone = ProcessMemory {
            pid: child.id().cast_signed(),
        };
        let error = gone
            .read(4096, 10, &mut Vec::new())
            .expect_err("no process");
        assert_ne!(error.kind(), io::ErrorKind::InvalidData);
    }
}
