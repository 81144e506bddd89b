//! Messages to the provider.
//!
//! One task writes them, as a rule. What a cell's thread has to say at the cell's end
//! it writes itself, if nothing else is on its way: waking the task first would be
//! the longer part. Whoever writes, messages go in the order in which they were sent.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::BytesMut;
use code_mode_protocol::frame::{self, Content, FrameOutput, FrameWriter};
use code_mode_protocol::message::Loans;
use code_mode_protocol::native::FromWorker;
use tokio::io::Sink;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What is larger is left to the task, which does not copy it.
const MAX_DIRECT_BYTES: usize = 16 << 10;

/// The way to the provider. Messages are never waited for; what bounds their number
/// are the limits on what cells may have in flight.
#[derive(Clone)]
pub(super) struct Outbound {
    way: Arc<Way>,
    queue: UnboundedSender<Content>,
}

struct Way {
    state: Mutex<State>,
    /// Writes what it can without waiting.
    write: Box<Write>,
    /// Very large texts, where the provider reads them here.
    loans: OnceLock<Loans>,
}

type Write = dyn Fn(&[u8]) -> io::Result<usize> + Send + Sync;

#[derive(Default)]
struct State {
    /// How many threads send [together](Outbound::together).
    together: usize,
    /// What was sent meanwhile, by whatever thread.
    kept: Vec<Content>,
    /// Messages that are queued or being written by the task.
    queued: usize,
    /// The end of a frame whose beginning was written directly. The task is told of
    /// it by an empty message.
    rest: BytesMut,
}

impl Way {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes these messages, unless others are on their way or they are large.
    /// Returns what is left of them.
    fn write_now(&self, contents: &[Content]) -> Option<BytesMut> {
        let bytes: usize = contents.iter().map(Content::len).sum();
        if bytes > MAX_DIRECT_BYTES {
            return None;
        }
        let mut frames = BytesMut::with_capacity(bytes + 4 * contents.len());
        for content in contents {
            content.put(&mut frames).ok()?;
        }
        // The task meets the same error and deals with it.
        match (self.write)(&frames).unwrap_or(0) {
            0 => None,
            written => Some(frames.split_off(written)),
        }
    }
}

impl Outbound {
    /// The way, and what writes the queue out. `write` writes to the same connection
    /// what it can without waiting.
    pub(super) fn new(
        write: impl Fn(&[u8]) -> io::Result<usize> + Send + Sync + 'static,
    ) -> (Self, OutboundWriter) {
        let (queue, contents) = unbounded_channel();
        let way = Arc::new(Way {
            state: Mutex::default(),
            write: Box::new(write),
            loans: OnceLock::new(),
        });
        let writer = OutboundWriter {
            contents,
            way: way.clone(),
        };
        (Self { way, queue }, writer)
    }

    pub(super) fn send(&self, message: FromWorker) {
        let content = match self.way.loans.get() {
            Some(loans) => message.encode_lending(loans),
            None => message.encode(),
        };
        let Ok(content) = content else {
            return;
        };
        let mut state = self.way.state();
        if state.together > 0 {
            state.kept.push(content);
        } else {
            self.queue(&mut state, content);
        }
    }

    /// Lends very large texts from here on.
    pub(super) fn lend(&self) {
        self.way.loans.get_or_init(Loans::default);
    }

    /// A text that was lent has been read.
    pub(super) fn returned(&self, loan: u64) {
        if let Some(loans) = self.way.loans.get() {
            loans.returned(loan);
        }
    }

    fn queue(&self, state: &mut State, content: Content) {
        state.queued += 1;
        let _ = self.queue.send(content);
    }

    /// Sends what is sent in `work` once it is done, from this thread if that is
    /// possible without waiting.
    pub(super) fn together(&self, work: &mut dyn FnMut()) {
        self.way.state().together += 1;
        let _sent_at_the_end = Together(self);
        work();
    }
}

struct Together<'a>(&'a Outbound);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        let Self(outbound) = self;
        let mut state = outbound.way.state();
        state.together -= 1;
        let kept = std::mem::take(&mut state.kept);
        let written = if state.queued == 0 && !kept.is_empty() {
            outbound.way.write_now(&kept)
        } else {
            None
        };
        match written {
            None => kept
                .into_iter()
                .for_each(|content| outbound.queue(&mut state, content)),
            Some(rest) if rest.is_empty() => {}
            Some(rest) => {
                state.rest = rest;
                outbound.queue(&mut state, Content::default());
            }
        }
    }
}

/// Writes the queue out.
pub(super) struct OutboundWriter {
    contents: UnboundedReceiver<Content>,
    way: Arc<Way>,
}

impl OutboundWriter {
    /// Writes until every [`Outbound`] is gone or the connection fails.
    pub(super) async fn run(mut self, output: impl FrameOutput) -> io::Result<()> {
        const AT_ONCE: usize = FrameWriter::<Sink>::AT_ONCE;
        let mut frames = FrameWriter::new(output, frame::MAX_FRAME_BYTES);
        let mut waiting = Vec::with_capacity(AT_ONCE);
        loop {
            let received = self.contents.recv_many(&mut waiting, AT_ONCE).await;
            if received == 0 {
                return Ok(());
            }
            let rest = std::mem::take(&mut self.way.state().rest);
            frames.get_mut().write(&rest).await?;
            waiting.retain(|content| !content.is_empty());
            frames.write(&mut waiting).await?;
            self.way.state().queued -= received;
        }
    }
}

#[cfg(test)]
mod tests {
    use code_mode_protocol::CellId;

    use super::*;

    /// A connection that takes so many bytes directly.
    fn outbound(takes: usize) -> (Outbound, OutboundWriter, Arc<Mutex<Vec<u8>>>) {
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let taken_ = taken.clone();
        let (outbound, writer) = Outbound::new(move |bytes| {
            let bytes = &bytes[..takes.min(bytes.len())];
            taken_.lock().expect("not poisoned").extend(bytes);
            Ok(bytes.len())
        });
        (outbound, writer, taken)
    }

    fn message(cell: u64) -> FromWorker {
        FromWorker::CellClosed {
            cell_id: CellId::nth(cell),
        }
    }

    fn frames(cells: &[u64]) -> Vec<u8> {
        let mut frames = BytesMut::new();
        for cell in cells {
            let content = message(*cell).encode().expect("encodes");
            content.put(&mut frames).expect("short");
        }
        frames.to_vec()
    }

    /// What the task writes once nothing more can come.
    async fn left(outbound: Outbound, writer: OutboundWriter) -> Vec<u8> {
        drop(outbound);
        let mut left = Vec::new();
        writer.run(&mut left).await.expect("written");
        left
    }

    fn together(outbound: &Outbound, cells: &[u64]) {
        outbound.together(&mut || {
            cells.iter().for_each(|cell| outbound.send(message(*cell)));
        });
    }

    #[tokio::test]
    async fn what_goes_together_is_written_on_the_spot() {
        let (outbound, writer, taken) = outbound(usize::MAX);
        together(&outbound, &[1, 2]);
        assert_eq!(*taken.lock().expect("not poisoned"), frames(&[1, 2]));
        assert!(left(outbound, writer).await.is_empty());
    }

    #[tokio::test]
    async fn the_rest_of_a_frame_comes_before_what_is_sent_later() {
        let (outbound, writer, taken) = outbound(3);
        together(&outbound, &[1, 2]);
        outbound.send(message(3));
        together(&outbound, &[4]);
        let taken = taken.lock().expect("not poisoned").clone();
        assert_eq!(taken.len(), 3);
        let all = [taken, left(outbound, writer).await].concat();
        assert_eq!(all, frames(&[1, 2, 3, 4]));
    }

    #[tokio::test]
    async fn nothing_overtakes_what_is_queued() {
        let (outbound, writer, taken) = outbound(usize::MAX);
        outbound.send(message(1));
        together(&outbound, &[2]);
        assert!(taken.lock().expect("not poisoned").is_empty());
        assert_eq!(left(outbound, writer).await, frames(&[1, 2]));
    }

    #[tokio::test]
    async fn what_another_thread_sends_meanwhile_keeps_its_place() {
        let (outbound, writer, taken) = outbound(usize::MAX);
        outbound.together(&mut || {
            outbound.send(message(1));
            std::thread::scope(|threads| {
                threads.spawn(|| outbound.send(message(2)));
            });
            outbound.send(message(3));
        });
        assert_eq!(*taken.lock().expect("not poisoned"), frames(&[1, 2, 3]));
        assert!(left(outbound, writer).await.is_empty());
    }

    #[tokio::test]
    async fn what_is_large_is_left_to_the_task() {
        let (outbound, writer, taken) = outbound(usize::MAX);
        let cells: Vec<u64> = (0..MAX_DIRECT_BYTES as u64).collect();
        together(&outbound, &cells);
        assert!(taken.lock().expect("not poisoned").is_empty());
        assert_eq!(left(outbound, writer).await, frames(&cells));
    }

    #[tokio::test]
    async fn a_connection_that_takes_nothing_now_gets_all_from_the_task() {
        let (outbound, writer, _) = outbound(0);
        together(&outbound, &[1, 2]);
        assert_eq!(left(outbound, writer).await, frames(&[1, 2]));
    }
}
