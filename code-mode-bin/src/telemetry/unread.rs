//! Lines of the log for a reader of standard error who may never read.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use code_mode_system::StandardError;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::OptionalWriter;

/// Lines that wait for a reader.
const UNREAD_LINES: usize = 4096;

/// How long the end of the program waits for a reader of the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A line that is not written: all before it were.
const MARK: &[u8] = b"\0";

/// Has a thread write the lines, and leaves out those that nobody reads. The first line starts the thread: most
/// programs log nothing, and the room for the lines alone is 160 KiB. A line is left out too while no thread can be had.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NoLineYet,
    Writing(NonBlocking, Receiver<()>),
    Ended,
}

/// Standard error, which tells when the mark has come.
struct Marked(Sender<()>);

impl Write for Marked {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line == MARK {
            let _ = self.0.send(());
            return Ok(line.len());
        }
        StandardError.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        StandardError.flush()
    }
}

impl MakeWriter<'_> for Unread {
    type Writer = OptionalWriter<NonBlocking>;

    fn make_writer(&self) -> Self::Writer {
        let mut state = self.state();
        if matches!(*state, State::NoLineYet) && can_have_thread() {
            let (mark, marked) = channel();
            let builder = NonBlockingBuilder::default();
            let builder = builder.buffered_lines_limit(UNREAD_LINES).lossy(true);
            let (writer, guard) = builder.finish(Marked(mark));
            // At its end it would say on standard output, where a client may read a wire, that the lines do not fit.
            std::mem::forget(guard);
            *state = State::Writing(writer, marked);
        }
        match &*state {
            State::Writing(writer, _) => OptionalWriter::some(writer.clone()),
            State::NoLineYet | State::Ended => OptionalWriter::none(),
        }
    }
}

/// Whether a thread can be had now; the library panics where it cannot.
fn can_have_thread() -> bool {
    let thread = thread::Builder::new().spawn(|| {});
    thread.is_ok_and(|thread| thread.join().is_ok())
}

impl Unread {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the last lines to be written when it is dropped. Later ones are left out.
#[derive(Debug)]
pub(crate) struct LastLines(pub(super) Unread);

impl Drop for LastLines {
    fn drop(&mut self) {
        let ended = std::mem::replace(&mut *self.0.state(), State::Ended);
        let State::Writing(mut writer, marked) = ended else {
            return;
        };
        let left_out = writer.error_counter().dropped_lines();
        let _ = writer.write(MARK);
        // Where the mark does not fit, nobody reads.
        if writer.error_counter().dropped_lines() == left_out {
            let _ = marked.recv_timeout(LAST_LINES);
        }
    }
}
