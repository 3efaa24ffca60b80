//! Answers health checks and Prometheus by HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use runtime::task::blocking;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::health::{self, Health};
use super::{Observer, connections};
use crate::daemon::listen;
use crate::layout::RegionLayout;
use crate::{page, secrets, units};

/// What is answered at each path. Read only: nothing here changes anything.
pub fn router(observer: Arc<Observer>, page: Arc<dyn page::Source>, token: Option<String>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }).options(|| async { "alive\n" }))
        .route("/readyz", get(ready).options(ready))
        .route("/primary", get(primary).options(primary))
        .route("/replica", get(replica).options(replica))
        .route("/metrics", get(metrics))
        .with_state(observer)
        .merge(page::router(page, token))
}

/// Answers at `address` until `stop`; the page where others reach it with a token, which `layout` keeps. An
/// address that cannot be had stops nothing else: it is tried again.
pub async fn serve(
    address: SocketAddr,
    observer: Arc<Observer>,
    page: Arc<dyn page::Source>,
    layout: &RegionLayout,
    stop: CancellationToken,
) {
    let token = match address.ip().is_loopback() {
        true => None,
        false => Some(page_token(layout).await),
    };
    let Some(listener) = listen::bind(address, "`http`", &stop).await else { return };
    tracing::info!("the page, health checks and metrics at http://{address}");
    // Whoever asks at the end is not waited for.
    tokio::select! {
        () = stop.cancelled() => {}
        never = connections::serve(listener, router(observer, page, token)) => match never {},
    }
}

/// What the page asks of who comes from elsewhere. Where that cannot be kept nobody is told what it is:
/// the page is shown to nobody, and everything else is answered.
async fn page_token(layout: &RegionLayout) -> String {
    let (place, own) = (layout.page_token(), layout.clone());
    match blocking("keep the page's token", move || secrets::page_token(&own)).await {
        Ok(Ok(token)) => return token,
        Ok(Err(e)) => tracing::error!("{}: {e}; the page is shown to nobody", place.display()),
        Err(e) => tracing::error!("{}: {e}; the page is shown to nobody", place.display()),
    }
    secrets::draw()
}

async fn ready(State(observer): State<Arc<Observer>>) -> Response {
    answer(health::ready(&observer.facts().await))
}

async fn primary(State(observer): State<Arc<Observer>>) -> Response {
    answer(health::primary(&observer.facts().await))
}

/// The query of `/replica`.
#[derive(Debug, Deserialize)]
struct Nearness {
    /// How far behind is near enough: seconds, or a duration such as "500ms".
    lag: Option<String>,
}

async fn replica(State(observer): State<Arc<Observer>>, Query(near): Query<Nearness>) -> Response {
    let lag_s = match near.lag.as_deref().map(parse_lag) {
        Some(None) => {
            let words = "`lag` is a number of seconds, or a duration such as 500ms\n";
            return (StatusCode::BAD_REQUEST, words).into_response();
        }
        lag => lag.flatten(),
    };
    answer(health::replica(&observer.facts().await, lag_s))
}

fn parse_lag(text: &str) -> Option<f64> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.or_else(|| units::parse_duration(text).map(|lag| lag.as_secs_f64()));
    seconds.filter(|seconds| *seconds >= 0.0)
}

fn answer(health: Health) -> Response {
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(health)).into_response()
}

async fn metrics(State(observer): State<Arc<Observer>>) -> Response {
    let text = observer.snapshot().await.prometheus();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lags_are_seconds_or_durations() {
        assert_eq!(parse_lag("10"), Some(10.0));
        assert_eq!(parse_lag("0.5"), Some(0.5));
        assert_eq!(parse_lag("500ms"), Some(0.5));
        assert_eq!(parse_lag("2m"), Some(120.0));
        for wrong in ["", "-1", "soon", "NaN", "1GB"] {
            assert_eq!(parse_lag(wrong), None, "{wrong}");
        }
    }
}
