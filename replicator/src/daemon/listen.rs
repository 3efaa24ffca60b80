//! Takes an address for clients by TCP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The wait before an address that is taken is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Listens at `address` for `what`, which names it in the log. An address that cannot be had stops nothing
/// else: it is tried again. None once `stop` is cancelled.
pub async fn bind(address: SocketAddr, what: &str, stop: &CancellationToken) -> Option<TcpListener> {
    let mut said = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            Err(e) if !said => {
                said = true;
                tracing::error!("{what} at {address}: {e}; it is tried again");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}
