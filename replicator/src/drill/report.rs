//! What a drill did and found: for people, for programs, and for the audit file.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::RegionName;
use proto::messages::ClusterStatus;
use serde::Serialize;
use tokio::time::Instant;

use super::{ms, now};
use crate::operator::Operator;
use crate::units::show_ms;
use runtime::task::Task;

/// How often the region's lag is asked for.
const WATCH: Duration = Duration::from_millis(500);

/// The two kinds of drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// On a clone.
    Rehearsal,
    /// For real, there and back.
    Full,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed,
    /// It could not be looked at; the drill has not passed.
    NotDone,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::NotDone => "NOT DONE",
        })
    }
}

/// A check, and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// More about it; lines.
    pub detail: String,
}

/// A step, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub ms: u64,
    /// More about it.
    pub detail: String,
}

/// How long taking over takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rto {
    /// A rehearsal: from the order to PostgreSQL to the first commit. A full drill: the longer of the two
    /// gaps between commits.
    pub promotion_ms: u64,
    /// What a failover adds at most: the old primary's lease.
    pub lease_ms: u64,
}

/// What would have been lost, had the primary been lost at the drill's moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Rpo {
    /// Redo that was not durable in the region yet.
    pub bytes: u64,
    /// The region's durability lag.
    pub ms: u64,
}

/// The region's visibility lag around the drill; none when it was not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Lag {
    /// As it began.
    pub before_ms: Option<u64>,
    /// The worst while it went on.
    pub worst_ms: Option<u64>,
    /// As it ended.
    pub after_ms: Option<u64>,
}

/// All of a drill: the stable contract of `drill --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which kind.
    pub kind: Kind,
    /// The cluster.
    pub cluster: String,
    /// The region drilled.
    pub region: String,
    /// Who led when it began.
    pub primary: String,
    /// The epoch then.
    pub epoch: u64,
    /// When it began, RFC 3339, UTC.
    pub began: String,
    /// All checks passed.
    pub passed: bool,
    /// A rehearsal: the moment of the primary that was compared. A full drill: where the last timeline
    /// begins.
    pub lsn: String,
    /// For how long writers of the primary may have waited for the moment.
    pub writers_held_ms: u64,
    /// Recovery time.
    pub rto: Rto,
    /// Recovery point.
    pub rpo: Rpo,
    /// Replication, meanwhile.
    pub lag: Lag,
    /// What was done.
    pub steps: Vec<Step>,
    /// What was found.
    pub checks: Vec<Check>,
    #[serde(skip)]
    since: Instant,
}

impl Report {
    /// An empty report of a drill that begins now.
    #[must_use]
    pub fn new(kind: Kind, status: &ClusterStatus, region: &RegionName, lease: Duration) -> Report {
        let began = time::OffsetDateTime::from(std::time::UNIX_EPOCH + clock());
        let began = began.replace_nanosecond(0).unwrap_or(began);
        Report {
            kind,
            cluster: status.cluster.clone(),
            region: region.to_string(),
            primary: status.primary.clone(),
            epoch: status.epoch,
            began: began.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
            passed: false,
            lsn: String::new(),
            writers_held_ms: 0,
            rto: Rto { promotion_ms: 0, lease_ms: ms(lease) },
            rpo: Rpo::default(),
            lag: Lag::default(),
            steps: Vec::new(),
            checks: Vec::new(),
            since: now(),
        }
    }

    /// The step `name` is done, which began when the one before it ended; returns how long it took, ms.
    pub fn step(&mut self, name: &str, detail: &str) -> u64 {
        let step = Step { name: name.into(), ms: ms(self.since.elapsed()), detail: detail.into() };
        let took = step.ms;
        self.steps.push(step);
        self.since = now();
        took
    }

    /// The next step begins now.
    pub fn settle(&mut self) {
        self.since = now();
    }

    /// What a check found.
    pub fn check(&mut self, name: &str, outcome: Outcome, detail: String) {
        self.checks.push(Check { name: name.into(), outcome, detail });
    }

    /// Nothing comes any more.
    #[must_use]
    pub fn finished(mut self) -> Report {
        self.passed =
            !self.checks.is_empty() && self.checks.iter().all(|check| check.outcome == Outcome::Passed);
        self
    }

    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    fn verdict(&self) -> &'static str {
        match (self.passed, self.checks.iter().any(|check| check.outcome == Outcome::Failed)) {
            (true, _) => "passed",
            (false, true) => "FAILED",
            (false, false) => "not complete",
        }
    }

    fn title(&self) -> String {
        let what = match self.kind {
            Kind::Rehearsal => "Rehearsal of a promotion on a clone of",
            Kind::Full => "Full drill, there and back, of",
        };
        format!("{what} {}: {}", self.region, self.verdict())
    }

    fn recovery_time(&self) -> String {
        let promotion = show_ms(self.rto.promotion_ms);
        match self.kind {
            Kind::Rehearsal => format!(
                "{promotion} from the promotion to the first commit; a failover adds what is left of the old primary's lease, at most {}",
                show_ms(self.rto.lease_ms)
            ),
            Kind::Full => format!("{promotion} without writes, the longer of the two"),
        }
    }

    fn recovery_point(&self) -> String {
        match self.kind {
            Kind::Rehearsal => format!(
                "{} of redo, {}, were not durable in {} yet",
                crate::units::show_bytes(self.rpo.bytes),
                show_ms(self.rpo.ms),
                self.region
            ),
            Kind::Full => "nothing: a switchover loses nothing".into(),
        }
    }

    fn lags(&self) -> String {
        let show = |lag: Option<u64>| lag.map_or_else(|| "not known".to_owned(), show_ms);
        format!(
            "before {}, worst {}, after {}",
            show(self.lag.before_ms),
            show(self.lag.worst_ms),
            show(self.lag.after_ms)
        )
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let Report { primary, epoch, began, lsn, .. } = self;
        let mut text = format!("{}\n{began}, primary {primary}, epoch {epoch}, at {lsn}\n\n", self.title());
        for Step { name, ms, detail } in &self.steps {
            text += &format!("  {name:<24} {:>9}  {detail}\n", show_ms(*ms));
        }
        text += &format!("\nRTO  {}\nRPO  {}\n", self.recovery_time(), self.recovery_point());
        text += &format!("lag  {}\n\n", self.lags());
        for Check { name, outcome, detail } in &self.checks {
            let detail = detail.replace('\n', "\n            ");
            let space = if detail.is_empty() { "" } else { ": " };
            text += &format!("  {outcome:<8}  {name}{space}{detail}\n");
        }
        text
    }

    /// For the audit file.
    #[must_use]
    pub fn markdown(&self) -> String {
        let Report { cluster, region, primary, epoch, began, lsn, .. } = self;
        let mut text = format!("# {}\n\n| | |\n|---|---|\n", self.title());
        let facts = [
            ("Cluster", cluster.clone()),
            ("Region", region.clone()),
            ("Primary when it began", format!("{primary}, epoch {epoch}")),
            ("Began", began.clone()),
            ("At", lsn.clone()),
            ("Recovery time (RTO)", self.recovery_time()),
            ("Recovery point (RPO)", self.recovery_point()),
            ("Lag of the region", self.lags()),
            ("Writers of the primary held for at most", show_ms(self.writers_held_ms)),
        ];
        text.extend(facts.iter().map(|(name, fact)| format!("| {name} | {} |\n", cell(fact))));
        text += "\n| step | took | |\n|---|---|---|\n";
        let steps = self.steps.iter();
        text.extend(steps.map(|s| format!("| {} | {} | {} |\n", s.name, show_ms(s.ms), cell(&s.detail))));
        text += "\n| check | | |\n|---|---|---|\n";
        let checks = self.checks.iter();
        text.extend(checks.map(|c| format!("| {} | {} | {} |\n", c.name, c.outcome, cell(&c.detail))));
        text
    }
}

/// Text in a cell of a table of Markdown.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', "<br>")
}

/// Asks for the region's lag again and again.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Lag>>,
    task: Task<()>,
}

impl Watch {
    /// Begins to ask.
    pub fn begin(operator: Operator, region: String) -> Watch {
        let seen = Arc::new(Mutex::new(Lag::default()));
        let watched = seen.clone();
        let task = Task::spawn("watch the lag", async move {
            loop {
                if let Some(lag_ms) = lag(&operator, &region).await {
                    let mut seen = watched.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.before_ms.get_or_insert(lag_ms);
                    seen.worst_ms = seen.worst_ms.max(Some(lag_ms));
                    seen.after_ms = Some(lag_ms);
                }
                tokio::time::sleep(WATCH).await;
            }
        });
        Watch { seen, task }
    }

    /// What was seen.
    pub async fn end(self) -> Lag {
        self.task.end();
        // It was cancelled.
        let _ = self.task.await;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn lag(operator: &Operator, region: &str) -> Option<u64> {
    let status = operator.status(None).await.map_err(|e| e.to_string()).ok()?;
    status.regions.iter().find(|row| row.name == region)?.visibility_lag_ms
}

fn clock() -> Duration {
    Duration::from_micros(u64::try_from(runtime::clock::wall_us()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let status = ClusterStatus {
            cluster: "c".into(),
            primary: "us-east".into(),
            epoch: 3,
            ..ClusterStatus::default()
        };
        let region = "eu-west".parse().unwrap();
        let mut report = Report::new(Kind::Rehearsal, &status, &region, Duration::from_secs(5));
        report.step("clone", "1 MB in 2 files, copied");
        report
    }

    #[test]
    fn a_drill_has_passed_only_when_every_check_was_done_and_passed() {
        assert!(!report().finished().passed, "nothing was checked");
        for (outcome, passed) in
            [(Outcome::Passed, true), (Outcome::Failed, false), (Outcome::NotDone, false)]
        {
            let mut report = report();
            report.check("a", Outcome::Passed, String::new());
            report.check("b", outcome, "x | y\nz".into());
            let report = report.finished();
            assert_eq!(report.passed, passed, "{outcome}");
            assert!(report.markdown().contains("| x \\| y<br>z |"), "{}", report.markdown());
            assert!(report.text().contains(&format!("{outcome}")), "{}", report.text());
            let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
            assert_eq!((&json["passed"], &json["kind"]), (&passed.into(), &"rehearsal".into()));
        }
    }
}
