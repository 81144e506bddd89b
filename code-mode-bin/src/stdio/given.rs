//! Pages that are given to a pipe instead of copied.
//!
//! What is written to a pipe is copied into pages that the kernel makes for it, and
//! meanwhile the pipe is locked and its reader waits. Of a large text the pipe can
//! have the pages themselves (`vmsplice`), from which the reader copies. They must not
//! change any more then, whoever reads them how late. So they are kept until the pipe
//! has all of them, and let go of: what has the text's memory next has other pages.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use code_mode_protocol::frame::{self, FrameOutput};
use rustix::mm::{Advice, madvise};
use rustix::pipe::{IoSliceRaw, SpliceFlags, vmsplice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::large_pages;

/// A text from this size on is given. For a smaller one it costs as much as a copy.
const LARGE: usize = 1 << 20;

/// How much of its memory is made ready for the next text at a time.
const STEP: usize = 2 << 20;

/// How often it is looked whether a large text was read, and how many times at most.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(1);
const LOOKS: usize = 1000;

/// The end of a pipe that is written to.
pub(super) struct GivingPipe {
    pipe: AsyncFd<OwnedFd>,
    /// A large text was written, and nothing behind it yet.
    ends_large: bool,
    /// Texts whose pages the pipe has, and whose memory is not free yet.
    written: Vec<Given>,
}

impl GivingPipe {
    /// Writes to a pipe from here on without waiting for room.
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        // SAFETY: the descriptor is owned, so that it stays open, and the same, for as
        // long as it is registered.
        let pipe = unsafe { AsyncFd::register_with_interest(pipe, Interest::WRITABLE) }?;
        Ok(Self {
            pipe,
            ends_large: false,
            written: Vec::new(),
        })
    }

    /// Writes what is missing of these bytes, and counts what is `done`.
    async fn finish(&self, write: Write, bytes: &[u8], done: &mut usize) -> io::Result<()> {
        while *done < bytes.len() {
            let mut ready = self.pipe.writable().await?;
            let left = &bytes[*done..];
            match ready.try_io(|pipe| Ok(write(pipe.get_ref(), left)?)) {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(Ok(written)) => *done += written,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                // There is no room after all.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Waits until everything was read, or for a while.
    async fn until_read(&self) {
        for _ in 0..LOOKS {
            if !matches!(rustix::io::ioctl_fionread(self.pipe.get_ref()), Ok(1..)) {
                return;
            }
            // Nobody is told when a pipe becomes empty, but when its reader is gone.
            tokio::select! {
                _ = self.pipe.ready(Interest::ERROR) => return,
                () = tokio::time::sleep(LOOK_AGAIN_AFTER) => {}
            }
        }
    }

    /// Frees the texts that were written. The client is busy with a large one for longer
    /// than it takes to make other pages for its memory; where that is kept, the next
    /// text as large finds them made.
    async fn free_written(&mut self) {
        for mut given in self.written.drain(..) {
            if given.bytes.len() < large_pages::LARGE || !given.let_go() {
                continue;
            }
            for step in given.pages.clone().step_by(STEP) {
                let end = given.pages.end.min(step + STEP);
                let _ = given.advise(step..end, Advice::LinuxPopulateWrite);
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Writes a part of these bytes to a pipe, and says how much.
type Write = fn(&OwnedFd, &[u8]) -> rustix::io::Result<usize>;

fn copy(pipe: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    rustix::io::write(pipe, &bytes[..bytes.len().min(frame::PIECE)])
}

/// The pages must not change as long as anybody has them.
fn give(pipe: &OwnedFd, pages: &[u8]) -> rustix::io::Result<usize> {
    let pages = IoSliceRaw::from_slice(pages);
    // SAFETY: the kernel reads the memory only, as the pipe's end is the one that is
    // written to.
    unsafe { vmsplice(pipe, &[pages], SpliceFlags::NONBLOCK) }
}

impl FrameOutput for GivingPipe {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.finish(copy, bytes, &mut 0).await
    }

    async fn write_large(&mut self, part: Bytes) -> io::Result<()> {
        self.ends_large |= part.len() >= LARGE;
        let given = match large_pages::page_size() {
            // What somebody else has too cannot be let go of.
            Some(page) if part.len() >= LARGE && part.is_unique() => Given::new(part, page),
            _ => return self.write(&part).await,
        };
        let Range { start, end } = given.pages;
        self.write(&given.bytes[..start]).await?;
        let mut done = start;
        match self.finish(give, &given.bytes[..end], &mut done).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(error),
            // Where the kernel does not do this, the rest is copied.
            _ => self.finish(copy, &given.bytes, &mut done).await?,
        }
        self.written.push(given);
        Ok(())
    }

    /// Has a large text read before anything is written behind it. A client that finds
    /// the next message behind it cannot just empty its buffer: asyncio's then takes
    /// other memory for the next large one, page by page.
    async fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.ends_large) {
            self.free_written().await;
            self.until_read().await;
        }
        Ok(())
    }
}

/// A text some of whose pages may be a pipe's.
struct Given {
    bytes: Bytes,
    /// Where its whole pages are.
    pages: Range<usize>,
    /// Whether the pipe may have pages that are the text's too.
    is_given: bool,
}

impl Given {
    /// Of a text, with pages of this size.
    fn new(bytes: Bytes, page: usize) -> Self {
        let address = bytes.as_ptr().addr();
        let start = address.next_multiple_of(page) - address;
        let end = ((address + bytes.len()) / page * page).saturating_sub(address);
        Self {
            pages: start..end.max(start),
            is_given: true,
            bytes,
        }
    }

    /// Has the pages be the pipe's alone; `false` where they stay the text's too.
    fn let_go(&mut self) -> bool {
        if self.is_given {
            let pages = self.pages.clone();
            self.is_given = self.advise(pages, Advice::LinuxDontNeed).is_err();
        }
        !self.is_given
    }

    /// Changes what some of the pages are. Their content is lost.
    fn advise(&self, pages: Range<usize>, advice: Advice) -> rustix::io::Result<()> {
        let begin = self.bytes.as_ptr().cast_mut();
        // SAFETY: these are whole pages of the text, which nobody else has and whose
        // content nobody reads any more.
        unsafe { madvise(begin.add(pages.start).cast(), pages.len(), advice) }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if !self.let_go() {
            // Whoever had the memory next would change what the pipe has.
            std::mem::forget(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;

    use code_mode_protocol::CellId;
    use code_mode_protocol::frame::FrameWriter;
    use code_mode_protocol::native::FromWorker;
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

    use super::*;

    /// A pipe, with room for a part of a large text.
    fn pipe() -> (std::fs::File, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        fcntl_setpipe_size(&write, 1 << 20).expect("larger");
        (read.into(), write)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
    }

    fn write_to(pipe: OwnedFd, parts: Vec<Bytes>) -> io::Result<()> {
        runtime().block_on(async {
            let mut pipe = GivingPipe::new(pipe)?;
            for part in parts {
                pipe.write_large(part).await?;
            }
            pipe.flush().await
        })
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n / 7 % 251) as u8).collect()
    }

    #[test]
    fn what_was_given_stays_as_it_was_whoever_has_its_memory_next() {
        let text = text(500_000);
        let expected = text.clone();
        let (mut reader, writer) = pipe();
        let page = large_pages::page_size().expect("known");
        let mut given = Given::new(text.into(), page);
        let Range { start, end } = given.pages;
        runtime().block_on(async {
            let pipe = GivingPipe::new(writer).expect("a pipe");
            let pages = &given.bytes[..end];
            let mut done = start;
            pipe.finish(give, pages, &mut done).await.expect("room");
        });
        assert!(given.let_go());
        let mut memory = Vec::from(std::mem::take(&mut given.bytes));
        memory.fill(0xff);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("written");
        assert!(read == expected[start..end]);
    }

    #[test]
    fn texts_of_any_length_and_place_arrive_whole() {
        let whole = text(9 << 20);
        let mut parts = Vec::new();
        for (begin, end) in [(1, LARGE + 2), (0, 5 << 20), (4095, (4 << 20) + 1), (7, 8)] {
            parts.push(Bytes::from(whole.clone()).slice(begin..end));
        }
        // Parts of one text, as it has them where something of it is escaped.
        let text = Bytes::from(whole);
        parts.extend([text.slice(..4 << 20), text.slice(4_200_000..)]);
        drop(text);
        let expected = parts.concat();
        let (mut reader, writer) = pipe();
        let read = thread::spawn(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).map(|_| read)
        });
        write_to(writer, parts).expect("written");
        assert!(read.join().expect("no panic").expect("read") == expected);
    }

    #[test]
    fn a_text_that_somebody_else_has_too_stays_theirs() {
        let text = Bytes::from(text(5 << 20));
        let expected = text.to_vec();
        let (mut reader, writer) = pipe();
        let read = thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
        write_to(writer, vec![text.clone()]).expect("written");
        assert!(text == expected);
        assert_eq!(
            read.join().expect("no panic").expect("read"),
            text.len() as u64
        );
    }

    #[test]
    fn nothing_is_written_behind_a_large_text_before_that_is_read() {
        let notify = |text: String| {
            let message = FromWorker::Notify {
                call: 1,
                cell_id: CellId::nth(1),
                text,
            };
            message.encode().expect("encodes")
        };
        let mut contents = vec![notify("a".repeat(3 << 20)), notify("next".to_owned())];
        let first = 4 + contents[0].len();
        let (mut reader, writer) = pipe();
        let read = thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            let mut read = 0;
            while read < first {
                read += reader.read(&mut buffer).expect("written");
            }
            (read, reader)
        });
        let runtime = runtime();
        let written = runtime.block_on(async {
            let mut frames = FrameWriter::new(GivingPipe::new(writer)?, 1 << 30);
            frames.write(&mut contents).await
        });
        written.expect("written");
        assert_eq!(read.join().expect("read").0, first);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error() {
        let (reader, writer) = pipe();
        drop(reader);
        let error = write_to(writer, vec![text(5 << 20).into()]).expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
