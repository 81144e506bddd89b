//! Messages on their way out.
//!
//! The sender of a message writes it to the connection at once, from its own thread,
//! if the connection takes it; waking a task first would be the longer part of the
//! way. What the connection does not take now is queued, and a task writes it when
//! there is room; so it does with what its sender leaves to it
//! ([`Outbound::send_soon`]). Messages go out in the order in which they were sent, whichever
//! thread writes them.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

use super::frame::Frame;

/// How much is written at a time. A pipe is locked while it is written to, and its
/// reader must be able to take the pieces meanwhile.
const PIECE: usize = 256 << 10;

/// Small parts up to this size are written together.
const TOGETHER: usize = 16 << 10;

/// The way to the other end of a connection. Clones share it; when the last is
/// dropped, the [`OutboundTask`] writes the queue and ends.
#[derive(Clone, Debug)]
pub struct Outbound {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Shared {
    state: Mutex<State>,
    /// Rung whenever the queue got shorter.
    drained: Notify,
}

struct State {
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    queue: VecDeque<Bytes>,
    queued: usize,
    max_queued: usize,
    /// Small parts that are being written together.
    together: BytesMut,
    /// Wakes the task when the connection takes more.
    task: Waker,
    /// Nothing more will be sent.
    closed: bool,
    /// The connection failed; messages are dropped.
    failed: Option<io::ErrorKind>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").finish_non_exhaustive()
    }
}

impl Outbound {
    /// The way out over `writer`, and the task that must run for as long as
    /// something may be queued. Past `max_queued` bytes the connection counts as
    /// failed, because the other end does not read.
    pub fn new(
        writer: impl AsyncWrite + Send + 'static,
        max_queued: usize,
    ) -> (Self, OutboundTask) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                writer: Box::pin(writer),
                queue: VecDeque::new(),
                queued: 0,
                max_queued,
                together: BytesMut::new(),
                task: Waker::noop().clone(),
                closed: false,
                failed: None,
            }),
            drained: Notify::new(),
        });
        let outbound = Self {
            handle: Arc::new(Handle(shared.clone())),
        };
        (outbound, OutboundTask { shared })
    }

    /// Sends a message. Where the connection has failed, the message is dropped: the
    /// task ends with the failure.
    pub fn send(&self, frame: Frame) {
        self.send_all([frame]);
    }

    /// Sends messages that nothing may come between.
    pub fn send_all(&self, frames: impl IntoIterator<Item = Frame>) {
        self.queue(frames, |state| {
            let task = state.task.clone();
            // A failure is the task's to report.
            if let Poll::Ready(Err(_)) = state.flush(&mut Context::from_waker(&task)) {
                task.wake();
            }
        });
    }

    /// Sends a message by way of the task, together with messages sent until that runs: for
    /// messages that come many at a time, from tasks that run beside it.
    pub fn send_soon(&self, frame: Frame) {
        self.queue([frame], |state| state.task.wake_by_ref());
    }

    /// Queues messages, and calls `begin` where nothing was queued.
    fn queue(&self, frames: impl IntoIterator<Item = Frame>, begin: impl FnOnce(&mut State)) {
        let shared = &self.handle.0;
        let mut state = shared.state();
        if state.closed || state.failed.is_some() {
            return;
        }
        let was_empty = state.queue.is_empty() && state.together.is_empty();
        for frame in frames {
            state.queued += frame.len();
            state.queue.extend(frame.into_parts());
        }
        if was_empty {
            begin(&mut state);
        }
        if state.queued > state.max_queued {
            state.fail(io::ErrorKind::TimedOut);
            state.task.wake_by_ref();
        }
    }

    /// Sends nothing more; the queue is still written.
    pub fn close(&self) {
        self.handle.0.close();
    }

    /// Waits until less than `bytes` are queued, or the connection has failed.
    pub async fn until_queued_below(&self, bytes: usize) {
        let shared = &self.handle.0;
        loop {
            let drained = shared.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            {
                let state = shared.state();
                if state.queued < bytes || state.failed.is_some() {
                    return;
                }
            }
            drained.await;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.task.wake_by_ref();
    }
}

impl State {
    fn fail(&mut self, kind: io::ErrorKind) {
        self.failed.get_or_insert(kind);
        self.queue.clear();
        self.together.clear();
        self.queued = 0;
    }

    /// Writes until the queue is empty or the connection is full.
    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.poll_flush(context);
        if let Poll::Ready(Err(error)) = &flushed {
            self.fail(error.kind());
        }
        flushed
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.gather();
            let piece = match self.queue.front() {
                _ if !self.together.is_empty() => &self.together[..],
                Some(part) => part,
                None => return self.writer.as_mut().poll_flush(context),
            };
            let piece = &piece[..piece.len().min(PIECE)];
            let written = match self.writer.as_mut().poll_write(context, piece) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            self.queued -= written;
            if !self.together.is_empty() {
                self.together.advance(written);
            } else if let Some(part) = self.queue.front_mut() {
                part.advance(written);
                if part.is_empty() {
                    self.queue.pop_front();
                }
            }
        }
    }

    /// Puts small parts together that are waiting one behind the other.
    fn gather(&mut self) {
        if !self.together.is_empty() || self.queue.len() < 2 {
            return;
        }
        while let Some(first) = self.queue.front()
            && self.together.len() + first.len() <= TOGETHER
        {
            self.together.extend_from_slice(first);
            self.queue.pop_front();
        }
    }
}

/// Writes the queue when the connection has room. Completes when every
/// [`Outbound`] is gone and all is written, or with the connection's failure.
#[derive(Debug)]
pub struct OutboundTask {
    shared: Arc<Shared>,
}

impl Future for OutboundTask {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.state();
        if !state.task.will_wake(context.waker()) {
            state.task = context.waker().clone();
        }
        if let Some(kind) = state.failed {
            drop(state);
            self.shared.drained.notify_waiters();
            return Poll::Ready(Err(kind.into()));
        }
        let flushed = state.flush(context);
        let closed = state.closed;
        drop(state);
        self.shared.drained.notify_waiters();
        match flushed {
            Poll::Ready(Ok(())) if !closed => Poll::Pending,
            flushed => flushed,
        }
    }
}

impl Drop for OutboundTask {
    fn drop(&mut self) {
        // The writer is gone; waiters for it must not wait for ever.
        self.shared.state().fail(io::ErrorKind::BrokenPipe);
        self.shared.drained.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::super::frame::FrameBuilder;
    use super::*;

    fn frame(text: &str) -> Frame {
        let mut builder = FrameBuilder::with_room(text.len());
        builder.copy(text.as_bytes());
        builder.finish([]).expect("fits")
    }

    fn bytes_of(frames: &[Frame]) -> Vec<u8> {
        let parts = frames.iter().flat_map(|frame| frame.clone().into_parts());
        parts.flat_map(|part| part.to_vec()).collect()
    }

    #[tokio::test]
    async fn a_message_is_written_by_its_sender_where_there_is_room() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let (outbound, _task) = Outbound::new(ours, usize::MAX);
        outbound.send(frame("hello"));
        let mut read = [0; 9];
        theirs.read_exact(&mut read).await.expect("written");
        assert_eq!(read[4..], *b"hello");
    }

    #[tokio::test]
    async fn messages_that_are_sent_soon_are_written_together_by_the_task() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let (outbound, task) = Outbound::new(ours, usize::MAX);
        let writing = tokio::spawn(task);
        tokio::task::yield_now().await;
        let frames = ["first", "second", "third"].map(frame);
        for frame in frames.clone() {
            outbound.send_soon(frame);
        }
        outbound.send(frame("last"));
        let mut read = vec![0; 64];
        let length = theirs.read(&mut read).await.expect("written");
        let mut expected = bytes_of(&frames);
        expected.extend(bytes_of(&[frame("last")]));
        assert_eq!(read[..length], expected);
        drop(outbound);
        writing.await.expect("no panic").expect("written");
    }

    #[tokio::test]
    async fn messages_keep_their_order_whoever_writes_them() {
        for room in [1, 7, 100, 100_000] {
            let (ours, mut theirs) = tokio::io::duplex(room);
            let (outbound, task) = Outbound::new(ours, usize::MAX);
            let writing = tokio::spawn(task);
            let frames: Vec<Frame> = (0..200).map(|n| frame(&n.to_string().repeat(n))).collect();
            for frame in &frames {
                outbound.send(frame.clone());
            }
            drop(outbound);
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).await.expect("read");
            assert_eq!(read, bytes_of(&frames), "room {room}");
            writing.await.expect("no panic").expect("written");
        }
    }

    #[tokio::test]
    async fn messages_of_many_threads_are_not_mixed() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (outbound, task) = Outbound::new(ours, usize::MAX);
        let writing = tokio::spawn(task);
        let reading = tokio::spawn(async move {
            let mut texts = Vec::new();
            while let Ok(length) = theirs.read_u32_le().await {
                let mut text = vec![0; length as usize];
                theirs.read_exact(&mut text).await.expect("whole");
                texts.push(String::from_utf8(text).expect("text"));
            }
            texts
        });
        std::thread::scope(|threads| {
            for thread in 0..4 {
                let outbound = outbound.clone();
                threads.spawn(move || {
                    for n in 0..100 {
                        outbound.send(frame(&format!("{thread} {n} {}", "x".repeat(n))));
                    }
                });
            }
        });
        drop(outbound);
        let texts = reading.await.expect("no panic");
        assert_eq!(texts.len(), 400);
        for thread in ["0", "1", "2", "3"] {
            let of_thread = texts.iter().filter_map(|text| {
                let mut words = text.split(' ');
                (words.next() == Some(thread)).then(|| words.next().map(str::to_owned))
            });
            let expected: Vec<_> = (0..100).map(|n| Some(n.to_string())).collect();
            assert_eq!(of_thread.collect::<Vec<_>>(), expected);
        }
        writing.await.expect("no panic").expect("written");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_fails_the_connection() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let (outbound, task) = Outbound::new(ours, 100);
        for _ in 0..10 {
            outbound.send(frame("0123456789"));
        }
        let error = task.await.expect_err("it failed");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_waits_for_a_connection_that_is_dropped_goes_on() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let (outbound, task) = Outbound::new(ours, usize::MAX);
        for _ in 0..10 {
            outbound.send(frame("0123456789"));
        }
        let waiting = tokio::spawn(async move { outbound.until_queued_below(1).await });
        tokio::task::yield_now().await;
        drop(task);
        waiting.await.expect("it went on");
    }
}
