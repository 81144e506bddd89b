//! Standard error as a log that nobody has to wait for.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for a reader of standard error; more are left out.
const UNREAD_LINES: usize = 4096;

/// Writes lines on a thread of its own, which starts with the first: most runs log
/// nothing, and a client waits for the start of each.
#[derive(Clone, Debug, Default)]
pub(super) struct LogWriter {
    started: Arc<OnceLock<(NonBlocking, LastLines)>>,
}

/// Sends the lines that still wait.
type LastLines = Mutex<Option<WorkerGuard>>;

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = NonBlocking;

    fn make_writer(&'a self) -> NonBlocking {
        let (writer, _) = self.started.get_or_init(|| {
            let builder = NonBlockingBuilder::default();
            let builder = builder.buffered_lines_limit(UNREAD_LINES).lossy(true);
            let (writer, last_lines) = builder.finish(std::io::stderr());
            (writer, Mutex::new(Some(last_lines)))
        });
        writer.clone()
    }
}

/// Waits a moment for the last lines to be written when it is dropped.
#[derive(Debug)]
pub(crate) struct LogGuard(pub(super) LogWriter);

impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some((_, last_lines)) = self.0.started.get() {
            drop(
                last_lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(),
            );
        }
    }
}
