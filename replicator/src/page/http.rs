//! The page by HTTP: three paths, all to read.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::{PAGE, POLICY};
use crate::load::series::{Cut, Question};

/// Where the numbers come from.
pub trait Source: Send + Sync + 'static {
    /// What the page asks for each second, with the samples after `after_ms` (milliseconds since 1970; 0 for
    /// the whole hour). None while nothing is known yet.
    fn page(&self, after_ms: i64) -> Option<String>;

    /// What `question` is answered with, as JSON. None where nobody looks at the load, or it cannot be read.
    fn load(&self, question: Question) -> Pin<Box<dyn Future<Output = Option<String>> + Send + '_>>;

    /// Now, seconds since 1970.
    fn now_s(&self) -> i64;
}

/// The page at `/`, and what it asks for.
pub fn router(source: Arc<dyn Source>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/page/facts.json", get(facts))
        .route("/page/load.json", get(load))
        .with_state(source)
}

async fn page(headers: HeaderMap) -> Response {
    if !is_own(&headers) {
        return elsewhere();
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
}

async fn facts(
    State(source): State<Arc<dyn Source>>,
    Query(After { after }): Query<After>,
    headers: HeaderMap,
) -> Response {
    if !is_own(&headers) {
        return elsewhere();
    }
    let about = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    match source.page(after.unwrap_or(0)) {
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

async fn load(
    State(source): State<Arc<dyn Source>>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    if !is_own(&headers) {
        return elsewhere();
    }
    let Some(question) = asked.question(source.now_s()) else {
        let words = "`by` is wait, statement, user, application or host; `from` is before `to`\n";
        return (StatusCode::BAD_REQUEST, words).into_response();
    };
    let about = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    match source.load(question).await {
        Some(load) => (about, load).into_response(),
        None => (StatusCode::NOT_FOUND, "nothing is kept of the load\n").into_response(),
    }
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
