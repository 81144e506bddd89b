//! A task that the thread of its cell may drive too.
//!
//! An actor is a task of the session's runtime, which its cell wakes with an event.
//! At the cell's end that wake is the longest part of the way to the answer: another
//! thread, on a processor that slept or has something else to do. So the cell's
//! thread polls the task itself then; afterwards it is the runtime's again.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};

use code_mode_protocol::BoxFuture;
use tokio::runtime::Handle;

/// What the runtime and the cell's thread share of a task.
pub(crate) struct Driven {
    /// `None` until [`task`](Self::task) is called, and when it has ended.
    future: Mutex<Option<BoxFuture<()>>>,
    /// Wakes the runtime's task. Unset until that is polled first.
    task: OnceLock<Waker>,
    /// The cell's thread is driving; who wakes the task meanwhile sets `again`.
    driving: AtomicBool,
    again: AtomicBool,
    runtime: Handle,
}

impl Driven {
    /// A task to be, of this runtime.
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            future: Mutex::default(),
            task: OnceLock::new(),
            driving: AtomicBool::new(false),
            again: AtomicBool::new(false),
            runtime,
        })
    }

    /// The task, to be spawned on the runtime. Dropped before its end, it takes the
    /// future with it.
    pub(crate) fn task(
        self: &Arc<Self>,
        future: BoxFuture<()>,
    ) -> impl Future<Output = ()> + use<> {
        *self.future() = Some(future);
        Task(self.clone())
    }

    fn future(&self) -> MutexGuard<'_, Option<BoxFuture<()>>> {
        self.future.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `event`, which wakes the task, and polls the task here until it waits
    /// for something else. Where that is its end, the runtime learns of it when the
    /// result is dropped.
    pub(crate) fn drive(self: &Arc<Self>, event: impl FnOnce()) -> Option<Ended> {
        let _context = self.runtime.enter();
        let waker = Waker::from(self.clone());
        let mut context = Context::from_waker(&waker);
        let mut future = self.future();
        self.driving.store(true, Ordering::SeqCst);
        event();
        let ended = loop {
            let Some(running) = future.as_mut() else {
                break None;
            };
            if running.as_mut().poll(&mut context).is_ready() {
                *future = None;
                break Some(Ended(self.clone()));
            }
            if !self.again.swap(false, Ordering::SeqCst) {
                break None;
            }
        };
        drop(future);
        self.driving.store(false, Ordering::SeqCst);
        // Who woke the task before it could see that nobody drives any more has
        // left the runtime to be told.
        if self.again.swap(false, Ordering::SeqCst) && ended.is_none() {
            self.wake_task();
        }
        ended
    }

    fn wake_task(&self) {
        // A task that was not polled yet will be.
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }
}

impl Wake for Driven {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.driving.load(Ordering::SeqCst) {
            self.again.store(true, Ordering::SeqCst);
            // The driver may have looked for the last time in between.
            if self.driving.load(Ordering::SeqCst) {
                return;
            }
        }
        self.wake_task();
    }
}

/// The task has ended on the cell's thread.
pub(crate) struct Ended(Arc<Driven>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.wake_task();
    }
}

/// The runtime's half.
struct Task(Arc<Driven>);

impl Future for Task {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let driven = &self.0;
        // One task never changes its waker.
        driven.task.get_or_init(|| context.waker().clone());
        let mut future = match driven.future.try_lock() {
            Ok(future) => future,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Whatever this was woken for, the cell's thread sees it too.
            Err(TryLockError::WouldBlock) => return Poll::Pending,
        };
        let Some(running) = future.as_mut() else {
            return Poll::Ready(());
        };
        let waker = Waker::from(driven.clone());
        let polled = running.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            *future = None;
        }
        polled
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        *self.0.future() = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime")
    }

    fn counting(mut events: UnboundedReceiver<()>, count: usize) -> BoxFuture<()> {
        Box::pin(async move {
            for _ in 0..count {
                events.recv().await;
            }
        })
    }

    #[test]
    fn a_task_ends_whoever_wakes_it_and_whenever() {
        const EVENTS: usize = 3;
        let runtime = runtime();
        for _ in 0..5_000 {
            let (send, events) = unbounded_channel();
            let driven = Driven::new(runtime.handle().clone());
            std::thread::scope(|threads| {
                let (driven_, send_) = (driven.clone(), send.clone());
                threads.spawn(move || driven_.drive(|| send_.send(()).expect("taken")));
                threads.spawn(|| (1..EVENTS).for_each(|_| send.send(()).expect("taken")));
                let task = runtime.spawn(driven.task(counting(events, EVENTS)));
                runtime.block_on(task).expect("no panic");
            });
        }
    }

    #[test]
    fn a_task_that_ends_here_ends_in_the_runtime_once_that_is_told() {
        let runtime = runtime();
        let (send, events) = unbounded_channel();
        let driven = Driven::new(runtime.handle().clone());
        let task = runtime.spawn(driven.task(counting(events, 1)));
        // Polled once, so that only a wake has it polled again.
        runtime.block_on(tokio::task::yield_now());
        let ended = driven.drive(|| send.send(()).expect("taken"));
        assert!(ended.is_some());
        runtime.block_on(tokio::task::yield_now());
        assert!(!task.is_finished());
        drop(ended);
        runtime.block_on(task).expect("no panic");
    }

    #[test]
    fn a_task_that_the_runtime_drops_takes_its_future_with_it() {
        let runtime = runtime();
        let (send, events) = unbounded_channel();
        let driven = Driven::new(runtime.handle().clone());
        runtime.spawn(driven.task(counting(events, 1)));
        drop(runtime);
        assert!(send.is_closed());
        assert!(driven.drive(|| {}).is_none());
    }
}
