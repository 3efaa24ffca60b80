//! The page in a real browser: it shows what the daemons say, as it happens, to every eye and hand.
//!
//! It needs chromium and its driver, which `scripts/setup.sh check` installs; `scripts/test.sh` says loudly
//! when it was not run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};
use replicator_tests::browser::Browser;
use replicator_tests::{Cluster, free_port, now, pause, postgresql, program, until};
use runtime::task::Task;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

/// What is read off the page: for each region its card, and the promotions that are over.
const READ: &str = r##"
const text = node => node ? node.textContent.trim() : null, all = (node, what) => [...node.querySelectorAll(what)];
return {
  verdict: text(document.getElementById("verdict")),
  facts: text(document.getElementById("facts")),
  regions: Object.fromEntries(all(document, "article.region").map(card => [text(card.querySelector("h3")), {
    state: text(card.querySelector("header span")),
    numbers: Object.fromEntries(all(card, ".numbers > div").map(pair => [text(pair.querySelector("dt")), text(pair.querySelector("dd"))])),
    copies: all(card, ".copies li").map(text),
    nodes: all(card, ".nodes li").map(text),
  }])),
  history: all(document, "#history tbody tr").map(row => all(row, "td").map(text)),
};"##;

/// Keeps everything that is ever shown of a promotion.
const RECORD: &str = r#"
window.promotions = [];
const shown = document.getElementById("promotion");
new MutationObserver(() => {
  if (!shown.hidden) window.promotions.push(shown.textContent);
}).observe(shown, { subtree: true, childList: true, attributes: true, characterData: true });"#;

/// Every control without a name for those who do not see it.
const NAMELESS: &str = r#"
const named = node => node.getAttribute("aria-label") || node.closest("label")?.textContent.trim() || node.textContent.trim();
return [...document.querySelectorAll("input, select, button, [role=img]")].filter(node => node.checkVisibility() && !named(node)).map(node => node.outerHTML);"#;

/// What has the focus.
const FOCUS: &str = "const at = document.activeElement; return at.id || at.getAttribute('aria-label') || at.className || at.tagName;";

/// A cluster of three regions whose daemons show the page, with a replica, and the pages.
async fn cluster_with_pages() -> (Cluster, [String; 3]) {
    let cluster = Cluster::new(2);
    let ports = [free_port(), free_port(), free_port()];
    for (region, port) in cluster.regions.iter().zip(&ports) {
        cluster.configure_region(region, &format!("http = \"127.0.0.1:{port}\""));
    }
    cluster.add_node("us-east", "n2");
    cluster.start();
    cluster.until_node_streams("us-east", "n2").await;
    let mut writer = cluster.connect("us-east").await;
    let rows = "CREATE TABLE t AS SELECT n, md5(n::text) AS m FROM generate_series(1, 20000) n";
    sqlx::raw_sql(rows).execute(&mut writer).await.unwrap();
    cluster.until_level().await;
    (cluster, ports.map(|port| format!("http://127.0.0.1:{port}/")))
}

/// What the page has to show of a region, by `status --json`.
fn expected(row: &Value) -> Value {
    let (role, state) = (row["role"].as_str().unwrap(), row["state"].as_str().unwrap());
    let mut numbers = json!({
        "Durable LSN": row["durable_lsn"],
        "Timeline": row["timeline"].to_string(),
    });
    match role {
        "primary" => numbers["Commits"] = json!("return"),
        _ => {
            numbers["Applied LSN"] = row["applied_lsn"].clone();
            numbers["Behind"] = json!(format!("{} B", row["behind_bytes"]));
            numbers["Visible lag"] = json!(format!("{} ms", row["visibility_lag_ms"]));
            numbers["Durable lag"] = json!(format!("{} ms", row["durability_lag_ms"]));
        }
    }
    let nodes: Vec<Value> = match row["nodes"].as_array() {
        Some(nodes) => nodes.iter().map(shown_node).collect(),
        None => Vec::new(),
    };
    let copies = ["Zone a ●● live", "Zone b ●● live", "Zone c ●● live"];
    json!({ "state": format!("✓ {role}, {state}"), "numbers": numbers, "copies": copies, "nodes": nodes })
}

fn shown_node(node: &Value) -> Value {
    let (name, state, lag) =
        (&node["name"].as_str().unwrap(), &node["state"].as_str().unwrap(), &node["lag_ms"]);
    json!(format!("✓ {name}: replica, {state}, visible lag {lag} ms"))
}

/// What the page shows of a region, without numbers that only it has, such as rates.
fn shown(page: &Value, expected: &Value, region: &str) -> Value {
    let mut card = page["regions"][region].clone();
    if let Some(numbers) = card["numbers"].as_object_mut() {
        numbers.retain(|name, _| expected["numbers"].get(name).is_some());
    }
    card
}

/// Waits until the page shows what the daemons say.
async fn until_it_shows_status(browser: &Browser, cluster: &Cluster) {
    let begin = now();
    loop {
        let before = cluster.status();
        let page = browser.run(READ).await;
        let status = cluster.status();
        let mut differ = Vec::new();
        for row in status["regions"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            let (expected, shown) = (expected(row), shown(&page, &expected(row), name));
            if expected != shown {
                differ.push(format!("{name}: {expected:#} is said, and {shown:#} shown"));
            }
        }
        let facts = format!("epoch {} · primary {} · ", status["epoch"], status["primary"].as_str().unwrap());
        if !page["facts"].as_str().unwrap().starts_with(&facts) {
            differ.push(format!("{facts} is said, and {} shown", page["facts"]));
        }
        if page["verdict"] != "✓ all is well" {
            differ.push(format!("the verdict is {}", page["verdict"]));
        }
        // What changed between the two questions is asked again. Heartbeats are bytes that never stand still.
        let rows =
            |of: &Value| of["regions"].as_array().unwrap().iter().map(expected).collect::<Vec<Value>>();
        if differ.is_empty() && rows(&before) == rows(&status) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{}\n{}", differ.join("\n"), cluster.logs());
        pause().await;
    }
}

/// A session that is active in `region` until it is dropped.
async fn sleeps(cluster: &Cluster, region: &str, application: &str) -> Task<()> {
    let url = cluster.printed(&["url", "--region", region]);
    let mut session = PgConnection::connect(&format!("{url}&application_name={application}")).await.unwrap();
    Task::spawn("a busy session", async move {
        let _ = sqlx::raw_sql("SELECT pg_sleep(600)").execute(&mut session).await;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_in_a_browser_shows_what_the_daemons_say_as_it_happens() {
    let (cluster, [.., page]) = cluster_with_pages().await;
    let browser = Browser::start().await;
    browser.client.goto(&page).await.unwrap();
    until_it_shows_status(&browser, &cluster).await;

    // A switchover takes less than a second, and each of its steps is seen.
    browser.run(RECORD).await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    let record = cluster.operator().record().await.unwrap();
    let write_gap_us = record.history.last().unwrap().write_gap_us;
    until("the page tells of the promotion", || async {
        let shown = browser.run(READ).await["history"][0].clone();
        shown[1] == "2"
            && shown[2] == "switchover"
            && shown[3] == "us-east → eu-west"
            && shown[5] == "done, nothing lost"
    })
    .await;
    let gap = format!("{} ms", write_gap_us / 1000);
    assert_eq!(browser.run(READ).await["history"][0][4], gap.as_str());
    let seen = browser.run("return window.promotions.join('\\n');").await;
    let seen = seen.as_str().unwrap();
    for step in [
        "switchover from us-east to eu-west",
        "now: us-east stops its writer",
        "now: eu-west promotes its PostgreSQL",
    ] {
        assert!(seen.contains(step), "{step}:\n{seen}");
    }
    cluster.until_level().await;
    cluster.until_node_streams("us-east", "n2").await;
    until_it_shows_status(&browser, &cluster).await;

    // Who is busy, under its name; the controls work by keyboard.
    let busy = sleeps(&cluster, "ap-northeast", "shop").await;
    browser
        .client
        .find(fantoccini::Locator::Id("load-by"))
        .await
        .unwrap()
        .select_by_value("application")
        .await
        .unwrap();
    let top =
        "const row = document.querySelector('#load tbody tr'); return row ? row.cells[0].textContent : '';";
    until("the application is at the top", || async { browser.run(top).await == "shop" }).await;
    let slider = browser.client.find(fantoccini::Locator::Css("#load input[type=range]")).await.unwrap();
    slider.send_keys("\u{E012}").await.unwrap();
    browser
        .client
        .find(fantoccini::Locator::Id("load-zoom"))
        .await
        .unwrap()
        .send_keys("\u{E007}")
        .await
        .unwrap();
    let zoomed = "return load.to - load.from === 60 && load.data.to_s - load.data.from_s === 60;";
    until("a minute is shown", || async { browser.run(zoomed).await == true }).await;
    drop(busy);
    assert_eq!(browser.console().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_read_in_light_and_dark_on_a_phone_and_without_a_mouse() {
    let (cluster, [.., page]) = cluster_with_pages().await;
    let browser = Browser::start().await;
    browser.client.goto(&page).await.unwrap();
    until_it_shows_status(&browser, &cluster).await;
    let mut behind = Vec::new();
    for (width, height) in [(1280, 900), (390, 844)] {
        for scheme in ["light", "dark"] {
            browser.show_as(width, height, scheme).await;
            until_it_shows_status(&browser, &cluster).await;
            assert_eq!(browser.too_faint().await, Vec::<String>::new(), "{width} {scheme}");
            assert_eq!(browser.overflow().await, 0, "{width} {scheme}");
            behind.push(browser.run("return getComputedStyle(document.body).backgroundColor;").await);
        }
    }
    assert!(behind[0] != behind[1] && behind[0] == behind[2] && behind[1] == behind[3], "{behind:?}");

    // The check itself sees what is faint.
    browser
        .run(
            "document.getElementById('title').style.color = getComputedStyle(document.body).backgroundColor;",
        )
        .await;
    assert_eq!(browser.too_faint().await.len(), 1);
    browser.run("document.getElementById('title').style.color = '';").await;

    assert_eq!(browser.run(NAMELESS).await, json!([]));
    browser.show_as(1280, 900, "light").await;
    let body = browser.client.find(fantoccini::Locator::Css("body")).await.unwrap();
    body.send_keys("\u{E004}").await.unwrap();
    assert_eq!(browser.run(FOCUS).await, "skip");
    browser.client.active_element().await.unwrap().send_keys("\u{E007}").await.unwrap();
    assert_eq!(browser.run(FOCUS).await, "main", "the way past the head");
    let mut reached = Vec::new();
    for _ in 0..12 {
        browser.client.active_element().await.unwrap().send_keys("\u{E004}").await.unwrap();
        reached.push(browser.run(FOCUS).await.as_str().unwrap().to_owned());
    }
    for control in
        ["A moment in the last hour of eu-west", "load-by", "load-since", "A moment of the load", "only"]
    {
        assert!(reached.iter().any(|name| name == control), "{control}: {reached:?}");
    }
    assert_eq!(browser.console().await, Vec::<String>::new());
    browser.close().await;
}

/// What `status --watch` shows on a terminal of `columns` and `lines`, as a page for the browser.
async fn terminal(cluster: &Cluster, columns: u16, lines: u16) -> String {
    let rows = |count: u16| std::num::NonZeroU16::new(count).unwrap();
    let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
    let mut command = Command::new(program());
    command.args(["status", "--watch", "--config"]).arg(cluster.file()).arg("--data").arg(cluster.data());
    command.env("TERM", "xterm-256color");
    let taken = || Stdio::from(slave.try_clone().unwrap());
    let mut child = command.stdin(taken()).stdout(taken()).stderr(taken()).spawn().unwrap();
    let reading =
        std::sync::Arc::new(std::sync::Mutex::new(vt100::Parser::new(rows(lines), rows(columns), 0)));
    let parser = reading.clone();
    let reader = runtime::task::Thread::spawn("read a terminal", move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = nix::unistd::read(&master, &mut bytes) {
            parser.lock().unwrap().process(&bytes[..count]);
        }
    })
    .unwrap();
    let begin = now();
    // Lags of a minute, so that there is something to see.
    while begin.elapsed() < Duration::from_secs(40) {
        pause().await;
    }
    let html = {
        let parser = reading.lock().unwrap();
        (0..lines).map(|line| line_of(parser.screen(), line, columns)).collect::<String>()
    };
    child.kill().unwrap();
    child.wait().unwrap();
    drop((slave, reader));
    let style = "margin:0;padding:14px 18px;background:#14181d;color:#d5dbe2;font:14px/1.3 'DejaVu Sans Mono',monospace";
    format!(
        "<!doctype html><meta charset=utf-8><title>status --watch</title><body style=\"margin:0;background:#14181d\"><pre style=\"{style}\">{html}</pre>"
    )
}

fn line_of(screen: &vt100::Screen, line: u16, columns: u16) -> String {
    let color = |color: vt100::Color, other: &'static str| match color {
        vt100::Color::Idx(1 | 9) => "#ff7d73",
        vt100::Color::Idx(2 | 10) => "#58d068",
        vt100::Color::Idx(3 | 11) => "#e2b33f",
        vt100::Color::Idx(6 | 14) => "#45c3cf",
        _ => other,
    };
    let mut html = String::new();
    for column in 0..columns {
        let Some(cell) = screen.cell(line, column) else { continue };
        let (mut front, mut back) = (color(cell.fgcolor(), "#d5dbe2"), color(cell.bgcolor(), "#14181d"));
        if cell.inverse() {
            std::mem::swap(&mut front, &mut back);
        }
        let weight = if cell.bold() { "bold" } else { "normal" };
        let opacity = if cell.dim() { "0.65" } else { "1" };
        let text = match cell.contents() {
            "" => " ",
            text => text,
        };
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        html += &format!(
            "<span style=\"color:{front};background:{back};font-weight:{weight};opacity:{opacity}\">{text}</span>"
        );
    }
    html + "\n"
}

/// Not a test: makes the pictures of the documents, with something going on. `make pictures` runs it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes docs/pictures; make pictures runs it"]
async fn pictures() {
    let (cluster, [page, ..]) = cluster_with_pages().await;
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let bench = |arguments: &[&str]| {
        let mut command = Command::new(postgresql("pgbench"));
        command.args(arguments).arg(&url).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(bench(&["-i", "-q", "-s", "5"]).status().unwrap().success());
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    cluster.until_level_enough("us-east").await;
    let _ = cluster.printed(&["promote", "--region", "us-east"]);
    let mut load = bench(&["-c", "4", "-T", "150", "-R", "150", "-n"]).spawn().unwrap();
    let watched = terminal(&cluster, 132, 34).await;
    let browser = Browser::start().await;
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pictures");
    std::fs::create_dir_all(&to).unwrap();
    let save = async |name: &str| {
        let png = browser.client.screenshot().await.unwrap();
        std::fs::write(to.join(name), png).unwrap();
    };
    let file = tempfile::Builder::new().suffix(".html").tempfile().unwrap();
    std::fs::write(file.path(), watched).unwrap();
    browser.show_as(1180, 660, "dark").await;
    browser.client.goto(&format!("file://{}", file.path().display())).await.unwrap();
    save("watch.png").await;
    browser.client.goto(&page).await.unwrap();
    until("the page is there", || async {
        browser.run(READ).await["regions"].as_object().is_some_and(|all| all.len() == 3)
    })
    .await;
    let since = browser.client.find(fantoccini::Locator::Id("load-since")).await.unwrap();
    since.select_by_value("300").await.unwrap();
    browser.run("document.activeElement.blur(); window.scrollTo(0, 0);").await;
    let begin = now();
    while begin.elapsed() < Duration::from_secs(20) {
        pause().await;
    }
    for (name, width, height, scheme) in [
        ("page.png", 1240, 1500, "light"),
        ("page-dark.png", 1240, 1500, "dark"),
        ("page-phone.png", 390, 1500, "light"),
    ] {
        browser.show_as(width, height, scheme).await;
        let begin = now();
        while begin.elapsed() < Duration::from_secs(2) {
            pause().await;
        }
        save(name).await;
    }
    browser.close().await;
    load.kill().unwrap();
    load.wait().unwrap();
}
