//! Whose turn it is: one stream is served at a time. A newer one ends the older, and so does whoever shuts
//! the primary out. The work of a stream that was ended is never touched again: nothing of it is sent or
//! stored.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use tokio_util::sync::CancellationToken;

/// The turns of the streams to one region.
#[derive(Debug, Default)]
pub struct Turns {
    newest: Mutex<CancellationToken>,
    /// Held while the work of the present stream runs, up to its next await.
    working: Mutex<()>,
    one: tokio::sync::Mutex<()>,
}

/// The turn of one stream; the next one begins when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    ended: CancellationToken,
    _one: tokio::sync::MutexGuard<'a, ()>,
}

impl Turns {
    /// Ends the present stream, and waits until its turn is over.
    pub async fn next(&self) -> Turn<'_> {
        let ended = CancellationToken::new();
        std::mem::replace(&mut *lock(&self.newest), ended.clone()).cancel();
        Turn { turns: self, ended, _one: self.one.lock().await }
    }

    /// Ends the present stream: when this returns, its work does not run and never will.
    ///
    /// It waits for work that runs up to its next await, so hold nothing here that this work may wait for.
    pub fn end(&self) {
        lock(&self.newest).cancel();
        drop(lock(&self.working));
    }

    /// Waits until no stream is served, or the turn of the next one has begun and ended.
    pub async fn over(&self) {
        drop(self.one.lock().await);
    }
}

impl Turn<'_> {
    /// Does `work` until the turn is ended; none when it is.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut ended) = (std::pin::pin!(work), std::pin::pin!(self.ended.cancelled()));
        std::future::poll_fn(|context| {
            let _working = lock(&self.turns.working);
            if ended.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(context).map(Some)
        })
        .await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A token, which is assigned whole, or nothing at all.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use runtime::task::Task;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn once_a_stream_is_ended_its_work_does_not_run_and_never_will() {
        let turns = Arc::new(Turns::default());
        let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (serving, begins, does) = (turns.clone(), begun.clone(), done.clone());
        let stream = Task::spawn("a stream", async move {
            let work = std::future::poll_fn(|context| {
                begins.fetch_add(1, Ordering::SeqCst);
                // Work that takes a while, without an await.
                (0..100_000).for_each(|_| std::thread::yield_now());
                does.fetch_add(1, Ordering::SeqCst);
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            });
            serving.next().await.run(work).await
        });
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        turns.end();
        let at_end = (begun.load(Ordering::SeqCst), done.load(Ordering::SeqCst));
        assert_eq!(at_end.0, at_end.1, "it still runs");
        assert_eq!(stream.await.unwrap(), None);
        assert_eq!((begun.load(Ordering::SeqCst), done.load(Ordering::SeqCst)), at_end);
    }

    #[tokio::test]
    async fn a_newer_stream_ends_the_older_and_waits_for_it() {
        let turns = Turns::default();
        let older = async { turns.next().await.run(std::future::pending::<()>()).await };
        let newer = async { turns.next().await.run(async { 1 }).await };
        assert_eq!(tokio::join!(older, newer), (None, Some(1)));
    }
}
