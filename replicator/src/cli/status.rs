//! `replicator status`.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use proto::RegionName;

use crate::operator::Operator;
use crate::render;
use crate::verdict::{self, Verdict};

/// How often `status --watch` asks.
const WATCH: Duration = Duration::from_secs(1);

/// What is shown, and how.
pub(super) struct Shape {
    pub(super) watch: bool,
    pub(super) json: bool,
    pub(super) check: bool,
    pub(super) max_lag: Duration,
}

/// Shows every region, once or with `watch` again and again; returns the exit status that tells how well they
/// are.
pub(super) async fn show(
    operator: &Operator,
    shape: Shape,
    region: Option<RegionName>,
) -> Result<ExitCode, Box<dyn Error>> {
    let Shape { watch, json, check, max_lag } = shape;
    if watch && !json && std::io::stdout().is_terminal() {
        super::watch::run(operator, region, max_lag).await?;
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let asked = operator.status(region.as_ref()).await;
        let verdict = match &asked {
            Ok(status) => verdict::judge(status, max_lag),
            Err(e) => Verdict::unknown(&e.to_string()),
        };
        let text = match asked {
            Ok(status) if check => verdict::check_line(&status, max_lag) + "\n",
            Ok(status) if json => render::json(&status) + "\n",
            Ok(status) => render::table(&status),
            Err(_) if check => verdict.line() + "\n",
            Err(e) if watch && !json => format!("{e}\n"),
            Err(e) => {
                eprintln!("replicator: {e}");
                String::new()
            }
        };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        if !watch {
            if !check && !json && !text.is_empty() && !verdict.findings.is_empty() {
                eprintln!("{}", verdict.line());
            }
            return Ok(ExitCode::from(verdict.level.exit_status()));
        }
        tokio::time::sleep(WATCH).await;
    }
}
