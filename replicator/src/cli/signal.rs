//! Ctrl-C, and what an orchestrator sends.

use std::sync::Arc;
use std::time::Duration;

use runtime::clock::now;
use runtime::task::Task;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What comes this soon after a signal is the same wish once more: `timeout` tells the process and then its
/// group.
const SAME_WISH: Duration = Duration::from_secs(1);

/// A token that the first SIGINT or SIGTERM cancels, and the task that listens for them. A second one, not
/// sent along with it, ends the process at once.
pub(super) fn on_signal() -> std::io::Result<(CancellationToken, Task<()>)> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let listening = Task::spawn("listen for signals", async move {
        let mut first = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first.get_or_insert_with(now).elapsed() > SAME_WISH {
                std::process::exit(1);
            }
            stopping.cancel();
        }
    });
    Ok((stop, listening))
}

/// What is told of each SIGHUP, and the task that listens for them.
pub(super) fn on_hangup() -> std::io::Result<(Arc<Notify>, Task<()>)> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    let again = Arc::new(Notify::new());
    let telling = again.clone();
    let listening = Task::spawn("listen for SIGHUP", async move {
        while hangup.recv().await.is_some() {
            telling.notify_one();
        }
    });
    Ok((again, listening))
}
