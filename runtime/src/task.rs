//! Tasks and threads that end with their owner.
//!
//! A [`Task`] is one: dropping it ends it at its next await. [`Tasks`] are many of a kind, begun by whoever
//! has the group, ended by its owner. A [`Thread`] is for what must block for long; its work ends by itself
//! when the queue that feeds it is closed. [`blocking`] is one call that may block.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A task did not come to its end: it panicked, or was ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: the task ended before its work did: {why}")]
pub struct Ended {
    /// The task's name.
    pub name: &'static str,
    /// What happened to it.
    pub why: String,
}

/// A task. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "a task ends when its owner is dropped"]
pub struct Task<T> {
    name: &'static str,
    handle: JoinHandle<T>,
}

impl<T: Send + 'static> Task<T> {
    /// Begins `work`; `name` says in errors and logs what it is.
    #[allow(clippy::disallowed_methods, reason = "the one place where tasks begin")]
    pub fn spawn(name: &'static str, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
        Task { name, handle: tokio::spawn(work) }
    }

    /// Ends it at its next await. Await the task itself to know that it has ended.
    pub fn end(&self) {
        self.handle.abort();
    }

    /// Whether it has come to its end, or was ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        Pin::new(&mut self.handle).poll(context).map_err(|e| Ended { name, why: e.to_string() })
    }
}

/// Tasks of one kind. All end when this is dropped, or when [`Tasks::stop`] is called.
#[derive(Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// None yet.
    #[must_use]
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Begins `work`, unless the group has been stopped.
    #[allow(clippy::disallowed_methods, reason = "the one place where tasks begin")]
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                // A task of a group that was stopped takes no further step.
                biased;
                () = token.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// How many have not ended.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Ends all, and those that are begun later at once.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Cancelled when the group is stopped.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Waits until all have ended by themselves, or because the group was stopped.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

/// A thread of its own, for work that blocks all the time. It must end by itself when its queue is closed:
/// nothing can end it from outside.
#[derive(Debug)]
#[must_use = "a thread's owner closes its queue"]
pub struct Thread(std::thread::JoinHandle<()>);

impl Thread {
    /// Begins `work`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    #[allow(clippy::disallowed_methods, reason = "the one place where threads begin")]
    pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<Thread> {
        std::thread::Builder::new().name(name.into()).spawn(work).map(Thread)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for its end. This blocks: it is not for async code.
    pub fn join(self) {
        // A thread that panicked has said so.
        let _ = self.0.join();
    }
}

/// Does `work`, which may block, on a thread for such work. It runs to its end even when the caller is
/// dropped: so it must end by itself, and be harmless when nobody waits for it.
///
/// # Errors
/// When it panics.
#[allow(clippy::disallowed_methods, reason = "the one place where blocking work begins")]
pub async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Ended { name, why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;

    use super::*;

    /// Says when it is dropped, as a task's contents are when that ends.
    struct Guard(Arc<AtomicBool>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn guarded() -> (Arc<AtomicBool>, impl Future<Output = ()> + Send + 'static) {
        let ended = Arc::new(AtomicBool::new(false));
        let guard = Guard(ended.clone());
        (ended, async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        })
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_task_of_a_stopped_group_takes_no_further_step() {
        let (tasks, went, stepped) =
            (Tasks::new(), Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (go, step) = (went.clone(), stepped.clone());
        tasks.spawn(async move {
            go.notified().await;
            step.store(true, Ordering::SeqCst);
        });
        tokio::task::yield_now().await;
        went.notify_one();
        tasks.stop();
        tasks.ended().await;
        assert!(!stepped.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_task_ends_with_its_owner() {
        let (ended, work) = guarded();
        let task = Task::spawn("test", work);
        tokio::task::yield_now().await;
        assert!(!ended.load(Ordering::SeqCst));
        drop(task);
        until(|| ended.load(Ordering::SeqCst)).await;
        let mut task = Task::spawn("test", std::future::pending::<()>());
        task.end();
        assert_eq!((&mut task).await.unwrap_err().name, "test");
    }

    #[tokio::test]
    async fn a_group_ends_with_its_owner() {
        let tasks = Tasks::new();
        let (first, work) = guarded();
        tasks.spawn(work);
        assert_eq!(tasks.count(), 1);
        tasks.stop();
        tasks.ended().await;
        assert!(first.load(Ordering::SeqCst));
        let tasks = Tasks::new();
        let (second, work) = guarded();
        tasks.spawn(work);
        drop(tasks);
        until(|| second.load(Ordering::SeqCst)).await;
    }

    #[tokio::test]
    async fn blocking_work_that_panics_is_an_error() {
        assert_eq!(blocking("sum", || 1 + 1).await, Ok(2));
        let failed = blocking("sum", || panic!("on purpose")).await.unwrap_err();
        assert_eq!(failed.name, "sum");
    }
}
