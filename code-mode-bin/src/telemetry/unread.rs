//! Lines of the log for a reader of standard error who may never read.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use code_mode_system::StandardError;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::OptionalWriter;

/// Lines that wait for a reader.
const UNREAD_LINES: usize = 4096;

/// Has a thread write the lines, and leaves out those that nobody reads. The first line starts the thread: most
/// programs log nothing, and the room for the lines alone is 160 KiB. A line is left out too while no thread can be had.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NoLineYet,
    Writing(NonBlocking, WorkerGuard),
    Ended,
}

impl MakeWriter<'_> for Unread {
    type Writer = OptionalWriter<NonBlocking>;

    fn make_writer(&self) -> Self::Writer {
        let mut state = self.state();
        // The library panics where it cannot have a thread, so another one shows before that it can.
        if matches!(*state, State::NoLineYet) && thread::Builder::new().spawn(|| {}).is_ok() {
            let builder = NonBlockingBuilder::default();
            let builder = builder.buffered_lines_limit(UNREAD_LINES).lossy(true);
            let (writer, thread) = builder.finish(StandardError);
            *state = State::Writing(writer, thread);
        }
        match &*state {
            State::Writing(writer, _) => OptionalWriter::some(writer.clone()),
            State::NoLineYet | State::Ended => OptionalWriter::none(),
        }
    }
}

impl Unread {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the last lines when it is dropped. Later ones are left out.
#[derive(Debug)]
pub(crate) struct LastLines(pub(super) Unread);

impl Drop for LastLines {
    fn drop(&mut self) {
        let ended = std::mem::replace(&mut *self.0.state(), State::Ended);
        let State::Writing(mut writer, thread) = ended else {
            return;
        };
        // A line of nothing shows whether there is room. Without, the library would say so on standard output, which
        // may be a wire.
        let left_out = writer.error_counter().dropped_lines();
        let _ = writer.write(b"");
        match writer.error_counter().dropped_lines() == left_out {
            true => drop(thread),
            false => std::mem::forget(thread),
        }
    }
}
