//! The page by HTTP: three paths, all to read.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{PAGE, POLICY};
use crate::load::series::{Cut, Question};

/// How long a question for the numbers is answered late, as long as nothing new is known of a promotion.
const HOLD: Duration = Duration::from_secs(1);

/// Where the numbers come from.
pub trait Source: Send + Sync + 'static {
    /// What the page asks for again and again, with the samples after `after_ms` (milliseconds since 1970; 0
    /// for the whole hour). None while nothing is known yet.
    fn page(&self, after_ms: i64) -> Option<String>;

    /// Returns when the record of who leads is another than that of the mark `seen`, which is the `record` of
    /// an answer.
    fn record_changed(&self, seen: String) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// What `question` is answered with, as JSON. None where nobody looks at the load, or it cannot be read.
    fn load(&self, question: Question) -> Pin<Box<dyn Future<Output = Option<String>> + Send + '_>>;

    /// Now, seconds since 1970.
    fn now_s(&self) -> i64;
}

/// What is answered, and whom.
struct Page {
    source: Arc<dyn Source>,
    /// Given by whoever asks, where others than those of this machine can.
    token: Option<String>,
}

/// The page at `/`, and what it asks for. With a `token` only those are answered who give it, as the password
/// of HTTP's basic authentication or as a bearer's token.
pub fn router(source: Arc<dyn Source>, token: Option<String>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/page/facts.json", get(facts))
        .route("/page/load.json", get(load))
        .with_state(Arc::new(Page { source, token }))
}

impl Page {
    /// Whether the page is shown to whoever asks.
    ///
    /// # Errors
    /// What he is told.
    #[allow(clippy::result_large_err, reason = "the answer, once for a question")]
    fn admit(&self, headers: &HeaderMap) -> Result<(), Response> {
        match &self.token {
            None if is_own(headers) => Ok(()),
            None => Err(elsewhere()),
            Some(token) if gives(headers, token) => Ok(()),
            Some(_) => {
                let ask = [(
                    header::WWW_AUTHENTICATE,
                    "Basic realm=\"the page of a region; its token is the password\"",
                )];
                let words = "the page is shown to who gives its token as the password: it is the file page.token in the region's directory\n";
                Err((StatusCode::UNAUTHORIZED, ask, words).into_response())
            }
        }
    }
}

async fn page(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    if let Err(answer) = page.admit(&headers) {
        return answer;
    }
    let about = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (about, PAGE).into_response()
}

/// The query of the numbers.
#[derive(Debug, Deserialize)]
struct After {
    after: Option<i64>,
    /// The mark of the record that the page shows: it is told at once when that changes, else within
    /// [`HOLD`].
    record: Option<String>,
}

async fn facts(
    State(page): State<Arc<Page>>,
    Query(After { after, record }): Query<After>,
    headers: HeaderMap,
) -> Response {
    if let Err(answer) = page.admit(&headers) {
        return answer;
    }
    if let Some(seen) = record {
        let _ = tokio::time::timeout(HOLD, page.source.record_changed(seen)).await;
    }
    let about = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    match page.source.page(after.unwrap_or(0)) {
        Some(facts) => (about, facts).into_response(),
        None => {
            (StatusCode::SERVICE_UNAVAILABLE, "nothing is known yet; ask again in a second\n").into_response()
        }
    }
}

/// The query of the load: the last so many seconds, or from one moment up to another.
#[derive(Debug, Deserialize)]
struct Asked {
    since: Option<i64>,
    from: Option<i64>,
    to: Option<i64>,
    by: Option<String>,
}

impl Asked {
    fn question(&self, now_s: i64) -> Option<Question> {
        let by = self.by.as_deref().map_or(Some(Cut::Wait), Cut::named)?;
        let to_s = self.to.unwrap_or_else(|| now_s.saturating_add(1));
        let from_s = self.from.unwrap_or_else(|| to_s.saturating_sub(self.since.unwrap_or(3_600)));
        (from_s < to_s).then_some(Question { from_s, to_s, by })
    }
}

async fn load(State(page): State<Arc<Page>>, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    if let Err(answer) = page.admit(&headers) {
        return answer;
    }
    let Some(question) = asked.question(page.source.now_s()) else {
        let words = "`by` is wait, statement, user, application or host; `from` is before `to`\n";
        return (StatusCode::BAD_REQUEST, words).into_response();
    };
    let about = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    match page.source.load(question).await {
        Some(load) => (about, load).into_response(),
        None => (StatusCode::NOT_FOUND, "nothing is kept of the load\n").into_response(),
    }
}

/// Whether whoever asks gives the `token`.
fn gives(headers: &HeaderMap, token: &str) -> bool {
    let Some(given) = headers.get(header::AUTHORIZATION).and_then(|given| given.to_str().ok()) else {
        return false;
    };
    let Some((scheme, rest)) = given.split_once(' ') else { return false };
    let given = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => rest.trim().as_bytes().to_vec(),
        "basic" => {
            let Ok(pair) = STANDARD.decode(rest.trim()) else { return false };
            let Some(colon) = pair.iter().position(|byte| *byte == b':') else { return false };
            pair[colon + 1..].to_vec()
        }
        _ => return false,
    };
    // However much of it is right, this takes as long.
    let differ = given.iter().zip(token.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    given.len() == token.len() && differ == 0
}

/// A page of somebody else, whose name was made to lead to this machine, must not read this one: it is asked
/// for by an address, or by the name of the machine itself.
fn is_own(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

fn elsewhere() -> Response {
    let words = "this page is asked for by an address or as localhost; another name may be somebody else's\n";
    (StatusCode::MISDIRECTED_REQUEST, words).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_asked_for_by_a_length_or_by_two_moments() {
        let asked = |since, from, to, by: Option<&str>| {
            Asked { since, from, to, by: by.map(str::to_owned) }.question(1_000)
        };
        let question = |from_s, to_s, by| Some(Question { from_s, to_s, by });
        assert_eq!(asked(Some(60), None, None, None), question(941, 1_001, Cut::Wait));
        assert_eq!(asked(None, Some(7), Some(67), Some("user")), question(7, 67, Cut::User));
        assert_eq!(asked(Some(-5), None, None, None), None);
        assert_eq!(asked(None, None, None, Some("color")), None);
        assert_eq!(asked(None, Some(i64::MAX), Some(i64::MIN), None), None);
    }

    #[test]
    fn the_token_is_a_password_or_a_bearer_s() {
        let asks = |authorization: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
            gives(&headers, "7f3a")
        };
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for given in ["Bearer 7f3a", "bearer 7f3a", &basic("anybody:7f3a"), &basic(":7f3a")] {
            assert!(asks(given), "{given}");
        }
        let wrong = ["Bearer 7f3", "Bearer 7f3ab", "Bearer ", "7f3a", "Basic 7f3a", "Digest 7f3a"];
        for given in
            wrong.map(str::to_owned).into_iter().chain([basic("7f3a"), basic("7f3a:"), basic("a:b:7f3a")])
        {
            assert!(!asks(&given), "{given}");
        }
        assert!(!gives(&HeaderMap::new(), "7f3a"));
        assert!(!gives(&HeaderMap::new(), ""));
    }

    #[test]
    fn only_addresses_and_localhost_are_answered() {
        let own = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            is_own(&headers)
        };
        for host in
            ["127.0.0.1:9401", "127.0.0.1", "localhost:9401", "localhost", "[::1]:9401", "10.0.0.7:80"]
        {
            assert!(own(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9401", "127.0.0.1.evil.example", "localhost.evil.example:1", ""]
        {
            assert!(!own(host), "{host}");
        }
        assert!(!is_own(&HeaderMap::new()));
    }
}
