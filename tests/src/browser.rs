//! A real browser: Debian's chromium, driven by its chromedriver.

use std::process::{Child, Command, Stdio};

use fantoccini::error::CmdError;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;

use crate::{free_port, until};

/// What stands in for the text of a page's elements whose contrast is too low: WCAG 2.2, level AA.
const CONTRAST: &str = include_str!("browser/contrast.js");

/// A browser without a window, with a profile of its own. It ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    /// What drives it.
    pub client: Client,
    driver: Child,
    profile: TempDir,
}

/// A command of chromedriver's own.
#[derive(Debug)]
struct Own {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Own {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

impl Browser {
    /// Starts one.
    ///
    /// # Panics
    /// When chromium or chromedriver is not installed.
    pub async fn start() -> Browser {
        let profile = tempfile::Builder::new().prefix("rpl-browser-").tempdir().unwrap();
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("chromedriver (Debian: chromium-driver): {e}"));
        until("chromedriver listens", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        let directory = format!("--user-data-dir={}", profile.path().display());
        // As root, as in a container, chromium has no sandbox; it sees only the daemons of a test.
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &directory];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!("it is written above") };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        Browser { client, driver, profile }
    }

    /// Runs `script`, the body of a function, in the page.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// What the page's console has said since this was last asked, of any weight.
    pub async fn console(&self) -> Vec<String> {
        let logged = self.own("se/log", json!({ "type": "browser" })).await.unwrap();
        logged.as_array().unwrap().iter().map(Value::to_string).collect()
    }

    /// Makes the window of this size, in CSS pixels, and has it prefer light or dark.
    pub async fn show_as(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    /// What is hard to read: each text whose contrast with what is behind it is too low, with both colours.
    pub async fn too_faint(&self) -> Vec<String> {
        let found = self.run(CONTRAST).await;
        found.as_array().unwrap().iter().map(Value::to_string).collect()
    }

    /// How many pixels the page is wider than the window.
    pub async fn overflow(&self) -> i64 {
        let script = "const page = document.documentElement; return page.scrollWidth - page.clientWidth;";
        self.run(script).await.as_i64().unwrap()
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.own("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await.unwrap();
    }

    async fn own(&self, path: &'static str, body: Value) -> Result<Value, CmdError> {
        self.client.issue_cmd(Own { path, body }).await
    }

    /// Ends it.
    pub async fn close(self) {
        self.client.clone().close().await.unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        // Where the session was not closed chromium goes on: known by the profile, which is no other's.
        let profile = self.profile.path().as_os_str().as_encoded_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if command.windows(profile.len()).any(|part| part == profile) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
