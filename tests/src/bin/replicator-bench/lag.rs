//! How far what a primary's daemon says of a lag is from the truth, as an observer beside it sees it.

use std::time::Duration;

use replicator_tests::lags::{Beats, Relay, Seen, compare};
use replicator_tests::{Cluster, free_port, until};
use runtime::task::Task;
use sqlx::{Connection, PgConnection};

/// Each state for `seconds`.
pub async fn run(seconds: u64) {
    println!(
        "rows with the clock's time, each 40 ms at the primary, looked for at eu-west; and replicator_visible_lag_seconds.\n\
         {seconds} s in each state, on this machine's processors. Off: what the daemon says less the truth, ms.\n"
    );
    let cluster = Cluster::for_bench(2);
    let (http, relayed) = (free_port(), free_port());
    let relay = Relay::open(relayed, cluster.address("eu-west")).await;
    cluster.configure_region("us-east", &format!("http = \"127.0.0.1:{http}\""));
    cluster.configure_region("eu-west", &format!("advertise = \"127.0.0.1:{relayed}\""));
    cluster.start();
    cluster.until_level().await;
    let url = cluster.clear_url("us-east");
    let beats = Beats::begin(PgConnection::connect(&url).await.unwrap()).await;
    let mut secondary = cluster.connect("eu-west").await;
    arrives(&mut secondary).await;
    let period = Duration::from_secs(seconds);
    println!(
        "{:12} {:>7} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8}",
        "", "looks", "truth p50", "truth max", "off p50", "off p95", "least", "most"
    );
    row("a beat", &compare(&beats, &mut secondary, http, "eu-west", period).await);
    let mut sessions = Vec::new();
    for n in 0..2 {
        sessions.push(Task::spawn("load", load(url.clone(), n)));
    }
    row("loaded", &compare(&beats, &mut secondary, http, "eu-west", period).await);
    drop(sessions);
    cluster.until_level_enough("eu-west").await;
    relay.cut(true);
    row("cut", &compare(&beats, &mut secondary, http, "eu-west", period).await);
    relay.cut(false);
    cluster.until_level().await;
    row("whole again", &compare(&beats, &mut secondary, http, "eu-west", period).await);
    drop(beats);
    row("idle", &compare(&Beats::none(), &mut secondary, http, "eu-west", period).await);
}

/// Waits until the table of the beats is there.
async fn arrives(secondary: &mut PgConnection) {
    let secondary = tokio::sync::Mutex::new(secondary);
    until("the table has come", || async {
        sqlx::query("SELECT FROM beat LIMIT 1").execute(&mut **secondary.lock().await).await.is_ok()
    })
    .await;
}

async fn load(url: String, n: u32) {
    let mut session = PgConnection::connect(&url).await.unwrap();
    let table = format!("CREATE TABLE load{n} (n int, t text)");
    sqlx::raw_sql(sqlx::AssertSqlSafe(table)).execute(&mut session).await.unwrap();
    loop {
        let rows =
            format!("INSERT INTO load{n} SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 300) i");
        sqlx::raw_sql(sqlx::AssertSqlSafe(rows)).execute(&mut session).await.unwrap();
    }
}

fn row(what: &str, seen: &[Seen]) {
    let sorted = |of: &dyn Fn(&Seen) -> f64| {
        let mut all: Vec<f64> = seen.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (truth, off) = (sorted(&|seen| seen.truth_ms[1]), sorted(&Seen::off_ms));
    let far = sorted(&|seen| seen.off_ms().abs());
    let part = |all: &[f64], of: usize| all[(all.len() - 1) * of / 100];
    println!(
        "{what:12} {:>7} {:>10.1} {:>10.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
        seen.len(),
        part(&truth, 50),
        part(&truth, 100),
        part(&far, 50),
        part(&far, 95),
        off[0],
        off[off.len() - 1]
    );
}
