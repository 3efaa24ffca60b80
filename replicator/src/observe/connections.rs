//! The connections of those who ask by HTTP: a bounded number, and none that says nothing keeps another out.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use runtime::clock::steady_us;
use runtime::task::Task;
use tokio::net::{TcpListener, TcpStream};

/// Connections at a time: a few load balancers, Prometheus and some pages need a tenth of that.
pub(super) const CONNECTIONS_MAX: usize = 128;

/// How long the head of a request may take from when it is waited for; a connection on which nothing is asked
/// for so long is closed.
pub(super) const HEAD: Duration = Duration::from_secs(10);

/// The longest head, bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// An answer takes milliseconds: one that takes longer is not taken by whoever asked.
const ANSWER_US: u64 = 10_000_000;

/// The wait after a connection could not be accepted, as when no file can be opened.
const AGAIN: Duration = Duration::from_millis(100);

/// Said at once where every connection is being answered.
const FULL: &str = "every connection of this daemon is being answered; ask again in a second\n";

/// What a connection does.
#[derive(Debug)]
struct Use {
    answering: AtomicBool,
    /// Since when.
    since_us: AtomicU64,
}

impl Use {
    fn set(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
        self.since_us.store(steady_us(), Ordering::Relaxed);
    }
}

struct Open {
    used: Arc<Use>,
    /// The connection is closed when this is dropped.
    task: Task<()>,
}

/// Answers whoever connects, for ever.
pub(super) async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let router = TowerToHyperService::new(router);
    let mut open: Vec<Open> = Vec::new();
    let mut failing = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("`http`: a connection cannot be accepted: {e}");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        failing = false;
        open.retain(|connection| !connection.task.has_ended());
        if open.len() >= CONNECTIONS_MAX {
            let uses = open.iter().map(|Open { used, .. }| {
                (used.answering.load(Ordering::Relaxed), used.since_us.load(Ordering::Relaxed))
            });
            match gives_way(steady_us(), uses) {
                Some(index) => drop(open.swap_remove(index)),
                None => {
                    refuse(&stream);
                    continue;
                }
            }
        }
        let used = Arc::new(Use { answering: false.into(), since_us: steady_us().into() });
        let task = Task::spawn("answer one by HTTP", answer(stream, router.clone(), used.clone()));
        open.push(Open { used, task });
    }
}

/// Which connection gives way to a new one, of those of which it is known whether they are being answered and
/// since when they do what they do: the one that has been asked nothing for longest, or has not taken its
/// answer.
fn gives_way(now_us: u64, uses: impl Iterator<Item = (bool, u64)>) -> Option<usize> {
    let may =
        |(answering, since_us): &(bool, u64)| !answering || now_us.saturating_sub(*since_us) > ANSWER_US;
    uses.enumerate()
        .filter(|(_, of)| may(of))
        .min_by_key(|(_, (_, since_us))| *since_us)
        .map(|(index, _)| index)
}

/// Says so, and waits for nothing.
fn refuse(stream: &TcpStream) {
    let length = FULL.len();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Retry-After: 1\r\nConnection: close\r\n\r\n{FULL}"
    );
    // What does not go at once does not go: the connection is closed then as well.
    let _ = stream.try_write(answer.as_bytes());
    // What was asked is taken, as the system drops an answer beside a question that nobody has read.
    let _ = stream.try_read(&mut [0; 4096]);
}

async fn answer(stream: TcpStream, router: TowerToHyperService<Router>, used: Arc<Use>) {
    let service = service_fn(move |request: Request<Incoming>| {
        used.set(true);
        let (answering, used) = (router.call(request.map(Body::new)), used.clone());
        async move {
            let answer = answering.await;
            used.set(false);
            answer
        }
    });
    let mut connection = http1::Builder::new();
    connection.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES_MAX);
    // Whoever asked has gone, or asked for what is no HTTP.
    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn who_was_asked_nothing_for_longest_gives_way_and_nobody_who_is_being_answered() {
        let now_us = 100_000_000;
        let gives_way = |uses: &[(bool, u64)]| gives_way(now_us, uses.iter().copied());
        let (fresh, old) = (now_us - ANSWER_US, now_us - ANSWER_US - 1);
        assert_eq!(gives_way(&[(true, fresh), (false, now_us), (false, now_us - 1)]), Some(2));
        assert_eq!(gives_way(&[(true, fresh), (true, now_us)]), None);
        assert_eq!(gives_way(&[(false, fresh), (true, old), (true, fresh)]), Some(1), "it takes no answer");
        assert_eq!(gives_way(&[]), None);
    }

    /// What comes back on a connection up to its end.
    async fn told(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that was closed at once may end with an error, after what was said.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn where_all_are_being_answered_a_new_one_is_told_so_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, mut beginning) = tokio::sync::mpsc::channel::<()>(CONNECTIONS_MAX);
        let slow = get(move || async move {
            begun.send(()).await.unwrap();
            std::future::pending::<&str>().await
        });
        let router = Router::new().route("/slow", slow).route("/livez", get(|| async { "alive\n" }));
        let _serving = Task::spawn("serve", async move { match serve(listener, router).await {} });
        let mut asking = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            beginning.recv().await.unwrap();
            asking.push(stream);
        }
        let mut more = TcpStream::connect(address).await.unwrap();
        let answer = told(&mut more).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with(FULL), "{answer}");
        // Once one has gone there is room.
        drop(asking.pop());
        loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await.unwrap();
            if told(&mut stream).await.ends_with("alive\n") {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_or_does_not_end_closes_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/livez", get(|| async { "alive\n" }));
        let _serving = Task::spawn("serve", async move { match serve(listener, router).await {} });
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        let mut kept = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /livez HTTP/1.1\r\nHost:").await.unwrap();
        kept.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let begin = runtime::clock::now();
        let answers = tokio::join!(told(&mut silent), told(&mut slow), told(&mut kept));
        let took = begin.elapsed();
        assert!(!answers.0.contains("200") && !answers.1.contains("200"), "{answers:?}");
        assert!(answers.2.starts_with("HTTP/1.1 200 ") && answers.2.ends_with("alive\n"), "{answers:?}");
        assert!(took >= HEAD - Duration::from_secs(1) && took < HEAD + Duration::from_secs(10), "{took:?}");
    }
}
